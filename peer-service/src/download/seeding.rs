//! How long a finished download is served to others. Pure.

use std::time::{Duration, SystemTime};

/// When a download stops being served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedLimit {
    /// It is never announced and never shared.
    Never,
    /// After this time since it was done.
    For(Duration),
    /// Once this many thousandths of its size were sent since it was done.
    Ratio(u64),
}

/// A download that is served until its limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seeding {
    /// When the download was done.
    pub(crate) since: SystemTime,
    /// Size of the content in bytes.
    pub(crate) size: u64,
    /// Bytes sent to others.
    pub(crate) uploaded: u64,
}

impl SeedLimit {
    /// Whether a download that was done at `seeding.since` is no longer served at `now`.
    pub(crate) fn is_reached(self, seeding: &Seeding, now: SystemTime) -> bool {
        match self {
            Self::Never => true,
            // A clock that was set back does not end it.
            Self::For(time) => now.duration_since(seeding.since).is_ok_and(|since| since >= time),
            Self::Ratio(thousandths) => {
                u128::from(seeding.uploaded) * 1000
                    >= u128::from(seeding.size) * u128::from(thousandths)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_reached_after_its_time_or_bytes() {
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let seeding = |uploaded| Seeding {
            since,
            size: 1000,
            uploaded,
        };
        let time = SeedLimit::For(Duration::from_secs(10));
        for (seconds, is_reached) in [(0, false), (9, false), (10, true)] {
            let now = since + Duration::from_secs(seconds);
            assert_eq!(time.is_reached(&seeding(u64::MAX), now), is_reached);
        }
        assert!(!time.is_reached(&seeding(0), SystemTime::UNIX_EPOCH));
        for (uploaded, is_reached) in [(0, false), (1499, false), (1500, true)] {
            assert_eq!(
                SeedLimit::Ratio(1500).is_reached(&seeding(uploaded), since),
                is_reached
            );
        }
        assert!(SeedLimit::Never.is_reached(&seeding(0), since));
    }
}
