//! Formats progress lines.
//!
//! Pure functions of a state and a width in columns; no line is wider than the width.

use std::time::Duration;

use console::{Alignment, measure_text_width, pad_str, style, truncate_str};

use crate::output::text;

/// Maximum bar width, in columns; a wider bar is no easier to read.
const MAX_BAR: usize = 40;

/// Minimum bar width, in columns; a narrower bar is dropped.
const MIN_BAR: usize = 8;

/// Maximum width of the label left of a bar, in columns.
const MAX_LABEL: usize = 28;

/// Minimum width of the label, in columns, before the bar is dropped.
const MIN_LABEL: usize = 8;

/// A bar of `width` columns, filled to `part` of `whole`, with half-column resolution.
pub(crate) fn bar(part: u64, whole: u64, width: usize) -> String {
    let halves = match whole {
        0 => 0,
        _ => (part.min(whole) as u128 * (2 * width) as u128 / u128::from(whole)) as usize,
    };
    let full = "━".repeat(halves / 2);
    let half = if halves % 2 == 1 { "╸" } else { "" };
    let rest = "─".repeat(width - halves.div_ceil(2));
    format!(
        "{}{}",
        style(format!("{full}{half}")).cyan().for_stderr(),
        style(rest).dim().for_stderr()
    )
}

/// A label, a bar, and facts on the right, within `width` columns. If space is short, the label
/// loses its middle first; then the bar is dropped, then the label.
pub(crate) fn bar_line(label: &str, part: u64, whole: u64, facts: &str, width: usize) -> String {
    let facts_width = measure_text_width(facts);
    let left = width.saturating_sub(facts_width + 2);
    let beside_bar = left.saturating_sub(2 + MIN_BAR);
    let room = if beside_bar >= MIN_LABEL { beside_bar } else { left };
    let label = text::shorten_middle(label, MAX_LABEL.min(room));
    let label_width = measure_text_width(&label);
    let bar_width = left.saturating_sub(label_width + 2).min(MAX_BAR);
    if bar_width >= MIN_BAR {
        return format!("{label}  {}  {facts}", bar(part, whole, bar_width));
    }
    match left >= MIN_BAR {
        true => format!("{label}  {facts}"),
        false => truncate(facts, width),
    }
}

/// The progress line for hashing.
pub(crate) fn hashing_line(
    name: &str,
    done: u64,
    total: u64,
    elapsed: Duration,
    width: usize,
) -> String {
    work_line("hashing", name, done, total, elapsed, width)
}

/// The progress line for work on the bytes of a file.
pub(crate) fn work_line(
    verb: &str,
    name: &str,
    done: u64,
    total: u64,
    elapsed: Duration,
    width: usize,
) -> String {
    let facts = format!(
        "{:>3} %  {:>10} of {}  {:>12}",
        text::percent(done, total),
        text::size(done),
        text::size(total),
        text::mean_rate(done, elapsed)
    );
    bar_line(
        &format!("{verb} {}", text::escape(name)),
        done,
        total,
        &facts,
        width,
    )
}

/// Truncates a line to `width` columns.
pub(crate) fn truncate(line: &str, width: usize) -> String {
    match width {
        // Not even the ellipsis fits.
        0 => String::new(),
        _ => truncate_str(line, width, "…").into_owned(),
    }
}

/// Pads or truncates text to a fixed width, so that the columns after it do not move.
pub(crate) fn fixed_width(text: &str, width: usize, right: bool) -> String {
    let alignment = if right { Alignment::Right } else { Alignment::Left };
    pad_str(text, width, alignment, Some("…")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_the_requested_width_at_every_step() {
        for part in 0..=100 {
            assert_eq!(measure_text_width(&bar(part, 100, 13)), 13, "{part}");
        }
        assert_eq!(measure_text_width(&bar(u64::MAX, u64::MAX, 7)), 7);
        assert_eq!(measure_text_width(&bar(0, 0, 7)), 7);
    }

    #[test]
    fn a_long_label_is_shortened_before_the_bar_is_dropped() {
        let line = |width| bar_line("a-long-name.safetensors", 1, 2, " 50 %  1.00 MiB", width);
        let plain = |width| console::strip_ansi_codes(&line(width)).into_owned();
        assert_eq!(plain(40), "a-long…ensors  ━━━━────   50 %  1.00 MiB");
        assert_eq!(plain(30), "a-long…ensors   50 %  1.00 MiB");
    }

    #[test]
    fn lines_are_never_wider_than_the_width() {
        for width in 0..140 {
            let line = bar_line(
                "名前-with-a-rather-long-label-indeed.bin",
                7,
                9,
                " 77 %  1.00 MiB of 2.00 MiB",
                width,
            );
            assert!(measure_text_width(&line) <= width, "{width}: {line}");
        }
    }
}
