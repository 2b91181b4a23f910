//! Leases: how long each peer's registrations last without a renewal.
//!
//! A renewal changes only the deadline of the lease. The order of expiry still has the earlier
//! deadline; when that has come, the lease moves to the later one. So a renewal costs one lookup.
//!
//! Invariant: each lease occurs once in the order of expiry, under its deadline or an earlier one. A
//! lease whose deadline has passed cannot be renewed ([`LeaseTable::renew`]), even before
//! [`LeaseTable::take_expired`] has collected it.
//!
//! Two live processes with one token, for example after a copy of the home folder, would take the
//! lease from each other forever. A peer that moves does not return to its old address, but two
//! live processes alternate. The table therefore refuses a process that takes a lease back for the
//! second time within `CONFLICT_WINDOW`. As long as both live, it reports the address of the
//! refused process to the holder.
//!
//! Pure: time is a parameter. Non-goals: the peers' files, and durability. After a restart, each
//! stored peer has one lease duration to renew.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use potluck_core::{PeerId, model::Address};

/// How long a previous holder and a refused process are remembered: longer than a refused peer
/// waits before it tries again.
const CONFLICT_WINDOW: Duration = Duration::from_secs(180);

/// Maximum leases that move to a later deadline at once: a fraction of a millisecond.
const MAX_MOVED: usize = 512;

/// How often a process may take a lease back from another: a peer that moves away and returns does
/// so once.
const MAX_RETURNS: u8 = 1;

/// One run of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseHolder {
    /// The address where it listens.
    pub(crate) address: Address,
    /// A number that the run picks at start; empty if it sent none.
    pub(crate) instance: Vec<u8>,
}

#[derive(Debug)]
struct LeaseEntry {
    deadline: Instant,
    /// The deadline in the order of expiry.
    queued: Instant,
    ttl: Duration,
    /// `None` after a restart of the index, until the peer contacts it.
    holder: Option<LeaseHolder>,
    previous: Option<Box<PreviousHolder>>,
    /// The version that the peer reported; `None` if unknown.
    version: Option<Box<str>>,
    /// The last process that was refused in favour of `holder`, and when.
    refused: Option<Box<(Address, Instant)>>,
}

/// The process from which the holder took a lease.
#[derive(Debug)]
struct PreviousHolder {
    holder: LeaseHolder,
    last_seen: Instant,
    /// How often the two took the lease back from each other.
    returns: u8,
}

/// Delay before a lease whose end another process decides is looked at again.
const CHECK_AGAIN: Duration = Duration::from_secs(1);

/// The leases of all peers.
#[derive(Debug, Default)]
pub(crate) struct LeaseTable {
    leases: HashMap<PeerId, LeaseEntry>,
    by_deadline: BTreeSet<(Instant, PeerId)>,
    /// Leases renewed here since the last [`Self::take_renewed`]; `None` if nobody else is to know.
    renewed: Option<HashSet<PeerId>>,
}

impl LeaseTable {
    /// Returns the current holder's address if `holder` must be refused because another live
    /// process alternates with it. Remembers the refused process.
    pub(crate) fn check_conflict(
        &mut self,
        peer: &PeerId,
        holder: &LeaseHolder,
        now: Instant,
    ) -> Option<Address> {
        let lease = self.leases.get_mut(peer).filter(|lease| lease.deadline > now)?;
        let current = lease.holder.as_ref().filter(|current| *current != holder)?;
        let previous = lease.previous.as_deref_mut()?;
        if previous.holder != *holder
            || now > previous.last_seen + CONFLICT_WINDOW
            || previous.returns < MAX_RETURNS
        {
            return None;
        }
        previous.last_seen = now;
        lease.refused = Some(Box::new((holder.address.clone(), now)));
        Some(current.address.clone())
    }

    /// Whether this run of a peer may hold the peer's lease; true if there is no lease or either
    /// run is unknown.
    pub(crate) fn may_hold(&self, peer: &PeerId, instance: &[u8]) -> bool {
        let holder = self.leases.get(peer).and_then(|lease| lease.holder.as_ref());
        holder.is_none_or(|holder| {
            instance.is_empty() || holder.instance.is_empty() || holder.instance == instance
        })
    }

    /// The address of another process that recently tried to take the lease.
    pub(crate) fn conflicting_address(&self, peer: &PeerId, now: Instant) -> Option<&Address> {
        let (address, at) = self.leases.get(peer)?.refused.as_deref()?;
        (now <= *at + CONFLICT_WINDOW).then_some(address)
    }

