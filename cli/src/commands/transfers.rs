//! `potluck transfers`: lists, pauses, resumes, cancels and adjusts the peer's downloads.

use std::str::FromStr;

use bytesize::ByteSize;
use clap::{Args, Subcommand, builder::RangedU64ValueParser};
use potluck_core::{FileId, Reason};
use serde_json::{Value, json};

use crate::{
    context::{CommandContext, PeerHandle},
    control::model::{Transfer, TransferPeer},
    error::CommandError,
    output::{
        table::{Align, Table},
        text,
    },
};

const EXAMPLES: &str = "\
Examples:
  potluck transfers               what is being fetched, and what was lately
  potluck transfers pause 3       hold transfer number 3
  potluck transfers resume 3      let it go on
  potluck transfers cancel 3      end it and remove what it had fetched
  potluck transfers adjust 3 --limit 5MiB --priority 20

A priority is 1 to 100, 10 unless set. Transfers that run at the same time
share the peer's download limit in proportion to it.";

/// List the peer's downloads; pause, resume, cancel or adjust them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TransfersArgs {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Pause transfers
    Pause(Targets),
    /// Resume paused or failed transfers
    Resume(Targets),
    /// Cancel transfers and remove their partial content
    Cancel(Targets),
    /// Change the rate limit and priority of transfers; applies immediately and is saved
    Adjust(AdjustArgs),
}

#[derive(Debug, Args)]
struct AdjustArgs {
    #[command(flatten)]
    targets: Targets,

    #[command(flatten)]
    terms: LimitArgs,
}

/// The limits to change; those not given stay as they are.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct LimitArgs {
    /// Maximum bytes per second, e.g. 10MiB; 0: no limit
    #[arg(long, value_name = "RATE")]
    limit: Option<ByteSize>,

    /// Relative weight among the peer's downloads: 30 gets three times the rate of 10
    #[arg(long, value_name = "1-100", value_parser = priority())]
    priority: Option<u32>,
}

/// The value parser for a priority.
pub(crate) fn priority() -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(1..=100)
}

#[derive(Debug, Args)]
struct Targets {
    /// Transfer numbers, or ids of the files that they download
    #[arg(value_name = "NUMBER|ID", required = true)]
    targets: Vec<TransferArg>,
}

/// Identifies a transfer on the command line.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TransferArg {
    /// The number shown by `potluck transfers`.
    Number(u64),
    /// The newest transfer of this file.
    File(FileId),
}

impl FromStr for TransferArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self::File)
            .or_else(|_| text.parse().map(Self::Number))
            .map_err(|_| "give the number of a transfer, or an id of 64 hex digits".to_owned())
    }
}

/// Lists the transfers, or applies the action.
pub(crate) async fn run(context: &CommandContext, args: TransfersArgs) -> Result<(), CommandError> {
    let peer = context.daemon().await?;
    let transfers = peer.control.transfers().await?;
    let Some(action) = args.action else {
        return list(context, &transfers);
    };
    let (Action::Pause(targets)
    | Action::Resume(targets)
    | Action::Cancel(targets)
    | Action::Adjust(AdjustArgs { targets, .. })) = &action;
    for target in &targets.targets {
        let number = number(*target, &transfers)?;
        let transfer = act(&peer, &action, number).await?;
        match context.out.is_json() {
            true => context.out.object(&object(&transfer))?,
            false => context.out.line(action_line(&action, &transfer))?,
        }
    }
    Ok(())
}

fn action_line(action: &Action, transfer: &Transfer) -> String {
    let text = match action {
        Action::Adjust(_) => format!(" ({})", limits_text(transfer)),
        _ => String::new(),
    };
    format!(
        "{} {}: {}{text}",
        transfer.number,
        transfer.state.word(),
        text::shown(&transfer.name)
    )
}

/// The limit and priority of a transfer, as text.
pub(crate) fn limits_text(transfer: &Transfer) -> String {
    let limit = match transfer.limit {
        0 => "no limit of its own".to_owned(),
        limit => text::limit(limit),
    };
    format!("priority {}, {limit}", transfer.priority)
}

