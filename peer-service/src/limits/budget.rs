//! Limits the bytes that all downloads together have requested but not yet verified, which bounds
//! their memory.
//!
//! Each download with bytes in flight gets a part of the budget in proportion to its priority. A
//! part grows at the expense of another only as the other's requests complete.
//!
//! Invariant: the bytes in flight are at most the budget, plus one unit per download. Each download
//! may always have one unit in flight; otherwise many downloads could starve each other. Two tasks
//! that read their parts at the same instant may both use bytes that only one can have; the next
//! reallocation corrects this.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::limits::Priority;
use potluck_swarm::MAX_IN_FLIGHT_BYTES;

/// The in-flight budget of a peer. Cheap to clone; all clones share the same budget.
#[derive(Debug, Clone)]
pub struct InFlightBudget {
    state: Arc<Mutex<BudgetState>>,
}

#[derive(Debug)]
struct BudgetState {
    allocation: FairAllocation,
    notify: BTreeMap<u64, watch::Sender<u64>>,
    last_number: u64,
}

impl Default for InFlightBudget {
    fn default() -> Self {
        Self::new(MAX_IN_FLIGHT_BYTES)
    }
}

impl InFlightBudget {
    /// A budget of `total` bytes for all downloads together.
    pub fn new(total: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(BudgetState {
                allocation: FairAllocation::new(total),
                notify: BTreeMap::new(),
                last_number: 0,
            })),
        }
    }

    fn state(&self) -> MutexGuard<'_, BudgetState> {
        self.state.lock()
    }

    /// Adds a download with nothing in flight. Dropping the share removes it.
    pub(crate) fn join(&self, priority: Priority) -> BudgetShare {
        let mut state = self.state();
        state.last_number += 1;
        let number = state.last_number;
        let (notify, part) = watch::channel(0);
        state.notify.insert(number, notify);
        state.change(|allocation| allocation.join(number, priority));
        drop(state);
        BudgetShare {
            budget: self.clone(),
            number,
            allocation: part,
            reported: 0,
        }
    }
}

impl BudgetState {
    fn change(&mut self, change: impl FnOnce(&mut FairAllocation)) {
        change(&mut self.allocation);
        for (number, notify) in &self.notify {
            let part = self.allocation.allocation(*number);
            notify.send_if_modified(|allocation| std::mem::replace(allocation, part) != part);
        }
    }
}

/// One download's part of the budget.
#[derive(Debug)]
pub(crate) struct BudgetShare {
    budget: InFlightBudget,
    number: u64,
    allocation: watch::Receiver<u64>,
    /// Bytes in flight, as last reported.
    reported: u64,
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        state.notify.remove(&self.number);
        state.change(|allocation| allocation.leave(self.number));
    }
}

impl BudgetShare {
    /// Bytes that the download may have in flight now.
    pub(crate) fn bytes(&self) -> u64 {
        *self.allocation.borrow()
    }

    /// Waits until the part differs from the one that [`BudgetShare::report_in_flight`] last saw.
    /// Cancel-safe.
    pub(crate) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.allocation.changed().await?;
        self.allocation.mark_changed();
        Ok(())
    }

    /// Reports the bytes in flight. Call this after each change of them, and after
    /// [`BudgetShare::changed`]. Takes no lock if the report cannot affect other downloads.
    pub(crate) fn report_in_flight(&mut self, in_flight: u64) {
        // If the part changed, it may have been larger for a while. Other downloads count it until
        // the next report.
        let changed = self.allocation.has_changed().unwrap_or(false);
        let part = *self.allocation.borrow_and_update();
        let within =
            in_flight.max(self.reported) <= part && (in_flight == 0) == (self.reported == 0);
        let nothing_new = !changed && (within || in_flight == self.reported);
        if nothing_new || in_flight == 0 && self.reported == 0 {
            return;
        }
        self.reported = in_flight;
        let mut state = self.budget.state();
        if state.allocation.changes_allocation(self.number, in_flight) {
            state.change(|allocation| allocation.report_in_flight(self.number, in_flight));
        }
    }

    /// Changes the priority of the download.
    pub(crate) fn set_priority(&self, priority: Priority) {
        let number = self.number;
        self.budget
            .state()
            .change(|allocation| allocation.set_priority(number, priority));
    }
}

