//! `potluck why`: explains what a transfer is doing and what delays it.

use clap::Args;
use console::style;

use crate::{
    arguments::transfer_target::TransferTarget,
    context::CommandContext,
    control::model::{Explanation, MissingUnits, Transfer},
    error::CommandError,
    lookup,
    output::{
        table::{Align, Table},
        text,
    },
    views::transfers,
};

/// Maximum number of runs of missing units shown, the rarest first.
const MAX_RUNS: usize = 20;

const EXAMPLES: &str = "\
Examples:
  potluck why 3          transfer number 3 of `potluck transfers`
  potluck why 3f9a…      the newest transfer of this file

Shows its peers, the missing pieces, and which peers have them.";

/// Explain the progress of a download
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct WhyArgs {
    /// Number of a transfer, or id of its file
    #[arg(value_name = "ID|NUMBER")]
    target: TransferTarget,
}

/// Queries the peer and prints the explanation.
pub(crate) async fn run(context: &CommandContext, args: WhyArgs) -> Result<(), CommandError> {
    let peer = context.require_running_peer().await?;
    let number = lookup::find_transfer(&context.out, &peer.control, &args.target).await?;
    let explanation = peer.control.explain(number).await.map_err(|problem| {
        CommandError::from(problem).hint("`potluck transfers` lists the transfers")
    })?;
    if context.out.is_json() {
        return context
            .out
            .print_object(&transfers::explanation_object(&explanation));
    }
    context.out.print_lines(lines(&explanation, context.out.width()))
}

fn lines(explanation: &Explanation, width: Option<usize>) -> Vec<String> {
    let mut lines = summary(&explanation.transfer);
    if !explanation.findings.is_empty() {
        lines.push(String::new());
        lines.extend(
            explanation
                .findings
                .iter()
                .map(|finding| format!("• {}", text::escape(finding))),
        );
    }
    if !explanation.transfer.peers.is_empty() {
        lines.push(String::new());
        lines.extend(peers(&explanation.transfer, width));
    }
    if !explanation.missing.is_empty() {
        lines.push(String::new());
        lines.extend(missing(&explanation.missing, width));
    }
    lines
}

fn summary(transfer: &Transfer) -> Vec<String> {
    let total = transfer.total.map_or_else(
        || "of unknown size".to_owned(),
        |total| {
            format!(
                "{} of {} ({} %)",
                text::size(transfer.done),
                text::size(total),
                text::percent(transfer.done, total)
            )
        },
    );
    let unverified = match transfer.unverified {
        0 => String::new(),
        bytes => format!(", {} not verified yet", text::size(bytes)),
    };
    let mut lines = vec![
        format!(
            "{} — {}, {total}{unverified}",
            style(text::escape(&transfer.name)).bold(),
            transfer.state.word()
        ),
        format!("  id    {}", transfer.file),
        format!("  path  {}", text::path(&transfer.path)),
    ];
    if transfer.bytes_per_second > 0 {
        let left = transfer
            .seconds_left()
            .map(|s| format!(", {} left", text::clock(s)))
            .unwrap_or_default();
        lines.push(format!("  rate  {}{left}", text::rate(transfer.bytes_per_second)));
    }
    if !transfer.state.has_ended() {
        lines.push(format!("  limit {}", transfers::limits_text(transfer)));
    }
    if let Some(error) = &transfer.error {
        lines.push(format!(
            "  {}  {}",
            style("error").yellow(),
            text::escape(&error.message)
        ));
    }
    lines
}

fn peers(transfer: &Transfer, width: Option<usize>) -> Vec<String> {
    // Without labels, the column would be empty.
    let has_labels = transfer.peers.iter().any(|peer| !peer.labels.is_empty());
    let mut columns = vec![
        ("PEER", Align::Left),
        ("STATE", Align::Left),
        ("BYTES", Align::Right),
        ("RATE", Align::Right),
        ("HAS", Align::Right),
        ("REQUESTS", Align::Right),
        ("REASON", Align::Elastic),
    ];
    if has_labels {
        columns.insert(1, ("LABELS", Align::Left));
    }
    let mut table = Table::new(&columns);
    for peer in &transfer.peers {
        let mut row = vec![
            text::escape(&peer.address.to_string()).into_owned(),
            peer.state.word().to_owned(),
            text::size(peer.bytes),
            text::rate(peer.bytes_per_second),
            format!(
                "{} %",
                text::percent(peer.units.into(), transfer.units_total.max(1).into())
            ),
            peer.requests.to_string(),
            peer.reason
                .as_deref()
                .map(|reason| text::escape(reason).into_owned())
                .unwrap_or_default(),
        ];
        if has_labels {
            row.insert(1, peer.labels.to_string());
        }
        table.row(row);
    }
    table.lines(width)
}

fn missing(runs: &[MissingUnits], width: Option<usize>) -> Vec<String> {
    let mut table = Table::new(&[
        ("MISSING", Align::Left),
        ("UNITS", Align::Right),
        ("PEERS", Align::Right),
        ("IN FLIGHT", Align::Right),
    ]);
    for run in runs.iter().take(MAX_RUNS) {
        let last = run.first.saturating_add(run.count.saturating_sub(1));
        table.row([
            format!("{}–{last}", run.first),
            run.count.to_string(),
            run.providers.to_string(),
            run.in_flight.to_string(),
        ]);
    }
    let mut lines = table.lines(width);
    if let Some(more) = runs.len().checked_sub(MAX_RUNS).filter(|&more| more > 0) {
        lines.push(format!("and {} more", text::count(more as u64, "run")));
    }
    lines
}
