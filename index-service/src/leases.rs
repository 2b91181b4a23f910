//! How long each peer is believed to be there.
//!
//! Invariant: each lease stands once in the order of expiry, under its own deadline. A lease whose deadline has come is over for
//! [`LeaseTable::renew`] even before [`LeaseTable::take_expired`] has collected it. Pure: time is a parameter. Non-goals: what
//! peers have, and durability: after a restart every peer that the store knows is given one lease to come back.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use potluck_core::PeerId;

#[derive(Debug, Clone, Copy)]
struct Lease {
    deadline: Instant,
    ttl: Duration,
}

/// The leases of all peers.
#[derive(Debug, Default)]
pub struct LeaseTable {
    leases: HashMap<PeerId, Lease>,
    by_deadline: BTreeSet<(Instant, PeerId)>,
}

impl LeaseTable {
    /// Opens a lease, or begins the one that there is anew.
    pub fn open(&mut self, peer: PeerId, ttl: Duration, now: Instant) {
        let lease = Lease {
            deadline: now + ttl,
            ttl,
        };
        if let Some(old) = self.leases.insert(peer, lease) {
            self.by_deadline.remove(&(old.deadline, peer));
        }
        self.by_deadline.insert((lease.deadline, peer));
    }

    /// Renews a lease that has not run out, and says for how long.
    pub fn renew(&mut self, peer: &PeerId, now: Instant) -> Option<Duration> {
        let lease = *self.leases.get(peer).filter(|lease| lease.deadline > now)?;
        self.open(*peer, lease.ttl, now);
        Some(lease.ttl)
    }

    /// How long a peer's lease lasts each time, if it has one.
    pub fn ttl(&self, peer: &PeerId) -> Option<Duration> {
        self.leases.get(peer).map(|lease| lease.ttl)
    }

    /// Ends a lease; true if there was one.
    pub fn close(&mut self, peer: &PeerId) -> bool {
        let Some(lease) = self.leases.remove(peer) else {
            return false;
        };
        self.by_deadline.remove(&(lease.deadline, *peer))
    }

    /// Removes the leases that have run out, those first that ran out first, at most `most`.
    pub fn take_expired(&mut self, now: Instant, most: usize) -> Vec<PeerId> {
        let mut expired = Vec::new();
        while expired.len() < most
            && let Some(&(deadline, peer)) = self.by_deadline.first()
            && deadline <= now
        {
            self.by_deadline.pop_first();
            self.leases.remove(&peer);
            expired.push(peer);
        }
        expired
    }

    /// When the next lease runs out.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|&(deadline, _)| deadline)
    }

    /// How many leases there are, those that ran out but were not collected included.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    const TTL: Duration = Duration::from_secs(60);

    #[test]
    fn a_lease_ends_at_its_deadline() {
        let start = Instant::now();
        let mut table = LeaseTable::default();
        table.open(peer(1), TTL, start);
        assert_eq!(table.next_deadline(), Some(start + TTL));
        assert!(
            table
                .take_expired(start + TTL - Duration::from_nanos(1), 10)
                .is_empty()
        );
        assert_eq!(
            table.renew(&peer(1), start + TTL),
            None,
            "over even before it is collected"
        );
        assert_eq!(table.take_expired(start + TTL, 10), [peer(1)]);
        assert!(table.is_empty());
    }

    #[test]
    fn renewing_begins_anew() {
        let start = Instant::now();
        let mut table = LeaseTable::default();
        table.open(peer(1), TTL, start);
        assert_eq!(table.renew(&peer(1), start + TTL / 2), Some(TTL));
        assert!(table.take_expired(start + TTL, 10).is_empty());
        assert_eq!(table.take_expired(start + TTL / 2 + TTL, 10), [peer(1)]);
        assert_eq!(table.renew(&peer(2), start), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Open(u8, u64),
        Renew(u8),
        Close(u8),
        Wait(u64),
        Take(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..6u8, 1..20u64).prop_map(|(peer, ttl)| Step::Open(peer, ttl)),
            (0..6u8).prop_map(Step::Renew),
            (0..6u8).prop_map(Step::Close),
            (0..10u64).prop_map(Step::Wait),
            (0..4usize).prop_map(Step::Take),
        ]
    }

    proptest! {
        /// Against a list that is searched from end to end.
        #[test]
        fn behaves_as_a_plain_list(steps in prop::collection::vec(step(), 0..200)) {
            let mut now = Instant::now();
            let mut table = LeaseTable::default();
            let mut model: Vec<(PeerId, Instant, Duration)> = Vec::new();
            for step in steps {
                match step {
                    Step::Open(n, ttl) => {
                        let ttl = Duration::from_secs(ttl);
                        table.open(peer(n), ttl, now);
                        model.retain(|entry| entry.0 != peer(n));
                        model.push((peer(n), now + ttl, ttl));
                    }
                    Step::Renew(n) => {
                        let entry = model.iter_mut().find(|entry| entry.0 == peer(n) && entry.1 > now);
                        let expected = entry.map(|entry| { entry.1 = now + entry.2; entry.2 });
                        prop_assert_eq!(table.renew(&peer(n), now), expected);
                    }
                    Step::Close(n) => {
                        let before = model.len();
                        model.retain(|entry| entry.0 != peer(n));
                        prop_assert_eq!(table.close(&peer(n)), model.len() < before);
                    }
                    Step::Wait(seconds) => now += Duration::from_secs(seconds),
                    Step::Take(most) => {
                        let mut due: Vec<_> = model.iter().filter(|entry| entry.1 <= now).copied().collect();
                        due.sort_by_key(|entry| (entry.1, entry.0));
                        due.truncate(most);
                        let due: Vec<PeerId> = due.into_iter().map(|entry| entry.0).collect();
                        prop_assert_eq!(table.take_expired(now, most), due.clone());
                        model.retain(|entry| !due.contains(&entry.0));
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.by_deadline.len(), model.len());
                prop_assert_eq!(table.next_deadline(), model.iter().map(|entry| entry.1).min());
            }
        }
    }
}
