//! A reserve: a provider that has every unit, costs something, and is asked last.
//!
//! Invariant: a unit is requested from a reserve only if no peer has it and nobody fetches it, unless
//! nothing was verified for [`RESERVE_PATIENCE`].

use super::Swarm;
use crate::{
    config::{
        RESERVE_HOLD, RESERVE_HOLD_UNITS, RESERVE_PATIENCE, RESERVE_REQUEST_BYTES, RESERVE_REQUESTS,
    },
    state::{Peer, Pipeline},
    types::{PeerKey, Time},
};
use potluck_core::{availability::Availability, bitfield::Bitfield, model::Distance};
use rand::RngExt as _;

/// Units that a reader in a crowd takes from a reserve one after the other.
const STRETCH: u32 = 8;

/// Stretches after the first missing unit among which a reader chooses. Two readers that choose before
/// they learn of each other's choice so rarely take the same one.
const STRETCHES: u32 = 32;

/// One of so many requests is for the first missing unit, so that the reader goes on.
const FIRST: u32 = 8;

impl Swarm {
    /// A reserve became reachable, such as an origin: it has every unit and is asked only for what
    /// no peer has and nobody fetches. Bans, back-off and limits are those of a peer.
    pub fn reserve_joined(&mut self, reserve: PeerKey, now: Time) {
        self.add_peer(reserve, now);
        if let Some(peer) = self.peers.get_mut(&reserve) {
            peer.is_reserve = true;
            // It does not count among the near peers.
            peer.distance = Distance::Elsewhere;
        }
        let units = self.have.len();
        self.replace_availability(
            reserve,
            &Availability {
                have: Bitfield::full(units),
                fetching: Bitfield::new(units),
            },
        );
        self.after_event();
    }

    /// What to keep requested from a reserve at least: this peer's part of the requests that it gets
    /// from all, and at first one. Peers that begin together do not know of each other yet, and in
    /// a crowd others may choose the same units, so each request is for one.
    pub(crate) fn reserve_pipeline(&self, reserve: &Peer) -> Pipeline {
        if self.is_crowd() {
            let part = RESERVE_REQUESTS / (u64::from(self.partial_peers) + 1);
            return Pipeline {
                depth: (part * self.longest_unit).saturating_sub(1),
                batch: 0,
            };
        }
        let request = self.longest_unit.max(RESERVE_REQUEST_BYTES);
        let delivered = 1 + reserve.verified_bytes / self.longest_unit.max(1);
        Pipeline {
            depth: (RESERVE_REQUESTS * request)
                .min(delivered * self.longest_unit)
                .saturating_sub(1),
            batch: request.min(delivered * self.longest_unit / 2),
        }
    }

    /// The unit to request from a reserve. If others provide all missing units, it looks again
    /// later.
    pub(crate) fn pick_for_reserve(&mut self, key: PeerKey, now: Time) -> Option<u32> {
        let mut unit = self.pick_missing(key)?;
        if self.window_end.is_some() && self.is_crowd() {
            unit = self.pick_ahead(key).unwrap_or(unit);
        }
        let is_provided = self.rarity.count(unit) > 0 || self.has_complete_peer();
        if !is_provided && !self.is_crowd() {
            return Some(unit);
        }
        if is_provided {
            return self.may_ask_reserve(key, now).then_some(unit);
        }
        let held_until = self.hold(key, now);
        let peer = self.peers.get_mut(&key)?;
        if now >= held_until {
            peer.reserve_hold = None;
            return Some(unit);
        }
        peer.reserve_check = Some(held_until);
        self.arm_timer(key, now);
        None
    }

    /// The unit that a reader in a crowd requests from a reserve, of those that nobody has or
    /// fetches: mostly one of a stretch that it chose at random. If all took the first one, readers
    /// that begin together would cost the reserve a copy each.
    fn pick_ahead(&mut self, key: PeerKey) -> Option<u32> {
        let draw: u32 = self.rng.random();
        let peer = self.peers.get(&key)?;
        let is_free = |unit: u32| {
            peer.serves(unit) && self.rarity.contains(unit) && self.rarity.count(unit) == 0
        };
        let first = self.rarity.rarest().filter(|&unit| is_free(unit)).min()?;
        if draw.is_multiple_of(FIRST) {
            return Some(first);
        }
        let next = peer.cursor.map(|cursor| cursor + 1).filter(|&next| {
            !next.is_multiple_of(STRETCH) && next / STRETCH != first / STRETCH && is_free(next)
        });
        let start = (first / STRETCH + draw / FIRST % STRETCHES) * STRETCH;
        let chosen = || {
            let free = self.rarity.rarest().filter(|&unit| is_free(unit));
            free.filter(|&unit| unit >= start).min()
        };
        next.or_else(chosen).or(Some(first))
    }

    /// Whether a reserve may be asked for what others provide, because nothing was verified for a
    /// while. If not, it looks again later.
    pub(crate) fn may_ask_reserve(&mut self, key: PeerKey, now: Time) -> bool {
        let patient_until = self.last_verified + RESERVE_PATIENCE;
        if now < patient_until
            && let Some(peer) = self.peers.get_mut(&key)
        {
            peer.reserve_check = Some(patient_until);
            self.arm_timer(key, now);
        }
        now >= patient_until
    }

