//! `potluck-index`: the index as a standalone program.

use std::process::ExitCode;

use clap::Parser;
use potluck_core::process;
use potluck_index::{Options, run};

/// The Potluck index: knows which peers have which files.
///
/// Prints one line, `listening on ADDR`, when it is ready. Logs go to standard error; POTLUCK_LOG
/// or RUST_LOG sets the level, as in POTLUCK_LOG=debug. Shuts down cleanly on SIGINT and SIGTERM.
#[derive(Debug, Parser)]
#[command(name = "potluck-index", version)]
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
