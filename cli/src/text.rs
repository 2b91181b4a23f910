//! Text for people: sizes, rates, times, and names from strangers made harmless.
//!
//! Pure. Invariant: what [`shown`] gives holds no character that a terminal acts on or that hides what is there.

use std::{borrow::Cow, fmt::Write as _, time::Duration};

use indicatif::HumanBytes;

/// A name or message from outside, with everything that could steer a terminal or disguise the text written as `\u{…}`.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_hostile(c) {
            true => write!(safe, "\\u{{{:x}}}", u32::from(c)).expect("a String takes everything"),
            false => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

/// Whether a terminal acts on it (C0, C1, DEL), or it reorders or hides text (bidirectional and zero-width controls, line separators, tags).
pub(crate) fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Bytes with an IEC unit: `1.50 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// Bytes a second.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", HumanBytes(bytes_per_second))
}

/// A limit on bytes a second, 0: none.
pub(crate) fn limit(bytes_per_second: u64) -> String {
    match bytes_per_second {
        0 => "no limit".to_owned(),
        limit => format!("at most {}", rate(limit)),
    }
}

/// Mean rate over a time.
pub(crate) fn mean_rate(bytes: u64, elapsed: Duration) -> String {
    let per_second = bytes as f64 / elapsed.as_secs_f64().max(1e-3);
    rate(per_second as u64)
}

/// A length of time, to the precision that people care for: `0.84 s`, `12 s`, `3 min 05 s`, `2 h 04 min`, `3 d 4 h`.
pub(crate) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=9 => format!("{:.2} s", duration.as_secs_f64()),
        10..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Time left as a clock: `0:07`, `12:05`, `3:04:05`; over 99 hours `>4 d`.
pub(crate) fn clock(seconds: u64) -> String {
    match seconds {
        0..=3599 => format!("{}:{:02}", seconds / 60, seconds % 60),
        3600..=359_999 => format!(
            "{}:{:02}:{:02}",
            seconds / 3600,
            seconds % 3600 / 60,
            seconds % 60
        ),
        _ => format!(">{} d", seconds / 86_400),
    }
}

/// A number with its noun: `1 file`, `1,234 files`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", indicatif::HumanCount(number))
}

/// Part of a whole in per cent, rounded down so that 100 means all; 0 of 0 is all.
pub(crate) fn percent(part: u64, whole: u64) -> u64 {
    match whole {
        0 => 100,
        _ => (u128::from(part) * 100 / u128::from(whole)).min(100) as u64,
    }
}

/// Somebody's share of a whole in per cent, to the nearest; of nothing it is nothing.
pub(crate) fn share(part: u64, whole: u64) -> u64 {
    match u128::from(whole) {
        0 => 0,
        whole => ((u128::from(part) * 100 + whole / 2) / whole).min(100) as u64,
    }
}

/// A path as a person would type it: relative to the current folder where it is inside.
pub(crate) fn path(path: &str) -> String {
    let short = std::env::current_dir()
        .ok()
        .and_then(|here| {
            std::path::Path::new(path)
                .strip_prefix(here)
                .ok()
                .map(|p| p.to_string_lossy().into_owned())
        })
        .filter(|short| !short.is_empty());
    shown(short.as_deref().unwrap_or(path)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_harmless() {
        assert_eq!(shown("plain ünïcödé 名前.bin"), "plain ünïcödé 名前.bin");
        assert_eq!(shown("\x1b[2Jx"), "\\u{1b}[2Jx");
        assert_eq!(shown("a\u{9b}31m\r\n"), "a\\u{9b}31m\\u{d}\\u{a}");
        assert_eq!(shown("exe\u{202e}gpj"), "exe\\u{202e}gpj");
    }

    #[test]
    fn times_and_clocks() {
        assert_eq!(time(Duration::from_millis(840)), "0.84 s");
        assert_eq!(time(Duration::from_secs(185)), "3 min 05 s");
        assert_eq!(time(Duration::from_secs(7440)), "2 h 04 min");
        assert_eq!(clock(7), "0:07");
        assert_eq!(clock(3600 * 3 + 245), "3:04:05");
    }

    #[test]
    fn a_hundred_per_cent_is_all() {
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }

    #[test]
    fn halves_share_evenly() {
        assert_eq!((share(499, 1000), share(501, 1000)), (50, 50));
        assert_eq!((share(0, 0), share(5, 5)), (0, 100));
    }

    #[test]
    fn nouns_agree() {
        assert_eq!(count(1, "peer"), "1 peer");
        assert_eq!(count(1234, "file"), "1,234 files");
    }
}
