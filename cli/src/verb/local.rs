//! Paths of this machine: as a peer takes them, and what they hash to.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    num::NonZeroUsize,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use potluck_core::{FileId, Reason, Root, hash, index_client::Kind};

use crate::{board::Board, context::Context, draw, fail::Fail};

/// How often progress is drawn.
const REDRAW: Duration = Duration::from_millis(100);

/// The path from the root, as text, which is how a peer takes it.
///
/// # Errors
/// A usage failure for a path that is no text, or empty.
pub(crate) fn absolute(path: &Path) -> Result<String, Fail> {
    let absolute =
        std::path::absolute(path).map_err(|error| Fail::io("understand the path", path, &error))?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| Fail::usage(format!("the path {} is not UTF-8", path.display())))
}

/// What a path on this machine hashes to.
#[derive(Debug, Clone)]
pub(crate) struct Hashed {
    /// Identity.
    pub(crate) id: FileId,
    /// Root of its tree; of a folder, of its list of files.
    pub(crate) root: Root,
    /// Size that goes with id and root; of a folder, its list's.
    pub(crate) size: u64,
    /// What it is.
    pub(crate) kind: Kind,
    /// Files in it; 1 for a file.
    pub(crate) file_count: u64,
    /// Bytes of content: of a folder, its files'.
    pub(crate) content_size: u64,
}

/// Hashes a file or folder, showing how it goes.
///
/// # Errors
/// Whatever cannot be read, named by its path; interrupted.
pub(crate) async fn hash(context: &Context, path: &Path) -> Result<Hashed, Fail> {
    let progress = Arc::new(Progress::default());
    let work = {
        let (progress, path) = (Arc::clone(&progress), path.to_owned());
        tokio::task::spawn_blocking(move || hash_blocking(&path, &progress))
    };
    let mut board = Board::new(context.out.bars());
    let began = Instant::now();
    let name = path
        .file_name()
        .map_or_else(|| path.to_string_lossy(), OsStr::to_string_lossy)
        .into_owned();
    tokio::pin!(work);
    loop {
        tokio::select! {
            // All cancel-safe: the handle is only looked at, the others only wait.
            done = &mut work => {
                return done.unwrap_or_else(|_| Err(Fail::new(Reason::Internal, "hashing stopped in the middle")));
            }
            () = context.stop.cancelled() => {
                progress.stop.store(true, Ordering::Relaxed);
                return Err(Fail::interrupted("interrupted"));
            }
            () = tokio::time::sleep(REDRAW) => {
                let (done, total) = (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));
                board.show(|width| vec![draw::hashing(&name, done, total, began.elapsed(), width)]);
            }
        }
    }
}

/// How far the hashing has come, and whether it is still wanted.
#[derive(Debug, Default)]
struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    stop: AtomicBool,
}

fn hash_blocking(path: &Path, progress: &Progress) -> Result<Hashed, Fail> {
    let failed = |error: io::Error| Fail::io("read", path, &error);
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        return Err(Fail::usage("folders are not hashed yet"));
    }
    if !metadata.is_file() {
        return Err(Fail::usage(format!(
            "{} is neither a file nor a folder",
            path.display()
        )));
    }
    let file = File::open(path).map_err(failed)?;
    progress.total.store(metadata.len(), Ordering::Relaxed);
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let tree = hash::hash_file(&file, metadata.len(), threads, &|bytes| {
        progress.done.fetch_add(bytes, Ordering::Relaxed);
    })
    .map_err(failed)?;
    Ok(Hashed {
        id: tree.id(),
        root: tree.root,
        size: tree.size,
        kind: Kind::File,
        file_count: 1,
        content_size: tree.size,
    })
}
