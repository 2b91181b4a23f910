//! Estimates of a link from the arriving bytes: throughput, latency, and the usual silence.

use std::time::Duration;

use crate::{
    config::{MAX_STALL, MIN_STALL},
    types::Time,
};

/// Time constant of the throughput average, in seconds: long enough to smooth over chunks, short
/// enough to follow a link whose sharing in a crowd changes every second.
const SMOOTHING: f64 = 0.5;

/// Shortest busy time of a throughput sample, in seconds: a shorter one only measures the size of a
/// chunk.
const MIN_SAMPLE: f64 = 0.01;

/// A silence is a stall once it is this many times the longest usual silence.
const STALL_GAPS: u32 = 8;

/// Estimates for one peer. The peer is busy while bytes are outstanding, counted from when the
/// first of them could have arrived.
#[derive(Debug, Default)]
pub(crate) struct Estimate {
    rate: Option<f64>,
    /// In seconds.
    latency: Option<f64>,
    /// Usual silence between two arrivals, in seconds: rises immediately, falls slowly.
    arrival_gap: f64,
    /// Since when bytes are outstanding.
    busy_since: Option<Time>,
    first_pending: bool,
    last_arrival: Time,
    window_start: Time,
    window_bytes: u64,
    window_busy: f64,
}

impl Estimate {
    /// Bytes per second; `None` before the first estimate.
    pub(crate) const fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Seconds from a request to its first byte, on an idle link.
    pub(crate) const fn latency(&self) -> Option<f64> {
        self.latency
    }

    /// The first outstanding bytes were requested.
    pub(crate) fn begin_busy(&mut self, now: Time) {
        self.busy_since = Some(now);
        self.first_pending = true;
        self.last_arrival = now;
        self.window_start = now + Duration::from_secs_f64(self.latency.unwrap_or(0.0));
    }

    /// No bytes are outstanding any more.
    pub(crate) fn end_busy(&mut self, now: Time) {
        self.window_busy += now.saturating_sub(self.window_start).as_secs_f64();
        self.busy_since = None;
    }

    /// Bytes arrived and wait for our own rate limit: there was no silence, and nothing to measure
    /// since the last report.
    pub(crate) fn locally_throttled(&mut self, now: Time) {
        if std::mem::take(&mut self.first_pending) {
            self.first_bytes_arrived(now);
        }
        self.last_arrival = now;
        self.window_start = now;
    }

    /// The first outstanding bytes arrived. Returns whether this is the first latency sample.
    fn first_bytes_arrived(&mut self, now: Time) -> bool {
        let took = now.saturating_sub(self.last_arrival).as_secs_f64();
        let first_ever = self.latency.is_none();
        self.latency = Some(self.latency.map_or(took, |old| {
            if took < old {
                took
            } else {
                old + (took - old) / 16.0
            }
        }));
        first_ever
    }

    /// Bytes arrived.
    pub(crate) fn bytes_arrived(&mut self, bytes: u64, now: Time) {
        let gap = now.saturating_sub(self.last_arrival).as_secs_f64();
        if std::mem::take(&mut self.first_pending) {
            let first_ever = self.first_bytes_arrived(now);
            self.last_arrival = now;
            if first_ever {
                // The time that these bytes took to send is unknown.
                self.window_start = now;
                return;
            }
        } else {
            self.last_arrival = now;
            self.arrival_gap = if gap > self.arrival_gap {
                gap
            } else {
                self.arrival_gap + (gap - self.arrival_gap) / 16.0
            };
        }
        self.window_bytes += bytes;
        let busy = self.window_busy + now.saturating_sub(self.window_start).as_secs_f64();
        if busy >= MIN_SAMPLE {
            self.sample(self.window_bytes as f64 / busy, busy);
            (self.window_bytes, self.window_busy, self.window_start) = (0, 0.0, now);
        }
    }