/// Computes the parts of all downloads. Pure.
#[derive(Debug)]
struct FairAllocation {
    total: u64,
    members: BTreeMap<u64, BudgetMember>,
}

#[derive(Debug)]
struct BudgetMember {
    priority: Priority,
    /// Upper bound on the bytes in flight: the last report, or a larger allocation since. 0 means
    /// idle.
    in_flight_bound: u64,
    allocation: u64,
}

impl FairAllocation {
    const fn new(total: u64) -> Self {
        Self {
            total,
            members: BTreeMap::new(),
        }
    }

    fn join(&mut self, number: u64, priority: Priority) {
        let member = BudgetMember {
            priority,
            in_flight_bound: 0,
            allocation: 0,
        };
        self.members.insert(number, member);
        self.reallocate();
    }

    fn leave(&mut self, number: u64) {
        self.members.remove(&number);
        self.reallocate();
    }

    fn set_priority(&mut self, number: u64, priority: Priority) {
        if let Some(member) = self.members.get_mut(&number) {
            member.priority = priority;
        }
        self.reallocate();
    }

    fn report_in_flight(&mut self, number: u64, in_flight: u64) {
        if let Some(member) = self.members.get_mut(&number) {
            member.in_flight_bound = in_flight;
        }
        self.reallocate();
    }

    /// Whether a report would change any state. Often it does not: one unit arrived and another was
    /// requested.
    fn changes_allocation(&self, number: u64, in_flight: u64) -> bool {
        let bound = |member: &BudgetMember| match in_flight {
            0 => 0,
            bytes => bytes.max(member.allocation),
        };
        self.members
            .get(&number)
            .is_some_and(|member| member.in_flight_bound != bound(member))
    }

    fn allocation(&self, number: u64) -> u64 {
        self.members.get(&number).map_or(0, |member| member.allocation)
    }

