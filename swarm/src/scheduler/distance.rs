//! Prefers near peers as long as that is not slower.
//!
//! A peer that is more distant than others is asked only for units that no nearer peer has or
//! fetches: such a unit enters a zone once and spreads within it. Whether that is slower, nobody can
//! know without a trial: after a while every peer is asked for a moment. If bytes arrive faster than
//! before and after it, distance does not matter until a check shows that near peers are as fast. If
//! nothing arrives at all, there is no need for a trial.
//!
//! A peer that lies about where it is, or about what it has, costs at most the time of such a trial.

use std::time::Duration;

use potluck_core::{availability::Availability, model::Distance};
use rand::RngExt as _;

use super::Swarm;
use crate::{
    config::{DISTANT_HOLD, MAX_TRIAL_INTERVAL, STARVED, TRIAL, TRIAL_INTERVAL, TRIAL_SETTLE},
    state::Phase,
    types::{PeerKey, Time},
};

/// How much faster the download must be with distant peers: less is within the noise of a crowd.
const GAIN: f64 = 1.15;

/// A gain that needs no confirmation.
const CLEAR_GAIN: f64 = 3.0;

/// Maximum number of the units that no nearer peer provides to search for one that a peer has.
const MAX_UNITS_SCANNED: usize = 1024;

/// Number of equally rare units for each near peer at which two rarely choose the same one.
const FEW_UNITS: usize = 4;

/// The longest wait for the others' choice, in times that a unit takes to arrive.
const HOLD_UNITS: f64 = 8.0;

/// How long after such a wait it still counts: a little more than the driver is late.
const HOLD_LASTS: Duration = Duration::from_millis(50);

impl Swarm {
    /// Sets how near a peer is. Every peer is equally near at first; peers that did not join, and
    /// reserves, are ignored.
    pub fn set_distance(&mut self, peer: PeerKey, distance: Distance) {
        self.change_distance(peer, distance);
        self.after_event();
    }

