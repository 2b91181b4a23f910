//! Leases: how long each peer's registrations last without a renewal.
//!
//! Invariant: each lease occurs once in the order of expiry, under its own deadline. A lease whose
//! deadline has passed cannot be renewed ([`LeaseTable::renew`]), even before
//! [`LeaseTable::take_expired`] has collected it.
//!
//! Two live processes with one token, for example after a copy of the home folder, would take the
//! lease from each other forever. A peer that moves does not return to its old address, but two
//! live processes alternate. The table therefore refuses a process that takes a lease back for the
//! second time within `CONTEST`. It reports the refused process to the holder as a rival, as long
//! as both live.
//!
//! Pure: time is a parameter. Non-goals: the peers' files, and durability. After a restart, each
//! stored peer gets one lease to come back.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use potluck_core::{PeerId, model::Address};

/// How long a previous holder and a refused rival are remembered: longer than a refused peer waits
/// before it tries again.
const CONTEST: Duration = Duration::from_secs(180);

/// How often a process may take a lease back from another: a peer that moves away and returns does
/// so once.
const RETURNS: u8 = 1;

/// One run of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The address where it listens.
    pub(crate) address: Address,
    /// A number that the run picks at start; empty if it sent none.
    pub(crate) instance: Vec<u8>,
}

#[derive(Debug)]
struct LeaseEntry {
    deadline: Instant,
    ttl: Duration,
    /// `None` after a restart of the index, until the peer contacts it.
    holder: Option<Holder>,
    /// The previous holder, the last time it was seen, and how often the two took the lease from
    /// each other.
    before: Option<Box<(Holder, Instant, u8)>>,
    /// The last process that was refused in favour of `holder`, and when.
    rival: Option<Box<(Address, Instant)>>,
}

/// The leases of all peers.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    leases: HashMap<PeerId, LeaseEntry>,
    by_deadline: BTreeSet<(Instant, PeerId)>,
}

impl LeaseTable {
    /// Returns the current holder's address if `holder` must be refused because another live
    /// process alternates with it. Remembers the refused process as the rival.
    pub(crate) fn contest(&mut self, peer: &PeerId, holder: &Holder, now: Instant) -> Option<Address> {
        let lease = self.leases.get_mut(peer).filter(|lease| lease.deadline > now)?;
        let current = lease.holder.as_ref().filter(|current| *current != holder)?;
        let (before, until, returns) = lease.before.as_deref_mut()?;
        if before != holder || now > *until + CONTEST || *returns < RETURNS {
            return None;
        }
        *until = now;
        lease.rival = Some(Box::new((holder.address.clone(), now)));
        Some(current.address.clone())
    }

    /// Whether this run of a peer may hold the peer's lease; true if there is no lease or either
    /// run is unknown.
    pub(crate) fn may_be_of(&self, peer: &PeerId, instance: &[u8]) -> bool {
        let holder = self.leases.get(peer).and_then(|lease| lease.holder.as_ref());
        holder.is_none_or(|holder| {
            instance.is_empty() || holder.instance.is_empty() || holder.instance == instance
        })
    }

    /// The address of another process that recently tried to take the lease.
    pub(crate) fn rival(&self, peer: &PeerId, now: Instant) -> Option<&Address> {
        let (address, at) = self.leases.get(peer)?.rival.as_deref()?;
        (now <= *at + CONTEST).then_some(address)
    }

    /// Opens a lease, or restarts the existing one. `holder` is `None` if it is unknown.
    pub(crate) fn open(&mut self, peer: PeerId, ttl: Duration, holder: Option<Holder>, now: Instant) {
        let deadline = now + ttl;
        let mut lease = LeaseEntry {
            deadline,
            ttl,
            holder,
            before: None,
            rival: None,
        };
        if let Some(old) = self.leases.remove(&peer) {
            self.by_deadline.remove(&(old.deadline, peer));
            if old.holder == lease.holder || old.holder.is_none() {
                (lease.before, lease.rival) = (old.before, old.rival);
            } else if let Some(left) = old.holder {
                let returns = match old.before.as_deref() {
                    Some((before, until, returns))
                        if Some(before) == lease.holder.as_ref() && now <= *until + CONTEST =>
                    {
                        returns.saturating_add(1)
                    }
                    _ => 0,
                };
                lease.before = Some(Box::new((left, now, returns)));
            }
        }
        self.leases.insert(peer, lease);
        self.by_deadline.insert((deadline, peer));
    }

