//! `potluck-peer`: the peer service as a program.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use potluck_peer::{Options, run};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Shares files with other peers and fetches from many at once, every piece verified
///
/// What is dropped into `files` in the peer's folder is shared; downloads land there. `potluck` is the command line that talks to it.
#[derive(Debug, Parser)]
#[command(name = "potluck-peer", version)]
struct Line {
    #[command(flatten)]
    options: Options,
}

/// How long a read that hangs may hold up the program's end.
const LAST_READS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let line = Line::parse();
    // Logs to stderr, results to stdout. POTLUCK_LOG as `info`, `debug`, or `potluck_peer=trace`.
    let filter = EnvFilter::try_from_env("POTLUCK_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match serve(line.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("potluck-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
            // Asked twice: at once. Whatever was verified is resumed from.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(130);
        });
        Ok(run(options, shutdown).await?)
    });
    // Everything that must be on the disk is there; a disk that hangs must not keep the program.
    runtime.shutdown_timeout(LAST_READS);
    ended
}
