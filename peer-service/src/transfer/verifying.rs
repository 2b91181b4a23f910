//! Who may verify and write a unit now, over all transfers of a peer, and whether more may be read meanwhile.
//!
//! Invariant: units that came whole and wait for a thread are a few MiB, whatever the number of transfers and peers. Where these come
//! faster than they can be verified and written, nothing more is read: what was asked for waits in the kernel and at the senders, not here.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of whole units that may wait: what threads are kept busy with while the next units come. A larger unit waits alone.
const MAX_WAITING: usize = 4 << 20;

/// See the module. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Verifying {
    threads: Arc<Semaphore>,
    /// In bytes. First come, first served: behind a unit that finds no room here, no reader finds any.
    room: Arc<Semaphore>,
}

impl Verifying {
    /// On so many threads, at least one.
    pub fn new(threads: usize) -> Self {
        Self {
            threads: Arc::new(Semaphore::new(threads.max(1))),
            room: Arc::new(Semaphore::new(MAX_WAITING)),
        }
    }

    /// Waits until more may be read. Cancel-safe.
    pub(crate) async fn may_read(&self) {
        // Never closed.
        let _ = self.room.acquire().await;
    }

    /// Waits for a thread for a unit of so many bytes, until what this gives is dropped. Cancel-safe.
    pub(crate) async fn thread(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = bytes.min(MAX_WAITING) as u32;
        let _waits = self.room.acquire_many(bytes).await.ok()?;
        Arc::clone(&self.threads).acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin};

    use tokio::time::{Duration, timeout};

    use super::*;

    async fn is_ready(future: impl Future) -> bool {
        timeout(Duration::from_millis(20), future).await.is_ok()
    }

    #[tokio::test]
    async fn nothing_is_read_while_too_much_waits() {
        let verifying = Verifying::new(2);
        let first = verifying.thread(MAX_WAITING).await.unwrap();
        let second = verifying.thread(3 * MAX_WAITING).await.unwrap();
        assert!(is_ready(verifying.may_read()).await, "nothing waits");
        let mut small = pin!(verifying.thread(MAX_WAITING / 2));
        assert!(!is_ready(&mut small).await);
        assert!(is_ready(verifying.may_read()).await, "there is room for more");
        let mut large = pin!(verifying.thread(3 * MAX_WAITING));
        assert!(!is_ready(&mut large).await);
        assert!(!is_ready(verifying.may_read()).await, "and now there is none");
        drop(first);
        let small = small.await.unwrap();
        assert!(
            !is_ready(verifying.may_read()).await,
            "the large one fills the room by itself"
        );
        drop(second);
        assert!(is_ready(large).await);
        assert!(is_ready(verifying.may_read()).await);
        drop(small);
    }

    #[tokio::test]
    async fn who_gives_up_holds_up_nobody() {
        let verifying = Verifying::new(1);
        let busy = verifying.thread(1).await.unwrap();
        assert!(!is_ready(verifying.thread(MAX_WAITING)).await);
        assert!(is_ready(verifying.may_read()).await);
        drop(busy);
        assert!(is_ready(verifying.thread(1)).await);
    }
}
