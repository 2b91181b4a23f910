//! `potluck status`: shows the state of the index and the peer.

use clap::Args;
use console::style;
use potluck_core::{Problem, grpc::transport::Endpoint, model::IndexStats};
use serde_json::{Value, json};

use crate::{
    context::CommandContext, control::model::Status, error::CommandError, output::text, peer::LockOwner,
};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  potluck status             is everything up?
  potluck status --json      for programs; exit code 5 where something is down";

/// Show the state of the index and the peer
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatusArgs {}

/// Queries both and prints their state. Fails if the index, or a peer given by `--peer`, does not
/// answer.
pub(crate) async fn run(context: &CommandContext, _: StatusArgs) -> Result<(), CommandError> {
    let (peer, peer_fail) = match context.running_peer().await {
        Ok(peer) => (peer, None),
        Err(error) => (None, Some(error)),
    };
    let index = context.index_for(peer.as_deref())?;
    let peer = match &peer {
        // Query again: in a prompt session, the status from connection time may be old.
        Some(peer) => Some((
            peer.control.status().await?,
            peer.control.endpoint().clone(),
            peer.is_in_process(),
        )),
        None => None,
    };
    let stats = index.stats().await;
    let index = index.endpoint();
    if context.out.is_json() {
        context.out.print_object(&json!({
            "index": index_object(index, &stats),
            "peer": peer.as_ref().map(|(status, control, _)| peer_object(status, control)),
        }))?;
    } else {
        let mut lines = index_lines(index, &stats);
        lines.push(String::new());
        lines.extend(match &peer {
            Some((status, control, own)) => peer_lines(status, control, *own),
            None => {
                let none = || "none is running here; start one with: potluck peer".to_owned();
                let description = LockOwner::find().map_or_else(none, |owner| owner.description());
                vec![format!("{}   {description}", style("peer").bold())]
            }
        });
        context.out.print_lines(lines)?;
    }
    match (peer_fail, stats) {
        (Some(error), _) => Err(error),
        (None, Err(problem)) => Err(problem.into()),
        (None, Ok(_)) => Ok(()),
    }
}

fn index_object(endpoint: &Endpoint, stats: &Result<IndexStats, Problem>) -> Value {
    match stats {
        Ok(stats) => json!({
            "url": endpoint.to_string(),
            "reachable": true,
            "peers": stats.peers,
            "files": stats.files,
            "registrations": stats.registrations,
            "watchers": stats.watchers,
            "uptime_seconds": stats.uptime.as_secs(),
            "version": stats.version,
            "store": stats.store,
        }),
        Err(problem) => json!({
            "url": endpoint.to_string(),
            "reachable": false,
            "error": problem.reason.word(),
            "message": problem.message,
        }),
    }
}

fn peer_object(status: &Status, control: &Endpoint) -> Value {
    json!({
        "peer": status.peer,
        "control": control.to_string(),
        "listening": status.listening.as_ref().map(ToString::to_string),
        "advertised": status.advertised.as_ref().map(ToString::to_string),
        "index": status.index,
        "registered": status.registered,
        "index_error": status.index_error.as_ref().map(|problem| problem.reason.word()),
        "items": status.items,
        "files": status.files,
        "bytes": status.bytes,
        "uploaded_bytes": status.uploaded,
        "downloaded_bytes": status.downloaded,
        "transfers": status.transfers,
        "paused_transfers": status.paused,
        "warnings": status.warnings,
        "home": status.home,
        "files_folder": status.files_folder,
        "uptime_seconds": status.uptime.as_secs(),
        "version": status.version,
        "damaged_items": status.damaged_items,
        "previous_peer": status.previous_peer,
    })
}

fn index_lines(endpoint: &Endpoint, stats: &Result<IndexStats, Problem>) -> Vec<String> {
    let head = style("index").bold();
    match stats {
        Ok(stats) => vec![
            format!("{head}  {endpoint}  {}", style("up").green()),
            format!(
                "  {}, {}, {}",
                text::count(stats.peers, "peer"),
                text::count(stats.files, "file"),
                text::count(stats.registrations, "registration")
            ),
            format!(
                "  up for {}, store {}, version {}",
                text::duration(Duration::from_secs(stats.uptime.as_secs())),
                text::escape(&stats.store),
                text::escape(&stats.version)
            ),
        ],
        Err(problem) => vec![
            format!("{head}  {endpoint}  {}", style("down").red()),
            format!("  {}", text::escape(&problem.message)),
        ],
    }
}

fn peer_lines(status: &Status, control: &Endpoint, own: bool) -> Vec<String> {
    let listening = status
        .listening
        .as_ref()
        .map_or_else(|| "nowhere".to_owned(), ToString::to_string);
    let owned = if own { ", lives as long as this prompt" } else { "" };
    let registration = match (status.registered, &status.index, &status.index_error) {
        (true, _, _) => {
            let advertised = status
                .advertised
                .as_ref()
                .map(|a| format!(" as {a}"))
                .unwrap_or_default();
            format!("{}{advertised}", style("registered").green())
        }
        (false, None, _) => "runs without an index".to_owned(),
        (false, Some(_), Some(error)) => {
            format!(
                "{}: {}",
                style("not registered").red(),
                text::escape(&error.message)
            )
        }
        (false, Some(_), None) => style("not registered yet").yellow().to_string(),
    };
    let paused = match status.paused {
        0 => String::new(),
        paused => format!(", {paused} paused"),
    };
    let mut lines = vec![
        format!(
            "{}   {listening}  {}  (peer {}{owned})",
            style("peer").bold(),
            style("up").green(),
            status.peer.short()
        ),
        format!(
            "  {registration}{}",
            status
                .index
                .as_ref()
                .map(|url| format!(" at {}", text::escape(url)))
                .unwrap_or_default()
        ),
        format!(
            "  shares {} ({}, {}), {} under way{paused}",
            text::count(status.items, "item"),
            text::count(status.files, "file"),
            text::size(status.bytes),
            text::count(status.transfers.saturating_sub(status.paused).into(), "transfer")
        ),
        format!(
            "  up for {}: sent {}, fetched {}",
            text::duration(Duration::from_secs(status.uptime.as_secs())),
            text::size(status.uploaded),
            text::size(status.downloaded)
        ),
        format!("  home {}", text::escape(&status.home)),
    ];
    let warning = |warning: &String| {
        let head = style("warning:").yellow().bold();
        format!("  {head} {}", text::escape(warning))
    };
    lines.extend(status.warnings.iter().map(warning));
    if status.damaged_items > 0 {
        lines.push(format!(
            "  {}: {} not what was hashed, and not offered; `potluck ls` and `potluck check --all` tell which",
            style("damaged").red(),
            match status.damaged_items {
                1 => "1 item is".to_owned(),
                more => format!("{more} items are"),
            }
        ));
    }
    if let Some(previous) = &status.previous_peer {
        lines.push(format!(
            "  new identity: this home was copied from another machine or moved here; there it was peer {}",
            previous.short()
        ));
    }
    if !own {
        lines.push(format!("  control {}", text::escape(&control.to_string())));
    }
    lines
}