    /// Opens a lease, or restarts the existing one. `holder` is `None` if it is unknown.
    pub(crate) fn open(
        &mut self,
        peer: PeerId,
        ttl: Duration,
        holder: Option<LeaseHolder>,
        now: Instant,
    ) {
        let deadline = now + ttl;
        let mut lease = LeaseEntry {
            deadline,
            queued: deadline,
            ttl,
            holder,
            previous: None,
            version: None,
            refused: None,
        };
        if let Some(old) = self.leases.remove(&peer) {
            self.by_deadline.remove(&(old.queued, peer));
            if old.holder == lease.holder || old.holder.is_none() {
                (lease.previous, lease.refused) = (old.previous, old.refused);
            } else if let Some(old_holder) = old.holder {
                let returns = match old.previous.as_deref() {
                    Some(previous)
                        if Some(&previous.holder) == lease.holder.as_ref()
                            && now <= previous.last_seen + CONFLICT_WINDOW =>
                    {
                        previous.returns.saturating_add(1)
                    }
                    _ => 0,
                };
                lease.previous = Some(Box::new(PreviousHolder {
                    holder: old_holder,
                    last_seen: now,
                    returns,
                }));
            }
        }
        self.leases.insert(peer, lease);
        self.by_deadline.insert((deadline, peer));
    }

    /// Renews a lease that has not expired and that no other process holds. Returns its duration.
    pub(crate) fn renew(
        &mut self,
        peer: &PeerId,
        holder: &LeaseHolder,
        now: Instant,
    ) -> Option<Duration> {
        let lease = self.leases.get_mut(peer).filter(|lease| lease.deadline > now)?;
        if lease.holder.get_or_insert_with(|| holder.clone()) != holder {
            return None;
        }
        lease.deadline = now + lease.ttl;
        if let Some(renewed) = &mut self.renewed {
            renewed.insert(*peer);
        }
        Some(lease.ttl)
    }

    /// Begins to note which leases are renewed here, for the other processes of a shared store.
    pub(crate) fn note_renewals(&mut self) {
        self.renewed = Some(HashSet::new());
    }

    /// The leases renewed here since the last call, with their durations.
    pub(crate) fn take_renewed(&mut self) -> Vec<(PeerId, Duration)> {
        let renewed = self.renewed.as_mut().map(std::mem::take).unwrap_or_default();
        let with_ttl = |peer| Some((peer, self.leases.get(&peer)?.ttl));
        renewed.into_iter().filter_map(with_ttl).collect()
    }

    /// Up to `max` leases that have ended as far as this process knows. They stay open, and are
    /// returned again a moment later, unless they are extended or closed.
    pub(crate) fn ended(&mut self, now: Instant, max: usize) -> Vec<PeerId> {
        let due = self.by_deadline.iter().take_while(|(queued, _)| *queued <= now);
        let due: Vec<_> = due.take(max).copied().collect();
        let mut ended = Vec::new();
        for (queued, peer) in due {
            self.by_deadline.remove(&(queued, peer));
            let Some(lease) = self.leases.get_mut(&peer) else {
                continue;
            };
            lease.queued = if lease.deadline > queued {
                lease.deadline
            } else {
                now + CHECK_AGAIN
            };
            if lease.deadline <= queued {
                ended.push(peer);
            }
            self.by_deadline.insert((lease.queued, peer));
        }
        ended
    }

    /// Sets how long a lease lasts from `now`, as another process knows it.
    pub(crate) fn set_remaining(&mut self, peer: &PeerId, remaining: Duration, now: Instant) {
        if let Some(lease) = self.leases.get_mut(peer) {
            self.by_deadline.remove(&(lease.queued, *peer));
            (lease.deadline, lease.queued) = (now + remaining, now + remaining);
            self.by_deadline.insert((lease.queued, *peer));
        }
    }

    /// Keeps the version that a peer with a lease reported, if it is known.
    pub(crate) fn set_version(&mut self, peer: &PeerId, version: &str) {
        if let Some(lease) = self.leases.get_mut(peer)
            && lease.version.as_deref().unwrap_or_default() != version
        {
            lease.version = Some(version.into()).filter(|_| !version.is_empty());
        }
    }

    /// When a peer was last seen, and its version; `None` if it has no lease.
    pub(crate) fn last_seen(&self, peer: &PeerId) -> Option<(Instant, &str)> {
        let lease = self.leases.get(peer)?;
        // A deadline is one duration after the registration or renewal.
        let seen = lease.deadline.checked_sub(lease.ttl)?;
        Some((seen, lease.version.as_deref().unwrap_or_default()))
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
        self.by_deadline.remove(&(lease.queued, *peer))
    }

    /// Removes up to `max` expired leases, the earliest first, and returns their peers. Moves up to
    /// [`MAX_MOVED`] renewed leases to their deadlines.
    pub(crate) fn take_expired(&mut self, now: Instant, max: usize) -> Vec<PeerId> {
        let mut expired = Vec::new();
        let mut moved = 0;
        while expired.len() < max
            && moved < MAX_MOVED
            && let Some(&(queued, peer)) = self.by_deadline.first()
            && queued <= now
        {
            self.by_deadline.pop_first();
            let renewed = self.leases.get_mut(&peer).filter(|lease| lease.deadline > queued);
            if let Some(lease) = renewed {
                lease.queued = lease.deadline;
                self.by_deadline.insert((lease.deadline, peer));
                moved += 1;
            } else {
                self.leases.remove(&peer);
                expired.push(peer);
            }
        }
        expired
    }

    /// When [`Self::take_expired`] has something to do: no lease expires earlier.
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

    fn holder(port: u16, instance: u8) -> LeaseHolder {
        LeaseHolder {
            address: Address {
                host: "192.0.2.1".to_owned(),
                port,
            },
            instance: vec![instance; 16],
        }
    }

