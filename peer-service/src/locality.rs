//! Where this machine is, and how many bytes cross the border of its zone.
//!
//! What another peer says of itself is not checked: it decides whom this peer prefers, and what the
//! counters call its bytes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use parking_lot::RwLock;
use potluck_core::model::{LabelValue, Labels, SameZone};

/// The labels of this machine and the counters by zone. Cheap to clone; all clones share both.
#[derive(Debug, Clone, Default)]
pub struct Locality(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    labels: RwLock<Labels>,
    sent: Counters,
    received: Counters,
}

/// Bytes by whether the other peer is in the same zone, in the order of [`SameZone::ALL`].
type Counters = [AtomicU64; SameZone::ALL.len()];

impl Locality {
    /// A machine with these labels.
    pub fn new(labels: Labels) -> Self {
        let locality = Self::default();
        locality.set_labels(labels);
        locality
    }

    /// The labels of this machine.
    pub fn labels(&self) -> Labels {
        self.0.labels.read().clone()
    }

    /// Changes them. Running downloads and the streams of other peers keep the earlier ones.
    pub fn set_labels(&self, labels: Labels) {
        *self.0.labels.write() = labels;
    }

    /// Whether another peer's zone is the same.
    pub(crate) fn compare(&self, zone: Option<&LabelValue>) -> SameZone {
        SameZone::of(self.0.labels.read().zone.as_ref(), zone)
    }

    /// Counts bytes that were sent.
    pub(crate) fn add_sent(&self, zone: SameZone, bytes: u64) {
        self.0.sent[zone as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts verified bytes that were received.
    pub(crate) fn add_received(&self, zone: SameZone, bytes: u64) {
        self.0.received[zone as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    /// The bytes sent, by the words of a metric.
    pub(crate) fn sent(&self) -> impl Iterator<Item = (&'static str, u64)> {
        by_zone(&self.0.sent)
    }

    /// The verified bytes received.
    pub(crate) fn received(&self) -> impl Iterator<Item = (&'static str, u64)> {
        by_zone(&self.0.received)
    }
}

fn by_zone(counters: &Counters) -> impl Iterator<Item = (&'static str, u64)> {
    let zones = SameZone::ALL.into_iter();
    zones.map(|zone| (zone.word(), counters[zone as usize].load(Ordering::Relaxed)))
}
