//! Failures and timers: back-off, bans, stalls, timeouts.

use std::time::Duration;

use rand::RngExt;

use super::Swarm;
use crate::{
    config::{
        BACK_OFF, BAN, BUSY_BACK_OFF, MAX_BACK_OFF, MAX_BAN, MAX_BUSY_BACK_OFF, MAX_FAILURES,
        MAX_REFUSED_BACK_OFF, MAX_STALL, PROBATION_UNITS, READMISSION_INTERVAL, REFUSED_BACK_OFF,
        REQUEST_TIMEOUT,
    },
    state::{Eligibility, Peer},
    types::{Action, Failure, PeerKey, RequestId, Time},
};

/// A refusal of the whole file counts as this many failures: a retry soon is unlikely to help.
const REFUSED_WEIGHT: u32 = 4;

/// BUSY answers or refusal rounds in a row after which a peer is not expected to serve soon: ten
/// seconds and more.
const MAX_DECLINES: u32 = 8;

/// Failures in a row after which a peer is not expected to serve soon.
const MAX_RECENT_FAILURES: u32 = 4;

/// Peers do not share a downlink evenly: the slowest may be a little late.
const QUEUE_FACTOR: f64 = 2.0;

impl Swarm {
    pub(crate) fn fail_request(&mut self, id: RequestId, failure: Failure, now: Time) {
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let (key, unit) = (request.peer, request.unit);
        self.counters.duplicate_bytes += request.received;
        if failure == Failure::NotAvailable {
            // Record the refusal before the unit is missing again; otherwise the same peer would
            // get the next request for it.
            self.refuse(key, unit, now);
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.last_failure = Some(failure);
        }
        match failure {
            Failure::NotAvailable => {
                // The peer answered, so it is not silent.
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.is_stalled = false;
                }
            }
            Failure::Busy { retry_after } => self.back_off_busy(key, retry_after, now),
            Failure::Disconnected | Failure::TimedOut => self.back_off_failing(key, 1, now),
            Failure::Refused => self.back_off_failing(key, REFUSED_WEIGHT, now),
        }
        self.close_request(id, now);
        if self
            .peers
            .get(&key)
            .is_some_and(|peer| peer.failures >= MAX_FAILURES)
        {
            self.remove_peer(key, now);
            self.actions.push_back(Action::Forget { peer: key });
        }
    }

    /// The peer refused a unit: the unit is requested from this peer again only after a delay,
    /// which grows each time.
    fn refuse(&mut self, key: PeerKey, unit: u32, now: Time) {
        let (count, jitter) = (self.have.len(), self.jitter());
        let missing = self.rarity.contains(unit);
        if let Some(peer) = self.peers.get_mut(&key)
            && peer.have.get(unit)
        {
            let delay = refused_delay(peer.refused.rounds()).mul_f64(jitter);
            if peer.refused.insert(unit, count, now + delay) {
                peer.refused_missing += u32::from(missing);
            }
            self.arm_timer(key, now);
        }
    }

    /// The peer announced a unit: a refusal of it is cleared.
    pub(crate) fn reopen(&mut self, key: PeerKey, unit: u32) {
        let missing = self.rarity.contains(unit);
        if let Some(peer) = self.peers.get_mut(&key)
            && peer.refused.remove(unit)
        {
            peer.refused_missing -= u32::from(missing);
        }
    }

    /// Reopens some of the units that a peer refused, if the delay is over.
    fn retry_refused(&mut self, key: PeerKey, now: Time) {
        let is_due = |peer: &Peer| peer.refused.due().is_some_and(|due| due <= now);
        if !self.peers.get(&key).is_some_and(is_due) {
            return;
        }
        let jitter = self.jitter();
        let (rarity, have) = (&self.rarity, &self.have);
        if let Some(peer) = self.peers.get_mut(&key) {
            let delay = refused_delay(peer.refused.rounds() + 1).mul_f64(jitter);
            let opened = peer.refused.retry(|unit| !have.get(unit), now + delay);
            let missing = opened.iter().filter(|&&unit| rarity.contains(unit));
            peer.refused_missing -= missing.count() as u32;
        }
    }

    /// A peer sent a unit that verified. If it had refused that unit before, all its refusals are
    /// cleared; a readmitted peer completes one more unit of its probation.
    pub(crate) fn record_delivery(&mut self, key: PeerKey, unit: u32) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        for unit in peer.refused.sent(unit) {
            peer.refused_missing -= u32::from(self.rarity.contains(unit));
        }
        peer.probation = peer.probation.map(|left| left - 1).filter(|&left| left > 0);
        if peer.probation.is_none() {
            peer.readmission_check = None;
        }
        self.mark_ready(key);
    }

    pub(crate) fn ban_sender(&mut self, id: RequestId, now: Time) {
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let (key, unit) = (request.peer, request.unit);
        self.counters.corrupt_bytes += request.received;
        self.actions.push_back(Action::Ban { peer: key, unit });
        self.set_banned(key, Some(unit), now);
        self.close_request(id, now);
        self.cancel_requests_of(key, now);
    }

    /// Bans a peer that violated the protocol, even if it never joined.
    pub(crate) fn ban_peer(&mut self, key: PeerKey, now: Time) {
        let units = self.have.len();
        self.peers.entry(key).or_insert_with(|| Peer::new(units));
        self.set_banned(key, None, now);
        self.cancel_requests_of(key, now);
    }

    /// Records a ban. The peer's availability is removed before its units become missing again.
    fn set_banned(&mut self, key: PeerKey, unit: Option<u32>, now: Time) {
        let jitter = self.jitter();
        self.forget_availability(key);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let until = now + doubled(BAN, peer.bans).min(MAX_BAN).mul_f64(jitter);
        peer.eligibility = Eligibility::Banned { unit, until };
        peer.bans = peer.bans.saturating_add(1);
        (peer.probation, peer.readmission_check) = (None, None);
        if let Some(at) = peer.timer.take() {
            self.timers.remove(&(at, key));
        }
        self.arm_timer(key, now);
    }

    /// Whether a trusted peer can be expected to send a missing unit, now or after a short
    /// back-off. Peers that answer BUSY, fail or refuse again and again still get requests, but do
    /// not count here.
    pub(crate) fn others_can_serve(&self) -> bool {
        let serves = |peer: &Peer| {
            peer.is_availability_known
                && !peer.is_banned()
                && peer.probation.is_none()
                && self.requestable_units(peer) > 0
                && peer.busy_answers < MAX_DECLINES
                && peer.refused.rounds() < MAX_DECLINES
                && peer.failures < MAX_RECENT_FAILURES
        };
        self.peers.values().any(serves)
    }

    /// Readmits a banned peer once its ban is over and no other peer can serve.
    fn check_readmission(&mut self, key: PeerKey, now: Time) {
        let is_needed = !self.rarity.is_empty() && !self.others_can_serve();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.readmission_check.is_some_and(|at| at <= now) {
            peer.readmission_check = None;
        }
        match peer.eligibility {
            Eligibility::Banned { until, .. } if until <= now && is_needed => {
                peer.eligibility = Eligibility::Open;
                peer.probation = Some(PROBATION_UNITS);
                (peer.has_joined, peer.failures, peer.busy_answers) = (false, 0, 0);
                self.actions.push_back(Action::Readmit { peer: key });
            }
            Eligibility::Banned { until, .. } if until <= now => {
                peer.readmission_check = Some(now + READMISSION_INTERVAL);
            }
            _ => {}
        }
    }

    /// Requests one unit from a peer on probation if no other peer can serve; otherwise checks
    /// again later.
    pub(crate) fn request_on_probation(&mut self, key: PeerKey, now: Time) {
        let Some(unit) = self.pick_missing(key) else {
            return;
        };
        if !self.others_can_serve() {
            self.open_request(key, unit, now);
        } else if let Some(peer) = self.peers.get_mut(&key) {
            peer.readmission_check = Some(now + READMISSION_INTERVAL);
            self.arm_timer(key, now);
        }
    }

    /// Backs off from a busy peer, for the delay that it asked for or for longer each time.
    fn back_off_busy(&mut self, key: PeerKey, retry_after: Option<Duration>, now: Time) {
        let jitter = self.rng.random_range(1.0..1.5);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let wait = retry_after.unwrap_or_else(|| doubled(BUSY_BACK_OFF, peer.busy_answers));
        peer.busy_answers += 1;
        self.back_off(
            key,
            now + wait.clamp(BUSY_BACK_OFF, MAX_BUSY_BACK_OFF).mul_f64(jitter),
            now,
        );
    }

    /// Backs off from a failing peer. Requests that fail together count as one failure.
    fn back_off_failing(&mut self, key: PeerKey, weight: u32, now: Time) {
        let jitter = self.rng.random_range(0.75..1.25);
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.is_open()) else {
            return;
        };
        let wait = doubled(BACK_OFF, peer.failures + weight - 1).min(MAX_BACK_OFF);
        peer.failures += weight;
        self.back_off(key, now + wait.mul_f64(jitter), now);
    }

    /// Backs off briefly from a peer that was silent until others had finished its requests. It may
    /// be the only provider of other units.
    pub(crate) fn back_off_stalled(&mut self, key: PeerKey, now: Time) {
        let jitter = self.rng.random_range(0.75..1.25);
        if let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.is_open()) {
            peer.last_failure = Some(Failure::TimedOut);
            self.back_off(key, now + MAX_STALL.mul_f64(jitter), now);
        }
    }

    fn jitter(&mut self) -> f64 {
        self.rng.random_range(0.75..1.25)
    }

    fn back_off(&mut self, key: PeerKey, until: Time, now: Time) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.eligibility = match peer.eligibility {
            Eligibility::Open => Eligibility::BackedOff { until },
            Eligibility::BackedOff { until: before } => Eligibility::BackedOff {
                until: before.max(until),
            },
            banned @ Eligibility::Banned { .. } => banned,
        };
        self.arm_timer(key, now);
    }

    /// Sets the peer's timer to its next deadline. A timer that is too early stays and is set again
    /// when it fires, which is cheaper than moving it with every chunk.
    pub(crate) fn arm_timer(&mut self, key: PeerKey, now: Time) {
        let queue = self.queue_delay();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(deadline) = peer.next_deadline(queue) else {
            return;
        };
        if peer.timer.is_some_and(|at| at <= deadline && at > now) {
            return;
        }
        if let Some(at) = peer.timer.replace(deadline) {
            self.timers.remove(&(at, key));
        }
        self.timers.insert((deadline, key));
    }

    pub(crate) fn expire_timers(&mut self, now: Time) {
        if self.endgame_tick.is_some_and(|at| at <= now) {
            self.run_endgame_tick();
        }
        self.step_preference(now);
        while let Some(&(at, key)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.timer = None;
                self.check_deadline(key, now);
                self.arm_timer(key, now);
                self.mark_ready(key);
            }
        }
    }

    /// How long a peer may be silent because our own downlink is busy with the bytes of others:
    /// twice the time that all bytes in flight take at the current download rate. Close to zero
    /// unless the downlink is the bottleneck.
    fn queue_delay(&self) -> Duration {
        let seconds = self.downlink.rate().map_or(0.0, |rate| {
            QUEUE_FACTOR * self.in_flight_bytes as f64 / rate.max(1.0)
        });
        Duration::from_secs_f64(seconds.min(REQUEST_TIMEOUT.as_secs_f64()))
    }

    /// Handles a peer's deadlines that have passed.
    fn check_deadline(&mut self, key: PeerKey, now: Time) {
        let queue = self.queue_delay();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.reserve_check.is_some_and(|at| at <= now) {
            peer.reserve_check = None;
        }
        if peer.distant_check.is_some_and(|at| at <= now) {
            peer.distant_check = None;
        }
        if matches!(peer.eligibility, Eligibility::BackedOff { until } if until <= now) {
            peer.eligibility = Eligibility::Open;
        }
        if peer.bans > 0 {
            self.check_readmission(key, now);
        }
        self.retry_refused(key, now);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(since) = peer.estimate.silent_since() else {
            return;
        };
        if !peer.is_stalled && now >= since + peer.stall_timeout(queue) {
            peer.is_stalled = true;
            let units = peer.requests.iter().map(|id| self.requests[id].unit);
            let units: Vec<u32> = units.collect();
            units.into_iter().for_each(|unit| self.open_to_others(unit));
        } else if peer.is_stalled
            && peer.next_deadline(queue).is_some_and(|at| at <= now)
            && now >= since + REQUEST_TIMEOUT
        {
            let outstanding = |id: &RequestId| self.requests[id].outstanding_bytes > 0;
            let unanswered = peer.requests.iter().copied().filter(outstanding);
            let unanswered: Vec<RequestId> = unanswered.collect();
            unanswered
                .into_iter()
                .for_each(|id| self.time_out_request(id, now));
        }
    }

    /// Ends a request that has timed out.
    pub(crate) fn time_out_request(&mut self, id: RequestId, now: Time) {
        self.actions.push_back(Action::Cancel { id });
        self.fail_request(id, Failure::TimedOut, now);
    }
}

/// The delay before refused units are requested again, after this many rounds without success.
fn refused_delay(rounds: u32) -> Duration {
    doubled(REFUSED_BACK_OFF, rounds).min(MAX_REFUSED_BACK_OFF)
}

/// `base` doubled this many times, up to 1,024 times `base`.
fn doubled(base: Duration, times: u32) -> Duration {
    base * (1 << times.min(10))
}
