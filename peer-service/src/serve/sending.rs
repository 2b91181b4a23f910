//! What a crowd asks a peer for: which units are on their way to someone, which is told, and who may wait.
//!
//! Those who do not know each other would ask a seed for the same; and a piece that is waited for is long to be had elsewhere by the
//! time it comes, while nobody else asks for it: so few may wait. In the simulator 300 peers take 1.20 instead of 1.48 times the bound.
//!
//! Whoever watches a collection is told of its units. A call does not say what it is for: that is seen from what is watched.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use potluck_core::{
    FileId, Problem,
    places::{MaxShare, PerAddressLimiter, Permit},
    plan::Plan,
};
use tokio::sync::watch;

use super::{busy, reader::Job, turns::Outlet};

/// Most calls of a crowd that wait for their first turn, for each file or collection: over these others are asked sooner than this peer.
/// Enough that its link never idles, and for sixteen who all know each other.
const MOST_WAITING: usize = 12;

/// A call that has so many bytes left is large, such as one for a bundle: of use to others once all of it came.
const LARGE: u64 = 1024 * 1024;

/// Most large calls of a crowd at once, while the link is busy: many side by side would all come late. Enough to keep it so.
const MOST_LARGE: usize = 3;

/// Most collections with crowds that a call is looked for in: each costs a search among its files.
const MOST_COLLECTIONS: usize = 8;

/// The boards of all that is watched here.
#[derive(Debug)]
pub(super) struct Sending {
    boards: Mutex<Boards>,
    share: MaxShare,
}

#[derive(Debug, Default)]
struct Boards {
    by_id: HashMap<FileId, Weak<Board>>,
    /// Of them, those of collections, the oldest first.
    collections: Vec<Weak<Board>>,
}

/// What is on its way of one file or collection. Held by those who watch it, and by nobody else for long.
#[derive(Debug)]
pub(super) struct Board {
    plan: Arc<Plan>,
    /// How many calls are for each unit.
    calls: Mutex<BTreeMap<u32, u32>>,
    changes: watch::Sender<()>,
    waiting: PerAddressLimiter,
    large: PerAddressLimiter,
}

/// Notes units as on their way until it is dropped.
#[derive(Debug)]
pub(super) struct Notes {
    units: Vec<(Weak<Board>, Vec<u32>)>,
    waits: Option<Permit>,
    large: Option<Permit>,
    /// Bytes that were not handed over.
    left: u64,
}

impl Sending {
    /// One address takes its share of those who may wait.
    pub(super) fn new(share: MaxShare) -> Self {
        Self {
            boards: Mutex::default(),
            share,
        }
    }

    /// The board of a file or collection, for one who watches it.
    pub(super) fn board(&self, id: &FileId, plan: &Arc<Plan>) -> Arc<Board> {
        let mut boards = lock(&self.boards);
        let known = boards.by_id.get(id).and_then(Weak::upgrade);
        // A collection can be shared as the plain file that its manifest is, too.
        if let Some(board) = known.filter(|board| board.plan.unit_count() == plan.unit_count()) {
            return board;
        }
        boards.by_id.retain(|_, board| board.strong_count() > 0);
        boards.collections.retain(|board| board.strong_count() > 0);
        let board = Arc::new(Board {
            plan: Arc::clone(plan),
            calls: Mutex::default(),
            changes: watch::Sender::new(()),
            waiting: PerAddressLimiter::new(MOST_WAITING, self.share),
            large: PerAddressLimiter::new(MOST_LARGE, self.share),
        });
        boards.by_id.insert(*id, Arc::downgrade(&board));
        if plan.manifest().is_some() {
            boards.collections.push(Arc::downgrade(&board));
        }
        board
    }

    /// Notes what a call asks for, where others than the caller want to know.
    ///
    /// # Errors
    /// `BUSY` where too many of a crowd wait, or are sent what is large.
    pub(super) fn note(&self, jobs: &[Job], outlet: &Outlet) -> Result<Notes, Problem> {
        let crowds = lock(&self.boards).crowds(jobs);
        let source = outlet.source();
        let mut notes = Notes {
            units: Vec::new(),
            waits: None,
            large: None,
            left: jobs.iter().map(|job| job.range.end - job.range.start).sum(),
        };
        for (weak, plan, jobs) in crowds {
            let units = units_of(&plan, jobs);
            let Some(board) = weak.upgrade().filter(|_| !units.is_empty()) else {
                continue;
            };
            if notes.waits.is_none() {
                let refused = |why| busy("downloads of this", why);
                notes.waits = Some(board.waiting.try_acquire(source).map_err(refused)?);
                if notes.left >= LARGE {
                    notes.large = match board.large.try_acquire(source) {
                        // Those who have the places are slow, or wait for a limit.
                        Err(_) if outlet.is_free() => None,
                        place => Some(place.map_err(refused)?),
                    };
                }
            }
            board.count(&units, true);
            notes.units.push((weak, units));
        }
        Ok(notes)
    }
}

