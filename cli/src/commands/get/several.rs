//! Downloads the files of several arguments side by side.
//!
//! Each argument has its own result: one that fails does not stop the others.

use std::{cell::RefCell, path::Path, time::Instant};

use futures_util::{StreamExt as _, stream};

use crate::{
    arguments::file_query::FileQuery,
    commands::get::{
        args::GetArgs,
        one,
        resolve::{self, FileCandidate},
    },
    context::{CommandContext, PeerHandle},
    control::model::Transfer,
    download::{ReportDetail, TransferBoard, report, seed},
    error::{CommandError, ExitStatus},
    output::text,
};

/// Downloads at once: enough to fill any link, and their progress fits a terminal.
const MAX_DOWNLOADS: usize = 16;

/// Lookups at the index at once; more gain nothing, because an answer takes less than a millisecond.
const MAX_LOOKUPS: usize = 8;

/// An argument and the files that it stands for.
struct Target<'a> {
    /// Position among the arguments.
    position: usize,
    query: &'a FileQuery,
    candidates: Vec<FileCandidate>,
}

/// Prints errors, and keeps how each argument ended.
struct Results<'a> {
    context: &'a CommandContext,
    /// The exit code of each argument that failed.
    exits: RefCell<Vec<Option<ExitStatus>>>,
    /// Hints that were printed.
    hints: RefCell<Vec<String>>,
}

/// Downloads the files of all `queries`.
///
/// # Errors
/// A usage error if `-o` is not a folder; the first failed argument's exit code, after the errors
/// of all of them were printed.
pub(crate) async fn run(
    context: &CommandContext,
    running: Option<PeerHandle>,
    args: &GetArgs,
    queries: &[FileQuery],
) -> Result<(), CommandError> {
    if let Some(output) = &args.output {
        check_folder(output)?;
    }
    let results = Results::new(context, queries.len());
    let targets = resolve_all(context, running.as_ref(), args, queries, &results).await?;
    if targets.is_empty() {
        return results.end();
    }
    let peer = match running {
        Some(peer) => peer,
        None => {
            context
                .stoppable(context.start_peer(args.listen, args.plaintext))
                .await?
        }
    };
    download_all(context, &peer, args, targets, &results).await;
    peer.close().await;
    results.end()
}

/// Resolves the queries. Several that stand for the same file count once.
async fn resolve_all<'a>(
    context: &CommandContext,
    peer: Option<&PeerHandle>,
    args: &GetArgs,
    queries: &'a [FileQuery],
    results: &Results<'_>,
) -> Result<Vec<Target<'a>>, CommandError> {
    let peer = peer.map(|peer| &**peer);
    let lookups = queries.iter().enumerate().map(async |(position, query)| {
        match resolve::candidates(context, peer, args, query).await {
            Ok(candidates) => Some(Target {
                position,
                query,
                candidates,
            }),
            Err(error) => {
                results.fail(position, query, error);
                None
            }
        }
    });
    let lookups = stream::iter(lookups).buffered(MAX_LOOKUPS);
    let found: Vec<_> = context.stoppable(async { Ok(lookups.collect().await) }).await?;
    let mut targets: Vec<Target<'_>> = Vec::with_capacity(found.len());
    for target in found.into_iter().flatten() {
        match targets.iter_mut().find(|earlier| earlier.is_same_file(&target)) {
            // A SHA-256 is one more condition on the file.
            Some(earlier) if !earlier.has_sha256() => earlier.candidates = target.candidates,
            Some(_) => {}
            None => targets.push(target),
        }
    }
    Ok(targets)
}

async fn download_all(
    context: &CommandContext,
    peer: &PeerHandle,
    args: &GetArgs,
    targets: Vec<Target<'_>>,
    results: &Results<'_>,
) {
    let start = Instant::now();
    let count = targets.len();
    let board = TransferBoard::new(context.out.bars(), count);
    let downloads = targets.into_iter().enumerate().map(async |(row, target)| {
        let Target {
            position,
            query,
            candidates,
        } = target;
        let mut display = board.row(row);
        let done = one::download(&mut display, context, peer, args, query, candidates).await;
        let reported = done.and_then(|transfer| {
            report(context, &transfer, args.detach, ReportDetail::Brief)?;
            Ok(transfer)
        });
        reported
            .map_err(|error| results.fail(position, query, error))
            .ok()
    });
    let done: Vec<Option<Transfer>> = stream::iter(downloads)
        .buffer_unordered(MAX_DOWNLOADS)
        .collect()
        .await;
    drop(board);
    if args.detach {
        return;
    }
    context.out.note(format_args!(
        "{} of {count} done, {} in {}",
        done.iter().flatten().count(),
        text::size(done.iter().flatten().map(|transfer| transfer.done).sum()),
        text::duration(start.elapsed()),
    ));
    // All are served at the same time, so waiting for one after the other is enough.
    for transfer in done.iter().flatten() {
        seed(context, peer, transfer).await;
    }
}

/// Fails unless the path is a folder, or will be created as one.
fn check_folder(output: &Path) -> Result<(), CommandError> {
    let creates = output.as_os_str().as_encoded_bytes().ends_with(b"/");
    if creates || output.is_dir() {
        return Ok(());
    }
    let path = output.display();
    let error = format!("to save several files, -o must be a folder, and {path} is not one");
    Err(match output.exists() {
        true => CommandError::usage(error),
        false => CommandError::usage(error).hint(format!("to create it: -o {path}/")),
    })
}

impl Target<'_> {
    fn is_same_file(&self, other: &Self) -> bool {
        let first = |target: &Self| target.candidates.first().map(|candidate| candidate.id);
        first(self) == first(other)
    }

    fn has_sha256(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.sha256.is_some())
    }
}

impl<'a> Results<'a> {
    fn new(context: &'a CommandContext, arguments: usize) -> Self {
        Self {
            context,
            exits: RefCell::new(vec![None; arguments]),
            hints: RefCell::default(),
        }
    }

    /// Prints the error of an argument, with the hints that were not printed before.
    fn fail(&self, position: usize, query: &FileQuery, error: CommandError) {
        let error = error
            .of_target(query.argument())
            .without_seen_hints(&mut self.hints.borrow_mut());
        self.context.out.print_error(&error);
        self.exits.borrow_mut()[position] = error.exit();
    }

    /// The result of the command: interrupted, or the result of the first argument that failed.
    fn end(self) -> Result<(), CommandError> {
        let exits = self.exits.into_inner();
        let interrupted = exits.contains(&Some(ExitStatus::Interrupted));
        let exit = match interrupted {
            true => Some(ExitStatus::Interrupted),
            false => exits.into_iter().flatten().next(),
        };
        exit.map_or(Ok(()), |exit| Err(CommandError::AlreadyReported(exit)))
    }
}
