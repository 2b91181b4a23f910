//! Process setup of a service: log and traces, limits, and signals.

pub mod logging;
pub mod traces;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// Exit code after an interrupt, by shell convention: 128 plus the number of SIGINT.
const INTERRUPTED: i32 = 130;

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

/// Returns a token that SIGINT or SIGTERM cancels, and the hangups that ask for a reload. A second
/// signal ends the process immediately. That is safe: acknowledged data is already on disk, and
/// verified data is resumed.
///
/// # Errors
/// The system refused to install a signal handler.
pub fn service_signals() -> std::io::Result<(CancellationToken, Hangups)> {
    survive_file_size_limit()?;
    let shutdown = CancellationToken::new();
    let (mut signals, hangups) = StopSignals::of_service()?;
    let token = shutdown.clone();
    tokio::spawn(async move {
        signals.next().await;
        token.cancel();
        signals.next().await;
        std::process::exit(INTERRUPTED);
    });
    Ok((shutdown, hangups))
}

/// The hangups of a service that ask it to read its settings again. Each clone gets all of them.
#[derive(Debug, Clone)]
pub struct Hangups(watch::Receiver<()>);

impl Hangups {
    /// No hangup ever.
    pub fn none() -> Self {
        Self(watch::channel(()).1)
    }

    /// Waits for the next hangup; several at once count as one. Cancel-safe.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// The signals that ask a process to stop: SIGINT, SIGTERM, and SIGHUP when its terminal or
/// session ends. For a service that keeps its terminal or has none, SIGHUP asks for a reload.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` if SIGHUP was ignored at start, as under `nohup`.
    hangup: Option<Signal>,
    /// For a service.
    reload: Option<Reload>,
}

#[derive(Debug)]
struct Reload {
    had_terminal: bool,
    sender: watch::Sender<()>,
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
            reload: None,
        })
    }

    /// Like [`Self::listen`], and returns the hangups that ask for a reload.
    ///
    /// # Errors
    /// Those of [`Self::listen`].
    pub fn of_service() -> std::io::Result<(Self, Hangups)> {
        let (sender, receiver) = watch::channel(());
        let reload = Reload {
            had_terminal: has_terminal(),
            sender,
        };
        let signals = Self {
            reload: Some(reload),
            ..Self::listen()?
        };
        Ok((signals, Hangups(receiver)))
    }

    /// Waits for the next signal to stop. Cancel-safe: a signal lost by a cancelled call has no
    /// further use.
    pub async fn next(&mut self) {
        loop {
            let hangup = async {
                match &mut self.hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = hangup => match &self.reload {
                    Some(reload) if !reload.had_terminal || has_terminal() => {
                        reload.sender.send_replace(());
                    }
                    _ => return,
                }
            }
        }
    }
}

/// Whether this process has a controlling terminal (credentials(7)). It has none under systemd and
/// in most containers, and loses it when its window or connection closes.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
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
