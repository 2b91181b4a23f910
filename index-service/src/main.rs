//! `potluck-index`: the index as a standalone program.

use std::process::ExitCode;

use clap::Parser;
use potluck_core::process;
use potluck_index::{Options, run};

/// Run an index, which knows which peers have which files
#[derive(Debug, Parser)]
#[command(
    name = "potluck-index",
    version,
    after_help = potluck_index::Options::help_footer("potluck-index"),
    max_term_width = 100
)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    process::init_logging();
    process::raise_file_limit();
    match start(arguments.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("potluck-index: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn start(options: Options) -> anyhow::Result<()> {
    Ok(run(options, process::shutdown_on_signals()?).await?)
}
