//! Process setup of a service: logging, limits, and shutdown on signals.

use std::io::IsTerminal as _;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Exit code after an interrupt, by shell convention: 128 plus the number of SIGINT.
const INTERRUPTED: i32 = 130;

/// Libraries whose warnings remote clients can trigger without limit, such as one line for each
/// invalid HTTP/2 frame.
const NOISY: &[&str] = &["h2", "hyper", "hyper_util", "tonic", "tower"];

/// The section of a service's help about its log.
pub const LOG_HELP: &str = "\
Environment:
  POTLUCK_LOG, RUST_LOG    log filter, as in POTLUCK_LOG=potluck_peer=debug
                           [default: info]; logs go to standard error";

/// The default log filter at `level`: only errors from libraries whose log remote clients could
/// fill.
pub fn default_filter(level: &str) -> String {
    let quiet = NOISY.iter().map(|library| format!(",{library}=error"));
    std::iter::once(level.to_owned()).chain(quiet).collect()
}

/// Sets up logging to standard error, coloured only on a terminal.
///
/// `POTLUCK_LOG`, or else `RUST_LOG`, sets the filter, as in `POTLUCK_LOG=potluck_peer=debug`. The
/// default is `info`, and only errors from the HTTP/2 libraries.
pub fn init_logging() {
    let filter = EnvFilter::try_from_env("POTLUCK_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new(default_filter("info")));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // An internal error would be reported to standard error with a macro that panics on
        // failure.
        .log_internal_errors(false)
        .init();
}

/// Raises the limit of open files to its maximum. Shells start programs with 1,024 for
/// compatibility with old ones; hundreds of concurrent transfers need more.
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

/// Keeps other processes of this user from reading this one's memory, and the system from writing it
/// to a core dump: it holds private keys. Only Linux has this setting.
pub fn protect_memory() {
    #[cfg(target_os = "linux")]
    if let Err(error) =
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::debug!(%error, "the memory of this process stays readable");
    }
}

/// Makes a write beyond the file size limit (`ulimit -f`) fail with an error, as on a full disk,
/// instead of ending the process with SIGXFSZ. The effect is permanent. Must be called inside a
/// tokio runtime.
///
/// # Errors
/// The system refused to install a signal handler.
pub fn survive_file_size_limit() -> std::io::Result<()> {
    // The handler replaces the default action and stays installed after the stream is dropped.
    signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())).map(drop)
}

/// Returns a token that SIGINT, SIGTERM or SIGHUP cancels. A second signal ends the process
/// immediately. That is safe: acknowledged data is already on disk, and verified data is resumed.
///
/// # Errors
/// The system refused to install a signal handler.
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

/// The signals that ask a process to stop: SIGINT, SIGTERM, and SIGHUP when its terminal or
/// session ends.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` if SIGHUP was ignored at start, as under `nohup`.
    hangup: Option<Signal>,
}

impl StopSignals {
    /// Replaces the default actions of the signals.
    ///
    /// # Errors
    /// The system refused to install a signal handler.
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

    /// Waits for the next signal. Cancel-safe: a signal lost by a cancelled call has no further
    /// use.
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

/// Whether SIGHUP was ignored when the process started. Only Linux reports this without unsafe
/// code; elsewhere the answer is `false`.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // SIGHUP is signal 1, the lowest bit.
    mask.is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use std::{io, sync::Arc};

    use super::*;

    /// Captures the log.
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
    fn warnings_that_remote_clients_can_cause_are_not_logged_by_default() {
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
