//! `get -o -`: writes one file to standard output.

use std::{
    io::{self, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use potluck_core::{FileId, Problem, Reason};
use potluck_origins::{OriginClient, OriginFile, OriginSettings};
use sha2::{Digest as _, Sha256};

use crate::{
    arguments::{file_query::FileQuery, seed::Seed},
    commands::get::{
        args::GetArgs, one, resolve::FileCandidate, stream::OriginStream, unhashed::write_error,
    },
    context::{CommandContext, PeerHandle},
    control::{DownloadRequest, RequestedOrigin},
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

/// Bytes at the end that are written only after the SHA-256 of all bytes was compared.
const HELD_BACK: u64 = 128 * 1024;

/// Whether only the origin has the file, as far as the index knows.
fn is_unknown(candidate: &FileCandidate, origin: &RequestedOrigin) -> bool {
    candidate
        .sha256
        .is_some_and(|sum| candidate.id == FileId::provisional(origin.file.size, &sum))
}

/// Writes a file from its origin, in order. The end waits for the SHA-256.
async fn write_from_origin(
    context: &CommandContext,
    file: &OriginFile,
    sha256: Option<potluck_core::Sha256>,
) -> Result<(), CommandError> {
    let client = OriginClient::new(OriginSettings::default()).map_err(Problem::from)?;
    let began = Instant::now();
    let mut stream = OriginStream::new(client, file, 0);
    let (mut sum, mut held) = (Sha256::new(), Vec::new());
    let (mut offset, last) = (0, file.size.saturating_sub(HELD_BACK));
    let mut out = io::stdout();
    while let Some(bytes) = stream.next().await? {
        sum.update(&bytes);
        let early = usize::try_from(last.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (early, late) = bytes.split_at(early.min(bytes.len()));
        out.write_all(early).map_err(write_error)?;
        held.extend_from_slice(late);
        offset += bytes.len() as u64;
    }
    if sha256.is_some_and(|expected| expected.0 != <[u8; 32]>::from(sum.finalize())) {
        return Err(CommandError::new(
            Reason::VerificationFailed,
            format!(
                "{} sent bytes with another SHA-256: the output is wrong and incomplete",
                file.host()
            ),
        ));
    }
    out.write_all(&held).map_err(write_error)?;
    out.flush().map_err(write_error)?;
    let (size, host) = (text::size(file.size), file.host());
    let took = text::duration(began.elapsed());
    context.out.note(format_args!(
        "{size}, verified, from {} in {took}",
        text::escape(&host)
    ));
    Ok(())
}

/// Tries the candidates in order until one can be read.
pub(crate) async fn run(
    context: &CommandContext,
    peer: &PeerHandle,
    args: &GetArgs,
    candidates: Vec<FileCandidate>,
) -> Result<(), CommandError> {
    let mut candidates = candidates.into_iter().peekable();
    while let Some(candidate) = candidates.next() {
        let wait = match candidate.has_providers {
            true => args.wait,
            false => Duration::ZERO,
        };
        if let Some(origin) = candidate
            .origin
            .as_ref()
            .filter(|origin| is_unknown(&candidate, origin))
        {
            let written = write_from_origin(context, &origin.file, candidate.sha256);
            return context.stoppable(written).await;
        }
        let error = candidate.error;
        let request = DownloadRequest {
            file: candidate.id,
            name: None,
            target: None,
            sha256: candidate.sha256,
            providers: candidate.providers,
            origin: None,
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
