//! Limits the call rate of each source.
//!
//! Invariant: the table of sources never grows beyond its capacity. Pure: time is a parameter.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use potluck_core::grpc::limiter::client_network;

/// Maximum sources remembered: about 3 MiB.
const MAX_SOURCES: usize = 65_536;

/// Burst size, in seconds of the permitted rate: a peer with a large folder starts with many calls.
const BURST_SECONDS: u32 = 5;

/// A source exceeded its call rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RateExceeded {
    /// How long until the call would be admitted.
    pub(crate) retry_after: Duration,
}

/// Limits the calls per second of each source with the generic cell rate algorithm (ITU-T I.371),
/// which stores one instant per source.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// Time that one call takes from the budget of its source; `None` for no limit.
    interval: Option<Duration>,
    burst: Duration,
    /// When the budget of each source is full again. Sources with a full budget may be forgotten.
    full_at: HashMap<IpAddr, Instant>,
    next_sweep: Option<Instant>,
}

impl RateLimiter {
    /// Limits each source to this many calls per second; 0 for no limit.
    pub(crate) fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1).checked_div(per_second);
        Self {
            interval,
            burst: Duration::from_secs(u64::from(BURST_SECONDS)),
            full_at: HashMap::new(),
            next_sweep: None,
        }
    }

    /// Changes the calls per second; 0 for no limit.
    pub(crate) fn set_rate(&mut self, per_second: u32) {
        self.interval = Duration::from_secs(1).checked_div(per_second);
    }

    /// Limits each source to `burst` at once, and then to one call per `interval`.
    pub(crate) fn with_interval(interval: Duration, burst: u32) -> Self {
        Self {
            interval: Some(interval),
            burst: interval.saturating_mul(burst),
            full_at: HashMap::new(),
            next_sweep: None,
        }
    }

    /// Takes `cost` calls from the budget of `source`. A call that costs more than a full budget is
    /// admitted once the budget is full.
    ///
    /// # Errors
    /// [`RateExceeded`] if the budget is too low; then nothing is taken.
    pub(crate) fn take(
        &mut self,
        source: IpAddr,
        cost: u32,
        now: Instant,
    ) -> Result<(), RateExceeded> {
        let Some(interval) = self.interval else {
            return Ok(());
        };
        let source = client_network(source);
        if !self.full_at.contains_key(&source) && self.full_at.len() >= MAX_SOURCES {
            self.sweep(now)?;
        }
        let time = (interval * cost).min(self.burst);
        let full_at = self.full_at.entry(source).or_insert(now);
        let new_full_at = (*full_at).max(now) + time;
        let over = new_full_at.saturating_duration_since(now + self.burst);
        if !over.is_zero() {
            return Err(RateExceeded { retry_after: over });
        }
        *full_at = new_full_at;
        Ok(())
    }

    /// Charges `source` for work that is done already, even beyond its budget. The debt is at most
    /// one full budget; the next calls of the source wait for it.
    pub(crate) fn charge(&mut self, source: IpAddr, cost: u32, now: Instant) {
        let Some(interval) = self.interval else {
            return;
        };
        let source = client_network(source);
        // An admitted source is in the table unless its budget is full.
        if !self.full_at.contains_key(&source) && self.full_at.len() >= MAX_SOURCES {
            return;
        }
        let full_at = self.full_at.entry(source).or_insert(now);
        let time = interval.saturating_mul(cost);
        *full_at = ((*full_at).max(now) + time.min(self.burst)).min(now + 2 * self.burst);
    }

    /// Forgets the sources with a full budget, at most once per second, because a scan of a full
    /// table is expensive.
    fn sweep(&mut self, now: Instant) -> Result<(), RateExceeded> {
        let pause = Duration::from_secs(1);
        if self.next_sweep.is_none_or(|at| at <= now) {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.next_sweep = Some(now + pause);
        }
        match self.full_at.len() < MAX_SOURCES {
            true => Ok(()),
            false => Err(RateExceeded { retry_after: pause }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "a test needs some instant to begin with"
    )]

    use super::*;

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::from_bits(n))
    }

    #[test]
    fn a_burst_is_admitted_and_then_the_rate() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(10);
        for _ in 0..10 * BURST_SECONDS {
            assert_eq!(limiter.take(ip(1), 1, start), Ok(()));
        }
        let exceeded = limiter.take(ip(1), 1, start).unwrap_err();
        assert_eq!(exceeded.retry_after, Duration::from_millis(100));
        assert_eq!(
            limiter.take(ip(2), 1, start),
            Ok(()),
            "another source has its own budget"
        );
        assert_eq!(limiter.take(ip(1), 1, start + exceeded.retry_after), Ok(()));
        assert!(limiter.take(ip(1), 1, start + exceeded.retry_after).is_err());
    }

    #[test]
    fn finished_work_is_charged_to_the_next_calls() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(10);
        limiter.charge(ip(1), 10 * BURST_SECONDS, start);
        limiter.charge(ip(1), 5, start);
        let exceeded = limiter.take(ip(1), 1, start).unwrap_err();
        assert_eq!(exceeded.retry_after, Duration::from_millis(600));
        for _ in 0..100 {
            limiter.charge(ip(1), u32::MAX, start);
        }
        let exceeded = limiter.take(ip(1), 1, start).unwrap_err();
        assert!(exceeded.retry_after <= Duration::from_secs(u64::from(BURST_SECONDS) + 1));
        assert_eq!(limiter.take(ip(2), 1, start), Ok(()));
    }

    #[test]
    fn a_rate_of_zero_means_no_limit() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(0);
        for _ in 0..100_000 {
            assert_eq!(limiter.take(ip(1), 100, start), Ok(()));
        }
        assert!(limiter.full_at.is_empty());
    }

    #[test]
    fn a_call_that_costs_more_than_a_budget_takes_a_full_one() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(1);
        assert_eq!(limiter.take(ip(1), 1_000, start), Ok(()));
        assert!(limiter.take(ip(1), 1, start).is_err());
    }

    #[test]
    fn the_table_of_sources_is_bounded() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(1);
        for n in 0..MAX_SOURCES as u32 {
            assert_eq!(limiter.take(ip(n), 1, start), Ok(()));
        }
        assert!(limiter.take(ip(u32::MAX), 1, start).is_err());
        assert_eq!(limiter.full_at.len(), MAX_SOURCES);
        let later = start + Duration::from_secs(2);
        assert_eq!(limiter.take(ip(u32::MAX), 1, later), Ok(()));
        assert_eq!(limiter.full_at.len(), 1);
    }
}
