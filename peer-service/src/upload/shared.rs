//! The state that all calls of the open port share.
//!
//! Invariant: streams that hold memory for long are counted, in total and per address.

use std::sync::{Arc, atomic::AtomicU64};

use potluck_core::{FileId, PeerId, Problem, grpc::limiter::PerAddressLimiter};

use crate::{
    activity::UploadTallies,
    content::{Content, ContentSource},
    limits::Limits,
    locality::Locality,
    upload::{
        crowd::in_flight_sends::InFlightSends, data::buffers::BufferPool, refusal::not_found,
    },
};

/// Maximum WatchAvailability streams; each holds two bitfields. Allows for a crowd of thousands.
const MAX_WATCHERS: usize = 4096;

/// Maximum GetPieceHashes answers; each holds a piece layer, usually 128 KiB, until its last
/// message is freed.
const MAX_HASH_STREAMS: usize = 128;

/// Counters since the service started.
#[derive(Debug, Default)]
pub struct UploadCounters {
    /// Bytes queued for sending to other peers.
    pub uploaded_bytes: Arc<AtomicU64>,
    /// Bytes queued of some files.
    pub tallies: UploadTallies,
}

/// The state that all calls share.
#[derive(Debug)]
pub(crate) struct UploadShared {
    sources: Vec<Arc<dyn ContentSource>>,
    pub(crate) peer_id: PeerId,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<UploadCounters>,
    pub(crate) locality: Locality,
    pub(crate) watchers: PerAddressLimiter,
    pub(crate) hash_streams: PerAddressLimiter,
    pub(crate) buffers: BufferPool,
    pub(crate) in_flight_sends: InFlightSends,
}

impl UploadShared {
    /// Earlier `sources` take precedence.
    pub(crate) fn new(
        sources: Vec<Arc<dyn ContentSource>>,
        peer_id: PeerId,
        limits: Limits,
        counters: Arc<UploadCounters>,
        locality: Locality,
    ) -> Self {
        let share = limits.max_share();
        Self {
            sources,
            peer_id,
            limits,
            counters,
            locality,
            watchers: PerAddressLimiter::new(MAX_WATCHERS, share),
            hash_streams: PerAddressLimiter::new(MAX_HASH_STREAMS, share),
            buffers: BufferPool::default(),
            in_flight_sends: InFlightSends::new(share),
        }
    }

    /// The content sources, in order of precedence.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &dyn ContentSource> {
        self.sources.iter().map(|source| &**source)
    }

    /// Number of open WatchAvailability streams.
    pub(crate) fn watcher_count(&self) -> u32 {
        // At most MAX_WATCHERS, so it fits.
        self.watchers.in_use() as u32
    }

    /// Finds content. May wait for locks, so do not call it on async threads.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub(crate) fn find(&self, id: &FileId) -> Result<Arc<dyn Content>, Problem> {
        let content = self.sources().find_map(|source| source.find(id));
        content.ok_or_else(|| not_found(id))
    }

    /// Finds content without blocking.
    ///
    /// # Errors
    /// `NOT_FOUND`, also if the lookup would block.
    pub(crate) fn try_find(&self, id: &FileId) -> Result<Arc<dyn Content>, Problem> {
        let content = self.sources().find_map(|source| source.try_find(id));
        content.ok_or_else(|| not_found(id))
    }
}
