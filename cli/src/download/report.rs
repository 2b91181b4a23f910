//! Reports a finished or detached download.

use std::borrow::Cow;

use console::style;
use serde_json::json;

use crate::{
    context::CommandContext,
    control::model::{PeerState, Transfer, TransferPeer},
    error::CommandError,
    output::{
        table::{Align, Table},
        text,
    },
    views::transfers,
};

/// Maximum number of peers listed in text; `--json` lists all.
const MAX_PEERS: usize = 12;

/// How much of a finished download is reported in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReportDetail {
    /// With each peer's contribution.
    Peers,
    /// Only the result, because the command reports several downloads.
    Brief,
}

/// Prints the path and each peer's contribution; for a detached download, how to follow it.
pub(crate) fn report(
    context: &CommandContext,
    transfer: &Transfer,
    detached: bool,
    detail: ReportDetail,
) -> Result<(), CommandError> {
    let done = transfer.state.has_ended();
    if context.out.is_json() {
        return context.out.print_object(&match done {
            true => object(transfer),
            false => {
                let mut object = transfers::object(transfer);
                object["event"] = json!("detached");
                object
            }
        });
    }
    if detached && !done {
        context.out.print_line(format_args!(
            "transfer {} continues in the background",
            transfer.number
        ))?;
        context
            .out
            .note(format_args!("show its progress: potluck why {}", transfer.number));
        return Ok(());
    }
    context.out.print_line(format_args!(
        "{}  {}",
        style(verb(transfer)).green(),
        text::path(&transfer.path)
    ))?;
    let chosen = transfers::chosen_text(transfer);
    let chosen = chosen.map(|chosen| format!("{chosen}, ")).unwrap_or_default();
    context.out.note(format_args!("  {chosen}{}", facts(transfer)));
    if let Some(note) = renamed(transfer) {
        context.out.note(format_args!("  {note}"));
    }
    for what in &transfer.not_kept {
        context.out.warn(format_args!("{}", text::escape(what)));
    }
    if detail == ReportDetail::Peers {
        for line in peer_lines(&transfer.peers, context.out.width()) {
            context.out.note(line);
        }
    }
    if let Some(problem) = &transfer.sharing_error {
        context
            .out
            .warn(format_args!("downloaded, but {}", text::escape(&problem.message)));
    }
    Ok(())
}

/// The last object of `get --json`.
fn object(transfer: &Transfer) -> serde_json::Value {
    json!({
        "event": "done",
        "id": transfer.file,
        "kind": transfer.kind,
        "name": transfer.name,
        "path": transfer.path,
        "size": transfer.total.unwrap_or(transfer.done),
        "chosen_files": transfer.chosen_files.map(|(chosen, _)| chosen),
        "collection_files": transfer.chosen_files.map(|(_, all)| all),
        "seconds": transfer.elapsed.as_millis() as f64 / 1000.0,
        "resumed_bytes": transfer.resumed,
        "copied_bytes": transfer.copied,
        "not_kept": transfer.not_kept,
        "sources": transfer.peers.iter().map(transfers::peer_object).collect::<Vec<_>>(),
        "sharing_error": transfer.sharing_error.as_ref().map(|problem| problem.reason.word()),
        "sharing_message": transfer.sharing_error.as_ref().map(|problem| problem.message.as_str()),
    })
}

/// A note if the file was saved under a different name because of a leading `.` or `-`.
fn renamed(transfer: &Transfer) -> Option<String> {
    let rest = transfer.name.strip_prefix(['.', '-'])?;
    let saved = std::path::Path::new(&transfer.path).file_name()?.to_str()?;
    (saved.strip_prefix('_')? == rest).then(|| {
        format!(
            "saved with `_` at the start of its name, because programs may act on the name `{}`; \
             -o PATH sets any name",
            text::escape(&transfer.name)
        )
    })
}

/// Bytes that were downloaded.
fn downloaded_bytes(transfer: &Transfer) -> u64 {
    transfer.done.saturating_sub(transfer.resumed + transfer.copied)
}

fn verb(transfer: &Transfer) -> &'static str {
    match downloaded_bytes(transfer) == 0 && transfer.copied == 0 && transfer.done > 0 {
        true => "already there",
        false => "saved",
    }
}

fn facts(transfer: &Transfer) -> String {
    let size = text::size(transfer.total.unwrap_or(transfer.done));
    let downloaded = downloaded_bytes(transfer);
    if downloaded == 0 {
        return format!("{size}, verified");
    }
    if transfer.peers.iter().all(|peer| peer.bytes == 0) {
        return format!(
            "{size}, verified, copied on this machine in {}",
            text::duration(transfer.elapsed)
        );
    }
    let resumed = match transfer.resumed {
        0 => String::new(),
        resumed => format!(", resumed at {}", text::size(resumed)),
    };
    format!(
        "{size}, verified, in {} ({}){resumed}",
        text::duration(transfer.elapsed),
        text::mean_rate(downloaded, transfer.elapsed)
    )
}

/// Each peer's contribution, and the peers that were banned, with the reason.
fn peer_lines(peers: &[TransferPeer], width: Option<usize>) -> Vec<String> {
    let given: u64 = peers.iter().map(|peer| peer.bytes).sum();
    let mut table =
        Table::without_header(vec![Align::Left, Align::Right, Align::Right, Align::Left]);
    let is_listed = |peer: &&TransferPeer| peer.bytes > 0 || peer.state == PeerState::Banned;
    let (listed, others): (Vec<_>, Vec<_>) = peers
        .iter()
        .filter(is_listed)
        .enumerate()
        .partition(|(i, peer)| *i < MAX_PEERS || peer.state == PeerState::Banned);
    for (_, peer) in listed {
        let state = match (peer.state, &peer.reason) {
            (PeerState::Banned, reason) => {
                let why = reason
                    .as_deref()
                    .map_or(Cow::Borrowed("sent bytes that failed verification"), text::escape);
                style(format!("banned: {why}")).red().for_stderr().to_string()
            }
            _ => String::new(),
        };
        table.row([
            match &peer.origin {
                Some(_) => format!("  origin {}", text::escape(&peer.address.to_string())),
                None => format!("  {}", text::escape(&peer.address.to_string())),
            },
            text::size(peer.bytes),
            format!(
                "{} %",
                if given == 0 {
                    0
                } else {
                    text::percent(peer.bytes, given)
                }
            ),
            state,
        ]);
    }
    let mut lines = table.lines(width);
    if !others.is_empty() {
        let bytes = others.iter().map(|(_, peer)| peer.bytes).sum();
        lines.push(format!(
            "  and {} with {}",
            text::count(others.len() as u64, "more peer"),
            text::size(bytes)
        ));
    }
    lines
}
