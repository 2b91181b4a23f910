//! Local paths: conversion to absolute text, and hashing.

use std::{
    ffi::OsStr,
    io,
    num::NonZeroUsize,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use potluck_core::{Problem, Reason};
use potluck_peer::library::{Identified, ShareOptions, identify};

use crate::{
    context::CommandContext,
    error::CommandError,
    output::{draw, progress::ProgressLines},
};

/// Redraw interval of the progress.
const REDRAW: Duration = Duration::from_millis(100);

/// Converts a path to absolute UTF-8 text, as the peer requires.
///
/// # Errors
/// A usage error if the path is not UTF-8; an I/O error if it is empty.
pub(crate) fn absolute(path: &Path) -> Result<String, CommandError> {
    let absolute = std::path::absolute(path)
        .map_err(|error| CommandError::io("resolve the path", path, &error))?;
    absolute.into_os_string().into_string().map_err(|path| {
        CommandError::usage(format!("the path {} is not valid UTF-8", path.display()))
    })
}

/// The size of a file, or of all files in a folder, in bytes. Symbolic links count nothing.
///
/// # Errors
/// [`Reason::NotFound`] if nothing is there, or another I/O error with the path.
pub(crate) fn size(path: &Path) -> Result<u64, CommandError> {
    let failed = |error: io::Error| CommandError::io("read", path, &error);
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut total = 0_u64;
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() || kind.is_file() {
            total = total.saturating_add(size(&entry.path())?);
        }
    }
    Ok(total)
}

/// Hashes a file or folder as a share with these options would, and shows the progress.
///
/// # Errors
/// The paths that cannot be read; [`CommandError::interrupted`] if the command was stopped.
pub(crate) async fn hash(
    context: &CommandContext,
    path: &Path,
    options: &ShareOptions,
) -> Result<Identified, CommandError> {
    let progress = Arc::new(HashProgress::default());
    let work = {
        let (progress, path, options) = (Arc::clone(&progress), path.to_owned(), options.clone());
        tokio::task::spawn_blocking(move || hash_blocking(&path, &options, &progress))
    };
    let mut progress_lines = ProgressLines::new(context.out.bars());
    let began = Instant::now();
    let name = path
        .file_name()
        .map_or_else(|| path.to_string_lossy(), OsStr::to_string_lossy)
        .into_owned();
    tokio::pin!(work);
    loop {
        tokio::select! {
            // Cancel-safe: the join handle is polled by reference; the other arms only wait.
            done = &mut work => {
                let panicked = |_| Err(CommandError::new(Reason::Internal, "hashing stopped unexpectedly"));
                return done.unwrap_or_else(panicked);
            }
            () = context.stop.cancelled() => {
                progress.stop.store(true, Ordering::Relaxed);
                return Err(CommandError::interrupted("interrupted"));
            }
            () = tokio::time::sleep(REDRAW) => {
                let done = progress.done.load(Ordering::Relaxed);
                let total = progress.total.load(Ordering::Relaxed);
                let elapsed = began.elapsed();
                progress_lines.show(|width| vec![draw::hashing_line(&name, done, total, elapsed, width)]);
            }
        }
    }
}

/// Counters shared with the hashing threads, and the flag that stops them.
#[derive(Debug, Default)]
struct HashProgress {
    done: AtomicU64,
    total: AtomicU64,
    stop: AtomicBool,
}

fn hash_blocking(
    path: &Path,
    options: &ShareOptions,
    progress: &HashProgress,
) -> Result<Identified, CommandError> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let add = |to: &AtomicU64, bytes| {
        to.fetch_add(bytes, Ordering::Relaxed);
    };
    let identified = identify(
        path,
        options,
        threads,
        &|bytes| add(&progress.total, bytes),
        &|bytes| add(&progress.done, bytes),
        &|| progress.stop.load(Ordering::Relaxed),
    );
    identified.map_err(|refused| {
        let mut problems = refused.into_iter().map(|(path, problem)| Problem {
            message: format!("{}: {}", path.display(), problem.message),
            ..problem
        });
        let first = problems
            .next()
            .unwrap_or_else(|| Problem::new(Reason::Internal, "the path cannot be read"));
        problems.fold(CommandError::from(first), |error, problem| {
            error.hint(problem.message)
        })
    })
}
