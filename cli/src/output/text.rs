//! Text for people: sizes, rates, durations, and untrusted names made safe to print.
//!
//! Pure. Invariant: the result of [`escape`] contains no terminal control characters and no
//! characters that hide or reorder text.

use std::{borrow::Cow, fmt::Write as _, ops::RangeInclusive, time::Duration};

use console::{measure_text_width, truncate_str};
use indicatif::HumanBytes;
use potluck_core::collection::path;

/// Escapes an untrusted name or message: characters that could control a terminal or disguise text
/// become `\u{…}`.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    let mut before = None;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match is_hostile(c) && !joins(before, c, rest.peek().copied()) {
            true => write!(safe, "\\u{{{:x}}}", u32::from(c)).expect("a String accepts any text"),
            false => safe.push(c),
        }
        before = Some(c);
    }
    match safe == text {
        true => Cow::Borrowed(text),
        false => Cow::Owned(safe),
    }
}

/// Whether a character controls a terminal, reorders or hides text, is invisible, or is unassigned
/// or for private use.
pub(crate) fn is_hostile(c: char) -> bool {
    if c.is_ascii() || c.is_control() {
        return c.is_control();
    }
    // The standard library exposes Unicode categories only through `escape_debug`. After a letter,
    // it escapes format characters, separators and unassigned characters, but not combining marks.
    let mut pair = [b'a'; 5];
    let end = 1 + c.encode_utf8(&mut pair[1..]).len();
    let printed =
        std::str::from_utf8(&pair[..end]).is_ok_and(|pair| pair.escape_debug().nth(1) == Some(c));
    let is_space = c.is_whitespace() && !path::is_reordering(c);
    path::is_invisible(c) || !(printed || is_space)
}

/// Whether an invisible character is legitimate here: a joiner between two emoji or between letters
/// of a joining script, a variation selector, or the tags of a flag.
fn joins(before: Option<char>, c: char, after: Option<char>) -> bool {
    /// The black flag, the base of flags that are spelled with tag characters.
    const FLAG: char = '\u{1f3f4}';
    // Arabic to Malayalam and Sinhala, Myanmar, Khmer and Mongolian.
    const JOINED: [RangeInclusive<char>; 3] = [
        '\u{600}'..='\u{dff}',
        '\u{1000}'..='\u{109f}',
        '\u{1780}'..='\u{18af}',
    ];
    // Arrows to symbols, and emoji.
    const PICTURES: [RangeInclusive<char>; 6] = [
        '\u{2190}'..='\u{27ff}',
        '\u{2900}'..='\u{2bff}',
        '\u{3030}'..='\u{3030}',
        '\u{303d}'..='\u{303d}',
        '\u{3297}'..='\u{3299}',
        '\u{1f000}'..='\u{1faff}',
    ];
    let is_joined = |c: char| JOINED.iter().any(|range| range.contains(&c));
    let is_picture =
        |c: char| PICTURES.iter().any(|range| range.contains(&c)) && !path::is_invisible(c);
    let Some(before) = before else { return false };
    match c {
        '\u{200c}' => is_joined(before) && after.is_some_and(is_joined),
        '\u{200d}' => after.is_some_and(|after| {
            (is_joined(before) && is_joined(after))
                || ((is_picture(before) || before == '\u{fe0f}') && is_picture(after))
        }),
        '\u{fe0e}' | '\u{fe0f}' => {
            is_picture(before)
                || matches!(before, '#' | '*' | '0'..='9' | '©' | '®' | '‼' | '⁉' | '™')
        }
        '\u{e0020}'..='\u{e007f}' => before == FLAG || matches!(before, '\u{e0020}'..='\u{e007e}'),
        '\u{e0100}'..='\u{e01ef}' => {
            matches!(before, '\u{3400}'..='\u{9fff}' | '\u{20000}'..='\u{323af}')
        }
        _ => false,
    }
}

/// Shortens text to `width` columns by leaving out its middle: `long-na…me.bin`.
pub(crate) fn shorten_middle(text: &str, width: usize) -> Cow<'_, str> {
    if measure_text_width(text) <= width {
        return Cow::Borrowed(text);
    }
    let Some(room) = width.checked_sub(1) else {
        return Cow::Borrowed("");
    };
    let tail_width = room.div_ceil(2);
    let head = truncate_str(text, room - tail_width, "");
    let mut used = 0;
    let mut tail = "";
    for (at, c) in text.char_indices().rev() {
        let char_width = measure_text_width(c.encode_utf8(&mut [0; 4]));
        used += char_width;
        if used > tail_width {
            break;
        }
        // A combining mark does not begin the tail without its letter.
        if char_width > 0 {
            tail = &text[at..];
        }
    }
    Cow::Owned(format!("{head}…{tail}"))
}

/// A size with an IEC unit: `1.50 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// A rate: `1.50 MiB/s`.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", HumanBytes(bytes_per_second))
}

/// A rate limit in bytes per second; 0 means no limit.
pub(crate) fn limit(bytes_per_second: u64) -> String {
    match bytes_per_second {
        0 => "no limit".to_owned(),
        limit => format!("at most {}", rate(limit)),
    }
}

/// The mean rate over a duration.
pub(crate) fn mean_rate(bytes: u64, elapsed: Duration) -> String {
    let per_second = bytes as f64 / elapsed.as_secs_f64().max(1e-3);
    rate(per_second as u64)
}

/// The text in lines of at most `width` columns, broken at spaces only, so that a path or command
/// that is longer stays whole. Lines after the first begin with `indent`.
pub(crate) fn wrap(text: &str, width: usize, indent: &str) -> String {
    let options = textwrap::Options::new(width)
        .break_words(false)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .subsequent_indent(indent);
    textwrap::fill(text, options)
}

