//! `potluck-index`: the index as a program of its own.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser;
use potluck_index::{Options, run};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The index of Potluck: knows which peers have which files.
///
/// Prints one line, `listening on ADDR`, when it is ready; logs go to standard error (POTLUCK_LOG or RUST_LOG sets how much, as in
/// POTLUCK_LOG=debug). Ends cleanly on SIGINT and SIGTERM.
#[derive(Debug, Parser)]
#[command(name = "potluck-index", version)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("POTLUCK_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
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
    });
    Ok(run(options, shutdown).await?)
}
