//! Coordinates the requests of a crowd: reports which units are being sent, and limits how many
//! requests may wait.
//!
//! Peers that do not know each other would request the same units from a seed; therefore watchers
//! learn which units are being sent. If a request waits long, its unit is usually available
//! elsewhere by the time that it arrives, but the peer does not request it there; therefore only
//! few requests may wait. In the simulator, 300 peers then take 1.20 instead of 1.48 times the
//! lower bound.
//!
//! Watchers of a collection get reports about its units. A request does not name the collection
//! that it is for; the watched files and collections determine it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use potluck_core::{
    FileId, Problem,
    collection::plan::Plan,
    grpc::limiter::{MaxShare, PerAddressLimiter, Permit},
};
use tokio::sync::watch;

use crate::upload::{
    data::reader::SpanJob, refusal::busy, scheduling::scheduler::ConnectionHandle,
};

/// Maximum requests of a crowd that wait for their first permit, per file or collection; further
/// requests are refused, so that they go to other peers. Enough to keep the link busy, and for a
/// crowd of sixteen that all know each other.
const MAX_WAITING: usize = 12;

/// Bytes left from which a request counts as large, such as one for a bundle: it is of use to
/// others only when complete.
const LARGE_REQUEST: u64 = 1024 * 1024;

/// Maximum large requests of a crowd at the same time while the link is busy. More in parallel
/// would all finish late; these are enough to keep the link busy.
const MAX_LARGE: usize = 3;

/// Maximum watched collections that are searched for a request's files; each costs a search.
const MAX_COLLECTIONS: usize = 8;

/// The units being sent, for each watched file or collection.
#[derive(Debug)]
pub(crate) struct InFlightSends {
    registry: Mutex<SendRegistry>,
    max_share: MaxShare,
}

#[derive(Debug, Default)]
struct SendRegistry {
    by_id: HashMap<FileId, Weak<UnitSends>>,
    /// The entries of `by_id` that are collections, oldest first.
    collections: Vec<Weak<UnitSends>>,
}

/// The units of one file or collection that are being sent. Held by its watchers; others hold it
/// only briefly, so the reference count shows the number of watchers.
#[derive(Debug)]
pub(crate) struct UnitSends {
    plan: Arc<Plan>,
    /// Number of requests for each unit.
    counts: Mutex<BTreeMap<u32, u32>>,
    changes: watch::Sender<()>,
    waiting_limiter: PerAddressLimiter,
    large_limiter: PerAddressLimiter,
}

/// Reports units as being sent until it is dropped.
#[derive(Debug)]
pub(crate) struct SendGuard {
    units: Vec<(Weak<UnitSends>, Vec<u32>)>,
    waiting_permit: Option<Permit>,
    large_permit: Option<Permit>,
    /// Bytes that have not been handed over.
    remaining: u64,
}

impl InFlightSends {
    /// `share` limits how many of the waiting requests one address may have.
    pub(crate) fn new(share: MaxShare) -> Self {
        Self {
            registry: Mutex::default(),
            max_share: share,
        }
    }

    /// The units being sent of a file or collection; a watcher holds the result.
    pub(crate) fn sends_of(&self, id: &FileId, plan: &Arc<Plan>) -> Arc<UnitSends> {
        let mut registry = self.registry.lock();
        let known = registry.by_id.get(id).and_then(Weak::upgrade);
        // A manifest may also be shared as a plain file: same id, but a different plan.
        if let Some(sends) = known.filter(|sends| sends.plan.unit_count() == plan.unit_count()) {
            return sends;
        }
        registry.by_id.retain(|_, sends| sends.strong_count() > 0);
        registry.collections.retain(|sends| sends.strong_count() > 0);
        let sends = Arc::new(UnitSends {
            plan: Arc::clone(plan),
            counts: Mutex::default(),
            changes: watch::Sender::new(()),
            waiting_limiter: PerAddressLimiter::new(MAX_WAITING, self.max_share),
            large_limiter: PerAddressLimiter::new(MAX_LARGE, self.max_share),
        });
        registry.by_id.insert(*id, Arc::downgrade(&sends));
        if plan.manifest().is_some() {
            registry.collections.push(Arc::downgrade(&sends));
        }
        sends
    }

