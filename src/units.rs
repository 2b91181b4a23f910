//! Rates and times as people write them in flags and settings: `10MiB/s`, `5m`.
//!
//! Pure.

use std::{str::FromStr as _, time::Duration};

use bytesize::ByteSize;

/// Parses a rate in bytes per second, such as `10MiB/s`, `500KB` or `65536`.
///
/// # Errors
/// A message that says what is accepted.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let per_second = text.strip_suffix('s').map(str::trim_end);
    let amount = per_second.and_then(|text| text.strip_suffix('/')).unwrap_or(text);
    ByteSize::from_str(amount.trim())
        .map(|size| size.as_u64())
        .map_err(|_| {
            "give bytes per second, as in 10MiB/s, 500KB/s or 65536; 0 means no limit".to_owned()
        })
}

/// Parses a size in bytes, such as `200GiB`, `500MB` or `65536`.
///
/// # Errors
/// A message that says what is accepted.
pub fn parse_size(text: &str) -> Result<u64, String> {
    ByteSize::from_str(text.trim())
        .map(|size| size.as_u64())
        .map_err(|_| "give a size in bytes, as in 200GiB, 500MB or 65536".to_owned())
}

/// A rate in the syntax of [`parse_rate`], without rounding.
pub fn rate_argument(bytes_per_second: u64) -> String {
    let units = [(1 << 30, "GiB/s"), (1 << 20, "MiB/s"), (1 << 10, "KiB/s")];
    let is_whole = |unit: u64| bytes_per_second > 0 && bytes_per_second.is_multiple_of(unit);
    match units.into_iter().find(|&(unit, _)| is_whole(unit)) {
        Some((unit, name)) => format!("{}{name}", bytes_per_second / unit),
        None => bytes_per_second.to_string(),
    }
}

/// Parses a time such as `90s`, `5m` or `1h 30m`; a number alone means seconds.
///
/// # Errors
/// A message that says what is accepted.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let duration = match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    duration
        .ok_or_else(|| "give a time, as in 90s, 5m or 1h; a number alone means seconds".to_owned())
}

/// A time in the syntax of [`parse_duration`].
pub fn duration_argument(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_they_are_printed() {
        for (text, rate) in [
            ("0", 0),
            ("65536", 65536),
            ("10MiB", 10 << 20),
            ("10MiB/s", 10 << 20),
            ("10.00 MiB/s", 10 << 20),
            (" 1.5 GiB / s", 3 << 29),
            ("500kb/s", 500_000),
        ] {
            assert_eq!(parse_rate(text), Ok(rate), "{text}");
        }
        for bad in ["", "fast", "10MiB/h", "-1", "10 apples", "/s"] {
            assert!(parse_rate(bad).unwrap_err().contains("10MiB/s"), "{bad}");
        }
        for rate in [0, 1, 1000, 1 << 10, 3 << 20, 5 << 30, (1 << 20) + 1] {
            assert_eq!(parse_rate(&rate_argument(rate)), Ok(rate));
        }
        assert_eq!(rate_argument(10 << 20), "10MiB/s");
    }

    #[test]
    fn times_are_read_as_they_are_printed() {
        for (text, seconds) in [
            ("0", 0),
            ("30", 30),
            ("30s", 30),
            ("5m", 300),
            ("1h30m", 5400),
            ("3 min 05 s", 185),
            ("2 h 04 min", 7440),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "soon", "5 parsecs", "-1s"] {
            assert!(parse_duration(bad).unwrap_err().contains("5m"), "{bad}");
        }
        for seconds in [0, 1, 59, 60, 3661, 86_400] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(parse_duration(&duration_argument(duration)), Ok(duration));
        }
    }
}