    fn change_distance(&mut self, key: PeerKey, distance: Distance) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.is_reserve || peer.distance == distance {
            return;
        }
        let known = peer.is_availability_known.then(|| Availability {
            have: peer.have.clone(),
            fetching: peer.fetching.clone(),
        });
        self.forget_availability(key);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.distance = distance;
        }
        if !self.nearby.is_enabled() {
            self.enable_distances();
        }
        if let Some(known) = known {
            self.replace_availability(key, &known);
        }
    }

    /// Counts what the peers provide that are known already.
    fn enable_distances(&mut self) {
        self.nearby.enable(self.unit_lens.len());
        for unit in self.rarity.rarest() {
            self.nearby.set_missing(unit, true, &mut self.rng);
        }
        for peer in self.peers.values().filter(|peer| peer.is_availability_known) {
            let complete = peer.is_complete();
            self.nearby.count_peer(peer.distance, complete, true);
            let have = peer.have.ones().filter(|_| !complete);
            for unit in have.chain(peer.fetching.ones()) {
                let is_missing = self.rarity.contains(unit);
                let unit = (peer.distance, unit);
                self.nearby.count_unit(unit, true, is_missing, &mut self.rng);
            }
        }
    }

    pub(crate) fn distance(&self, key: PeerKey) -> Distance {
        self.peers.get(&key).map_or(Distance::Rack, |peer| peer.distance)
    }

    /// The unit to request from a peer: for one that is held back, the rarest that no nearer peer
    /// provides. If there is none, it looks again later.
    pub(crate) fn pick_by_distance(&mut self, key: PeerKey, now: Time) -> Option<u32> {
        let peer = self.peers.get(&key)?;
        let near = match self.nearby.nearer(peer.distance) {
            Some(near) if !self.preference.is_open() => near,
            _ => return self.pick_missing(key),
        };
        if !peer.is_availability_known || self.requestable_units(peer) == 0 {
            return None;
        }
        let is_complete = peer.is_complete();
        let free = || {
            // What nobody has, a partial peer does not have.
            let uncounted = near.free.rarest().filter(|_| is_complete);
            let uncounted = uncounted.take(near.free.uncounted());
            let served = uncounted.chain(near.free.counted()).take(MAX_UNITS_SCANNED);
            served.filter(|&unit| peer.serves(unit))
        };
        let unit = match self.window_end {
            _ if near.seeds_suffice(is_complete) => None,
            Some(_) => free().min(),
            None => free().next(),
        };
        let Some(unit) = unit else {
            self.hold_back(key, now);
            return None;
        };
        let others = near.partial as usize;
        let few = FEW_UNITS * (others + 1);
        let count = near.free.count(unit);
        let equal = free().take_while(|&unit| near.free.count(unit) == count);
        let is_one_of_many = equal.take(few).count() == few && self.window_end.is_none();
        (others == 0 || is_one_of_many || self.may_race(key, now)).then_some(unit)
    }

    /// Whether to request a unit of which all near peers have learnt at the same time: each waits for a
    /// random time, and hears of the first that requests it.
    fn may_race(&mut self, key: PeerKey, now: Time) -> bool {
        let until = match self.preference.hold {
            Some(until) if now < until + HOLD_LASTS => until,
            // The unit that it was for went to another peer meanwhile.
            _ => now + self.draw_hold(),
        };
        self.preference.hold = Some(until);
        if now >= until {
            self.preference.hold = None;
            return true;
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.distant_check = Some(until);
            self.arm_timer(key, now);
        }
        false
    }

    fn draw_hold(&mut self) -> Duration {
        let rate = self.downlink.rate().unwrap_or(f64::INFINITY);
        let units = HOLD_UNITS * self.longest_unit as f64 / rate.max(1.0);
        let longest = DISTANT_HOLD.as_secs_f64().min(units);
        Duration::from_secs_f64(longest * self.rng.random_range(0.0..1.0))
    }

    /// The peer waits for the end of the phase.
    fn hold_back(&mut self, key: PeerKey, now: Time) {
        self.preference.has_held_back = true;
        if self.preference.until.is_none() {
            self.preference.interval = TRIAL_INTERVAL;
            self.begin_phase(Phase::Near, now);
        }
        let deadline = self.preference.deadline();
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.distant_check = deadline;
            self.arm_timer(key, now);
        }
    }

    fn begin_phase(&mut self, phase: Phase, now: Time) {
        let jitter = self.rng.random_range(0.75..1.25);
        let preference = &mut self.preference;
        let wait = match phase {
            Phase::Near | Phase::Open => preference.interval.mul_f64(jitter),
            Phase::Trial { .. } | Phase::Confirm { .. } | Phase::Check { .. } => TRIAL_SETTLE,
        };
        (preference.phase, preference.measured_from) = (phase, None);
        preference.until = Some(now + wait);
        preference.last_arrival = (now, self.counters.received_bytes);
        if preference.is_open() {
            preference.has_held_back = false;
            self.wake_distant();
        }
    }

    /// Begins the measurement or the next phase if it is time, or asks every peer if nothing
    /// arrives.
    pub(crate) fn step_preference(&mut self, now: Time) {
        if self.preference.deadline().is_none_or(|at| now < at) {
            return;
        }
        if self.have.is_full() {
            self.preference.until = None;
            return;
        }
        let received = self.counters.received_bytes;
        let preference = &mut self.preference;
        let (last, before) = preference.last_arrival;
        if received > before || preference.is_open() {
            preference.last_arrival = (now, received);
        } else if now >= last + STARVED {
            preference.last_arrival = (now, received);
            // Without missing units a reader keeps the download waiting.
            if !self.rarity.is_empty() && !self.is_locally_throttled(now) {
                self.preference.interval = self.preference.interval.max(TRIAL_INTERVAL);
                return self.begin_phase(Phase::Open, now);
            }
        }
        let preference = &mut self.preference;
        if preference.until.is_some_and(|until| now < until) {
            return;
        }
        let Some((since, before)) = preference.measured_from else {
            preference.measured_from = Some((now, received));
            preference.until = Some(now + TRIAL);
            return;
        };
        let seconds = now.saturating_sub(since).as_secs_f64();
        let rate = (received.saturating_sub(before)) as f64 / seconds.max(f64::MIN_POSITIVE);
        self.end_phase(rate, now);
    }

    /// The phase ends with this rate.
    fn end_phase(&mut self, rate: f64, now: Time) {
        let preference = &mut self.preference;
        let longer = (preference.interval * 2).min(MAX_TRIAL_INTERVAL);
        let (next, interval) = match preference.phase {
            Phase::Near if !preference.has_held_back => {
                preference.until = None;
                return;
            }
            Phase::Near => (Phase::Trial { before: rate }, preference.interval),
            Phase::Trial { before } if rate > before * CLEAR_GAIN => {
                (Phase::Open, TRIAL_INTERVAL * 4)
            }
            Phase::Trial { before } if rate > before * GAIN => {
                let trial = rate;
                (Phase::Confirm { before, trial }, preference.interval)
            }
            Phase::Confirm { before, trial } if trial > before.max(rate) * GAIN => {
                (Phase::Open, TRIAL_INTERVAL * 4)
            }
            Phase::Trial { .. } | Phase::Confirm { .. } => (Phase::Near, longer),
            Phase::Open => (Phase::Check { open: rate }, preference.interval),
            Phase::Check { open } if open > rate * GAIN => (Phase::Open, longer),
            Phase::Check { .. } => (Phase::Near, TRIAL_INTERVAL),
        };
        preference.interval = interval;
        self.begin_phase(next, now);
    }

    /// Lets the peers that may be held back look again.
    pub(crate) fn wake_distant(&mut self) {
        if !self.nearby.is_enabled() {
            return;
        }
        for (&key, peer) in &mut self.peers {
            let is_distant = peer.distance > Distance::Rack && !peer.is_reserve;
            if is_distant && peer.is_open() && !std::mem::replace(&mut peer.is_ready, true) {
                self.ready.push_back(key);
            }
        }
    }
}
