//! `potluck-peer`: the peer service as a program.

use std::{io::Write as _, process::ExitCode, time::Duration};

use clap::Parser;
use potluck_core::process;
use potluck_peer::{Options, run};

/// Shares files with other peers and fetches from many at once, every piece verified
///
/// What is dropped into `files` in the peer's folder is shared; downloads land there. `potluck` is the command line that talks to it.
/// Logs go to standard error (POTLUCK_LOG or RUST_LOG sets how much). Ends cleanly on SIGINT and SIGTERM.
#[derive(Debug, Parser)]
#[command(name = "potluck-peer", version)]
struct CommandLine {
    #[command(flatten)]
    options: Options,
}

/// How long a read that hangs may hold up the program's end.
const LAST_READS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let line = CommandLine::parse();
    process::init_logging();
    process::raise_file_limit();
    match serve(line.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be left to read it.
            let _ = writeln!(std::io::stderr(), "potluck-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async { Ok(run(options, process::shutdown_on_signals()?).await?) });
    // Everything that must be on the disk is there; a disk that hangs must not keep the program.
    runtime.shutdown_timeout(LAST_READS);
    ended
}
