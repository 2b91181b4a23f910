//! Writes a file to standard output while it is downloaded.

use std::{io::ErrorKind, pin::pin, time::Duration};

use console::Term;
use futures_util::StreamExt as _;
use potluck_core::Reason;
use tokio::io::AsyncWriteExt as _;

use crate::{
    context::{CommandContext, PeerHandle},
    control::{
        DownloadRequest,
        model::{ReadEvent, Transfer, TransferState},
    },
    download::{
        display::{SingleDisplay, TransferDisplay as _},
        follow::StallWatch,
    },
    error::CommandError,
    output::text,
};

/// How a read failed.
#[derive(Debug)]
pub(crate) struct ReadError {
    pub(crate) error: CommandError,
    /// Whether bytes were written, so that no other file can be tried.
    pub(crate) has_written: bool,
}

/// Writes the bytes of a file to standard output in order; shows the progress on standard error.
/// Waits at most `wait` without progress.
///
/// # Errors
/// The transfer's error; [`CommandError::BrokenPipe`] if nobody reads the output.
pub(crate) async fn read_to_stdout(
    context: &CommandContext,
    peer: &PeerHandle,
    request: &DownloadRequest,
    wait: Duration,
) -> Result<Transfer, ReadError> {
    let mut written = 0;
    let read = copy(context, peer, request, wait, &mut written).await;
    read.map_err(|error| ReadError {
        error,
        has_written: written > 0,
    })
}

async fn copy(
    context: &CommandContext,
    peer: &PeerHandle,
    request: &DownloadRequest,
    wait: Duration,
    written: &mut u64,
) -> Result<Transfer, CommandError> {
    let started = async { Ok(peer.control.read_file(request).await?) };
    let mut events = pin!(context.stoppable(started).await?);
    let mut stdout = tokio::io::stdout();
    let mut display = SingleDisplay::new(context.out.bars());
    // Progress would be drawn over the output.
    let draws = !Term::stdout().is_term();
    let mut stall_watch = StallWatch::default();
    let mut last: Option<Transfer> = None;
    loop {
        let event = tokio::select! {
            // Cancel-safe: an event that is not taken stays in the stream; the other arms only
            // wait.
            event = events.next() => event,
            () = context.stop.cancelled() => {
                return Err(CommandError::interrupted("the output is incomplete"));
            }
            () = stall_watch.timed_out(wait) => return Err(no_progress(last, wait)),
        };
        match event {
            Some(Ok(ReadEvent::Data(data))) => {
                let write = async { stdout.write_all(&data).await.map_err(write_error) };
                context.stoppable(write).await?;
                *written += data.len() as u64;
            }
            Some(Ok(ReadEvent::Progress(transfer))) => {
                stall_watch.update(context, &transfer, wait);
                if draws {
                    display.show(&transfer);
                }
                last = Some(*transfer);
            }
            Some(Err(problem)) => return Err(problem.into()),
            None => break,
        }
    }
    stdout.flush().await.map_err(write_error)?;
    display.end(true);
    // The last event says whether the stream is complete.
    last.filter(|transfer| transfer.state == TransferState::Done)
        .ok_or_else(|| {
            CommandError::new(
                Reason::Unreachable,
                "the peer closed the connection before the end: the output is incomplete",
            )
        })
}

fn write_error(error: std::io::Error) -> CommandError {
    match error.kind() {
        ErrorKind::BrokenPipe => CommandError::BrokenPipe,
        _ => CommandError::new(
            Reason::of_exhaustion(&error).unwrap_or(Reason::Internal),
            format!("cannot write to standard output: {error}"),
        ),
    }
}

fn no_progress(last: Option<Transfer>, wait: Duration) -> CommandError {
    let problem = last.and_then(|transfer| transfer.error);
    let (reason, message) = match &problem {
        Some(problem) => (problem.reason, problem.message.as_str()),
        None => (Reason::NoProviders, "no running peer has the missing pieces"),
    };
    let waited = text::duration(wait);
    CommandError::new(reason, format!("no progress for {waited}: {message}"))
}
