//! Generates the demo's file, and compares the download with it.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use potluck_core::{FileId, Reason};
use potluck_peer::library::ShareOptions;
use rand::{Rng as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};
use tokio::task::{JoinError, JoinHandle};

use crate::{
    context::CommandContext,
    error::CommandError,
    local_files,
    output::{draw, progress::ProgressLines},
};

/// Size of the generated file, in bytes.
pub(crate) const SAMPLE_SIZE: usize = 256 * 1024 * 1024;

/// Block size for writing and comparing, in bytes.
const BLOCK: usize = 1024 * 1024;

/// Redraw interval of the progress.
const REDRAW: Duration = Duration::from_millis(100);

/// Fixed seed, so that the file's id is always the same.
const SEED: u64 = 0x90_71_0c;

/// Generates the file in `folder`.
pub(crate) async fn make(context: &CommandContext, folder: &Path) -> Result<PathBuf, CommandError> {
    let path = folder.join("potluck-demo.bin");
    let writing = path.clone();
    let stop = context.stop.clone();
    let written = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&written);
    let made = tokio::task::spawn_blocking(move || {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let mut file = File::create_new(&writing)?;
        let mut block = vec![0; BLOCK];
        for _ in 0..SAMPLE_SIZE / BLOCK {
            if stop.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            random.fill_bytes(&mut block);
            file.write_all(&block)?;
            counter.fetch_add(BLOCK as u64, Ordering::Relaxed);
        }
        Ok(())
    });
    let work = ShownWork {
        verb: "writing",
        path: &path,
        total: SAMPLE_SIZE as u64,
        done: &written,
    };
    match work.show_during(context, made).await {
        Ok(Ok(())) => Ok(path),
        Ok(Err(_)) if context.stop.is_cancelled() => Err(CommandError::interrupted("interrupted")),
        Ok(Err(error)) => Err(CommandError::io("write the demo's file", &path, &error)),
        Err(_) => Err(CommandError::new(
            Reason::Internal,
            "writing the demo's file stopped unexpectedly",
        )),
    }
}

/// Whether the copy equals the original: byte for byte for a file, by id for a folder.
pub(crate) async fn compare(
    context: &CommandContext,
    original: &Path,
    copy: &Path,
    id: FileId,
) -> Result<bool, CommandError> {
    if original.is_dir() {
        return Ok(local_files::hash(context, copy, &ShareOptions::default())
            .await?
            .record
            .id
            == id);
    }
    let (a, b) = (original.to_owned(), copy.to_owned());
    let done = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&done);
    let comparing = tokio::task::spawn_blocking(move || {
        same_bytes(&mut File::open(a)?, &mut File::open(b)?, &counter)
    });
    let work = ShownWork {
        verb: "comparing",
        path: original,
        total: std::fs::metadata(original).map_or(0, |metadata| metadata.len()),
        done: &done,
    };
    let compared = context.stoppable(async { Ok(work.show_during(context, comparing).await) });
    match compared.await? {
        Ok(Ok(same)) => Ok(same),
        Ok(Err(error)) => Err(CommandError::io("compare", copy, &error)),
        Err(_) => Err(CommandError::new(
            Reason::Internal,
            "the comparison stopped unexpectedly",
        )),
    }
}

/// Work on a file whose progress is shown.
struct ShownWork<'a> {
    verb: &'a str,
    path: &'a Path,
    /// In bytes.
    total: u64,
    /// Bytes that the work has counted so far.
    done: &'a AtomicU64,
}

impl ShownWork<'_> {
    /// Waits for the work and shows its progress. Safe to drop; the work then goes on.
    async fn show_during<T>(
        &self,
        context: &CommandContext,
        work: JoinHandle<T>,
    ) -> Result<T, JoinError> {
        let mut lines = ProgressLines::new(context.out.bars());
        let began = Instant::now();
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let mut work = pin!(work);
        loop {
            tokio::select! {
                // Cancel-safe: the handle is polled by reference; the other arm only waits.
                done = &mut work => return done,
                () = tokio::time::sleep(REDRAW) => {}
            }
            let (done, elapsed) = (self.done.load(Ordering::Relaxed), began.elapsed());
            lines.show(|width| {
                vec![draw::work_line(
                    self.verb, &name, done, self.total, elapsed, width,
                )]
            });
        }
    }
}

/// Whether two files are equal. Counts the compared bytes.
fn same_bytes(a: &mut impl Read, b: &mut impl Read, compared: &AtomicU64) -> io::Result<bool> {
    let (mut left, mut right) = (Vec::with_capacity(BLOCK), Vec::with_capacity(BLOCK));
    loop {
        left.clear();
        right.clear();
        a.by_ref().take(BLOCK as u64).read_to_end(&mut left)?;
        b.by_ref().take(BLOCK as u64).read_to_end(&mut right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
        compared.fetch_add(left.len() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_or_a_missing_end_is_detected() {
        let bytes = vec![7u8; BLOCK + 5];
        let mut other = bytes.clone();
        let compared = AtomicU64::new(0);
        assert!(same_bytes(&mut &bytes[..], &mut &other[..], &compared).unwrap());
        assert_eq!(compared.load(Ordering::Relaxed), bytes.len() as u64);
        other[BLOCK + 1] = 8;
        assert!(!same_bytes(&mut &bytes[..], &mut &other[..], &compared).unwrap());
        assert!(!same_bytes(&mut &bytes[..], &mut &bytes[..BLOCK], &compared).unwrap());
    }
}
