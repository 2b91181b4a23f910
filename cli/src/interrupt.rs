//! Handles Ctrl-C, SIGTERM and SIGHUP. The first signal asks the command to stop; the second drops
//! it.

use std::time::Duration;

use potluck_core::process::{Hangups, StopSignals};
use tokio_util::sync::CancellationToken;

use crate::error::{CommandError, ExitStatus};

/// How long a command may take to stop. Longer than the peer's own shutdown grace period.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Streams of the three signals.
#[derive(Debug)]
pub(crate) struct Interrupts {
    signals: StopSignals,
}

impl Interrupts {
    /// Installs handlers for the signals. Returns the hangups that ask a service to read its
    /// settings again.
    ///
    /// # Errors
    /// If the operating system refuses a handler.
    pub(crate) fn listen(is_service: bool) -> std::io::Result<(Self, Hangups)> {
        let (signals, hangups) = match is_service {
            true => StopSignals::of_service()?,
            false => (StopSignals::listen()?, Hangups::none()),
        };
        Ok((Self { signals }, hangups))
    }

    /// Waits for the next signal. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        self.signals.next().await;
    }

    /// Runs `work` and cancels `stop` at the first signal. Drops `work` at the second signal, or if
    /// it does not stop within [`STOP_TIMEOUT`].
    ///
    /// # Errors
    /// As `work`; [`ExitStatus::Interrupted`] if `work` was dropped.
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
                let seconds = STOP_TIMEOUT.as_secs();
                Err(CommandError::interrupted(format!("the command did not stop within {seconds} s")))
            }
        }
    }
}
