//! Parses how long a finished download is served: `no`, a time, or a ratio.

use std::{str::FromStr, time::Duration};

use potluck_core::units::{duration_argument, parse_duration};

/// Maximum ratio, in thousandths; a larger one is never reached.
const MAX_RATIO: f64 = 1e9;

/// How long a finished download is served to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seed {
    /// Not at all; it is not even announced.
    No,
    /// For this time, in whole seconds, at least one.
    For(Duration),
    /// Until this many thousandths of its size were sent.
    Ratio(u64),
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const ACCEPTED: &str = "give `no`, a time as in 10m or 90s, or a ratio as in 1.5";
        let text = text.trim();
        if text == "no" {
            return Ok(Self::No);
        }
        if let Ok(ratio) = text.parse::<f64>() {
            let thousandths = (ratio * 1000.0).round();
            return match (1.0..=MAX_RATIO).contains(&thousandths) {
                true => Ok(Self::Ratio(thousandths as u64)),
                false => Err(ACCEPTED.to_owned()),
            };
        }
        let time = parse_duration(text).map_err(|_| ACCEPTED.to_owned())?;
        match time.as_secs() {
            0 => Err(ACCEPTED.to_owned()),
            seconds => Ok(Self::For(Duration::from_secs(seconds))),
        }
    }
}

impl std::fmt::Display for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::For(time) => f.write_str(&duration_argument(*time)),
            Self::Ratio(thousandths) => write!(f, "{}", *thousandths as f64 / 1000.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_printed() {
        for (text, seed) in [
            ("no", Seed::No),
            ("10m", Seed::For(Duration::from_secs(600))),
            ("90s", Seed::For(Duration::from_secs(90))),
            ("1.5", Seed::Ratio(1500)),
            ("2", Seed::Ratio(2000)),
            ("0.001", Seed::Ratio(1)),
        ] {
            assert_eq!(text.parse(), Ok(seed), "{text}");
            assert_eq!(seed.to_string().parse(), Ok(seed), "{text}");
        }
        for bad in ["", "yes", "0", "-1", "0s", "10 parsecs", "nan", "inf", "1e12"] {
            assert!(bad.parse::<Seed>().unwrap_err().contains("1.5"), "{bad}");
        }
    }
}