    /// Renews a lease that has not expired and that no other process holds. Returns its duration.
    pub(crate) fn renew(&mut self, peer: &PeerId, holder: &Holder, now: Instant) -> Option<Duration> {
        let lease = self.leases.get_mut(peer).filter(|lease| lease.deadline > now)?;
        if lease.holder.get_or_insert_with(|| holder.clone()) != holder {
            return None;
        }
        self.by_deadline.remove(&(lease.deadline, *peer));
        lease.deadline = now + lease.ttl;
        self.by_deadline.insert((lease.deadline, *peer));
        Some(lease.ttl)
    }

    /// The lease duration of a peer, if it has a lease.
    pub(crate) fn ttl(&self, peer: &PeerId) -> Option<Duration> {
        self.leases.get(peer).map(|lease| lease.ttl)
    }

    /// Ends a lease; true if there was one.
    pub(crate) fn close(&mut self, peer: &PeerId) -> bool {
        let Some(lease) = self.leases.remove(peer) else {
            return false;
        };
        self.by_deadline.remove(&(lease.deadline, *peer))
    }

    /// Removes up to `max` expired leases, the earliest first, and returns their peers.
    pub(crate) fn take_expired(&mut self, now: Instant, max: usize) -> Vec<PeerId> {
        let mut expired = Vec::new();
        while expired.len() < max
            && let Some(&(deadline, peer)) = self.by_deadline.first()
            && deadline <= now
        {
            self.by_deadline.pop_first();
            self.leases.remove(&peer);
            expired.push(peer);
        }
        expired
    }

