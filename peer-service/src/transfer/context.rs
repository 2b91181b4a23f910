//! What every transfer of a peer works with.

use std::{
    net::SocketAddr,
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use potluck_core::{
    PeerId, Problem, Reason,
    index_client::{Address, IndexClient},
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{budget::Budget, sources::Source};
use crate::{holdings::Holdings, library::Library, limits::Limits, store::Store};

/// See the module.
#[derive(Debug)]
pub struct Context {
    /// What is here already, and where finished downloads go.
    pub library: Library,
    /// What the index is told.
    pub holdings: Holdings,
    /// Limits of the whole peer.
    pub limits: Limits,
    /// What all transfers together may have asked for.
    pub budget: Budget,
    /// The index, if there is one.
    pub index: Option<IndexClient>,
    /// Where unfinished transfers are remembered.
    pub store: Store,
    /// Where downloads go unless told otherwise.
    pub files: PathBuf,
    /// This peer.
    pub peer_id: PeerId,
    /// Where this peer listens.
    pub local_addr: SocketAddr,
    /// Threads that hash.
    pub hash_threads: usize,
    /// Units verified and written at once, over all transfers.
    pub verifying: Arc<Semaphore>,
    /// Verified bytes fetched since the start.
    pub downloaded: AtomicU64,
    /// Every task of every transfer.
    pub tracker: TaskTracker,
}

impl Context {
    /// Whether this source is this very peer.
    pub(crate) fn is_self(&self, source: &Source) -> bool {
        source.peer == Some(self.peer_id) || source.address == Address::from(self.local_addr)
    }
}

/// Runs what blocks on a thread for that.
///
/// # Errors
/// [`Reason::Internal`] where it panicked, which is a defect.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a blocking task failed");
        Problem::new(Reason::Internal, "a part of the peer failed: see its log")
    })
}

/// The same for work that takes long and can be stopped: it is told to when nobody waits for it any more.
pub(crate) async fn stoppable<T: Send + 'static>(
    work: impl FnOnce(&CancellationToken) -> T + Send + 'static,
) -> Result<T, Problem> {
    let stop = CancellationToken::new();
    let _dropped = stop.clone().drop_guard();
    blocking(move || work(&stop)).await
}

/// What to answer to whoever hashes and asks whether to go on.
pub(crate) fn unless(stop: &CancellationToken) -> ControlFlow<()> {
    match stop.is_cancelled() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}
