//! Streams the availability of a file: first a snapshot, then changes.
//!
//! Changes are coalesced over a short interval. A new snapshot is sent if a change cannot express
//! the difference, such as after units were lost.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use potluck_core::{
    FileId, Problem,
    availability::{Availability, AvailabilityChange, AvailabilityUpdate},
    grpc::limiter::Permit,
};
use tokio::sync::watch;

use crate::{
    content::Content,
    fs::blocking::blocking,
    upload::{crowd::in_flight_sends::UnitSends, refusal::not_found, shared::UploadShared},
};

/// Minimum interval over which changes are coalesced: short compared with the time that a piece
/// takes, so that a crowd has current information.
const COALESCE: Duration = Duration::from_millis(10);

/// Maximum interval over which changes are coalesced. With a great many watchers, the message rate
/// exceeds [`MESSAGES_PER_SECOND`] instead.
const MAX_COALESCE: Duration = Duration::from_millis(250);

/// Target rate of messages to all watchers together. Each message costs a packet and a task wake-up
/// at both ends; if a crowd announced every piece to every peer immediately, these costs would
/// leave no time for the pieces.
const MESSAGES_PER_SECOND: u32 = 200;

/// Maximum units in one message.
const MAX_UNITS: usize = 64 * 1024;

/// The state that the watcher has received.
#[derive(Debug)]
enum SentAvailability {
    /// All units are here. Kept small, because a crowd watches seeds.
    Complete(SentComplete),
    Partial(Availability),
}

/// The state that the watcher of a complete file has received.
#[derive(Debug)]
struct SentComplete {
    units: u32,
    /// Notifies of changes to the units being sent.
    changes: watch::Receiver<()>,
    /// The units being sent, as last reported to the watcher; sorted.
    in_flight: Vec<u32>,
}

impl SentAvailability {
    fn new(units: Availability, sends: &UnitSends) -> Self {
        if !units.have.is_full() {
            return Self::Partial(units);
        }
        Self::Complete(SentComplete {
            units: units.have.len(),
            changes: sends.changes(),
            in_flight: Vec::new(),
        })
    }

    /// Waits until the set of units being sent changes. Never resolves for a partial file: its
    /// watchers get no such reports.
    async fn in_flight_changed(&mut self) {
        match self {
            // The sender lives in `AvailabilityWatch::in_flight`, so this never fails.
            Self::Complete(complete) => _ = complete.changes.changed().await,
            Self::Partial(_) => std::future::pending().await,
        }
    }
}

impl SentComplete {
    /// The change in the units being sent since the last report.
    fn difference(&mut self, sends: &UnitSends) -> Option<AvailabilityUpdate> {
        let now = sends.units();
        let not_in = |some: &[u32], others: &[u32]| -> Vec<u32> {
            let new = some.iter().filter(|unit| others.binary_search(unit).is_err());
            new.copied().take(MAX_UNITS).collect()
        };
        let change = AvailabilityChange {
            have: Vec::new(),
            fetching: not_in(&now, &self.in_flight),
            abandoned: not_in(&self.in_flight, &now),
        };
        self.in_flight = now;
        (!change.is_empty()).then_some(AvailabilityUpdate::Change(change))
    }
}

struct AvailabilityWatch {
    shared: Arc<UploadShared>,
    id: FileId,
    sent: SentAvailability,
    /// Each watcher holds one reference, so the reference count is the number of watchers.
    in_flight: Arc<UnitSends>,
    changes: Option<watch::Receiver<u64>>,
    queue: VecDeque<AvailabilityUpdate>,
    _permit: Permit,
}

/// The file's current availability. May block, so it runs on a blocking thread.
async fn current_availability(
    shared: &Arc<UploadShared>,
    id: FileId,
) -> Result<(Availability, Option<watch::Receiver<u64>>), Problem> {
    let shared = shared.clone();
    blocking(move || Ok(availability_of(&*shared.find(&id)?))).await?
}

fn availability_of(content: &dyn Content) -> (Availability, Option<watch::Receiver<u64>>) {
    // Subscribe before reading, so that no change in between is missed.
    let changes = content.changes();
    (content.availability(), changes)
}

/// How long changes are coalesced for this number of watchers.
fn coalesce_interval(watchers: u32) -> Duration {
    (Duration::from_secs(1) * watchers / MESSAGES_PER_SECOND).clamp(COALESCE, MAX_COALESCE)
}