    /// When the next lease expires.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|&(deadline, _)| deadline)
    }

    /// Number of leases, including expired ones that are not collected yet.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there are no leases.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "a test needs some instant to begin with"
    )]

    use proptest::prelude::*;

    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    const TTL: Duration = Duration::from_secs(60);

    fn holder(port: u16, instance: u8) -> Holder {
        Holder {
            address: Address {
                host: "192.0.2.1".to_owned(),
                port,
            },
            instance: vec![instance; 16],
        }
    }

    /// Registers a process unless the table refuses it.
    fn register(table: &mut LeaseTable, holder: &Holder, now: Instant) -> Result<(), Address> {
        match table.contest(&peer(1), holder, now) {
            Some(other) => Err(other),
            None => {
                table.open(peer(1), TTL, Some(holder.clone()), now);
                Ok(())
            }
        }
    }

    #[test]
    fn two_live_processes_of_one_peer_are_told_of_each_other() {
        // Two machines; one machine, or two behind one address; a machine that was copied while
        // running.
        for (one, two) in [
            (holder(1, 1), holder(2, 2)),
            (holder(1, 1), holder(1, 2)),
            (holder(1, 1), holder(2, 1)),
        ] {
            let mut now = Instant::now();
            let mut table = LeaseTable::default();
            assert_eq!(register(&mut table, &one, now), Ok(()));
            let mut refused = None;
            for turn in 0..4 {
                // The process finds its lease gone when it renews, and registers again.
                now += TTL / 4;
                let (comes, holds) = if turn % 2 == 0 { (&two, &one) } else { (&one, &two) };
                assert_eq!(table.renew(&peer(1), comes, now), None);
                assert_eq!(table.rival(&peer(1), now), None);
                if let Err(other) = register(&mut table, comes, now) {
                    assert_eq!(other, holds.address);
                    refused = Some((comes, holds));
                    break;
                }
            }
            let (rival, holds) = refused.expect("refused after a few turns");
            for _ in 0..10 {
                now += TTL / 2;
                assert_eq!(table.renew(&peer(1), holds, now), Some(TTL));
                assert_eq!(table.rival(&peer(1), now), Some(&rival.address));
                assert_eq!(register(&mut table, rival, now), Err(holds.address.clone()));
            }
            // After one process stops, the other keeps the lease.
            let mut gone = table.renew(&peer(1), holds, now + CONTEST).is_none();
            gone |= table.rival(&peer(1), now + CONTEST + TTL).is_none();
            assert!(gone);
            assert_eq!(register(&mut table, rival, now + CONTEST + 2 * TTL), Ok(()));
        }
    }

    #[test]
    fn a_peer_that_moves_or_starts_again_is_not_refused() {
        let start = Instant::now();
        let mut table = LeaseTable::default();
        let second = Duration::from_secs(1);
        // Moves there and back once, then on.
        for (n, at) in [1, 2, 1, 3, 4].into_iter().enumerate() {
            let now = start + second * n as u32;
            assert_eq!(register(&mut table, &holder(at, 1), now), Ok(()), "to {at}");
            assert_eq!(table.rival(&peer(1), now), None);
        }
        // Restarts repeatedly at the same address.
        for instance in 2..20 {
            let now = start + second * u32::from(instance);
            assert_eq!(register(&mut table, &holder(4, instance), now), Ok(()));
        }
        // Moves back and forth, but more slowly than `CONTEST`.
        for turn in 1..10 {
            let now = start + (CONTEST + TTL) * turn;
            assert_eq!(register(&mut table, &holder(1 + turn as u16 % 2, 1), now), Ok(()));
        }
    }

    #[test]
    fn after_a_restart_whoever_comes_first_holds_the_lease() {
        let start = Instant::now();
        let mut table = LeaseTable::default();
        table.open(peer(1), TTL, None, start);
        assert_eq!(table.renew(&peer(1), &holder(1, 1), start), Some(TTL));
        assert_eq!(table.renew(&peer(1), &holder(1, 2), start), None);
    }

    #[test]
    fn a_lease_ends_at_its_deadline() {
        let start = Instant::now();
        let mut table = LeaseTable::default();
        table.open(peer(1), TTL, None, start);
        assert_eq!(table.next_deadline(), Some(start + TTL));
        assert!(
            table
                .take_expired(start + TTL - Duration::from_nanos(1), 10)
                .is_empty()
        );
        assert_eq!(
            table.renew(&peer(1), &holder(1, 1), start + TTL),
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
        table.open(peer(1), TTL, None, start);
        assert_eq!(table.renew(&peer(1), &holder(1, 1), start + TTL / 2), Some(TTL));
        assert!(table.take_expired(start + TTL, 10).is_empty());
        assert_eq!(table.take_expired(start + TTL / 2 + TTL, 10), [peer(1)]);
        assert_eq!(table.renew(&peer(2), &holder(1, 1), start), None);
    }

    #[derive(Debug, Clone)]
    enum LeaseStep {
        Open(u8, u64),
        Renew(u8),
        Close(u8),
        Wait(u64),
        Take(usize),
    }

    fn step() -> impl Strategy<Value = LeaseStep> {
        prop_oneof![
            (0..6u8, 1..20u64).prop_map(|(peer, ttl)| LeaseStep::Open(peer, ttl)),
            (0..6u8).prop_map(LeaseStep::Renew),
            (0..6u8).prop_map(LeaseStep::Close),
            (0..10u64).prop_map(LeaseStep::Wait),
            (0..4usize).prop_map(LeaseStep::Take),
        ]
    }

    proptest! {
        /// Compares the table with a list that is searched from end to end.
        #[test]
        fn behaves_as_a_plain_list(steps in prop::collection::vec(step(), 0..200)) {
            let mut now = Instant::now();
            let mut table = LeaseTable::default();
            let mut model: Vec<(PeerId, Instant, Duration)> = Vec::new();
            for step in steps {
                match step {
                    LeaseStep::Open(n, ttl) => {
                        let ttl = Duration::from_secs(ttl);
                        table.open(peer(n), ttl, Some(holder(1, 1)), now);
                        model.retain(|entry| entry.0 != peer(n));
                        model.push((peer(n), now + ttl, ttl));
                    }
                    LeaseStep::Renew(n) => {
                        let entry = model.iter_mut().find(|entry| entry.0 == peer(n) && entry.1 > now);
                        let expected = entry.map(|entry| { entry.1 = now + entry.2; entry.2 });
                        prop_assert_eq!(table.renew(&peer(n), &holder(1, 1), now), expected);
                    }
                    LeaseStep::Close(n) => {
                        let before = model.len();
                        model.retain(|entry| entry.0 != peer(n));
                        prop_assert_eq!(table.close(&peer(n)), model.len() < before);
                    }
                    LeaseStep::Wait(seconds) => now += Duration::from_secs(seconds),
                    LeaseStep::Take(most) => {
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
