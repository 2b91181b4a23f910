//! Walks a folder, reads its files, and hashes their leaves on all cores. Builds no tree, does not
//! check for changes, and keeps nothing.

use std::{
    fs::File,
    io::{self, Read as _},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, Result};
use potluck_core::{
    identity::{
        hash::READ_SIZE,
        merkle::{self, LEAF_SIZE},
    },
    read_buffer::ReadBuffer,
};
use walkdir::WalkDir;

/// Hashes all files beneath `folder`, one file per thread at a time, and prints the number of
/// leaves.
pub(crate) fn run(folder: &Path) -> Result<()> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in WalkDir::new(folder) {
        let entry = entry?;
        if entry.file_type().is_file() {
            paths.push(entry.into_path());
        }
    }
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let leaves = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| hash(&paths, &next)))
            .collect();
        let counts = threads.into_iter().map(|thread| {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread failed"))?
                .context("cannot read")
        });
        counts.sum::<Result<usize>>()
    })?;
    println!("{leaves} leaves");
    Ok(())
}

fn hash(paths: &[PathBuf], next: &AtomicUsize) -> io::Result<usize> {
    let mut buffer = ReadBuffer::new(READ_SIZE);
    let (mut used, mut ends, mut count) = (0, Vec::new(), 0);
    let mut hashes = Vec::new();
    let mut flush = |buffer: &[u8], used: &mut usize, ends: &mut Vec<usize>| {
        let leaves = ends
            .drain(..)
            .enumerate()
            .map(|(at, end)| &buffer[at * LEAF_SIZE..end]);
        merkle::hash_each(leaves, &mut hashes);
        count += hashes.len();
        hashes.clear();
        *used = 0;
    };
    while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
        let mut file = File::open(path)?;
        loop {
            let got = file.read(&mut buffer[used..])?;
            ends.extend(
                (used..used + got)
                    .step_by(LEAF_SIZE)
                    .map(|start| (start + LEAF_SIZE).min(used + got)),
            );
            let short = used + got < READ_SIZE;
            used += got.next_multiple_of(LEAF_SIZE);
            if used == READ_SIZE {
                flush(&buffer, &mut used, &mut ends);
            }
            if short {
                break;
            }
        }
    }
    flush(&buffer, &mut used, &mut ends);
    Ok(count)
}
