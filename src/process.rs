//! What every service does as a program: logs, and an end on a signal.

use std::io::IsTerminal as _;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Exit code of a program that was interrupted, as shells have it: 128 and SIGINT.
const INTERRUPTED: i32 = 130;

/// What libraries log that strangers can cause as often as they like: a line for each frame that
/// breaks the rules of HTTP/2.
const NOISY: &[&str] = &["h2", "hyper", "hyper_util", "tonic", "tower"];

/// The filter of logs at this level, where nothing else is asked for: errors only of what is in
/// [`NOISY`].
pub fn default_filter(level: &str) -> String {
    let quiet = NOISY.iter().map(|library| format!(",{library}=error"));
    std::iter::once(level.to_owned()).chain(quiet).collect()
}

/// Logs to standard error, in colour only on a terminal. `POTLUCK_LOG`, or else `RUST_LOG`, says
/// how much, as in `POTLUCK_LOG=potluck_peer=debug`; unless set, `info`, and errors only of the
/// libraries that speak HTTP/2.
pub fn init_logging() {
    let filter = EnvFilter::try_from_env("POTLUCK_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new(default_filter("info")));
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
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Has a write beyond the largest file that the process may write (`ulimit -f`) fail with an error, as on a full disk, instead of ending
/// the program with SIGXFSZ. Once set it stays so. Has to be called in a runtime.
///
/// # Errors
/// Where the system gives no signal handlers.
pub fn survive_file_size_limit() -> std::io::Result<()> {
    // A handler takes the place of the default action, and stays when the stream of signals is dropped.
    signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())).map(drop)
}

/// A token that SIGINT, SIGTERM or SIGHUP cancels. The second signal ends the program at once: what
/// is acknowledged is on disk by then, and what was verified is resumed from.
///
/// # Errors
/// Where the system gives no signal handlers.
pub fn shutdown_on_signals() -> std::io::Result<CancellationToken> {
    survive_file_size_limit()?;
    let shutdown = CancellationToken::new();
    let mut signals = StopSignals::listen()?;
    let token = shutdown.clone();
    tokio::spawn(async move {
        signals.next().await;
        token.cancel();
        signals.next().await;
        std::process::exit(INTERRUPTED);
    });
    Ok(shutdown)
}

/// The signals that ask a program to end: SIGINT, SIGTERM, and SIGHUP where its terminal or session
/// goes away.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` where whoever started the program ignores it, as `nohup` does.
    hangup: Option<Signal>,
}

impl StopSignals {
    /// Takes them over from their defaults.
    ///
    /// # Errors
    /// Where the system gives no signal handlers.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: match ignores_hangup() {
                true => None,
                false => Some(signal(SignalKind::hangup())?),
            },
        })
    }

    /// The next one. Cancel-safe: a signal that one arm misses is not needed any more.
    pub async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether SIGHUP was ignored when the program began. Only Linux tells without unsafe code;
/// elsewhere it is taken not to be.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Signal 1 is the lowest bit.
    mask.is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use std::{io, sync::Arc};

    use super::*;

    /// What is logged ends up here.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn warnings_of_libraries_that_strangers_cause_are_not_logged_by_default() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(default_filter("info")))
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "h2::proto::streams", "a flood");
            tracing::warn!(target: "hyper::proto", "a flood");
            tracing::error!(target: "h2::proto", "a defect");
            tracing::info!(target: "potluck_index::server", "ready");
        });
        let text = String::from_utf8(written.0.lock().clone()).unwrap();
        assert!(!text.contains("a flood"), "{text}");
        assert!(text.contains("a defect") && text.contains("ready"), "{text}");
    }
}
