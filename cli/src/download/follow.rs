//! Follows a download until it ends, the user interrupts it, or it stalls for too long.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use potluck_core::{Problem, Reason};
use serde_json::json;

use crate::{
    context::{CommandContext, PeerHandle},
    control::{
        DownloadRequest,
        model::{PeerState, Transfer, TransferState},
    },
    download::display::{SingleDisplay, TransferDisplay},
    error::CommandError,
    output::text,
};

/// Minimum time between two progress objects: often enough for a display, and not too much for a
/// log.
const OBJECT_INTERVAL: Duration = Duration::from_millis(250);

/// How long a transfer may wait without progress.
#[derive(Debug)]
pub(crate) struct WaitLimit {
    /// The maximum wait.
    pub(crate) wait: Duration,
    /// The error to report when the wait is over, if it is more precise than the transfer's own
    /// error.
    pub(crate) error: Option<CommandError>,
}

/// Starts a download and shows its progress. `resume` is the shell command that resumes it after an
/// interruption; `None` if no partial content is kept.
///
/// # Errors
/// The transfer's error; [`crate::error::ExitStatus::Interrupted`] after Ctrl-C, with the verified
/// pieces kept.
pub(crate) async fn follow(
    context: &CommandContext,
    peer: &PeerHandle,
    request: &DownloadRequest,
    wait_limit: WaitLimit,
    resume: Option<&str>,
) -> Result<Transfer, CommandError> {
    let mut display = SingleDisplay::new(context.out.bars());
    follow_on(&mut display, context, peer, request, wait_limit, resume).await
}

/// As [`follow`], with the progress on `display`.
///
/// # Errors
/// As [`follow`].
pub(crate) async fn follow_on(
    display: &mut impl TransferDisplay,
    context: &CommandContext,
    peer: &PeerHandle,
    request: &DownloadRequest,
    wait_limit: WaitLimit,
    resume: Option<&str>,
) -> Result<Transfer, CommandError> {
    let followed = follow_events(display, context, peer, request, wait_limit, resume).await;
    display.end(followed.is_ok());
    followed
}

async fn follow_events(
    display: &mut impl TransferDisplay,
    context: &CommandContext,
    peer: &PeerHandle,
    request: &DownloadRequest,
    wait_limit: WaitLimit,
    resume: Option<&str>,
) -> Result<Transfer, CommandError> {
    let mut stdout_is_open = true;
    let mut events = pin!(
        context
            .stoppable(async { Ok(peer.control.download(request).await?) })
            .await?
    );
    let mut last: Option<Transfer> = None;
    let mut reported_at: Option<Instant> = None;
    let mut stall_watch = StallWatch::default();
    loop {
        let event = tokio::select! {
            // Cancel-safe: an event that is not taken stays in the stream; the other arms only
            // wait.
            event = events.next() => event,
            () = context.stop.cancelled() => {
                return Err(stopped(peer, last, resume).await);
            }
            () = stall_watch.timed_out(wait_limit.wait) => {
                return Err(wait_limit_reached(context, peer, last, wait_limit, resume).await);
            }
        };
        let transfer = match event {
            Some(Ok(transfer)) => transfer,
            Some(Err(problem)) => return Err(stream_error(problem, last.is_some(), resume)),
            None => return Err(stream_error(stream_ended_early(), last.is_some(), resume)),
        };
        stall_watch.update(context, &transfer, wait_limit.wait);
        display.show(&transfer);
        if stdout_is_open
            && context.out.is_json()
            && !context.out.is_quiet()
            && !transfer.state.has_ended()
        {
            let due =
                reported_at.is_none_or(|reported_at| reported_at.elapsed() >= OBJECT_INTERVAL);
            if due {
                reported_at = Some(Instant::now());
                match context.out.print_object(&progress(&transfer)) {
                    // The download continues if stdout is closed.
                    Err(CommandError::BrokenPipe) => stdout_is_open = false,
                    reported_at => reported_at?,
                }
            }
        }
        match transfer.state {
            TransferState::Done => return Ok(transfer),
            TransferState::Failed => return Err(failed(&transfer, wait_limit)),
            TransferState::Cancelled => {
                return Err(CommandError::new(
                    Reason::Cancelled,
                    format!("transfer {} was cancelled", transfer.number),
                ));
            }
            TransferState::Paused => return Err(paused(context, &transfer)),
            _ if request.detach => return Ok(transfer),
            _ => last = Some(transfer),
        }
    }
}

