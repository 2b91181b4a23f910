//! Ctrl-C, SIGTERM and SIGHUP: the first asks the command to stop, the second stops waiting for it.

use std::time::Duration;

use potluck_core::process::StopSignals;
use tokio_util::sync::CancellationToken;

use crate::error::{CommandError, ExitStatus};

/// How long a command may take to stop: longer than a peer's own grace.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// All of these signals.
#[derive(Debug)]
pub(crate) struct Interrupts {
    signals: StopSignals,
}

impl Interrupts {
    /// Takes over the signals from their defaults.
    ///
    /// # Errors
    /// Where the operating system gives no handler.
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            signals: StopSignals::listen()?,
        })
    }

    /// The next signal. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        self.signals.next().await;
    }

    /// Runs `work`, which watches `stop`, to its end; or drops it at the second signal, or when it does not stop in time.
    ///
    /// # Errors
    /// As `work`; interrupted where it was dropped.
    pub(crate) async fn run(
        &mut self,
        stop: &CancellationToken,
        work: impl Future<Output = Result<(), CommandError>>,
    ) -> Result<(), CommandError> {
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = self.next() => stop.cancel(),
        }
        tokio::select! {
            done = &mut work => done,
            () = self.next() => Err(CommandError::AlreadyReported(ExitStatus::Interrupted)),
            () = tokio::time::sleep(STOP_TIMEOUT) => {
                Err(CommandError::interrupted(format!("gave up waiting for an orderly stop after {} s", STOP_TIMEOUT.as_secs())))
            }
        }
    }
}