    /// A complete unit took this long: the only throughput sample if units are smaller than a
    /// chunk.
    pub(crate) fn unit_done(&mut self, bytes: u64, took: Duration) {
        if self.rate.is_none() && !took.is_zero() {
            self.rate = Some(bytes as f64 / took.as_secs_f64());
        }
    }

    /// A request was stolen after this time: the peer is no faster than that.
    pub(crate) fn outpaced(&mut self, bytes: u64, after: Duration) {
        if !after.is_zero() {
            let max = bytes as f64 / after.as_secs_f64();
            self.rate = self.rate.map(|rate| rate.min(max));
        }
    }

    fn sample(&mut self, rate: f64, seconds: f64) {
        let weight = 1.0 - (-seconds / SMOOTHING).exp();
        self.rate = Some(self.rate.map_or(rate, |old| old + (rate - old) * weight));
    }

    /// Since when nothing arrived although bytes are outstanding; `None` if none are.
    pub(crate) fn silent_since(&self) -> Option<Time> {
        self.busy_since.map(|since| since.max(self.last_arrival))
    }

    /// The silence after which the peer counts as stalled. A link slower than [`MAX_STALL`] gets
    /// twice its usual silence: its bytes may be queued before our own downlink.
    pub(crate) fn stall_timeout(&self) -> Duration {
        match self.latency {
            Some(latency) if self.rate.is_some() => {
                let usual = Duration::from_secs_f64(self.arrival_gap.max(latency));
                (usual * STALL_GAPS).clamp(MIN_STALL, MAX_STALL.max(usual * 2))
            }
            _ => MAX_STALL,
        }
    }

    /// Estimated seconds until `bytes` more have arrived, at least the current silence beyond the
    /// usual gap; `None` before the first estimate.
    pub(crate) fn seconds_for(&self, bytes: u64, now: Time) -> Option<f64> {
        let silence = self
            .silent_since()
            .map_or(0.0, |since| now.saturating_sub(since).as_secs_f64());
        self.rate
            .map(|rate| (bytes as f64 / rate.max(1.0)).max(silence - self.arrival_gap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Time {
        Duration::from_millis(ms)
    }

    #[test]
    fn finds_rate_and_latency_of_a_steady_link() {
        let mut estimate = Estimate::default();
        estimate.begin_busy(ms(0));
        for chunk in 0..100 {
            estimate.bytes_arrived(10_000, ms(50 + chunk * 10));
        }
        assert!((estimate.latency().unwrap() - 0.05).abs() < 1e-9);
        assert!(
            (estimate.rate().unwrap() - 1e6).abs() < 1e3,
            "{:?}",
            estimate.rate()
        );
        assert_eq!(estimate.stall_timeout(), ms(400));
        estimate.end_busy(ms(1040));
        assert_eq!(estimate.silent_since(), None);
        // Idle time does not count.
        estimate.begin_busy(ms(9000));
        estimate.bytes_arrived(10_000, ms(9060));
        assert!(
            (estimate.rate().unwrap() - 1e6).abs() < 1e5,
            "{:?}",
            estimate.rate()
        );
    }

    #[test]
    fn silence_raises_the_estimated_time() {
        let mut estimate = Estimate::default();
        estimate.begin_busy(ms(0));
        (1..100).for_each(|chunk| estimate.bytes_arrived(10_000, ms(chunk * 10)));
        assert!(estimate.seconds_for(10_000, ms(1000)).unwrap() < 0.1);
        assert!(estimate.seconds_for(10_000, ms(3000)).unwrap() > 1.5);
    }

    #[test]
    fn units_of_one_chunk_still_give_a_rate() {
        let mut estimate = Estimate::default();
        estimate.begin_busy(ms(0));
        estimate.bytes_arrived(1000, ms(10));
        assert_eq!(estimate.rate(), None);
        estimate.unit_done(1000, ms(10));
        assert_eq!(estimate.rate(), Some(100_000.0));
    }
}
