//! What every service does as a program: logs, and an end on a signal.

use std::io::IsTerminal as _;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Exit code of a program that was interrupted, as shells have it: 128 and SIGINT.
const INTERRUPTED: i32 = 130;

/// Logs to standard error, in colour only on a terminal. `POTLUCK_LOG`, or else `RUST_LOG`, says how much, as in
/// `POTLUCK_LOG=potluck_peer=debug`; `info` unless set.
pub fn log() {
    let filter = EnvFilter::try_from_env("POTLUCK_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // What cannot be told there would be told there as well, by a macro that panics.
        .log_internal_errors(false)
        .init();
}

/// Takes as many open files as the system lets this program have. Shells begin programs with 1,024, for the sake of old ones that
/// cannot do with more; hundreds of transfers at once need more.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// A token that SIGINT or SIGTERM cancels. The second signal ends the program at once: what is acknowledged is on disk by then, and
/// what was verified is resumed from.
///
/// # Errors
/// Where the system gives no signal handlers.
pub fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let told = shutdown.clone();
    tokio::spawn(async move {
        // Cancel-safe: a signal that one arm misses is not needed any more.
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        told.cancel();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(INTERRUPTED);
    });
    Ok(shutdown)
}