async fn act(peer: &PeerHandle, action: &Action, number: u64) -> Result<Transfer, CommandError> {
    Ok(match action {
        Action::Pause(_) => peer.control.pause(number).await?,
        Action::Resume(_) => peer.control.resume(number).await?,
        Action::Cancel(_) => peer.control.cancel(number).await?,
        Action::Adjust(AdjustArgs { terms: text, .. }) => {
            let limit = text.limit.map(|limit| limit.as_u64());
            peer.control.adjust(number, limit, text.priority).await?
        }
    })
}

fn number(target: TransferArg, transfers: &[Transfer]) -> Result<u64, CommandError> {
    match target {
        TransferArg::Number(number) => Ok(number),
        // The list is ordered newest first.
        TransferArg::File(id) => transfers
            .iter()
            .find(|t| t.file == id)
            .map(|t| t.number)
            .ok_or_else(|| {
                CommandError::new(Reason::NotFound, format!("no transfer fetches {id}"))
                    .hint("potluck transfers lists them")
            }),
    }
}

fn list(context: &CommandContext, transfers: &[Transfer]) -> Result<(), CommandError> {
    if context.out.is_json() {
        return transfers
            .iter()
            .try_for_each(|transfer| context.out.object(&object(transfer)));
    }
    if transfers.is_empty() {
        context.out.note("no transfers yet: potluck get ID|NAME");
        return Ok(());
    }
    let mut table = Table::new(&[
        ("NO", Align::Right),
        ("STATE", Align::Left),
        ("DONE", Align::Right),
        ("SIZE", Align::Right),
        ("RATE", Align::Right),
        ("LEFT", Align::Right),
        ("NAME", Align::Left),
    ]);
    for transfer in transfers {
        table.row(row(transfer));
    }
    context.out.lines(table.lines())?;
    for transfer in transfers {
        if let Some(error) = transfer.error.as_ref().or(transfer.sharing_error.as_ref()) {
            context.out.line(format_args!(
                "{}: {}",
                transfer.number,
                text::shown(&error.message)
            ))?;
        }
    }
    Ok(())
}

fn row(transfer: &Transfer) -> Vec<String> {
    let running = transfer.bytes_per_second > 0 && !transfer.state.is_settled();
    vec![
        transfer.number.to_string(),
        transfer.state.word().to_owned(),
        transfer.total.map_or_else(
            || "?".to_owned(),
            |total| format!("{} %", text::percent(transfer.done, total)),
        ),
        transfer.total.map_or_else(|| "?".to_owned(), text::size),
        if running {
            text::rate(transfer.bytes_per_second)
        } else {
            String::new()
        },
        transfer
            .seconds_left()
            .filter(|_| running)
            .map(text::clock)
            .unwrap_or_default(),
        text::shown(&transfer.name).into_owned(),
    ]
}

/// A transfer as JSON.
pub(crate) fn object(transfer: &Transfer) -> Value {
    json!({
        "transfer": transfer.number,
        "id": transfer.file,
        "name": transfer.name,
        "kind": transfer.kind,
        "path": transfer.path,
        "state": transfer.state,
        "bytes": transfer.done,
        "total": transfer.total,
        "resumed_bytes": transfer.resumed,
        "copied_bytes": transfer.copied,
        "unverified_bytes": transfer.unverified,
        "bytes_per_second": transfer.bytes_per_second,
        "max_bytes_per_second": transfer.limit,
        "priority": transfer.priority,
        "seconds": transfer.elapsed.as_secs_f64(),
        "units": transfer.units_done,
        "units_total": transfer.units_total,
        "sources": transfer.peers.iter().map(peer_object).collect::<Vec<_>>(),
        "error": transfer.error.as_ref().map(|problem| problem.reason.word()),
        "message": transfer.error.as_ref().map(|problem| problem.message.as_str()),
        "sharing_error": transfer.sharing_error.as_ref().map(|problem| problem.reason.word()),
        "sharing_message": transfer.sharing_error.as_ref().map(|problem| problem.message.as_str()),
    })
}

/// A peer of a transfer as JSON.
pub(crate) fn peer_object(peer: &TransferPeer) -> Value {
    json!({
        "peer": peer.peer,
        "address": peer.address.to_string(),
        "bytes": peer.bytes,
        "bytes_per_second": peer.bytes_per_second,
        "requests": peer.requests,
        "units": peer.units,
        "state": peer.state,
        "reason": peer.reason,
    })
}