impl Boards {
    /// What several watch that some of these spans may be of.
    fn crowds<'a>(&self, jobs: &'a [Job]) -> Vec<(Weak<Board>, Arc<Plan>, &'a [Job])> {
        if self.by_id.is_empty() {
            return Vec::new();
        }
        let is_crowd = |board: &&Weak<Board>| board.strong_count() > 1;
        let of_file = jobs.chunk_by(|one, next| one.offer.id() == next.offer.id());
        let files = of_file.filter_map(|jobs| {
            let board = self.by_id.get(&jobs.first()?.offer.id());
            board.filter(is_crowd).map(|board| (board, jobs))
        });
        let collections = self.collections.iter().filter(is_crowd);
        let collections = collections.take(MOST_COLLECTIONS).map(|board| (board, jobs));
        let crowds = files.chain(collections).filter_map(|(weak, jobs)| {
            // Let go of before anybody counts who holds it.
            let plan = Arc::clone(&weak.upgrade()?.plan);
            Some((Weak::clone(weak), plan, jobs))
        });
        crowds.collect()
    }
}

/// The units that these spans touch, up to the first that is not of this plan.
fn units_of(plan: &Plan, jobs: &[Job]) -> Vec<u32> {
    let units = jobs.iter().map_while(|job| {
        let file = plan.find(&job.offer.id())?;
        Some(plan.units_of(file, job.range.clone()))
    });
    let mut units: Vec<u32> = units.flatten().collect();
    // The files of a bundle are one unit.
    units.dedup();
    units
}

impl Board {
    /// What is on its way, in order.
    pub(super) fn units(&self) -> Vec<u32> {
        lock(&self.calls).keys().copied().collect()
    }

    /// Changes each time that [`Self::units`] does.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn count(&self, units: &[u32], more: bool) {
        let mut calls = lock(&self.calls);
        for unit in units {
            let count = calls.entry(*unit).or_default();
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                calls.remove(unit);
            }
        }
        drop(calls);
        self.changes.send_replace(());
    }
}

impl Notes {
    /// It is the turn of so many bytes of the call.
    pub(super) fn has_sent(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
        self.waits = None;
        if self.left < LARGE {
            self.large = None;
        }
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        for (board, units) in &self.units {
            if let Some(board) = board.upgrade() {
                board.count(units, false);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, ops::Range};

    use futures_util::FutureExt as _;
    use potluck_core::{Reason, index_client::FileRecord, merkle::Hash, places::ClientAddress};

    use super::{super::turns::Turns, *};
    use crate::offer::{Availability, Content};

    /// A file of which nothing is asked but what it is.
    #[derive(Debug)]
    struct Named(FileId, u64);

    impl Content for Named {
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
    async fn few_large_calls_of_a_crowd_go_side_by_side_while_the_link_is_busy() {
        let file = Arc::new(Named(FileId([1; 32]), 8 * LARGE));
        let plan = file.plan().unwrap();
        let sending = Sending::new(MaxShare::ALL);
        let _watchers = [sending.board(&file.0, &plan), sending.board(&file.0, &plan)];
        let turns = Turns::new();
        let outlet = turns.outlet(ClientAddress::LOCAL);
        let ask = |bytes| {
            let offer: Arc<dyn Content> = Arc::clone(&file) as _;
            sending.note(
                &[Job {
                    offer,
                    range: 0..bytes,
                }],
                &outlet,
            )
        };
        let mut large: Vec<_> = (0..MOST_LARGE).map(|_| ask(4 * LARGE).unwrap()).collect();
        assert!(ask(4 * LARGE).is_ok(), "nobody else is sent anything");

        let busy: Vec<_> =
            std::iter::from_fn(|| outlet.is_free().then(|| outlet.turn().now_or_never())).collect();
        assert!(busy.iter().all(Option::is_some));
        large.iter_mut().for_each(|notes| notes.has_sent(LARGE));
        assert_eq!(ask(4 * LARGE).unwrap_err().reason, Reason::Busy);
        assert!(ask(LARGE - 1).is_ok(), "what is small is not kept back");
        large[0].has_sent(2 * LARGE + 1);
        assert!(ask(4 * LARGE).is_ok(), "one is at its end");
        drop(busy);
        assert!(ask(4 * LARGE).is_ok(), "the link is free");
    }
}