    /// Registers the units of a request, if several peers watch them.
    ///
    /// # Errors
    /// `BUSY` if too many requests of a crowd wait, or too many large ones are being answered.
    pub(crate) fn register(
        &self,
        jobs: &[SpanJob],
        connection: &ConnectionHandle,
    ) -> Result<SendGuard, Problem> {
        let crowds = self.registry.lock().watched_sends(jobs);
        let address = connection.client_address();
        let mut guard = SendGuard {
            units: Vec::new(),
            waiting_permit: None,
            large_permit: None,
            remaining: jobs.iter().map(|job| job.range.end - job.range.start).sum(),
        };
        for (weak, plan, jobs) in crowds {
            let units = units_of(&plan, jobs);
            let Some(sends) = weak.upgrade().filter(|_| !units.is_empty()) else {
                continue;
            };
            if guard.waiting_permit.is_none() {
                let refused = |limit| busy("downloads of this file", limit);
                guard.waiting_permit =
                    Some(sends.waiting_limiter.try_acquire(address).map_err(refused)?);
                if guard.remaining >= LARGE_REQUEST {
                    guard.large_permit = match sends.large_limiter.try_acquire(address) {
                        // The link is idle, so the holders of these permits are slow or
                        // rate-limited.
                        Err(_) if connection.has_free_permit() => None,
                        permit => Some(permit.map_err(refused)?),
                    };
                }
            }
            sends.adjust_counts(&units, true);
            guard.units.push((weak, units));
        }
        Ok(guard)
    }
}

impl SendRegistry {
    /// The files and collections that have several watchers and may include some of these spans.
    fn watched_sends<'a>(
        &self,
        jobs: &'a [SpanJob],
    ) -> Vec<(Weak<UnitSends>, Arc<Plan>, &'a [SpanJob])> {
        if self.by_id.is_empty() {
            return Vec::new();
        }
        let is_crowd = |sends: &&Weak<UnitSends>| sends.strong_count() > 1;
        let of_file = jobs.chunk_by(|one, next| one.content.id() == next.content.id());
        let files = of_file.filter_map(|jobs| {
            let sends = self.by_id.get(&jobs.first()?.content.id());
            sends.filter(is_crowd).map(|sends| (sends, jobs))
        });
        let collections = self.collections.iter().filter(is_crowd);
        let collections = collections.take(MAX_COLLECTIONS).map(|sends| (sends, jobs));
        let crowds = files.chain(collections).filter_map(|(weak, jobs)| {
            // The strong reference is dropped here, so that it does not count as a watcher.
            let plan = Arc::clone(&weak.upgrade()?.plan);
            Some((Weak::clone(weak), plan, jobs))
        });
        crowds.collect()
    }
}

/// The units that these spans touch, up to the first span that is not in this plan.
fn units_of(plan: &Plan, jobs: &[SpanJob]) -> Vec<u32> {
    let units = jobs.iter().map_while(|job| {
        let file = plan.find(&job.content.id())?;
        Some(plan.units_of(file, job.range.clone()))
    });
    let mut units: Vec<u32> = units.flatten().collect();
    // The files of a bundle share one unit.
    units.dedup();
    units
}

impl UnitSends {
    /// The units being sent, sorted.
    pub(crate) fn units(&self) -> Vec<u32> {
        self.counts.lock().keys().copied().collect()
    }

    /// Notifies whenever [`Self::units`] changes.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Counts one request more or less for each of these units.
    fn adjust_counts(&self, units: &[u32], more: bool) {
        let mut counts = self.counts.lock();
        for unit in units {
            let count = counts.entry(*unit).or_default();
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                counts.remove(unit);
            }
        }
        drop(counts);
        self.changes.send_replace(());
    }
}