/// Streams a file's availability. The stream ends with `NOT_FOUND` when the file is no longer
/// shared.
///
/// # Errors
/// `NOT_FOUND` if this peer does not share the file.
pub(crate) async fn watch(
    service: Arc<UploadShared>,
    id: FileId,
    permit: Permit,
) -> Result<impl Stream<Item = Result<AvailabilityUpdate, Problem>> + Send + use<>, Problem> {
    let shared = service.clone();
    let first = blocking(move || {
        let content = shared.find(&id)?;
        let (units, changes) = availability_of(&*content);
        // Content always has a plan: its size is within the limit for files.
        let plan = content.plan().ok_or_else(|| not_found(&id))?;
        Ok::<_, Problem>((units, changes, shared.in_flight_sends.sends_of(&id, &plan)))
    });
    let (units, changes, sends) = first.await??;
    let queue = VecDeque::from([AvailabilityUpdate::Snapshot(units.clone())]);
    let sent = SentAvailability::new(units, &sends);
    let watch = AvailabilityWatch {
        shared: service,
        id,
        sent,
        in_flight: sends,
        changes,
        queue,
        _permit: permit,
    };
    Ok(stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        match watch.next().await {
            Ok(update) => Some((Ok(update), Some(watch))),
            Err(problem) => Some((Err(problem), None)),
        }
    }))
}

/// The reason why a watcher woke.
enum WakeReason {
    /// The units may have changed.
    UnitsChanged,
    /// The content was removed or replaced: a file was hashed again, or a download finished. The
    /// units may be the same. A snapshot is sent anyway, because a peer whose request was refused
    /// meanwhile must learn that the unit is available again.
    ContentReplaced,
    /// The set of units being sent changed.
    SendsChanged,
}

/// Waits until the units may have changed.
async fn wait_for_change(changes: &mut Option<watch::Receiver<u64>>) -> WakeReason {
    match changes {
        Some(changes) => match changes.changed().await {
            Ok(()) => WakeReason::UnitsChanged,
            Err(_) => WakeReason::ContentReplaced,
        },
        None => std::future::pending().await,
    }
}

impl AvailabilityWatch {
    async fn next(&mut self) -> Result<AvailabilityUpdate, Problem> {
        loop {
            if let Some(update) = self.queue.pop_front() {
                return Ok(update);
            }
            let woken = tokio::select! {
                woken = wait_for_change(&mut self.changes) => woken,
                () = self.sent.in_flight_changed() => WakeReason::SendsChanged,
            };
            tokio::time::sleep(coalesce_interval(self.shared.watcher_count())).await;
            if let (SentAvailability::Complete(complete), WakeReason::SendsChanged) =
                (&mut self.sent, &woken)
            {
                self.queue.extend(complete.difference(&self.in_flight));
                continue;
            }
            // Running downloads can be looked up without blocking. Complete content comes from the
            // library, whose lookup may block.
            let running = match self.sent {
                SentAvailability::Partial(_) => self.shared.try_find(&self.id).ok(),
                SentAvailability::Complete(_) => None,
            };
            let (units, changes) = match running {
                Some(content) => availability_of(&*content),
                None => current_availability(&self.shared, self.id).await?,
            };
            self.changes = changes;
            let updates = match woken {
                WakeReason::ContentReplaced => None,
                WakeReason::UnitsChanged | WakeReason::SendsChanged => {
                    difference(&self.sent, &units)
                }
            };
            match updates {
                Some(updates) => {
                    self.queue = updates.into();
                    if let SentAvailability::Partial(_) = self.sent {
                        self.sent = SentAvailability::new(units, &self.in_flight);
                    }
                }
                None => {
                    self.queue = VecDeque::from([AvailabilityUpdate::Snapshot(units.clone())]);
                    self.sent = SentAvailability::new(units, &self.in_flight);
                }
            }
        }
    }
}

/// The changes from the sent state to the current one. `None` if units were lost: a change cannot
/// express that, so the caller sends a snapshot.
fn difference(sent: &SentAvailability, now: &Availability) -> Option<Vec<AvailabilityUpdate>> {
    let before = match sent {
        SentAvailability::Complete(sent) if now.have.is_full() && now.have.len() == sent.units => {
            return Some(Vec::new());
        }
        SentAvailability::Partial(units) if units.have.len() == now.have.len() => units,
        SentAvailability::Complete(_) | SentAvailability::Partial(_) => return None,
    };
    if before.have.ones_not_in(&now.have).next().is_some() {
        return None;
    }
    let is_missing = |unit: &u32| !now.have.get(*unit);
    let change = AvailabilityChange {
        have: now.have.ones_not_in(&before.have).collect(),
        fetching: now
            .fetching
            .ones_not_in(&before.fetching)
            .filter(is_missing)
            .collect(),
        abandoned: before
            .fetching
            .ones_not_in(&now.fetching)
            .filter(is_missing)
            .collect(),
    };
    let changes = match change.len() {
        0 => Vec::new(),
        1..=MAX_UNITS => vec![change],
        _ => split(&change),
    };
    Some(changes.into_iter().map(AvailabilityUpdate::Change).collect())
}

