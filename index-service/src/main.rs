//! `potluck-index`: the index as a standalone program.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};
use potluck_core::{
    configuration::{Configured, ServiceCommand},
    process::{self, logging},
};
use potluck_index::{Options, run};

/// Run an index, which knows which peers have which files
#[derive(Debug, Parser)]
#[command(
    name = "potluck-index",
    version = potluck_core::VERSION,
    after_help = potluck_index::Options::help_footer("potluck-index"),
    max_term_width = 100
)]
struct CommandLine {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let service = ServiceCommand::alone::<Options>("index");
    let words = std::env::args_os().collect();
    let configured = Configured::<Options>::read(CommandLine::command(), service, words)
        .unwrap_or_else(|error| error.exit());
    if configured.options.print_config {
        print!("{}", configured.settings);
        return ExitCode::SUCCESS;
    }
    process::raise_file_limit();
    match serve(configured) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("potluck-index: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(configured: Configured<Options>) -> anyhow::Result<()> {
    let defaults = logging::LogDefaults::of_service("potluck-index");
    let traces = logging::init(&configured.options.log, defaults, std::io::stderr);
    let (shutdown, hangups) = process::service_signals()?;
    let ran = run(configured, hangups, shutdown).await;
    traces.shut_down().await;
    Ok(ran?)
}
