//! Throttling by our own rate limit, verification or disk.
//!
//! Bytes that arrived and may not be processed yet delay everything behind them, and no peer is to
//! blame.

use std::time::Duration;

use super::Swarm;
use crate::types::{RequestId, Time};

/// How long after the last report of waiting bytes the local limit counts as the bottleneck:
/// several reports of the driver.
const THROTTLED_FOR: Duration = Duration::from_secs(1);

/// While throttled, new units are requested once fewer bytes are outstanding than arrive in this
/// time. Longer than any round trip, so that the limit is used fully.
const THROTTLED_LEAD: Duration = Duration::from_secs(1);

impl Swarm {
    pub(crate) fn mark_locally_throttled(&mut self, id: RequestId, now: Time) {
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let (key, unit) = (request.peer, request.unit);
        self.throttled_at = Some(now);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.estimate.locally_throttled(now);
            self.end_stall(key, unit, now);
        }
    }

    /// Whether our own limit is the bottleneck.
    pub(crate) fn is_locally_throttled(&self, now: Time) -> bool {
        self.throttled_at
            .is_some_and(|at| now.saturating_sub(at) < THROTTLED_FOR)
    }

    /// Whether another requested unit could only wait.
    pub(crate) fn has_enough_requested(&self, now: Time) -> bool {
        let comes = || (self.downlink.rate().unwrap_or(0.0) * THROTTLED_LEAD.as_secs_f64()) as u64;
        self.is_locally_throttled(now)
            && self
                .peers
                .values()
                .map(|peer| peer.outstanding_bytes)
                .sum::<u64>()
                > comes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::{
        scheduler::tests::{A, B, LEN, actions, join, ms, swarm},
        types::Action,
    };

    /// Bytes per second: each unit takes eight seconds.
    const RATE: u64 = LEN / 8;
    /// How often the driver reports.
    const BEAT: Duration = Duration::from_millis(200);

    /// Two providers send faster than the limit. The earliest request gets the whole limit; the
    /// others wait and report that.
    #[test]
    fn under_a_rate_limit_units_arrive_one_by_one_without_hedges() {
        const UNITS: u32 = 12;
        let mut swarm = swarm(UNITS);
        join(&mut swarm, A, &[], ms(0));
        join(&mut swarm, B, &[], ms(0));
        let (mut now, mut received, mut open) = (ms(0), 0, VecDeque::new());
        while !swarm.is_finished() {
            for action in actions(&mut swarm, now) {
                match action {
                    Action::Request { id, .. } => open.push_back(id),
                    Action::Finished => {}
                    other => panic!("{other:?} at {now:?}"),
                }
            }
            // Two requests per peer until the limit is known; after that, a new one only when the
            // last is almost complete.
            let verified = swarm.have().count();
            let max = if verified < 4 { 4 } else { 2 };
            assert!((1..=max).contains(&open.len()), "{} at {now:?}", open.len());
            open.iter().for_each(|&id| swarm.locally_throttled(id, now));
            let next = swarm.poll_timeout().unwrap_or(Time::MAX).min(now + BEAT);
            let bytes = (RATE as f64 * (next - now).as_secs_f64()) as u64;
            now = next;
            swarm.handle_timeout(now);
            swarm.progressed(open[0], bytes.min(LEN - received), now);
            received += bytes;
            assert_eq!(swarm.unverified_bytes(), received.min(LEN));
            if received >= LEN {
                received = 0;
                assert!(swarm.verified(open.pop_front().unwrap(), now));
            }
        }
        let counters = swarm.counters();
        assert_eq!(counters.requests, u64::from(UNITS));
        assert_eq!(
            (counters.duplicate_bytes, counters.hedges + counters.steals),
            (0, 0)
        );
        assert!(now < Duration::from_secs(9 * u64::from(UNITS)), "{now:?}");
    }

    #[test]
    fn waiting_for_the_rate_limit_does_not_lower_the_estimate() {
        let mut swarm = swarm(100);
        join(&mut swarm, A, &[], ms(0));
        let ids: Vec<_> = actions(&mut swarm, ms(0))
            .into_iter()
            .filter_map(|action| match action {
                Action::Request { id, .. } => Some(id),
                _ => None,
            })
            .collect();
        assert_eq!(ids.len(), 2);
        (1..=4).for_each(|n| swarm.progressed(ids[0], LEN / 16, ms(10 * n)));
        let before = swarm.peers().next().unwrap().rate.unwrap();
        // A minute under a limit close to zero, which is then lifted.
        (0..300).for_each(|beat| swarm.locally_throttled(ids[0], ms(40 + 200 * beat)));
        assert_eq!(actions(&mut swarm, ms(60_000)), []);
        let now = ms(40 + 200 * 299);
        (1..=4).for_each(|n| swarm.progressed(ids[0], LEN / 16, now + ms(10 * n)));
        let after = swarm.peers().next().unwrap().rate.unwrap();
        assert!(
            after > before / 2.0 && after < before * 2.0,
            "{before} and {after}"
        );
        assert!(!swarm.is_locally_throttled(now + THROTTLED_FOR));
    }
}