    /// Computes all parts. The fair part of a download is its weight among the downloads that are
    /// not idle. It gets as much of that as the others leave: each of them keeps its own fair part,
    /// or its bytes in flight if those are more.
    fn reallocate(&mut self) {
        let weight: u64 = self
            .members
            .values()
            .filter(|member| member.in_flight_bound > 0)
            .map(BudgetMember::weight)
            .sum();
        let fair = |member: &BudgetMember, weight: u64| {
            let part =
                u128::from(self.total) * u128::from(member.weight()) / u128::from(weight.max(1));
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        let claim = |member: &BudgetMember| match member.in_flight_bound {
            0 => 0,
            bound => bound.max(fair(member, weight)),
        };
        let claims: u64 = self.members.values().map(claim).sum();
        let parts: Vec<u64> = self
            .members
            .values()
            .map(|member| {
                let others = claims - claim(member);
                let weight = if member.in_flight_bound > 0 {
                    weight
                } else {
                    weight + member.weight()
                };
                fair(member, weight).min(self.total.saturating_sub(others))
            })
            .collect();
        for (member, part) in self.members.values_mut().zip(parts) {
            member.allocation = part;
            if member.in_flight_bound > 0 {
                member.in_flight_bound = member.in_flight_bound.max(part);
            }
        }
    }
}

impl BudgetMember {
    fn weight(&self) -> u64 {
        self.priority.get().into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn priority(number: u32) -> Priority {
        Priority::new(number).unwrap()
    }

    const TOTAL: u64 = 64 << 20;
    const UNIT: u64 = 1 << 20;

    /// Simulates download drivers: each reports its bytes in flight immediately after requesting
    /// something, and eventually after its part changed.
    struct SimulatedPeer {
        budget: InFlightBudget,
        shares: BTreeMap<u64, (BudgetShare, u64)>,
    }

    impl SimulatedPeer {
        fn set(&mut self, number: u64, bytes: impl FnOnce(u64, u64) -> u64) {
            let (share, in_flight) = self.shares.get_mut(&number).unwrap();
            *in_flight = bytes(share.bytes(), *in_flight);
            share.report_in_flight(*in_flight);
        }

        fn settle(&mut self) {
            let mut rounds = 0;
            while self
                .shares
                .values()
                .any(|(share, _)| share.allocation.has_changed().unwrap())
            {
                for (share, in_flight) in self.shares.values_mut() {
                    share.report_in_flight(*in_flight);
                }
                rounds += 1;
                assert!(rounds < 10, "the shares settle: {:?}", self.budget);
            }
        }
    }

    proptest! {
        /// Downloads start, end, change their priority and use their full part. The bytes in flight
        /// never exceed the budget plus one unit each, and once settled, each download has its fair
        /// part.
        #[test]
        fn the_budget_is_never_exceeded_and_fully_allocated(
            events in proptest::collection::vec((0u8..8, 0u64..5, 1u32..=100, 0u64..64), 1..200),
        ) {
            let mut peer = SimulatedPeer { budget: InFlightBudget::new(TOTAL), shares: BTreeMap::new() };
            let mut weights = BTreeMap::new();
            for (event, number, weight, units) in events {
                if !peer.shares.contains_key(&number) {
                    let share = peer.budget.join(priority(weight));
                    peer.shares.insert(number, (share, 0));
                    weights.insert(number, weight);
                }
                match event {
                    0 => {
                        peer.shares.remove(&number);
                        weights.remove(&number);
                    }
                    1 => {
                        peer.shares[&number].0.set_priority(priority(weight));
                        weights.insert(number, weight);
                    }
                    2 => peer.settle(),
                    // Some of the bytes arrive.
                    3..=4 => peer.set(number, |_, bytes| bytes.saturating_sub(units * UNIT)),
                    // Requests as much as its part allows.
                    _ => peer.set(number, |share, bytes| bytes.max(share / UNIT * UNIT).max(UNIT)),
                }
                let all: u64 = peer.shares.values().map(|(_, in_flight)| in_flight).sum();
                let most = TOTAL + peer.shares.len() as u64 * UNIT;
                prop_assert!(all <= most, "{} in flight, {:?}", all, peer.budget);
                let mut state = peer.budget.state();
                for (number, sender) in &state.notify {
                    prop_assert_eq!(*sender.borrow(), state.allocation.allocation(*number));
                }
                // A report that was skipped as redundant would indeed have changed nothing.
                if let Some((share, in_flight)) = peer.shares.get(&number).filter(|(share, _)| share.reported > 0 || event > 2) {
                    let before = format!("{:?}", state.allocation);
                    if !share.allocation.has_changed().unwrap() {
                        state.allocation.report_in_flight(share.number, *in_flight);
                    }
                    prop_assert_eq!(before, format!("{:?}", state.allocation));
                }
            }
            for number in weights.keys() {
                peer.set(*number, |_, _| 1);
            }
            peer.settle();
            let total_weight: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
            for (number, weight) in &weights {
                let fair = TOTAL * u64::from(*weight) / total_weight;
                prop_assert!(peer.shares[number].0.bytes() == fair, "{} for {}, {:?}", fair, number, peer.budget);
            }
        }
    }

    #[test]
    fn a_single_download_has_the_whole_budget_and_releases_it_as_requests_complete() {
        let budget = InFlightBudget::new(TOTAL);
        let mut one = budget.join(priority(30));
        assert_eq!(one.bytes(), TOTAL);
        one.report_in_flight(TOTAL);
        let mut two = budget.join(priority(10));
        assert_eq!(
            (one.bytes(), two.bytes()),
            (TOTAL, 0),
            "an idle download changes nothing"
        );
        two.report_in_flight(UNIT);
        assert_eq!((one.bytes(), two.bytes()), (TOTAL / 4 * 3, 0));
        one.report_in_flight(TOTAL / 8 * 7);
        assert_eq!(two.bytes(), TOTAL / 8);
        one.report_in_flight(TOTAL / 8);
        assert_eq!((one.bytes(), two.bytes()), (TOTAL / 4 * 3, TOTAL / 4));
        one.report_in_flight(0);
        assert_eq!(two.bytes(), TOTAL, "an idle download claims nothing");
        two.set_priority(priority(90));
        one.report_in_flight(1);
        two.report_in_flight(TOTAL / 4);
        assert_eq!((one.bytes(), two.bytes()), (TOTAL / 4, TOTAL / 4 * 3));
        drop(two);
        assert_eq!(one.bytes(), TOTAL);
    }
}