    /// Registers a process unless the table refuses it.
    fn register(table: &mut LeaseTable, holder: &LeaseHolder, now: Instant) -> Result<(), Address> {
        match table.check_conflict(&peer(1), holder, now) {
            Some(address) => Err(address),
            None => {
                table.open(peer(1), TTL, Some(holder.clone()), now);
                Ok(())
            }
        }
    }

    #[test]
    fn two_live_processes_with_one_token_conflict() {
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
            for round in 0..4 {
                // The process finds its lease gone when it renews, and registers again.
                now += TTL / 4;
                let (caller, current) = if round % 2 == 0 {
                    (&two, &one)
                } else {
                    (&one, &two)
                };
                assert_eq!(table.renew(&peer(1), caller, now), None);
                assert_eq!(table.conflicting_address(&peer(1), now), None);
                if let Err(address) = register(&mut table, caller, now) {
                    assert_eq!(address, current.address);
                    refused = Some((caller, current));
                    break;
                }
            }
            let (refused, current) = refused.expect("refused after a few rounds");
            for _ in 0..10 {
                now += TTL / 2;
                assert_eq!(table.renew(&peer(1), current, now), Some(TTL));
                assert_eq!(table.conflicting_address(&peer(1), now), Some(&refused.address));
                assert_eq!(register(&mut table, refused, now), Err(current.address.clone()));
            }
            // After one process stops, the other keeps the lease.
            let later = now + CONFLICT_WINDOW;
            let mut is_over = table.renew(&peer(1), current, later).is_none();
            is_over |= table.conflicting_address(&peer(1), later + TTL).is_none();
            assert!(is_over);
            assert_eq!(register(&mut table, refused, later + 2 * TTL), Ok(()));
        }
    }

    #[test]
    fn a_peer_that_moves_or_restarts_is_not_refused() {
        let start = Instant::now();
        let mut table = LeaseTable::default();
        let second = Duration::from_secs(1);
        // Moves there and back once, then on.
        for (n, port) in [1, 2, 1, 3, 4].into_iter().enumerate() {
            let now = start + second * n as u32;
            assert_eq!(register(&mut table, &holder(port, 1), now), Ok(()), "to {port}");
            assert_eq!(table.conflicting_address(&peer(1), now), None);
        }
        // Restarts repeatedly at the same address.
        for instance in 2..20 {
            let now = start + second * u32::from(instance);
            assert_eq!(register(&mut table, &holder(4, instance), now), Ok(()));
        }
        // Moves back and forth, but more slowly than `CONFLICT_WINDOW`.
        for round in 1..10 {
            let now = start + (CONFLICT_WINDOW + TTL) * round;
            let port = 1 + round as u16 % 2;
            assert_eq!(register(&mut table, &holder(port, 1), now), Ok(()));
        }
    }

    #[test]
    fn after_a_restart_the_first_process_to_renew_holds_the_lease() {
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
            "expired even before it is collected"
        );
        assert_eq!(table.take_expired(start + TTL, 10), [peer(1)]);
        assert!(table.is_empty());
    }

    #[test]
    fn renewing_restarts_the_lease() {
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
        TakeExpired(usize),
    }

    fn step() -> impl Strategy<Value = LeaseStep> {
        prop_oneof![
            (0..6u8, 1..20u64).prop_map(|(peer, ttl)| LeaseStep::Open(peer, ttl)),
            (0..6u8).prop_map(LeaseStep::Renew),
            (0..6u8).prop_map(LeaseStep::Close),
            (0..10u64).prop_map(LeaseStep::Wait),
            (0..4usize).prop_map(LeaseStep::TakeExpired),
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
                        let is_open = |entry: &&mut (PeerId, Instant, Duration)| {
                            entry.0 == peer(n) && entry.1 > now
                        };
                        let entry = model.iter_mut().find(is_open);
                        let expected = entry.map(|entry| { entry.1 = now + entry.2; entry.2 });
                        prop_assert_eq!(table.renew(&peer(n), &holder(1, 1), now), expected);
                    }
                    LeaseStep::Close(n) => {
                        let before = model.len();
                        model.retain(|entry| entry.0 != peer(n));
                        prop_assert_eq!(table.close(&peer(n)), model.len() < before);
                    }
                    LeaseStep::Wait(seconds) => now += Duration::from_secs(seconds),
                    LeaseStep::TakeExpired(max) => {
                        let due = model.iter().filter(|entry| entry.1 <= now);
                        let mut due: Vec<_> = due.copied().collect();
                        due.sort_by_key(|entry| (entry.1, entry.0));
                        due.truncate(max);
                        let due: Vec<PeerId> = due.into_iter().map(|entry| entry.0).collect();
                        prop_assert_eq!(table.take_expired(now, max), due.clone());
                        model.retain(|entry| !due.contains(&entry.0));
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.by_deadline.len(), model.len());
                let first = model.iter().map(|entry| entry.1).min();
                prop_assert_eq!(table.next_deadline().is_some(), first.is_some());
                prop_assert!(table.next_deadline() <= first);
            }
        }
    }
}
