//! `potluck transfers`: lists, pauses, resumes, cancels and adjusts the peer's downloads.

use clap::{Args, Subcommand};
use potluck_core::units::parse_rate;

use crate::{
    arguments::{limits::priority, transfer_target::TransferTarget},
    context::{CommandContext, PeerHandle},
    control::model::{Transfer, TransferState},
    error::CommandError,
    lookup,
    output::{
        ids::IdFormat,
        table::{Align, Table},
        text,
    },
    views::transfers,
};

const EXAMPLES: &str = "\
Examples:
  potluck transfers               list current and recent downloads
  potluck transfers pause 3       pause transfer number 3
  potluck transfers resume 3      resume it
  potluck transfers cancel 3      cancel it and remove its partial content
  potluck transfers adjust 3 --limit 5MiB/s --priority 20

A priority is 1 to 100, by default 10. Transfers that run at the same time share
the peer's download limit in proportion to their priorities.";

/// List, pause, resume, cancel or adjust downloads
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
    /// Change the rate limit or priority of transfers
    Adjust(AdjustArgs),
}

#[derive(Debug, Args)]
struct AdjustArgs {
    #[command(flatten)]
    targets: Targets,

    #[command(flatten)]
    changes: LimitArgs,
}

/// The limits to change; those not given stay as they are.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct LimitArgs {
    /// Maximum rate, such as 10MiB/s; 0 for no limit
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit: Option<u64>,

    /// Relative weight among the peer's downloads: 30 gets three times the rate of 10
    #[arg(long, value_name = "1-100", value_parser = priority())]
    priority: Option<u32>,
}

#[derive(Debug, Args)]
struct Targets {
    /// Numbers of transfers, or ids of their files
    #[arg(value_name = "NUMBER|ID", required = true)]
    targets: Vec<TransferTarget>,
}

/// Lists the transfers, or applies the action.
pub(crate) async fn run(context: &CommandContext, args: TransfersArgs) -> Result<(), CommandError> {
    let peer = context.require_running_peer().await?;
    let Some(action) = args.action else {
        return list(context, &peer.control.transfers().await?);
    };
    let (Action::Pause(targets)
    | Action::Resume(targets)
    | Action::Cancel(targets)
    | Action::Adjust(AdjustArgs { targets, .. })) = &action;
    for target in &targets.targets {
        let number = lookup::find_transfer(&context.out, &peer.control, target).await?;
        let transfer = apply(&peer, &action, number).await?;
        match context.out.is_json() {
            true => context.out.print_object(&transfers::object(&transfer))?,
            false => context.out.print_line(action_line(&action, &transfer))?,
        }
    }
    Ok(())
}

fn action_line(action: &Action, transfer: &Transfer) -> String {
    let text = match action {
        Action::Adjust(_) => format!(" ({})", transfers::limits_text(transfer)),
        _ => String::new(),
    };
    format!(
        "{} {}: {}{text}",
        transfer.number,
        transfer.state.word(),
        text::escape(&transfer.name)
    )
}

async fn apply(peer: &PeerHandle, action: &Action, number: u64) -> Result<Transfer, CommandError> {
    Ok(match action {
        Action::Pause(_) => peer.control.pause(number).await?,
        Action::Resume(_) => peer.control.resume(number).await?,
        Action::Cancel(_) => peer.control.cancel(number).await?,
        Action::Adjust(AdjustArgs { changes, .. }) => {
            peer.control
                .adjust(number, changes.limit, changes.priority)
                .await?
        }
    })
}

fn list(context: &CommandContext, transfers: &[Transfer]) -> Result<(), CommandError> {
    if context.out.is_json() {
        return transfers
            .iter()
            .try_for_each(|transfer| context.out.print_object(&transfers::object(transfer)));
    }
    if transfers.is_empty() {
        context
            .out
            .note("no transfers yet; start one with: potluck get ID|NAME");
        return Ok(());
    }
    let mut table = Table::new(&[
        ("NO", Align::Right),
        ("ID", Align::Left),
        ("STATE", Align::Left),
        ("CHOSEN", Align::Left),
        ("SIZE", Align::Right),
        ("RATE", Align::Right),
        ("LEFT", Align::Right),
        ("AGE", Align::Right),
        ("TARGET", Align::Elastic),
    ]);
    let ids = context
        .out
        .id_format(transfers.iter().map(|transfer| &transfer.file));
    for transfer in transfers {
        table.row(row(transfer, ids));
    }
    table.drop_empty_columns();
    context.out.print_lines(table.lines(context.out.width()))?;
    for transfer in transfers {
        if let Some(error) = transfer.error.as_ref().or(transfer.sharing_error.as_ref()) {
            context.out.print_line(format_args!(
                "{}: {}",
                transfer.number,
                text::escape(&error.message)
            ))?;
        }
    }
    Ok(())
}

fn row(transfer: &Transfer, ids: IdFormat) -> Vec<String> {
    let running = transfer.bytes_per_second > 0 && !transfer.state.has_ended();
    let state = match transfer.total {
        Some(total) if transfer.state != TransferState::Done => {
            format!(
                "{} {} %",
                transfer.state.word(),
                text::percent(transfer.done, total)
            )
        }
        _ if transfer.is_seeding => "seeding".to_owned(),
        _ => transfer.state.word().to_owned(),
    };
    vec![
        transfer.number.to_string(),
        ids.text(&transfer.file),
        state,
        transfers::chosen_text(transfer).unwrap_or_default(),
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
        transfer
            .created_at
            .and_then(|time| time.elapsed().ok())
            .map(text::age)
            .unwrap_or_default(),
        target_text(transfer),
    ]
}

/// The path of the download, or its name until the path is known.
fn target_text(transfer: &Transfer) -> String {
    match transfer.path.is_empty() {
        true => text::escape(&transfer.name).into_owned(),
        false => text::path(&transfer.path),
    }
}