/// A duration, rounded for reading: `0.84 s`, `7 s`, `3 min 05 s`, `2 h 04 min`, `3 d 4 h`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=9 if duration.subsec_nanos() > 0 => format!("{:.2} s", duration.as_secs_f64()),
        0..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// How long ago something happened, in its largest unit: `12 s`, `5 min`, `3 h`, `4 d`.
pub(crate) fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min", seconds / 60),
        3600..=86_399 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Time left as a clock: `0:07`, `12:05`, `3:04:05`; `>4 d` if over 99 hours.
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

/// A percentage, rounded down so that 100 means complete; 0 of 0 is 100.
pub(crate) fn percent(part: u64, whole: u64) -> u64 {
    match whole {
        0 => 100,
        _ => (u128::from(part) * 100 / u128::from(whole)).min(100) as u64,
    }
}

/// A contribution as a percentage, rounded to the nearest; 0 if the whole is 0.
pub(crate) fn rounded_percent(part: u64, whole: u64) -> u64 {
    match u128::from(whole) {
        0 => 0,
        whole => ((u128::from(part) * 100 + whole / 2) / whole).min(100) as u64,
    }
}

/// A path, relative to the current folder if it is inside.
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
    escape(short.as_deref().unwrap_or(path)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_wrap_at_spaces_and_keep_paths_whole() {
        let text = "  \u{1b}[2m→\u{1b}[0m run /a/path/that/is/longer-than/the/line and go on";
        assert_eq!(
            wrap(text, 20, "    "),
            "  \u{1b}[2m→\u{1b}[0m run\n    /a/path/that/is/longer-than/the/line\n    and go on"
        );
        assert_eq!(wrap("  indented", 80, ""), "  indented");
    }

    #[test]
    fn hostile_characters_are_escaped() {
        assert_eq!(escape("plain ünïcödé 名前.bin"), "plain ünïcödé 名前.bin");
        assert_eq!(escape("\x1b[2Jx"), "\\u{1b}[2Jx");
        assert_eq!(escape("a\u{9b}31m\r\n"), "a\\u{9b}31m\\u{d}\\u{a}");
        assert_eq!(escape("exe\u{202e}gpj"), "exe\\u{202e}gpj");
        let hidden = "\u{3164}\u{115f}\u{1160}\u{2800}\u{ffa0}\u{ad}\u{200b}\u{200e}\u{2028}\u{2066}\
                      \u{feff}\u{fe0f}\u{e0041}\u{e000}\u{378}\u{fffff}\u{200d}\u{200c}";
        for c in hidden.chars() {
            assert_eq!(escape(&format!("a{c}b")), format!("a\\u{{{:x}}}b", u32::from(c)));
            assert_eq!(escape(&c.to_string()), format!("\\u{{{:x}}}", u32::from(c)));
        }
    }

    #[test]
    fn names_in_all_scripts_are_unchanged() {
        for text in [
            "👩\u{200d}👩\u{200d}👧.png",
            "🏳\u{fe0f}\u{200d}🌈 👍🏽",
            "❤\u{fe0f}.txt 1\u{fe0f}\u{20e3}",
            "🏴\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
            "تقرير نهائي.pdf",
            "می\u{200c}خواهم.txt",
            "דוח סופי.doc",
            "हिन्दी क्\u{200d}ष.txt",
            "Cafe\u{301} \"x\" 'y'",
            "Capture d’écran à 10\u{202f}h.png",
            "名前\u{3000}一.bin",
        ] {
            assert_eq!(escape(text), text);
        }
    }

    #[test]
    fn long_text_loses_its_middle() {
        assert_eq!(shorten_middle("model.bin", 9), "model.bin");
        assert_eq!(shorten_middle("long-name-of-a-file.bin", 14), "long-n…ile.bin");
        assert_eq!(shorten_middle("名前名前名前.bin", 9), "名前….bin");
        assert_eq!(shorten_middle("abc", 1), "…");
        assert_eq!(shorten_middle("abc", 0), "");
        for width in 0..40 {
            let short =
                shorten_middle("Cafe\u{301}-👍🏽-名前-a-long-name.tar.gz", width).into_owned();
            assert!(measure_text_width(&short) <= width, "{width}: {short}");
        }
    }

    #[test]
    fn times_and_clocks() {
        assert_eq!(duration(Duration::from_millis(840)), "0.84 s");
        assert_eq!(duration(Duration::from_secs(7)), "7 s");
        assert_eq!(duration(Duration::from_secs(185)), "3 min 05 s");
        assert_eq!(duration(Duration::from_secs(7440)), "2 h 04 min");
        assert_eq!(clock(7), "0:07");
        let ages = [7, 60, 7199, 90_000].map(|seconds| age(Duration::from_secs(seconds)));
        assert_eq!(ages, ["7 s", "1 min", "1 h", "1 d"]);
        assert_eq!(clock(3600 * 3 + 245), "3:04:05");
    }

    #[test]
    fn only_a_complete_transfer_is_a_hundred_percent() {
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }

    #[test]
    fn halves_are_fifty_percent_each() {
        assert_eq!((rounded_percent(499, 1000), rounded_percent(501, 1000)), (50, 50));
        assert_eq!((rounded_percent(0, 0), rounded_percent(5, 5)), (0, 100));
    }

    #[test]
    fn nouns_agree_with_their_number() {
        assert_eq!(count(1, "peer"), "1 peer");
        assert_eq!(count(1234, "file"), "1,234 files");
    }
}
