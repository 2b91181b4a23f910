//! `get -o -`: writes one file to standard output.

use std::{path::Path, time::Duration};

use crate::{
    arguments::{file_query::FileQuery, seed::Seed},
    commands::get::{args::GetArgs, one, resolve::Candidate},
    context::{CommandContext, PeerHandle},
    control::DownloadRequest,
    download::read_to_stdout,
    error::CommandError,
    output::text,
};

/// Whether the arguments ask for standard output.
///
/// # Errors
/// A usage error if they also ask for something that standard output cannot have.
pub(crate) fn is_requested(
    context: &CommandContext,
    args: &GetArgs,
    queries: &[FileQuery],
) -> Result<bool, CommandError> {
    if args.output.as_deref() != Some(Path::new("-")) {
        return Ok(false);
    }
    let refused = [
        (
            queries.len() > 1,
            "-o - writes one file: run get for each, or give -o DIR",
        ),
        (
            args.detach,
            "-o - writes to this terminal or pipe, so it cannot be detached",
        ),
        (
            !args.include.is_empty() || !args.exclude.is_empty(),
            "-o - writes one file: get a folder's files with -o DIR, or one of them by its own id",
        ),
        (
            args.seed.is_some_and(|seed| seed != Seed::No),
            "-o - keeps nothing that could be served: leave out --seed",
        ),
        (
            context.out.is_json(),
            "--json and -o - both write to standard output: leave out --json",
        ),
    ];
    match refused.into_iter().find(|(is_given, _)| *is_given) {
        Some((_, why)) => Err(CommandError::usage(why)),
        None => Ok(true),
    }
}

/// Tries the candidates in order until one can be read.
pub(crate) async fn run(
    context: &CommandContext,
    peer: &PeerHandle,
    args: &GetArgs,
    candidates: Vec<Candidate>,
) -> Result<(), CommandError> {
    let mut candidates = candidates.into_iter().peekable();
    while let Some(candidate) = candidates.next() {
        let wait = match candidate.has_providers {
            true => args.wait,
            false => Duration::ZERO,
        };
        let error = candidate.error;
        let request = DownloadRequest {
            file: candidate.id,
            name: None,
            target: None,
            sha256: candidate.sha256,
            providers: candidate.providers,
            detach: false,
            allow_expansion: false,
            include: Vec::new(),
            exclude: Vec::new(),
            seed: None,
            limit: args.limit,
            priority: args.priority,
        };
        match read_to_stdout(context, peer, &request, wait).await {
            Ok(transfer) => {
                let size = text::size(transfer.done);
                let took = text::duration(transfer.elapsed);
                context.out.note(format_args!("{size}, verified, in {took}"));
                return Ok(());
            }
            Err(read) => {
                let why = one::reason_to_try_next(&read.error).filter(|_| !read.has_written);
                match why.filter(|_| candidates.peek().is_some()) {
                    Some(why) => context
                        .out
                        .warn(format_args!("{} {why}: trying the next file", request.file)),
                    // The index's error is more precise if it lists no provider.
                    None => match error.filter(|_| why.is_some()) {
                        Some(error) => return Err(error),
                        None => return Err(read.error),
                    },
                }
            }
        }
    }
    Ok(())
}
