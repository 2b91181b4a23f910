//! The `potluck-peer` program: runs the peer service.

use std::{io::Write as _, process::ExitCode, time::Duration};

use clap::{CommandFactory as _, Parser};
use potluck_core::{
    configuration::{Configured, ServiceCommand},
    process::{self, logging},
};
use potluck_peer::{Options, run};

/// Run a peer, which shares, serves and downloads files
#[derive(Debug, Parser)]
#[command(
    name = "potluck-peer",
    version = potluck_core::VERSION,
    after_help = potluck_peer::Options::help_footer("potluck-peer"),
    max_term_width = 100
)]
struct CommandLine {
    #[command(flatten)]
    options: Options,
}

/// How long a hanging read may delay the exit.
const LAST_READS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let service = ServiceCommand::alone::<Options>("peer");
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
            // The error is ignored: stderr may be closed.
            let _ = writeln!(std::io::stderr(), "potluck-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(configured: Configured<Options>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let defaults = logging::LogDefaults::of_service("potluck-peer");
        let traces = logging::init(&configured.options.log, defaults, std::io::stderr);
        let (shutdown, hangups) = process::service_signals()?;
        let ran = run(configured, hangups, shutdown).await;
        traces.shut_down().await;
        Ok(ran?)
    });
    // All state is already on disk, so a hanging disk must not block the exit.
    runtime.shutdown_timeout(LAST_READS);
    ended
}
