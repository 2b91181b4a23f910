//! The index's metrics: the time to store changes, and what is read when Prometheus asks.

use std::{fmt, path::PathBuf, sync::Arc, time::Instant};

use potluck_core::{
    model::ClusterId,
    monitoring::{Gather, Metrics, Values},
};
use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

use crate::{
    commit::Committer,
    registry::Registry,
    store::{Change, IndexStore, SharedStore, StoreError, StoredPeer, size_of},
};

/// Upper bounds of the time until a batch is on the disk, in seconds.
const STORE_SECONDS: [f64; 10] = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];

/// A store whose changes are measured.
pub(crate) struct MeasuredStore {
    store: Box<dyn IndexStore>,
    seconds: Histogram,
    changes: Counter,
    failures: Counter,
}

impl MeasuredStore {
    /// Adds the metrics of `store`.
    pub(crate) fn new(store: Box<dyn IndexStore>, metrics: &Metrics) -> Self {
        let measured = Self {
            store,
            seconds: Histogram::new(STORE_SECONDS),
            changes: Counter::default(),
            failures: Counter::default(),
        };
        metrics.register(
            "index_store_seconds",
            "Time to store a batch of changes and flush it to the disk",
            measured.seconds.clone(),
        );
        metrics.register(
            "index_stored_changes",
            "Changes stored: registered or removed files of one call, or an expired peer",
            measured.changes.clone(),
        );
        metrics.register(
            "index_store_failures",
            "Batches of changes that could not be stored",
            measured.failures.clone(),
        );
        measured
    }
}

impl IndexStore for MeasuredStore {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    fn cluster_id(&self) -> ClusterId {
        self.store.cluster_id()
    }

    fn load(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        self.store.load(each)
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let began = Instant::now();
        let applied = self.store.apply(changes);
        match &applied {
            Ok(()) => {
                self.seconds.observe(began.elapsed().as_secs_f64());
                self.changes.inc_by(changes.len() as u64);
            }
            Err(_) => _ = self.failures.inc(),
        }
        applied
    }

    fn reopen(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        self.store.reopen(each)
    }

    fn shared(&mut self) -> Option<&mut dyn SharedStore> {
        self.store.shared()
    }
}

/// Reads the index's state.
#[derive(Debug)]
pub(crate) struct IndexMetrics {
    pub(crate) registry: Arc<Registry>,
    pub(crate) committer: Committer,
    /// The store's folder, if it has one.
    pub(crate) folder: Option<PathBuf>,
}

impl Gather for IndexMetrics {
    fn gather(&self, values: &mut Values<'_>) -> fmt::Result {
        let (peers, files, registrations) = {
            let catalog = self.registry.catalog();
            let registrations = catalog.registration_count();
            (catalog.peer_count(), catalog.file_count(), registrations)
        };
        values.gauge("index_peers", "Peers with a lease", peers as f64)?;
        values.gauge("index_files", "Distinct files of live peers", files as f64)?;
        let help = "Registrations: pairs of a peer and a file";
        values.gauge("index_registrations", help, registrations as f64)?;
        let watchers = self.registry.watch_hub().count();
        values.gauge("index_watchers", "Open streams of providers", watchers as f64)?;
        let works = f64::from(u8::from(*self.committer.store_works().borrow()));
        values.gauge("index_store_up", "Whether the store accepts changes", works)?;
        values.gauge(
            "index_queued_bytes",
            "Size of the changes that wait to be stored",
            self.committer.queued_bytes() as f64,
        )?;
        if let Some(folder) = &self.folder {
            let help = "Size of the store's files";
            values.gauge("index_store_bytes", help, size_of(folder) as f64)?;
        }
        Ok(())
    }
}