impl SendGuard {
    /// Records that bytes of the request were handed over; releases permits that are no longer
    /// needed.
    pub(crate) fn record_sent(&mut self, bytes: u64) {
        self.remaining = self.remaining.saturating_sub(bytes);
        self.waiting_permit = None;
        if self.remaining < LARGE_REQUEST {
            self.large_permit = None;
        }
    }
}

impl Drop for SendGuard {
    fn drop(&mut self) {
        for (sends, units) in &self.units {
            if let Some(sends) = sends.upgrade() {
                sends.adjust_counts(units, false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, ops::Range};

    use futures_util::FutureExt as _;
    use potluck_core::{
        Reason, grpc::limiter::ClientAddress, identity::merkle::Hash, model::FileRecord,
    };

    use super::*;
    use crate::content::Content;
    use crate::upload::scheduling::scheduler::SendScheduler;
    use potluck_core::availability::Availability;

    /// A file of which only the id and size are used.
    #[derive(Debug)]
    struct NoContent(FileId, u64);

    impl Content for NoContent {
        fn id(&self) -> FileId {
            self.0
        }

        fn size(&self) -> u64 {
            self.1
        }

        fn record(&self) -> Result<FileRecord, Problem> {
            unreachable!()
        }

        fn name(&self) -> String {
            unreachable!()
        }

        fn piece_hashes(&self) -> Result<Arc<[Hash]>, Problem> {
            unreachable!()
        }

        fn availability(&self) -> Availability {
            unreachable!()
        }

        fn changes(&self) -> Option<watch::Receiver<u64>> {
            unreachable!()
        }

        fn open(&self, _: Range<u64>) -> Result<Arc<File>, Problem> {
            unreachable!()
        }

        fn try_open(&self, _: Range<u64>) -> Option<Arc<File>> {
            unreachable!()
        }

        fn is_unchanged(&self, _: &File) -> bool {
            unreachable!()
        }

        fn check_unchanged(&self, _: &File) -> Result<(), Problem> {
            unreachable!()
        }
    }

    #[tokio::test]
    async fn large_requests_of_a_crowd_are_limited_while_the_link_is_busy() {
        let file = Arc::new(NoContent(FileId([1; 32]), 8 * LARGE_REQUEST));
        let plan = file.plan().unwrap();
        let in_flight_sends = InFlightSends::new(MaxShare::ALL);
        let _watchers = [
            in_flight_sends.sends_of(&file.0, &plan),
            in_flight_sends.sends_of(&file.0, &plan),
        ];
        let scheduler = SendScheduler::new();
        let connection = scheduler.add_connection(ClientAddress::LOCAL);
        let register = |bytes| {
            let content: Arc<dyn Content> = Arc::clone(&file) as _;
            in_flight_sends.register(
                &[SpanJob {
                    content,
                    range: 0..bytes,
                }],
                &connection,
            )
        };
        let mut large: Vec<_> = (0..MAX_LARGE)
            .map(|_| register(4 * LARGE_REQUEST).unwrap())
            .collect();
        assert!(register(4 * LARGE_REQUEST).is_ok(), "the link is idle");

        let busy: Vec<_> = std::iter::from_fn(|| {
            connection
                .has_free_permit()
                .then(|| connection.acquire().now_or_never())
        })
        .collect();
        assert!(busy.iter().all(Option::is_some));
        large
            .iter_mut()
            .for_each(|guard| guard.record_sent(LARGE_REQUEST));
        assert_eq!(register(4 * LARGE_REQUEST).unwrap_err().reason, Reason::Busy);
        assert!(
            register(LARGE_REQUEST - 1).is_ok(),
            "a small request is not limited"
        );
        large[0].record_sent(2 * LARGE_REQUEST + 1);
        assert!(register(4 * LARGE_REQUEST).is_ok(), "one is nearly done");
        drop(busy);
        assert!(register(4 * LARGE_REQUEST).is_ok(), "the link is idle again");
    }
}
