//! `potluck status`: shows the state of the index and the peer.

use std::{path::Path, time::Duration};

use clap::Args;
use console::style;
use potluck_core::{Problem, grpc::transport::Endpoint, model::IndexStats};
use serde_json::json;

use crate::{
    context::CommandContext,
    control::model::Status,
    error::{CommandError, ExitStatus},
    output::text,
    peer::{CONTROL_SOCKET, LockOwner},
    views::status,
};

const EXAMPLES: &str = "\
Examples:
  potluck status             whether the index and the peer are up
  potluck status --json      the same as JSON

Exit codes: 0 up, 5 the index or a peer given by --peer is unreachable";

/// Show whether the index and the peer are up
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
    // A failure shows as an index that is down.
    drop(context.renew_membership().await);
    let index = context.index_in_use(peer.as_deref())?;
    let peer = match &peer {
        // Query again: in a prompt session, the status from connection time may be old.
        Some(peer) => Some((
            peer.control.status().await?,
            peer.control.endpoint().clone(),
            peer.is_in_process(),
        )),
        None => None,
    };
    let stats = match &index {
        Some(index) => {
            // The call may change which index is in use.
            let stats = index.stats().await;
            Some((index.endpoint(), stats))
        }
        None => None,
    };
    if context.out.is_json() {
        context.out.print_object(&json!({
            "index": stats.as_ref().map(|(index, stats)| status::index_object(index, stats)),
            "peer": peer.as_ref().map(|(peer, control, _)| status::peer_object(peer, control)),
        }))?;
    } else {
        let mut lines = match &stats {
            Some((index, stats)) => index_lines(index, stats),
            None => vec![format!("{}  none", style("index").bold())],
        };
        lines.push(String::new());
        lines.extend(match &peer {
            Some((status, control, is_in_process)) => {
                let shown = stats.as_ref().map(|(endpoint, stats)| ShownIndex {
                    endpoint,
                    is_up: stats.is_ok(),
                });
                peer_lines(status, control, *is_in_process, shown.as_ref())
            }
            None => {
                let none =
                    || "not running on this machine; start one with `potluck peer`".to_owned();
                let description = LockOwner::find().map_or_else(none, |owner| owner.description());
                vec![format!("{}   {description}", style("peer").bold())]
            }
        });
        context.out.print_lines(lines)?;
    }
    match (peer_fail, stats) {
        (Some(error), _) => Err(error),
        (None, Some((_, Err(problem)))) => Err(match context.out.is_json() {
            true => problem.into(),
            // The lines above say why.
            false => CommandError::AlreadyReported(ExitStatus::of(problem.reason)),
        }),
        (None, Some((_, Ok(_))) | None) => Ok(()),
    }
}

fn index_lines(endpoint: &Endpoint, stats: &Result<IndexStats, Problem>) -> Vec<String> {
    let head = style("index").bold();
    match stats {
        Ok(stats) => vec![
            format!("{head}  {endpoint}  {}", style("up").green()),
            format!(
                "  has {}, {}, {}",
                text::count(stats.peers, "peer"),
                text::count(stats.files, "file"),
                text::count(stats.registrations, "registration")
            ),
            format!(
                "  up for {}, version {}, store {}",
                text::duration(Duration::from_secs(stats.uptime.as_secs())),
                text::escape(&stats.version),
                text::escape(&stats.store)
            ),
        ],
        Err(problem) => vec![
            format!("{head}  {endpoint}  {}", style("down").red()),
            format!(
                "  {}",
                text::escape(&without_endpoint(&problem.message, endpoint))
            ),
            "  start one with `potluck index`, or choose one with --index HOST:PORT".to_owned(),
        ],
    }
}

/// The message without the address, which the line above shows.
fn without_endpoint(message: &str, endpoint: &Endpoint) -> String {
    message.replacen(&format!(" at {endpoint}"), "", 1)
}

/// The index that the command uses, which is shown before the peer.
struct ShownIndex<'a> {
    endpoint: &'a Endpoint,
    is_up: bool,
}

