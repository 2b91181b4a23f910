//! What goes wrong, and the timers: failures and their back-off, bans, stalls, time-outs.

use std::time::Duration;

use rand::RngExt;

use super::{
    Action, BACK_OFF, BUSY_BACK_OFF, FORGET_AFTER, Failure, GIVE_UP, MAX_BACK_OFF, MAX_BUSY_BACK_OFF,
    MAX_STALL, PeerKey, RequestId, Swarm, Time, peer::Standing,
};

/// A refusal counts as this many failures: asking again soon is unlikely to help.
const REFUSED_WEIGHT: u32 = 4;

/// Senders that share a downlink do not share it evenly: one may come last, and then a little late.
const QUEUE_PATIENCE: f64 = 2.0;

impl Swarm {
    pub(super) fn fail(&mut self, id: RequestId, failure: Failure, now: Time) {
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let (key, unit) = (request.peer, request.unit);
        self.counters.duplicate_bytes += request.received;
        if failure == Failure::NotAvailable {
            // Before the unit is missing again, or it would be asked of the same peer.
            self.set_have(key, unit, false);
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.last_failure = Some(failure);
        }
        match failure {
            Failure::NotAvailable => {
                // It answered: whatever it is, it is not silent.
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.stalled = false;
                }
            }
            Failure::Busy { retry_after } => self.rest_busy(key, retry_after, now),
            Failure::Disconnected | Failure::TimedOut => self.rest(key, 1, now),
            Failure::Refused => self.rest(key, REFUSED_WEIGHT, now),
        }
        self.close(id, now);
        if self
            .peers
            .get(&key)
            .is_some_and(|peer| peer.failures >= FORGET_AFTER)
        {
            self.part(key, now);
            self.actions.push_back(Action::Forget { peer: key });
        }
    }

    pub(super) fn ban(&mut self, id: RequestId, now: Time) {
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let (key, unit) = (request.peer, request.unit);
        self.counters.corrupt_bytes += request.received;
        self.actions.push_back(Action::Ban { peer: key, unit });
        // What it says it has counts no more, before its units are missing again.
        self.retract(key);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.standing = Standing::Banned { unit };
            if let Some(at) = peer.wake.take() {
                self.timers.remove(&(at, key));
            }
        }
        self.close(id, now);
        self.drop_requests_of(key, now);
    }

    /// Backs off from a peer with no room, by its own word or a little more each time.
    fn rest_busy(&mut self, key: PeerKey, retry_after: Option<Duration>, now: Time) {
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
    fn rest(&mut self, key: PeerKey, weight: u32, now: Time) {
        let jitter = self.rng.random_range(0.75..1.25);
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.is_open()) else {
            return;
        };
        let wait = doubled(BACK_OFF, peer.failures + weight - 1).min(MAX_BACK_OFF);
        peer.failures += weight;
        self.back_off(key, now + wait.mul_f64(jitter), now);
    }

    /// Backs off from a peer that was silent until others had done its work: for a moment, as it may be all there is for other units.
    pub(super) fn rest_silent(&mut self, key: PeerKey, now: Time) {
        let jitter = self.rng.random_range(0.75..1.25);
        if let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.is_open()) {
            peer.last_failure = Some(Failure::TimedOut);
            self.back_off(key, now + MAX_STALL.mul_f64(jitter), now);
        }
    }

    fn back_off(&mut self, key: PeerKey, until: Time, now: Time) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.standing = match peer.standing {
            Standing::Open => Standing::BackedOff { until },
            Standing::BackedOff { until: before } => Standing::BackedOff {
                until: before.max(until),
            },
            banned @ Standing::Banned { .. } => banned,
        };
        self.arm(key, now);
    }

    /// Sets the peer's timer to its deadline. A timer that is early stays: when it fires it is set anew, which is cheaper than
    /// moving it with every chunk.
    pub(super) fn arm(&mut self, key: PeerKey, now: Time) {
        let queue = self.queue();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(deadline) = peer.deadline(queue) else {
            return;
        };
        if peer.wake.is_some_and(|at| at <= deadline && at > now) {
            return;
        }
        if let Some(at) = peer.wake.replace(deadline) {
            self.timers.remove(&(at, key));
        }
        self.timers.insert((deadline, key));
    }

    pub(super) fn expire(&mut self, now: Time) {
        if self.tick.is_some_and(|at| at <= now) {
            self.run_tick();
        }
        while let Some(&(at, key)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.wake = None;
                self.look_at(key, now);
                self.arm(key, now);
                self.wake(key);
            }
        }
    }

    /// How long a peer may be silent only because our own downlink brings what others owe: twice the time that all bytes in
    /// flight take at the rate at which bytes arrive. Near nothing unless that link is what is slow.
    fn queue(&self) -> Duration {
        let seconds = self.line.rate().map_or(0.0, |rate| {
            QUEUE_PATIENCE * self.in_flight_bytes as f64 / rate.max(1.0)
        });
        Duration::from_secs_f64(seconds.min(GIVE_UP.as_secs_f64()))
    }

    /// A peer's deadline may have passed.
    fn look_at(&mut self, key: PeerKey, now: Time) {
        let queue = self.queue();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if matches!(peer.standing, Standing::BackedOff { until } if until <= now) {
            peer.standing = Standing::Open;
        }
        let Some(since) = peer.estimate.silent_since() else {
            return;
        };
        if !peer.stalled && now >= since + peer.patience(queue) {
            peer.stalled = true;
            let units: Vec<u32> = peer.requests.iter().map(|id| self.requests[id].unit).collect();
            units.into_iter().for_each(|unit| self.contest(unit));
        } else if peer.stalled && peer.deadline(queue).is_some_and(|at| at <= now) && now >= since + GIVE_UP {
            let owed = |id: &RequestId| self.requests[id].owed > 0;
            let given_up: Vec<RequestId> = peer.requests.iter().copied().filter(owed).collect();
            given_up.into_iter().for_each(|id| self.give_up(id, now));
        }
    }

    /// Ends a request that nothing is expected of any more.
    pub(super) fn give_up(&mut self, id: RequestId, now: Time) {
        self.actions.push_back(Action::Cancel { id });
        self.fail(id, Failure::TimedOut, now);
    }
}

/// `base` doubled this often, within reason.
fn doubled(base: Duration, times: u32) -> Duration {
    base * (1 << times.min(10))
}
