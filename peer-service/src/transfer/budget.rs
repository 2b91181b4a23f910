//! What all transfers of a peer together may have asked for and not yet verified: what they hold in memory, whatever their number.
//!
//! Each transfer that has something in flight gets a part in proportion to its priority. A part that grows at another's
//! expense grows only as the other has let go of what it had in flight.
//!
//! Invariant: what transfers have in flight is at most the budget in all, plus one unit for each: a transfer may always have
//! one, or many at once could starve each other. Two tasks that look at their parts in the same instant may both take what only
//! one can have; the parts that follow take it back.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{limits::Priority, swarm::MAX_IN_FLIGHT_BYTES};

/// The budget of a peer. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Budget {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    division: Division,
    tell: BTreeMap<u64, watch::Sender<u64>>,
    last: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(MAX_IN_FLIGHT_BYTES)
    }
}

impl Budget {
    /// So many bytes for all transfers together.
    pub fn new(total: u64) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                division: Division::new(total),
                tell: BTreeMap::new(),
                last: 0,
            })),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more transfer, with nothing in flight yet; dropping the share ends it.
    pub(crate) fn share(&self, priority: Priority) -> Share {
        let mut inner = self.inner();
        inner.last += 1;
        let number = inner.last;
        let (tell, part) = watch::channel(0);
        inner.tell.insert(number, tell);
        inner.change(|division| division.join(number, priority));
        drop(inner);
        Share {
            budget: self.clone(),
            number,
            part,
            told: 0,
        }
    }
}

impl Inner {
    fn change(&mut self, change: impl FnOnce(&mut Division)) {
        change(&mut self.division);
        for (number, tell) in &self.tell {
            let part = self.division.part(*number);
            tell.send_if_modified(|told| std::mem::replace(told, part) != part);
        }
    }
}

/// A running transfer's part of the budget.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Budget,
    number: u64,
    part: watch::Receiver<u64>,
    /// What was in flight when it was last told.
    told: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut inner = self.budget.inner();
        inner.tell.remove(&self.number);
        inner.change(|division| division.leave(self.number));
    }
}

impl Share {
    /// Bytes that the transfer may have in flight now.
    pub(crate) fn bytes(&self) -> u64 {
        *self.part.borrow()
    }

    /// Waits until the part has changed since [`Share::tell`] last looked. Cancel-safe.
    pub(crate) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.part.changed().await?;
        self.part.mark_changed();
        Ok(())
    }

    /// Tells what is in flight: after whatever may have changed that, and when the part did. Locks nothing as long as that cannot
    /// change anything for others.
    pub(crate) fn tell(&mut self, in_flight: u64) {
        // One that changed may have been more for a while: others count on that until they are told.
        let changed = self.part.has_changed().unwrap_or(false);
        let part = *self.part.borrow_and_update();
        let within = in_flight.max(self.told) <= part && (in_flight == 0) == (self.told == 0);
        let nothing_new = !changed && (within || in_flight == self.told);
        if nothing_new || in_flight == 0 && self.told == 0 {
            return;
        }
        self.told = in_flight;
        let mut inner = self.budget.inner();
        if inner.division.is_news(self.number, in_flight) {
            inner.change(|division| division.tell(self.number, in_flight));
        }
    }

    /// Changes how much the transfer counts.
    pub(crate) fn set_priority(&self, priority: Priority) {
        let number = self.number;
        self.budget
            .inner()
            .change(|division| division.set_priority(number, priority));
    }
}

/// Who may have how much: pure.
#[derive(Debug)]
struct Division {
    total: u64,
    members: BTreeMap<u64, Member>,
}

#[derive(Debug)]
struct Member {
    priority: Priority,
    /// Most that it can have in flight, by what it told and what it was allowed since. 0: it is idle.
    held: u64,
    part: u64,
}

impl Division {
    const fn new(total: u64) -> Self {
        Self {
            total,
            members: BTreeMap::new(),
        }
    }

    fn join(&mut self, number: u64, priority: Priority) {
        let member = Member {
            priority,
            held: 0,
            part: 0,
        };
        self.members.insert(number, member);
        self.divide();
    }

    fn leave(&mut self, number: u64) {
        self.members.remove(&number);
        self.divide();
    }

    fn set_priority(&mut self, number: u64, priority: Priority) {
        if let Some(member) = self.members.get_mut(&number) {
            member.priority = priority;
        }
        self.divide();
    }

    fn tell(&mut self, number: u64, in_flight: u64) {
        if let Some(member) = self.members.get_mut(&number) {
            member.held = in_flight;
        }
        self.divide();
    }

    /// Whether this changes anything for anybody: mostly a unit came and another was asked for.
    fn is_news(&self, number: u64, in_flight: u64) -> bool {
        let held = |it: &Member| match in_flight {
            0 => 0,
            some => some.max(it.part),
        };
        self.members.get(&number).is_some_and(|it| it.held != held(it))
    }

    fn part(&self, number: u64) -> u64 {
        self.members.get(&number).map_or(0, |member| member.part)
    }