/// The peer as text, without what is shown of the index already.
fn peer_lines(
    status: &Status,
    control: &Endpoint,
    is_in_process: bool,
    index: Option<&ShownIndex<'_>>,
) -> Vec<String> {
    let address = match &status.listening {
        Some(address) => address.to_string(),
        None => "download-only".to_owned(),
    };
    let mut lines = vec![
        format!("{}   {address}  {}", style("peer").bold(), style("up").green()),
        format!("  {}", registration_text(status, index)),
        format!("  {}", library_text(status)),
        format!("  {}", traffic_text(status)),
        format!(
            "  up for {}, version {}, peer id {}",
            text::duration(Duration::from_secs(status.uptime.as_secs())),
            text::escape(&status.version),
            status.peer.short(),
        ),
        format!("  home {}", text::escape(&status.home)),
    ];
    if !status.labels.is_empty() {
        lines.push(format!("  labels {}", status.labels));
    }
    let usual_socket = Path::new(&status.home).join(CONTROL_SOCKET);
    if is_in_process {
        lines.push("  runs in this prompt, and stops with it".to_owned());
    } else if !matches!(control, Endpoint::Unix(path) if *path == usual_socket) {
        lines.push(format!("  control {}", text::escape(&control.to_string())));
    }
    let warning = |warning: &String| {
        let head = style("warning:").yellow().bold();
        format!("  {head} {}", text::escape(warning))
    };
    lines.extend(status.warnings.iter().map(warning));
    if status.damaged_items > 0 {
        let items = text::count(status.damaged_items, "damaged item");
        lines.push(format!(
            "  {} {items} not offered to others; `potluck ls` shows which",
            style("warning:").yellow().bold(),
        ));
    }
    if let Some(previous) = &status.previous_peer {
        lines.push(format!(
            "  {} this home was copied or moved from another machine, where its peer id was {}",
            style("note:").bold(),
            previous.short()
        ));
    }
    lines
}

/// What the peer shares. Damaged items are part of the library, but not shared.
fn library_text(status: &Status) -> String {
    let verb = if status.is_download_only { "has" } else { "shares" };
    match status.items {
        0 => format!("{verb} no files"),
        items => format!(
            "{verb} {} ({}, {})",
            text::count(items, "item"),
            text::count(status.files, "file"),
            text::size(status.bytes),
        ),
    }
}

/// Transfers and bytes since the start.
fn traffic_text(status: &Status) -> String {
    let running = status.transfers.saturating_sub(status.paused);
    let mut parts = Vec::new();
    if running > 0 {
        parts.push(format!("{} running", text::count(running.into(), "transfer")));
    }
    if status.paused > 0 {
        parts.push(format!(
            "{} paused",
            text::count(status.paused.into(), "transfer")
        ));
    }
    if !status.is_download_only {
        parts.push(format!("sent {}", text::size(status.uploaded)));
    }
    parts.push(format!("received {}", text::size(status.downloaded)));
    parts.join(", ")
}

/// Whether the peer is registered and can be reached, without what other lines show.
fn registration_text(status: &Status, index: Option<&ShownIndex<'_>>) -> String {
    if status.is_download_only {
        return "accepts no connections and registers nothing".to_owned();
    }
    let Some(url) = &status.index else {
        return "runs without an index".to_owned();
    };
    let shown = index.filter(|index| {
        let shown = index.endpoint.to_string();
        url.split(',').any(|url| url.trim_end_matches('/') == shown)
    });
    let at = match shown {
        Some(_) => String::new(),
        None => format!(" at {}", text::escape(url)),
    };
    match (status.registered, &status.index_error) {
        (true, problem) => {
            let advertised = status.advertised.as_ref();
            let other = advertised.filter(|&address| Some(address) != status.listening.as_ref());
            let name = other.map(|address| format!(" as {address}")).unwrap_or_default();
            let registered = format!("{}{at}{name}", style("registered").green());
            let refused = problem
                .as_ref()
                .map(|problem| {
                    format!(
                        "\n  {}: {}",
                        style("but").yellow(),
                        text::escape(&problem.message)
                    )
                })
                .unwrap_or_default();
            format!("{registered}{}{refused}", reachability_text(status))
        }
        (false, _) if shown.is_some_and(|index| !index.is_up) => {
            format!("{} while the index is down", style("not registered").red())
        }
        (false, Some(error)) => {
            let message = text::escape(&error.message);
            format!("{}{at}: {message}", style("not registered").red())
        }
        (false, None) => format!("{}{at}", style("not registered yet").yellow()),
    }
}

/// Whether the index can connect to the registered peer, and what to do if it cannot.
fn reachability_text(status: &Status) -> String {
    let Some(found) = status.reachability else {
        return String::new();
    };
    match found.is_reachable() {
        Some(true) => ", reachable from the index".to_owned(),
        Some(false) => {
            let port = status.advertised.as_ref().map_or(0, |address| address.port);
            let finding = found
                .finding()
                .map(|finding| format!(" ({finding})"))
                .unwrap_or_default();
            format!(
                "\n  {}{finding}: open TCP port {port} in the firewall, or start with --download-only",
                style("not reachable").red()
            )
        }
        None => String::new(),
    }
}