    /// When the reserve may be asked in a crowd for one of the last units that nobody has or fetches.
    fn hold(&mut self, key: PeerKey, now: Time) -> Time {
        let last = (self.partial_peers + 1) * RESERVE_HOLD_UNITS;
        if self.rarity.uncounted() > last as usize {
            return now;
        }
        let wait = RESERVE_HOLD.mul_f64(self.rng.random_range(0.0..1.0));
        let peer = self.peers.get_mut(&key);
        peer.map_or(now, |peer| *peer.reserve_hold.get_or_insert(now + wait))
    }

    /// Units may have lost their last provider: reserves look again.
    pub(crate) fn wake_reserves(&mut self) {
        for (&key, peer) in &mut self.peers {
            if peer.is_reserve && peer.is_open() && !std::mem::replace(&mut peer.is_ready, true) {
                self.ready.push_back(key);
            }
        }
    }

    /// Whether a peer that is not a reserve has every unit.
    fn has_complete_peer(&self) -> bool {
        self.peers
            .values()
            .any(|peer| peer.is_complete() && !peer.is_reserve && peer.has_joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        scheduler::tests::{A, B, actions, join, ms, swarm},
        types::{Action, RequestId},
    };

    const ORIGIN: PeerKey = PeerKey(99);

    /// The requests to the origin and to peers, made now.
    fn requests(swarm: &mut Swarm, now: Time) -> (Vec<u32>, Vec<(RequestId, PeerKey, u32)>) {
        let (mut origin, mut peers) = (Vec::new(), Vec::new());
        for action in actions(swarm, now) {
            match action {
                Action::Request { unit, peer, .. } if peer == ORIGIN => origin.push(unit),
                Action::Request { id, unit, peer } => peers.push((id, peer, unit)),
                other => panic!("{other:?}"),
            }
        }
        (origin, peers)
    }

    #[test]
    fn a_reserve_is_asked_only_for_what_nobody_has_or_fetches() {
        let mut swarm = swarm(3);
        join(&mut swarm, A, &[0], ms(0));
        swarm.availability_changed(A, &[], &[1], &[], ms(0));
        swarm.reserve_joined(ORIGIN, ms(0));
        let (origin, peers) = requests(&mut swarm, ms(0));
        assert!(
            origin.is_empty(),
            "one of the last units of a crowd waits a little"
        );
        swarm.handle_timeout(ms(100));
        assert_eq!(requests(&mut swarm, ms(100)).0, [2]);
        assert_eq!(peers.iter().map(|&(_, _, unit)| unit).collect::<Vec<_>>(), [0]);
        // The peer gives up what it fetched.
        swarm.availability_changed(A, &[], &[], &[1], ms(110));
        for request in [0, 1].map(RequestId) {
            swarm.verified(request, ms(120));
        }
        assert!(requests(&mut swarm, ms(120)).0.is_empty());
        swarm.handle_timeout(ms(220));
        assert_eq!(requests(&mut swarm, ms(220)).0, [1]);
    }

    #[test]
    fn a_reserve_is_spared_while_a_peer_is_complete() {
        let mut swarm = swarm(8);
        swarm.reserve_joined(ORIGIN, ms(0));
        join(&mut swarm, A, &[], ms(0));
        let (origin, peers) = requests(&mut swarm, ms(0));
        assert!(origin.is_empty() && !peers.is_empty());
    }

    #[test]
    fn claims_without_bytes_do_not_keep_a_reserve_waiting() {
        let mut swarm = swarm(2);
        swarm.reserve_joined(ORIGIN, ms(0));
        swarm.peer_joined(A, ms(0));
        let claims = Availability {
            have: Bitfield::new(2),
            fetching: Bitfield::full(2),
        };
        swarm.availability(A, &claims, ms(0));
        assert!(requests(&mut swarm, ms(0)).0.is_empty());
        swarm.handle_timeout(ms(2999));
        assert!(requests(&mut swarm, ms(2999)).0.is_empty());
        swarm.handle_timeout(ms(3000));
        assert!(!requests(&mut swarm, ms(3000)).0.is_empty());
    }

    #[test]
    fn a_reserve_serves_a_download_without_peers() {
        let mut swarm = swarm(2);
        swarm.reserve_joined(ORIGIN, ms(0));
        let mut now = ms(0);
        let mut open = Vec::new();
        while !swarm.is_finished() {
            for action in actions(&mut swarm, now) {
                if let Action::Request { id, .. } = action {
                    open.push(id);
                }
            }
            now += ms(10);
            assert!(swarm.verified(open.pop().unwrap(), now));
        }
    }

    #[test]
    fn a_peer_that_leaves_gives_its_units_to_the_reserve() {
        let mut swarm = swarm(1);
        swarm.reserve_joined(ORIGIN, ms(0));
        join(&mut swarm, B, &[], ms(0));
        assert_eq!(requests(&mut swarm, ms(0)).1.len(), 1);
        swarm.peer_left(B, ms(5));
        let all = actions(&mut swarm, ms(5));
        let asks =
            |action: &Action| matches!(action, Action::Request { peer, .. } if *peer == ORIGIN);
        assert!(all.iter().any(asks), "{all:?}");
    }
}
