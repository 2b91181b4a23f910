//! Streams that end when their receiver stops reading.
//!
//! HTTP/2 keeps an unread stream forever, with all the memory that it holds; a watchdog drops such
//! a stream. Time in which the stream itself has no item does not count.
//!
//! Non-goal: items that were already handed over. Chunks and lists of hashes, which are large, also
//! have the timeouts of [`crate::upload::scheduling`].

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use parking_lot::Mutex;
use potluck_core::{Problem, Reason};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

/// How long a receiver may take to ask for the next message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a receiver may delay a stream in total.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(20 * 60);

type BoxedStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A stream with a watchdog that drops it when its receiver stops reading.
pub struct IdleTimeoutStream<T> {
    state: Arc<Mutex<IdleTimeoutState<T>>>,
    _watchdog: DropGuard,
}

struct IdleTimeoutState<T> {
    /// `None` after the stream ended or was dropped by the watchdog.
    stream: Option<BoxedStream<T>>,
    /// When the last message was handed over, until the receiver asks for the next.
    handed_over: Option<Instant>,
    /// The rest of [`TOTAL_TIMEOUT`].
    remaining: Duration,
    /// Set by the watchdog; cleared when the error is reported.
    timed_out: bool,
}

impl<T> fmt::Debug for IdleTimeoutStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdleTimeoutStream").finish_non_exhaustive()
    }
}

impl<T: Send + 'static> IdleTimeoutStream<T> {
    /// Wraps a stream. Must be called within a tokio runtime.
    pub(crate) fn new(stream: impl Stream<Item = Result<T, Status>> + Send + 'static) -> Self {
        let shared = Arc::new(Mutex::new(IdleTimeoutState {
            stream: Some(Box::pin(stream) as BoxedStream<T>),
            handed_over: None,
            remaining: TOTAL_TIMEOUT,
            timed_out: false,
        }));
        let ended = CancellationToken::new();
        tokio::spawn(run_watchdog(shared.clone(), ended.clone()));
        Self {
            state: shared,
            _watchdog: ended.drop_guard(),
        }
    }
}

/// Drops the stream when its receiver delays it too long. Ends with the stream.
async fn run_watchdog<T: Send + 'static>(
    shared: Arc<Mutex<IdleTimeoutState<T>>>,
    ended: CancellationToken,
) {
    loop {
        let next = match shared.lock().deadline() {
            Some(next) if next <= Instant::now() => break,
            Some(next) => next,
            None => Instant::now() + MESSAGE_TIMEOUT,
        };
        // Both arms are cancel-safe: they only wait.
        tokio::select! {
            () = ended.cancelled() => return,
            () = tokio::time::sleep_until(next) => {}
        }
    }
    drop_stream(&shared);
}

fn drop_stream<T>(shared: &Mutex<IdleTimeoutState<T>>) {
    let mut shared = shared.lock();
    shared.timed_out = shared.stream.is_some();
    let stream = shared.stream.take();
    drop(shared);
    // Dropped outside the lock, because it may free much memory.
    drop(stream);
}

impl<T> IdleTimeoutState<T> {
    fn deadline(&self) -> Option<Instant> {
        self.handed_over
            .map(|since| since + MESSAGE_TIMEOUT.min(self.remaining))
    }
}

impl<T> Stream for IdleTimeoutStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut shared = self.state.lock();
        if let Some(since) = shared.handed_over.take() {
            shared.remaining = shared.remaining.saturating_sub(since.elapsed());
        }
        if std::mem::take(&mut shared.timed_out) {
            let problem =
                Problem::new(Reason::TimedOut, "the stream was read too slowly: try again");
            return Poll::Ready(Some(Err(problem.into())));
        }
        let Some(stream) = shared.stream.as_mut() else {
            return Poll::Ready(None);
        };
        let polled = stream.as_mut().poll_next(context);
        match &polled {
            Poll::Ready(Some(Ok(_))) => shared.handed_over = Some(Instant::now()),
            Poll::Ready(_) => shared.stream = None,
            Poll::Pending => {}
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_does_not_read_loses_the_stream() {
        let held = Arc::new(());
        let holds = held.clone();
        let mut stream = IdleTimeoutStream::new(stream::repeat(0).map(move |n| {
            let _holds = &holds;
            Ok(n)
        }));
        assert_eq!(stream.next().await.unwrap().unwrap(), 0);
        tokio::time::sleep(MESSAGE_TIMEOUT - Duration::from_secs(1)).await;
        assert!(stream.next().await.unwrap().is_ok());
        tokio::time::sleep(2 * MESSAGE_TIMEOUT).await;
        assert_eq!(
            Arc::strong_count(&held),
            1,
            "the stream is dropped while its receiver does not read"
        );
        let problem = Problem::from(stream.next().await.unwrap().unwrap_err());
        assert_eq!(problem.reason, Reason::TimedOut);
        assert!(stream.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_reads_too_slowly_in_total_loses_the_stream() {
        let mut stream = IdleTimeoutStream::new(stream::repeat(0).map(Ok));
        let start = Instant::now();
        while stream.next().await.unwrap().is_ok() {
            assert!(start.elapsed() < 2 * TOTAL_TIMEOUT);
            tokio::time::sleep(MESSAGE_TIMEOUT / 2).await;
        }
        assert!(start.elapsed() >= TOTAL_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn time_without_items_does_not_count() {
        let mut stream =
            IdleTimeoutStream::new(stream::once(async { Ok(1) }).chain(stream::once(async {
                tokio::time::sleep(10 * TOTAL_TIMEOUT).await;
                Ok(2)
            })));
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        assert_eq!(stream.next().await.unwrap().unwrap(), 2);
    }
}
