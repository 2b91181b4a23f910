//! The peer's metrics, which are read when Prometheus asks.

use std::{fmt, sync::atomic::Ordering};

use potluck_core::{
    model::Reachability,
    monitoring::{Gather, Metrics, Values},
};

use crate::{
    announce::registrar::Registrar,
    cache::Cache,
    download::{
        counters::DownloadCounters, engine::disk_pool::DiskPools, manager::DownloadManager,
    },
    library::Library,
    limits::Limits,
    locality::Locality,
};

/// Reads the peer's state.
#[derive(Debug)]
pub(crate) struct PeerMetrics {
    pub(crate) library: Library,
    pub(crate) cache: Cache,
    pub(crate) downloads: DownloadManager,
    pub(crate) registrar: Option<Registrar>,
    pub(crate) limits: Limits,
    pub(crate) counters: DownloadCounters,
    pub(crate) disk_pools: DiskPools,
    pub(crate) locality: Locality,
}

impl PeerMetrics {
    /// Adds this to the service's metrics.
    pub(crate) fn register(self, metrics: &Metrics) {
        metrics.register(
            "peer_disk_seconds",
            "Time to verify and write a unit",
            self.disk_pools.seconds().clone(),
        );
        metrics.gather_from(self);
    }
}

impl Gather for PeerMetrics {
    fn gather(&self, values: &mut Values<'_>) -> fmt::Result {
        let activity = self.library.activity();
        let sent = activity.uploaded.load(Ordering::Relaxed);
        values.counter("peer_sent_bytes", "Bytes of content sent to other peers", sent)?;
        let received = activity.downloaded.load(Ordering::Relaxed);
        values.counter(
            "peer_received_bytes",
            "Verified bytes of content received from other peers",
            received,
        )?;
        let help = "Bytes of content sent to other peers, by whether they are in the same zone";
        values.counters("peer_zone_sent_bytes", help, "same_zone", self.locality.sent())?;
        let help = "Verified bytes received from other peers, by whether they are in the same zone";
        let received = self.locality.received();
        values.counters("peer_zone_received_bytes", help, "same_zone", received)?;
        let units = self.counters.verified_units();
        values.counter("peer_units_verified", "Units received and verified", units)?;
        let help = "Peers banned by a download, by what they did";
        values.counters("peer_bans", help, "reason", self.counters.bans())?;
        let help = "Units that are received, and wait to be verified and written";
        let waiting = self.disk_pools.waiting_units();
        values.gauge("peer_disk_queue", help, waiting as f64)?;

        let counts = self.downloads.count_by_state();
        let transfers = counts.iter().map(|(state, count)| (state.word(), *count as f64));
        values.gauges("peer_transfers", "Downloads by state", "state", transfers)?;
        values.gauge(
            "peer_uploads",
            "Calls for content that are being answered",
            f64::from(self.limits.active_uploads()),
        )?;
        values.gauge(
            "peer_upload_slots",
            "Maximum calls for content that are answered at once",
            f64::from(self.limits.upload_slots()),
        )?;

        let totals = self.library.totals();
        let help = "Shared files and folders";
        values.gauge("peer_shared_items", help, totals.items as f64)?;
        let help = "Shared files, with those in folders";
        values.gauge("peer_shared_files", help, totals.files as f64)?;
        values.gauge(
            "peer_shared_bytes",
            "Size of the shared files",
            totals.bytes as f64,
        )?;
        let help = "Shared items that are not offered because bytes on the disk have changed";
        values.gauge("peer_damaged_items", help, totals.damaged as f64)?;

        let help = "Bytes found and not hashed yet, to share files or to check them";
        let backlog = self.library.hash_backlog().bytes();
        values.gauges("peer_hash_backlog_bytes", help, "work", backlog)?;

        let cached = self.cache.totals();
        let help = "Files and folders in the cache";
        values.gauge("peer_cache_entries", help, cached.entries as f64)?;
        let help = "Bytes of the cache, with what has not arrived yet";
        values.gauge("peer_cache_bytes", help, cached.bytes as f64)?;
        let help = "Bytes of the cache that are never removed";
        values.gauge("peer_cache_pinned_bytes", help, cached.pinned_bytes as f64)?;
        let help = "Maximum bytes of the cache; 0 for no limit";
        let limit = self.cache.settings().max_bytes;
        values.gauge("peer_cache_limit_bytes", help, limit as f64)?;
        let (evictions, bytes) = self.cache.evictions();
        let help = "Files and folders removed from the cache, by cause";
        values.counters("peer_cache_evictions", help, "cause", evictions)?;
        let help = "Bytes removed from the cache";
        values.counter("peer_cache_evicted_bytes", help, bytes)?;

        let Some(registrar) = &self.registrar else {
            return Ok(());
        };
        let is_registered = f64::from(u8::from(registrar.status().registered));
        values.gauge(
            "peer_registered",
            "Whether the index holds a lease",
            is_registered,
        )?;
        // Missing until the index has checked.
        if let Some(reachability) = registrar.reachability() {
            let is_reachable = f64::from(u8::from(reachability == Reachability::Reachable));
            let help = "Whether the index could connect to this peer";
            values.gauge("peer_reachable", help, is_reachable)?;
        }
        Ok(())
    }
}
