//! Formats the progress of a transfer.
//!
//! Pure, except that [`PeerRows`] remembers the order of the peers so that rows do not move.

use console::style;
use potluck_core::model::Address;

use crate::{
    control::model::{PeerState, Transfer, TransferPeer, TransferState},
    output::{draw, text},
};

/// Maximum number of peers with a row of their own; those that sent the most bytes are shown.
const MAX_ROWS: usize = 6;

/// Width of the bar for a peer's contribution, in columns.
const SHARE_BAR: usize = 12;

/// Terminal width from which the word "unverified" fits, in columns.
const WIDE: usize = 100;

/// Maximum width of an address, in columns.
const ADDRESS_WIDTH: usize = 24;

/// The peers, in the order of their first appearance.
#[derive(Debug, Default)]
pub(crate) struct PeerRows {
    seen: Vec<Address>,
}

impl PeerRows {
    /// Formats the transfer for a terminal of `width` columns.
    pub(crate) fn render(&mut self, transfer: &Transfer, width: usize) -> Vec<String> {
        for peer in &transfer.peers {
            if !self.seen.contains(&peer.address) {
                self.seen.push(peer.address.clone());
            }
        }
        let mut lines = vec![head(transfer, width)];
        let mut largest: Vec<&TransferPeer> = transfer.peers.iter().collect();
        largest.sort_by_key(|peer| std::cmp::Reverse(peer.bytes));
        let (shown, others) = largest.split_at(largest.len().min(MAX_ROWS));
        let mut shown = shown.to_vec();
        shown.sort_by_key(|peer| self.seen.iter().position(|address| *address == peer.address));
        let given: u64 = transfer.peers.iter().map(|peer| peer.bytes).sum();
        let address = shown
            .iter()
            .map(|peer| peer.address.to_string().len())
            .max()
            .unwrap_or(0)
            .min(ADDRESS_WIDTH);
        lines.extend(shown.iter().map(|peer| row(peer, given, address, width)));
        if !others.is_empty() {
            lines.push(draw::truncate(&rest(others), width));
        }
        lines
    }
}

/// The line of the whole transfer.
pub(super) fn head(transfer: &Transfer, width: usize) -> String {
    let name = match transfer.name.is_empty() {
        true => transfer.file.short().into(),
        false => text::escape(&transfer.name),
    };
    let Some(total) = transfer.total else {
        return draw::truncate(
            &format!("{name}  {}", style(activity(transfer)).dim().for_stderr()),
            width,
        );
    };
    let end = match transfer.state {
        TransferState::Running => transfer.seconds_left().map_or_else(
            || "-:-- left".to_owned(),
            |left| format!("{} left", text::clock(left)),
        ),
        _ => activity(transfer),
    };
    let unverified = match (transfer.unverified_to_show(), width >= WIDE) {
        (0, _) => String::new(),
        (bytes, true) => format!(" (+{} unverified)", text::size(bytes)),
        (bytes, false) => format!(" (+{})", text::size(bytes)),
    };
    let facts = format!(
        "{:>3} %  {:>10} of {}{unverified}  {:>12}  {end:>9}",
        text::percent(transfer.done, total),
        text::size(transfer.done),
        text::size(total),
        text::rate(transfer.bytes_per_second),
    );
    draw::bar_line(&name, transfer.done, total, &facts, width)
}

/// Describes a transfer whose state is not plain `Running`.
fn activity(transfer: &Transfer) -> String {
    match (transfer.state, &transfer.error) {
        // Part of the content is on this machine already.
        (TransferState::Preparing, _) if transfer.done > 0 => {
            "checking existing files …".to_owned()
        }
        (TransferState::Preparing, _) => "looking for peers …".to_owned(),
        (TransferState::Finishing, _) => "finishing …".to_owned(),
        (TransferState::Paused, _) => "paused".to_owned(),
        (TransferState::Waiting, Some(error)) => {
            format!("waiting: {}", text::escape(&error.message))
        }
        (state, _) => state.word().to_owned(),
    }
}

