//! The `potluck-peer` program: runs the peer service.

use std::{io::Write as _, process::ExitCode, time::Duration};

use clap::Parser;
use potluck_core::process;
use potluck_peer::{Options, run};

/// Run a peer, which shares, serves and downloads files
#[derive(Debug, Parser)]
#[command(
    name = "potluck-peer",
    version,
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
    let line = CommandLine::parse();
    process::init_logging();
    process::raise_file_limit();
    match serve(line.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The error is ignored: stderr may be closed.
            let _ = writeln!(std::io::stderr(), "potluck-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended =
        runtime.block_on(async { Ok(run(options, process::shutdown_on_signals()?).await?) });
    // All state is already on disk, so a hanging disk must not block the exit.
    runtime.shutdown_timeout(LAST_READS);
    ended
}
