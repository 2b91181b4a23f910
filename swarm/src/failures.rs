//! What goes wrong, and the timers: failures and their back-off, bans, stalls, time-outs.

use std::time::Duration;

use rand::RngExt;

use crate::{
    Action, BACK_OFF, BAN, BAN_LOOK, BUSY_BACK_OFF, Failure, MAX_BACK_OFF, MAX_BAN, MAX_BUSY_BACK_OFF,
    MAX_FAILURES, MAX_REFUSED_BACK_OFF, MAX_STALL, PROBATION_UNITS, PeerKey, REFUSED_BACK_OFF,
    REQUEST_TIMEOUT, RequestId, Swarm, Time,
    peer::{Eligibility, Peer},
};

/// A refusal counts as this many failures: asking again soon is unlikely to help.
const REFUSED_WEIGHT: u32 = 4;

/// BUSY answers or refusals in a row after which a peer is not expected to serve soon: ten seconds
/// and more.
const IN_VAIN: u32 = 8;

/// Failures in a row after which that is so.
const FAILING: u32 = 4;

/// Senders that share a downlink do not share it evenly: one may come last, and then a little late.
const QUEUE_FACTOR: f64 = 2.0;

impl Swarm {
    pub(crate) fn fail_request(&mut self, id: RequestId, failure: Failure, now: Time) {
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let (key, unit) = (request.peer, request.unit);
        self.counters.duplicate_bytes += request.received;
        if failure == Failure::NotAvailable {
            // Before the unit is missing again, or it would be asked of the same peer.
            self.refuse(key, unit, now);
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.last_failure = Some(failure);
        }
        match failure {
            Failure::NotAvailable => {
                // It answered: whatever it is, it is not silent.
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

    /// The peer refused a unit: it is not asked for it again before a delay that grows each time.
    fn refuse(&mut self, key: PeerKey, unit: u32, now: Time) {
        let (count, jitter) = (self.have.len(), self.jitter());
        let missing = self.rarity.contains(unit);
        if let Some(peer) = self.peers.get_mut(&key)
            && peer.have.get(unit)
        {
            let delay = refused_delay(peer.refused.rounds()).mul_f64(jitter);
            if peer.refused.insert(unit, count, now + delay) {
                peer.withheld += u32::from(missing);
            }
            self.arm_timer(key, now);
        }
    }

    /// The peer announced a unit: if it had refused it, it is asked for it again.
    pub(crate) fn reopen(&mut self, key: PeerKey, unit: u32) {
        let missing = self.rarity.contains(unit);
        if let Some(peer) = self.peers.get_mut(&key)
            && peer.refused.remove(unit)
        {
            peer.withheld -= u32::from(missing);
        }
    }

    /// Opens some of the units that a peer refused, if the delay is over.
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
            peer.withheld -= missing.count() as u32;
        }
    }

    /// A peer sent a unit that verified: one that it had refused speaks for the others, and a peer
    /// that was banned earns trust.
    pub(crate) fn has_sent(&mut self, key: PeerKey, unit: u32) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        for unit in peer.refused.sent(unit) {
            peer.withheld -= u32::from(self.rarity.contains(unit));
        }
        peer.probation = peer.probation.map(|left| left - 1).filter(|&left| left > 0);
        if peer.probation.is_none() {
            peer.ban_look = None;
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

    /// Bans a peer that broke the protocol, whether it joined or not.
    pub(crate) fn ban_peer(&mut self, key: PeerKey, now: Time) {
        let units = self.have.len();
        self.peers.entry(key).or_insert_with(|| Peer::new(units));
        self.set_banned(key, None, now);
        self.cancel_requests_of(key, now);
    }

    /// Takes down a ban. What the peer has counts no more, before its units are missing again.
    fn set_banned(&mut self, key: PeerKey, unit: Option<u32>, now: Time) {
        let jitter = self.jitter();
        self.forget_availability(key);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let until = now + doubled(BAN, peer.bans).min(MAX_BAN).mul_f64(jitter);
        peer.eligibility = Eligibility::Banned { unit, until };
        peer.bans = peer.bans.saturating_add(1);
        (peer.probation, peer.ban_look) = (None, None);
        if let Some(at) = peer.timer.take() {
            self.timers.remove(&(at, key));
        }
        self.arm_timer(key, now);
    }

    /// Whether any peer that is trusted can be expected to send a missing unit, now or after a
    /// short rest. One that says BUSY, fails or refuses again and again is still asked, and does
    /// not count.
    pub(crate) fn others_can_serve(&self) -> bool {
        let serves = |peer: &Peer| {
            peer.is_availability_known
                && !peer.is_banned()
                && peer.probation.is_none()
                && self.askable(peer) > 0
                && peer.refusals < IN_VAIN
                && peer.refused.rounds() < IN_VAIN
                && peer.failures < FAILING
        };
        self.peers.values().any(serves)
    }

    /// Asks for a banned peer's connection once its ban is over and nobody else can serve.
    fn look_at_ban(&mut self, key: PeerKey, now: Time) {
        let is_needed = !self.rarity.is_empty() && !self.others_can_serve();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.ban_look.is_some_and(|at| at <= now) {
            peer.ban_look = None;
        }
        match peer.eligibility {
            Eligibility::Banned { until, .. } if until <= now && is_needed => {
                peer.eligibility = Eligibility::Open;
                peer.probation = Some(PROBATION_UNITS);
                (peer.is_here, peer.failures, peer.refusals) = (false, 0, 0);
                self.actions.push_back(Action::Readmit { peer: key });
            }
            Eligibility::Banned { until, .. } if until <= now => {
                peer.ban_look = Some(now + BAN_LOOK);
            }
            _ => {}
        }
    }

    /// Asks a peer that was banned for one unit, if nobody else can serve; else looks again later.
    pub(crate) fn ask_on_probation(&mut self, key: PeerKey, now: Time) {
        let Some(unit) = self.pick_missing(key) else {
            return;
        };
        if !self.others_can_serve() {
            self.open_request(key, unit, now);
        } else if let Some(peer) = self.peers.get_mut(&key) {
            peer.ban_look = Some(now + BAN_LOOK);
            self.arm_timer(key, now);
        }
    }

    /// Backs off from a peer with no room, by its own word or a little more each time.
    fn back_off_busy(&mut self, key: PeerKey, retry_after: Option<Duration>, now: Time) {
        let jitter = self.rng.random_range(1.0..1.5);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let wait = retry_after.unwrap_or_else(|| doubled(BUSY_BACK_OFF, peer.refusals));
        peer.refusals += 1;
        self.back_off(
            key,
            now + wait.clamp(BUSY_BACK_OFF, MAX_BUSY_BACK_OFF).mul_f64(jitter),
            now,
        );
    }

    /// Backs off from a peer that fails. Several requests that fail at once are one failure.
    fn back_off_failing(&mut self, key: PeerKey, weight: u32, now: Time) {
        let jitter = self.rng.random_range(0.75..1.25);
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.is_open()) else {
            return;
        };
        let wait = doubled(BACK_OFF, peer.failures + weight - 1).min(MAX_BACK_OFF);
        peer.failures += weight;
        self.back_off(key, now + wait.mul_f64(jitter), now);
    }

    /// Backs off from a peer that was silent until others had done its work: for a moment, as it may be all there is for other units.
    pub(crate) fn back_off_silent(&mut self, key: PeerKey, now: Time) {
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

    /// Sets the peer's timer to its deadline. A timer that is early stays: when it fires it is set anew, which is cheaper than
    /// moving it with every chunk.
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

    /// How long a peer may be silent only because our own downlink brings what others owe: twice the time that all bytes in
    /// flight take at the rate at which bytes arrive. Near nothing unless that link is what is slow.
    fn queue_delay(&self) -> Duration {
        let seconds = self.downlink.rate().map_or(0.0, |rate| {
            QUEUE_FACTOR * self.in_flight_bytes as f64 / rate.max(1.0)
        });
        Duration::from_secs_f64(seconds.min(REQUEST_TIMEOUT.as_secs_f64()))
    }

    /// A peer's deadline may have passed.
    fn check_deadline(&mut self, key: PeerKey, now: Time) {
        let queue = self.queue_delay();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if matches!(peer.eligibility, Eligibility::BackedOff { until } if until <= now) {
            peer.eligibility = Eligibility::Open;
        }
        if peer.bans > 0 {
            self.look_at_ban(key, now);
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
            let units: Vec<u32> = peer.requests.iter().map(|id| self.requests[id].unit).collect();
            units.into_iter().for_each(|unit| self.open_to_others(unit));
        } else if peer.is_stalled
            && peer.next_deadline(queue).is_some_and(|at| at <= now)
            && now >= since + REQUEST_TIMEOUT
        {
            let outstanding = |id: &RequestId| self.requests[id].outstanding_bytes > 0;
            let given_up: Vec<RequestId> = peer.requests.iter().copied().filter(outstanding).collect();
            given_up.into_iter().for_each(|id| self.time_out_request(id, now));
        }
    }

    /// Ends a request that nothing is expected of any more.
    pub(crate) fn time_out_request(&mut self, id: RequestId, now: Time) {
        self.actions.push_back(Action::Cancel { id });
        self.fail_request(id, Failure::TimedOut, now);
    }
}

/// How long a peer that refused is not asked for the same again, after so many delays in vain.
fn refused_delay(rounds: u32) -> Duration {
    doubled(REFUSED_BACK_OFF, rounds).min(MAX_REFUSED_BACK_OFF)
}

/// `base` doubled this often, within reason.
fn doubled(base: Duration, times: u32) -> Duration {
    base * (1 << times.min(10))
}