fn row(peer: &TransferPeer, given: u64, address: usize, width: usize) -> String {
    let state = match (peer.state, &peer.reason) {
        (PeerState::Active, _) => String::new(),
        (PeerState::Banned, reason) => {
            let why = reason
                .as_deref()
                .map(|why| format!(": {}", text::escape(why)))
                .unwrap_or_default();
            style(format!("banned{why}")).red().for_stderr().to_string()
        }
        (state, None) => style(state.word()).dim().for_stderr().to_string(),
        (state, Some(why)) => style(format!("{}: {}", state.word(), text::escape(why)))
            .yellow()
            .for_stderr()
            .to_string(),
    };
    let line = format!(
        "  {}  {:>3} %  {}  {:>12}  {state}",
        draw::fixed_width(&text::escape(&peer.address.to_string()), address, false),
        if given == 0 {
            0
        } else {
            text::rounded_percent(peer.bytes, given)
        },
        draw::bar(peer.bytes, given, SHARE_BAR),
        text::rate(peer.bytes_per_second),
    );
    draw::truncate(line.trim_end(), width)
}

fn rest(peers: &[&TransferPeer]) -> String {
    let rate = peers.iter().map(|peer| peer.bytes_per_second).sum();
    let banned = peers
        .iter()
        .filter(|peer| peer.state == PeerState::Banned)
        .count();
    let banned = if banned > 0 {
        format!(", {banned} banned")
    } else {
        String::new()
    };
    format!("  + {} more  {}{banned}", peers.len(), text::rate(rate))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use console::measure_text_width;
    use potluck_core::{FileId, model::FileKind};

    use super::*;

    fn transfer(peers: usize) -> Transfer {
        Transfer {
            number: 1,
            file: FileId([7; 32]),
            name: "a-rather-long-name-of-a-model-\x1b[2J.safetensors".into(),
            kind: FileKind::File,
            path: String::new(),
            state: TransferState::Running,
            chosen_files: None,
            is_seeding: false,
            uploaded: 0,
            done: 123_456_789,
            total: Some(987_654_321),
            resumed: 0,
            copied: 0,
            unverified: 0,
            not_kept: Vec::new(),
            bytes_per_second: 34_567_890,
            elapsed: Duration::from_secs(3),
            created_at: None,
            units_total: 100,
            units_done: 12,
            peers: (0..peers)
                .map(|i| TransferPeer {
                    peer: None,
                    origin: None,
                    labels: Default::default(),
                    address: Address {
                        host: format!("10.0.0.{i}"),
                        port: 12349,
                    },
                    state: if i == 3 {
                        PeerState::Banned
                    } else {
                        PeerState::Active
                    },
                    reason: (i == 3).then(|| "piece 7 failed verification".into()),
                    bytes: 1000 * i as u64,
                    bytes_per_second: 10,
                    requests: 1,
                    units: 100,
                })
                .collect(),
            error: None,
            sharing_error: None,
            limit: 0,
            priority: 10,
        }
    }

    #[test]
    fn no_line_exceeds_its_width_or_controls_the_terminal() {
        for width in 0..130 {
            for line in PeerRows::default().render(&transfer(9), width) {
                assert!(measure_text_width(&line) <= width, "{width}: {line}");
                assert!(!line.contains("\x1b[2J"));
            }
        }
    }

    #[test]
    fn unverified_bytes_of_a_long_unit_are_shown() {
        let mut now = transfer(1);
        now.done = 0;
        now.total = Some(9 << 30);
        now.units_total = 2304;
        now.unverified = 3 << 20;
        // A unit of 4 MiB first takes no time, then minutes.
        let line = |now: &Transfer| PeerRows::default().render(now, 200).swap_remove(0);
        assert!(!line(&now).contains("unverified"), "{}", line(&now));
        now.bytes_per_second = 24 << 10;
        let slow = line(&now);
        assert!(slow.contains("0 B of 9.00 GiB (+3.00 MiB unverified)"), "{slow}");
        let narrow = PeerRows::default().render(&now, 80).swap_remove(0);
        assert!(
            narrow.contains("(+3.00 MiB)") && narrow.ends_with("left"),
            "{narrow}"
        );
        now.unverified = now.total.unwrap() - (24 << 10) * 60;
        assert!(line(&now).contains("1:00 left"), "{}", line(&now));
    }

    #[test]
    fn peers_beyond_the_maximum_are_summed_up() {
        let lines = PeerRows::default().render(&transfer(9), 100);
        assert_eq!(lines.len(), 1 + MAX_ROWS + 1);
        assert!(lines[7].contains("+ 3 more"), "{}", lines[7]);
    }

    #[test]
    fn rows_stay_in_place_when_the_order_changes() {
        let mut rows = PeerRows::default();
        let mut now = transfer(3);
        let first = rows.render(&now, 100);
        now.peers.reverse();
        assert_eq!(rows.render(&now, 100), first);
    }
}