/// Tracks how long a transfer has been stalled, and which reason was reported.
#[derive(Debug, Default)]
pub(super) struct StallWatch {
    since: Option<tokio::time::Instant>,
    done: u64,
    reported: Option<Reason>,
}

impl StallWatch {
    pub(super) fn update(&mut self, context: &CommandContext, transfer: &Transfer, wait: Duration) {
        let is_stalled = transfer.state == TransferState::Waiting && transfer.done <= self.done;
        // A disk that hangs may recover: report it, but do not time out.
        let hangs = transfer
            .error
            .as_ref()
            .is_some_and(|error| error.reason == Reason::TargetNotWritable);
        if !is_stalled {
            self.reported = None;
        }
        self.since = match is_stalled && !hangs {
            true => self.since.or_else(|| Some(tokio::time::Instant::now())),
            false => None,
        };
        self.done = transfer.done;
        // On a terminal, the progress lines show the reason.
        if let Some(error) = transfer.error.as_ref().filter(|_| is_stalled && !wait.is_zero()) {
            if self.reported != Some(error.reason) && !context.out.shows_progress() {
                context
                    .out
                    .note(format_args!("waiting: {}", text::escape(&error.message)));
            }
            self.reported = Some(error.reason);
        }
    }

    /// Completes when there was no progress for `wait`.
    pub(super) async fn timed_out(&self, wait: Duration) {
        match self.since.and_then(|since| since.checked_add(wait)) {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }
}

fn progress(transfer: &Transfer) -> serde_json::Value {
    json!({
        "event": "progress",
        "id": transfer.file,
        "state": transfer.state,
        "bytes": transfer.done,
        "total": transfer.total,
        "unverified_bytes": transfer.unverified,
        "bytes_per_second": transfer.bytes_per_second,
        "peers": transfer.peers.iter().filter(|peer| peer.state == PeerState::Active).count(),
    })
}

/// How much is kept, as the end of a sentence.
fn kept_text(transfer: &Transfer) -> String {
    match transfer.total {
        Some(total) => {
            format!(
                "kept {} of {} ({} %)",
                text::size(transfer.done),
                text::size(total),
                text::percent(transfer.done, total)
            )
        }
        None => "nothing was downloaded yet".to_owned(),
    }
}

/// The error for a transfer that someone else paused. It is not resumed here, because the pause may
/// be intended.
fn paused(context: &CommandContext, transfer: &Transfer) -> CommandError {
    let number = transfer.number;
    CommandError::new(Reason::Cancelled, format!("transfer {number} was paused")).hint(format!(
        "resume it: {}",
        transfers_command(context, "resume", number)
    ))
}

/// The shell command for an action on a transfer.
fn transfers_command(context: &CommandContext, action: &str, number: u64) -> String {
    context
        .shell_command(["potluck", "transfers", action, &number.to_string()].map(ToOwned::to_owned))
}

/// Pauses the transfer if the peer runs in this process. Another peer may have other clients that
/// follow the transfer; it pauses the transfer itself when the last of their streams closes, unless
/// the transfer is detached.
async fn pause_own(peer: &PeerHandle, transfer: Transfer) -> Transfer {
    match peer.ends_with_command() {
        true => peer.control.pause(transfer.number).await.unwrap_or(transfer),
        false => transfer,
    }
}

/// Hint for a transfer at a peer that outlives the command.
const STAYS_PAUSED: &str =
    "the peer pauses the transfer, unless it is detached or another command follows it";

async fn stopped(peer: &PeerHandle, last: Option<Transfer>, resume: Option<&str>) -> CommandError {
    let Some(resume) = resume else {
        return CommandError::interrupted("interrupted");
    };
    let Some(last) = last else {
        return CommandError::interrupted("nothing was downloaded yet");
    };
    let unverified = last.unverified_to_show();
    let transfer = pause_own(peer, last).await;
    let resume_hint = format!("resume with: {resume}");
    match (peer.ends_with_command(), unverified) {
        (false, _) => CommandError::interrupted(kept_text(&transfer))
            .hint(STAYS_PAUSED)
            .hint(resume_hint),
        (true, 0) => CommandError::interrupted(kept_text(&transfer)).hint(resume_hint),
        (true, unverified) => CommandError::interrupted(format!(
            "{}; {} of incomplete pieces will be downloaded again",
            kept_text(&transfer),
            text::size(unverified)
        ))
        .hint(resume_hint),
    }
}

async fn wait_limit_reached(
    context: &CommandContext,
    peer: &PeerHandle,
    last: Option<Transfer>,
    wait_limit: WaitLimit,
    resume: Option<&str>,
) -> CommandError {
    let Some(transfer) = last else {
        return wait_limit.error.unwrap_or_else(|| {
            CommandError::new(Reason::NoProviders, "no running peer has the file")
        });
    };
    let number = transfer.number;
    // Another peer keeps the transfer in its list: it may have other followers.
    let outlives_command = !peer.ends_with_command();
    let transfer = match transfer.done {
        0 if !outlives_command => {
            // Nothing was downloaded, so remove the transfer from the list. Ignore a failure.
            let _ = peer.control.cancel(number).await;
            transfer
        }
        _ => pause_own(peer, transfer).await,
    };
    let cancel = transfers_command(context, "cancel", number);
    let with_resume_hints = |command_error: CommandError| {
        let Some(resume) = resume else {
            return command_error;
        };
        let resume_hint = format!("resume with: {resume}");
        match (transfer.done, outlives_command) {
            (0, false) => command_error,
            (0, true) => command_error.hint(format!(
                "the peer keeps transfer {number}; to cancel it: {cancel}"
            )),
            (_, false) => command_error.hint(kept_text(&transfer)).hint(resume_hint),
            (_, true) => command_error
                .hint(kept_text(&transfer))
                .hint(STAYS_PAUSED)
                .hint(resume_hint),
        }
    };
    if let Some(error) = wait_limit.error {
        return with_resume_hints(error);
    }
    let problem = transfer.error.clone().unwrap_or_else(|| {
        Problem::new(Reason::NoProviders, "no running peer has the missing pieces")
    });
    let waited = format!(
        "no progress for {}: {}",
        text::duration(wait_limit.wait),
        problem.message
    );
    with_resume_hints(CommandError::from(Problem {
        message: waited,
        ..problem
    }))
}

fn failed(transfer: &Transfer, wait_limit: WaitLimit) -> CommandError {
    let problem = transfer.error.clone().unwrap_or_else(|| {
        Problem::new(
            Reason::Internal,
            "the transfer failed, and the peer gave no reason",
        )
    });
    match (problem.reason, wait_limit.error) {
        (Reason::NotFound | Reason::NoProviders | Reason::Unreachable, Some(error)) => error,
        (Reason::TargetExists, _) => {
            CommandError::from(problem).hint("choose another path with -o")
        }
        _ => CommandError::from(problem),
    }
}

fn stream_ended_early() -> Problem {
    Problem::new(
        Reason::Unreachable,
        "the peer closed the connection before the transfer ended",
    )
}

/// The error if the peer's stream breaks off.
fn stream_error(problem: Problem, began: bool, resume: Option<&str>) -> CommandError {
    let resumes = began
        && matches!(
            problem.reason,
            Reason::Unreachable | Reason::ShuttingDown | Reason::Cancelled | Reason::NotPotluck
        );
    match (resume.filter(|_| resumes), problem.reason) {
        (Some(resume), _) => CommandError::from(Problem {
            reason: Reason::Unreachable,
            ..problem
        })
        .hint(format!("verified pieces are kept; resume with: {resume}")),
        (None, Reason::TargetExists) => {
            CommandError::from(problem).hint("choose another path with -o")
        }
        (None, _) => problem.into(),
    }
}
