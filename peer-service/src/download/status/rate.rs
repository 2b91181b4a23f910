//! A transfer rate for display: the bytes received over the last seconds.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// The time over which the rate is averaged.
const WINDOW: Duration = Duration::from_secs(3);

/// Minimum interval between samples, which bounds their number.
const MIN_SAMPLE_INTERVAL: Duration = Duration::from_millis(150);

/// Byte counts over the last [`WINDOW`], oldest first.
#[derive(Debug, Default)]
pub(crate) struct RateWindow(VecDeque<(Instant, u64)>);

impl RateWindow {
    /// Bytes per second over the window that ends now, given the total received so far. 0 if the
    /// total decreased.
    pub(crate) fn sample(&mut self, now: Instant, total: u64) -> u64 {
        let past = |&(at, _): &(Instant, u64)| now - at > WINDOW;
        while self.0.len() > 1 && self.0.front().is_some_and(past) {
            self.0.pop_front();
        }
        if self
            .0
            .back()
            .is_none_or(|&(at, _)| now - at >= MIN_SAMPLE_INTERVAL)
        {
            self.0.push_back((now, total));
        }
        match self.0.front() {
            Some(&(at, before)) if now > at => {
                (total.saturating_sub(before) as f64 / (now - at).as_secs_f64()) as u64
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_rate_follows_the_received_bytes() {
        let start = Instant::now();
        let mut rate = RateWindow::default();
        let at = |tick: u32| start + Duration::from_millis(200) * tick;
        assert_eq!(rate.sample(at(0), 0), 0, "no earlier sample");
        for tick in 1..=50 {
            // 1 MiB every 200 ms.
            assert_eq!(rate.sample(at(tick), u64::from(tick) * MIB), 5 * MIB);
        }
        let silent: Vec<_> = (51..=67).map(|tick| rate.sample(at(tick), 50 * MIB)).collect();
        assert!(
            silent.is_sorted_by(|a, b| a >= b) && silent.last() == Some(&0),
            "{silent:?}"
        );
    }

    #[test]
    fn the_number_of_samples_is_bounded() {
        let start = Instant::now();
        let mut rate = RateWindow::default();
        (0..10_000).for_each(|n| {
            rate.sample(start + Duration::from_millis(n), n);
        });
        assert!(rate.0.len() <= 22, "{}", rate.0.len());
        assert_eq!(
            rate.sample(start + Duration::from_secs(10), 0),
            0,
            "all samples are too old"
        );
    }
}