    /// The fair part is that among all who are not idle. Of it a member gets what the others leave: each of them its own fair part
    /// or, while it has more in flight, that.
    fn divide(&mut self) {
        let weight: u64 = self
            .members
            .values()
            .filter(|it| it.held > 0)
            .map(Member::weight)
            .sum();
        let fair = |it: &Member, weight: u64| {
            let part = u128::from(self.total) * u128::from(it.weight()) / u128::from(weight.max(1));
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        let claim = |it: &Member| match it.held {
            0 => 0,
            held => held.max(fair(it, weight)),
        };
        let claims: u64 = self.members.values().map(claim).sum();
        let parts: Vec<u64> = self
            .members
            .values()
            .map(|it| {
                let others = claims - claim(it);
                let weight = if it.held > 0 { weight } else { weight + it.weight() };
                fair(it, weight).min(self.total.saturating_sub(others))
            })
            .collect();
        for (member, part) in self.members.values_mut().zip(parts) {
            member.part = part;
            if member.held > 0 {
                member.held = member.held.max(part);
            }
        }
    }
}

impl Member {
    fn weight(&self) -> u64 {
        self.priority.get().into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn priority(of: u32) -> Priority {
        Priority::new(of).unwrap()
    }

    const TOTAL: u64 = 64 << 20;
    const UNIT: u64 = 1 << 20;

    /// Transfers as their drivers treat them: each tells what it has in flight whenever it looks, which is at once where it asked
    /// for something, and sooner or later where its part changed.
    struct World {
        budget: Budget,
        shares: BTreeMap<u64, (Share, u64)>,
    }

    impl World {
        fn set(&mut self, who: u64, bytes: impl FnOnce(u64, u64) -> u64) {
            let (share, in_flight) = self.shares.get_mut(&who).unwrap();
            *in_flight = bytes(share.bytes(), *in_flight);
            share.tell(*in_flight);
        }

        fn wake(&mut self) {
            let mut rounds = 0;
            while self
                .shares
                .values()
                .any(|(share, _)| share.part.has_changed().unwrap())
            {
                for (share, in_flight) in self.shares.values_mut() {
                    share.tell(*in_flight);
                }
                rounds += 1;
                assert!(rounds < 10, "they come to rest: {:?}", self.budget);
            }
        }
    }

    proptest! {
        /// Transfers that come, go, change and take all that they may: never more in flight than the budget and a unit each, and
        /// once they have settled each has its share.
        #[test]
        fn the_whole_is_never_passed_and_all_of_it_is_given(
            events in proptest::collection::vec((0u8..8, 0u64..5, 1u32..=100, 0u64..64), 1..200),
        ) {
            let mut world = World { budget: Budget::new(TOTAL), shares: BTreeMap::new() };
            let mut weights = BTreeMap::new();
            for (what, who, of, units) in events {
                if !world.shares.contains_key(&who) {
                    let share = world.budget.share(priority(of));
                    world.shares.insert(who, (share, 0));
                    weights.insert(who, of);
                }
                match what {
                    0 => {
                        world.shares.remove(&who);
                        weights.remove(&who);
                    }
                    1 => {
                        world.shares[&who].0.set_priority(priority(of));
                        weights.insert(who, of);
                    }
                    2 => world.wake(),
                    // Some of it arrives.
                    3..=4 => world.set(who, |_, has| has.saturating_sub(units * UNIT)),
                    // Asks for all that it may.
                    _ => world.set(who, |part, has| has.max(part / UNIT * UNIT).max(UNIT)),
                }
                let all: u64 = world.shares.values().map(|(_, in_flight)| in_flight).sum();
                let most = TOTAL + world.shares.len() as u64 * UNIT;
                prop_assert!(all <= most, "{} in flight, {:?}", all, world.budget);
                let mut inner = world.budget.inner();
                for (number, tell) in &inner.tell {
                    prop_assert_eq!(*tell.borrow(), inner.division.part(*number));
                }
                // What was told and taken for no news is none.
                if let Some((share, in_flight)) = world.shares.get(&who).filter(|(share, _)| share.told > 0 || what > 2) {
                    let before = format!("{:?}", inner.division);
                    if !share.part.has_changed().unwrap() {
                        inner.division.tell(share.number, *in_flight);
                    }
                    prop_assert_eq!(before, format!("{:?}", inner.division));
                }
            }
            for who in weights.keys() {
                world.set(*who, |_, _| 1);
            }
            world.wake();
            let weight: u64 = weights.values().map(|of| u64::from(*of)).sum();
            for (who, of) in &weights {
                let fair = TOTAL * u64::from(*of) / weight;
                prop_assert!(world.shares[who].0.bytes() == fair, "{} for {}, {:?}", fair, who, world.budget);
            }
        }
    }

    #[test]
    fn one_alone_has_all_and_gives_it_up_as_it_comes_in() {
        let budget = Budget::new(TOTAL);
        let mut one = budget.share(priority(30));
        assert_eq!(one.bytes(), TOTAL);
        one.tell(TOTAL);
        let mut two = budget.share(priority(10));
        assert_eq!((one.bytes(), two.bytes()), (TOTAL, 0), "idle, it changes nothing");
        two.tell(UNIT);
        assert_eq!((one.bytes(), two.bytes()), (TOTAL / 4 * 3, 0));
        one.tell(TOTAL / 8 * 7);
        assert_eq!(two.bytes(), TOTAL / 8);
        one.tell(TOTAL / 8);
        assert_eq!((one.bytes(), two.bytes()), (TOTAL / 4 * 3, TOTAL / 4));
        one.tell(0);
        assert_eq!(two.bytes(), TOTAL, "an idle one holds nothing back");
        two.set_priority(priority(90));
        one.tell(1);
        two.tell(TOTAL / 4);
        assert_eq!((one.bytes(), two.bytes()), (TOTAL / 4, TOTAL / 4 * 3));
        drop(two);
        assert_eq!(one.bytes(), TOTAL);
    }
}
