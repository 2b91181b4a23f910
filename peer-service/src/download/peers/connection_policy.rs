//! Decides when the driver of a download must connect to other peers. Pure.
//!
//! In a crowd a few connected peers suffice, unless none of them has the missing units and capacity
//! to send them.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

use std::time::Duration;

use potluck_swarm::StuckReason;
use tokio::time::Instant;

/// Minimum interval between replacements of an idle peer if no connected peer has the missing
/// units.
const REPLACE_IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// Delay before the driver reconnects to all peers if none reports a missing unit, because an
/// answer may have been lost or damaged. Doubles each time, up to [`MAX_RECONNECT_DELAY`].
const RECONNECT_DELAY: Duration = Duration::from_secs(30);

/// Maximum of that delay.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(600);

/// An instruction to the driver about its connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ConnectionAdvice {
    /// Raise the cap on connections.
    pub(crate) raise_cap: bool,
    /// Reconnect to all peers, to learn their availability again.
    pub(crate) reconnect: bool,
    /// Give the slot of one connected peer to another one.
    pub(crate) replace_idle: bool,
}

/// Decides on the connections of one download.
#[derive(Debug)]
pub(crate) struct ConnectionPolicy {
    /// Whether other peers were ever seen downloading the same content.
    saw_crowd: bool,
    reconnect_timer: ReconnectTimer,
    idle_peer_replaced_at: Instant,
}

impl ConnectionPolicy {
    /// A policy for a download that starts now.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            saw_crowd: false,
            reconnect_timer: ReconnectTimer::default(),
            idle_peer_replaced_at: now,
        }
    }

    /// Records that a unit arrived, which resets the delay before the driver reconnects.
    pub(crate) fn record_progress(&mut self) {
        self.reconnect_timer = ReconnectTimer::default();
    }

    /// Decides again. `stuck` and `is_crowd` come from the swarm; `jitter` is a random factor near
    /// 1.
    pub(crate) fn advise(
        &mut self,
        stuck: Option<StuckReason>,
        is_crowd: bool,
        now: Instant,
        jitter: f64,
    ) -> ConnectionAdvice {
        use StuckReason::{BackedOff, NoAvailability, NoPeers, NoProvider, Refused};
        self.saw_crowd |= is_crowd;
        let others_may_help =
            matches!(stuck, Some(NoProvider { .. } | Refused { .. } | BackedOff { .. }));
        let none_reports_it = matches!(stuck, Some(NoProvider { .. } | NoAvailability));
        // The connected peers may never get the missing units, while waiting candidates may have
        // them.
        let none_will_send_it = matches!(stuck, Some(NoProvider { .. } | Refused { .. } | NoPeers));
        let replace_idle = none_will_send_it
            && now.duration_since(self.idle_peer_replaced_at) >= REPLACE_IDLE_INTERVAL;
        if replace_idle {
            self.idle_peer_replaced_at = now;
        }
        ConnectionAdvice {
            raise_cap: !self.saw_crowd || others_may_help,
            reconnect: self.reconnect_timer.is_due(none_reports_it, now, jitter),
            replace_idle,
        }
    }
}

/// When to reconnect to all peers.
#[derive(Debug, Default)]
struct ReconnectTimer {
    /// Set while no peer reports a missing unit.
    due_at: Option<Instant>,
    /// Consecutive rounds so far.
    rounds: u32,
}

impl ReconnectTimer {
    fn is_due(&mut self, none_reports_it: bool, now: Instant, jitter: f64) -> bool {
        if !none_reports_it {
            self.due_at = None;
            return false;
        }
        let delay = (RECONNECT_DELAY * (1 << self.rounds.min(10))).min(MAX_RECONNECT_DELAY);
        let due_at = now + delay.mul_f64(jitter);
        let is_due = *self.due_at.get_or_insert(due_at) <= now;
        if is_due {
            self.due_at = None;
            self.rounds += 1;
        }
        is_due
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "a test needs some instant to begin with"
)]
mod tests {
    use super::*;

    const NO_PROVIDER: Option<StuckReason> = Some(StuckReason::NoProvider { units: 1 });

    #[test]
    fn the_delays_before_reconnecting_double_up_to_a_maximum() {
        let start = Instant::now();
        for (jitter, first, count) in [(0.75, 23, 11), (1.0, 30, 9), (1.25, 38, 8)] {
            let mut policy = ConnectionPolicy::new(start);
            let mut times = Vec::new();
            for second in 0..3600 {
                let now = start + Duration::from_secs(second);
                if policy.advise(NO_PROVIDER, false, now, jitter).reconnect {
                    times.push(second);
                }
            }
            // Delays of 30, 60, 120, 240 and 480 s, then 600 s each.
            assert_eq!((times[0], times.len()), (first, count), "{times:?}");
            let much_later = start + 20 * MAX_RECONNECT_DELAY;
            assert!(!policy.advise(None, false, much_later, jitter).reconnect);
        }
    }

    #[test]
    fn progress_resets_the_delay_before_reconnecting() {
        let start = Instant::now();
        let mut policy = ConnectionPolicy::new(start);
        let advise = |policy: &mut ConnectionPolicy, seconds| {
            let now = start + Duration::from_secs(seconds);
            policy.advise(NO_PROVIDER, false, now, 1.0).reconnect
        };
        assert!(!advise(&mut policy, 0) && advise(&mut policy, 30));
        policy.record_progress();
        assert!(!advise(&mut policy, 31) && advise(&mut policy, 61));
    }

    #[test]
    fn a_crowd_needs_more_connections_only_if_it_lacks_units() {
        let start = Instant::now();
        let mut policy = ConnectionPolicy::new(start);
        assert!(policy.advise(None, false, start, 1.0).raise_cap);
        assert!(!policy.advise(None, true, start, 1.0).raise_cap);
        // A crowd that was seen once counts from then on.
        assert!(!policy.advise(None, false, start, 1.0).raise_cap);
        assert!(policy.advise(NO_PROVIDER, false, start, 1.0).raise_cap);
    }

    #[test]
    fn idle_peers_are_replaced_one_at_a_time() {
        let start = Instant::now();
        let mut policy = ConnectionPolicy::new(start);
        let second = |n| start + Duration::from_secs(n);
        assert!(!policy.advise(NO_PROVIDER, false, start, 1.0).replace_idle);
        assert!(policy.advise(NO_PROVIDER, false, second(1), 1.0).replace_idle);
        assert!(!policy.advise(NO_PROVIDER, false, second(1), 1.0).replace_idle);
        assert!(!policy.advise(None, false, second(9), 1.0).replace_idle);
    }
}
