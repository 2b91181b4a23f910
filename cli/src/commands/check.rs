//! `potluck check`: checks whether shared files still match their hashes.

use std::{
    path::{Path, PathBuf},
    pin::pin,
    time::Instant,
};

use clap::Args;
use console::style;
use futures_util::StreamExt as _;
use potluck_core::{Reason, units::parse_rate};
use serde_json::json;

use crate::{
    context::{CommandContext, PeerHandle},
    control::model::CheckEvent,
    error::{CommandError, ExitStatus},
    local_files,
    output::{draw, progress::ProgressLines, text},
};

/// Default hashing rate: leaves most of a disk and a core to other programs.
const DEFAULT_RATE: &str = "100MiB/s";

const EXAMPLES: &str = "\
Examples:
  potluck check model.bin          hash one shared file again
  potluck check --all --rate 0     hash everything that is shared, at full speed
  potluck check --all --json       one object per damaged file, and a summary

A disk can damage a file without changing its modification time. The peer no
longer offers a damaged file. Restore it from a copy, or share it again as it is
now, under a new id.

Exit codes: 0 undamaged, 4 damaged";

/// Check that shared files are undamaged, by hashing them again
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CheckArgs {
    /// Shared files, or folders that contain shared files
    #[arg(required_unless_present = "all", value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// Check everything that is shared
    #[arg(long, conflicts_with = "paths")]
    all: bool,

    /// Maximum rate of hashing, such as 10MiB/s; 0 for no limit
    #[arg(long, value_name = "RATE", default_value = DEFAULT_RATE, value_parser = parse_rate)]
    rate: u64,
}

/// Runs a check in the peer, and reports damaged files.
pub(crate) async fn run(context: &CommandContext, args: CheckArgs) -> Result<(), CommandError> {
    let paths = args
        .paths
        .iter()
        .map(|path| local_files::absolute(path))
        .collect::<Result<Vec<_>, _>>()?;
    let peer = context.stoppable(context.library_peer()).await?;
    let done = context.stoppable(check(context, &peer, paths, args.rate)).await;
    peer.close().await;
    done
}

async fn check(
    context: &CommandContext,
    peer: &PeerHandle,
    paths: Vec<String>,
    rate: u64,
) -> Result<(), CommandError> {
    let began = Instant::now();
    let mut progress = ProgressLines::new(context.out.bars());
    let mut failed = None;
    let mut events = pin!(peer.control.check(paths, rate).await?);
    while let Some(event) = events.next().await {
        match event? {
            CheckEvent::Progress { path, done, total } => {
                let name = Path::new(&path).file_name().unwrap_or_default().to_string_lossy();
                progress.show(|width| {
                    vec![draw::hashing_line(&name, done, total, began.elapsed(), width)]
                });
            }
            CheckEvent::Bad { path, file, problem } => match context.out.is_json() {
                true => context.out.print_object(&json!({
                    "event": "bad",
                    "path": path,
                    "id": file,
                    "reason": problem.reason.word(),
                    "message": problem.message,
                }))?,
                false => {
                    let what = match problem.reason {
                        Reason::VerificationFailed => "damaged",
                        _ => "unreadable",
                    };
                    let (what, path) = (style(what).red(), text::path(&path));
                    context.out.print_line(format_args!(
                        "{what}  {path}: {}",
                        text::escape(&problem.message)
                    ))?;
                }
            },
            CheckEvent::Failed { path, problem } => {
                let error = CommandError::new(
                    problem.reason,
                    format!("{}: {}", text::path(&path), problem.message),
                );
                context.out.print_error(&error);
                failed = failed.or_else(|| error.exit());
            }
            CheckEvent::Summary { files, bytes, bad } => {
                drop(progress);
                return report_summary(context, (files, bytes, bad), failed);
            }
        }
    }
    Err(CommandError::new(
        Reason::Internal,
        "the check ended early: the peer's log says why",
    ))
}

/// Prints the summary; fails if a file is damaged or a path failed.
fn report_summary(
    context: &CommandContext,
    (files, bytes, bad): (u64, u64, u64),
    failed: Option<ExitStatus>,
) -> Result<(), CommandError> {
    if context.out.is_json() {
        context.out.print_object(&json!({
            "event": "done",
            "files": files,
            "bytes": bytes,
            "bad_files": bad,
        }))?;
    } else if bad == 0 {
        context.out.print_line(format_args!(
            "{}  {}, {}",
            style("good").green(),
            text::count(files, "file"),
            text::size(bytes)
        ))?;
    } else {
        context.out.note(format_args!(
            "{bad} of {} {} damaged",
            text::count(files, "file"),
            if bad == 1 { "is" } else { "are" },
        ));
    }
    match (bad, failed) {
        (0, None) => Ok(()),
        (0, Some(exit)) => Err(CommandError::AlreadyReported(exit)),
        _ => Err(CommandError::AlreadyReported(ExitStatus::Verification)),
    }
}