/// Splits a change into several of at most [`MAX_UNITS`] units each.
fn split(change: &AvailabilityChange) -> Vec<AvailabilityChange> {
    let mut parts = Vec::new();
    let mut add = |units: &[u32], with: fn(Vec<u32>) -> AvailabilityChange| {
        parts.extend(units.chunks(MAX_UNITS).map(|run| with(run.to_vec())));
    };
    add(&change.have, |have| AvailabilityChange {
        have,
        ..Default::default()
    });
    add(&change.fetching, |fetching| AvailabilityChange {
        fetching,
        ..Default::default()
    });
    add(&change.abandoned, |abandoned| AvailabilityChange {
        abandoned,
        ..Default::default()
    });
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use potluck_core::{bitfield::Bitfield, collection::plan::Plan, grpc::limiter::MaxShare};

    use super::*;
    use crate::upload::crowd::in_flight_sends::InFlightSends;

    fn no_sends() -> Arc<UnitSends> {
        let id = FileId([0; 32]);
        let plan = Arc::new(Plan::of_file(id, 4).unwrap());
        InFlightSends::new(MaxShare::ALL).sends_of(&id, &plan)
    }

    fn units(len: u32, have: &[u32], fetching: &[u32]) -> Availability {
        let mut units = Availability {
            have: Bitfield::new(len),
            fetching: Bitfield::new(len),
        };
        for &unit in have {
            units.have.set(unit, true);
        }
        for &unit in fetching.iter().filter(|unit| !have.contains(unit)) {
            units.fetching.set(unit, true);
        }
        units
    }

    proptest! {
        /// A watcher that applies every change knows the current availability.
        #[test]
        fn a_watcher_that_applies_changes_knows_the_availability(
            before in proptest::collection::vec(0u32..40, 0..20),
            more in proptest::collection::vec(0u32..40, 0..20),
            fetching in proptest::collection::vec(0u32..40, 0..20),
            fetching_now in proptest::collection::vec(0u32..40, 0..20),
        ) {
            let mut known = units(40, &before, &fetching);
            let now = units(40, &[before, more].concat(), &fetching_now);
            let sent = SentAvailability::new(known.clone(), &no_sends());
            prop_assume!(matches!(sent, SentAvailability::Partial(_)));
            for update in difference(&sent, &now).unwrap() {
                let AvailabilityUpdate::Change(change) = update else { panic!("not a change") };
                for unit in change.have {
                    known.have.set(unit, true);
                    known.fetching.set(unit, false);
                }
                for unit in change.fetching {
                    known.fetching.set(unit, true);
                }
                for unit in change.abandoned {
                    known.fetching.set(unit, false);
                }
            }
            prop_assert_eq!(known, now);
        }
    }

    #[test]
    fn a_large_change_is_split() {
        let change = AvailabilityChange {
            have: (0..MAX_UNITS as u32 + 1).collect(),
            fetching: vec![7],
            abandoned: vec![8],
        };
        let parts = split(&change);
        let lens: Vec<usize> = parts.iter().map(AvailabilityChange::len).collect();
        assert_eq!(lens, [MAX_UNITS, 1, 1, 1]);
        assert_eq!(
            parts.iter().flat_map(|part| &part.have).count(),
            change.have.len()
        );
        assert_eq!((&parts[2].fetching, &parts[3].abandoned), (&vec![7], &vec![8]));
    }

    #[test]
    fn lost_units_need_a_snapshot() {
        let sent = SentAvailability::new(units(4, &[0, 1], &[]), &no_sends());
        assert_eq!(difference(&sent, &units(4, &[0], &[])), None);
        let sent = SentAvailability::new(units(2, &[0, 1], &[]), &no_sends());
        assert_eq!(difference(&sent, &units(2, &[0], &[])), None);
        assert_eq!(difference(&sent, &units(2, &[0, 1], &[])), Some(Vec::new()));
    }
}
