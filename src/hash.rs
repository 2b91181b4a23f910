//! Hashing of whole files: any size in bounded memory, spread over threads.
//!
//! Blocks: call it off the async threads. How leaves are hashed is [`merkle::hash_leaves`]' business alone.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use sha2::Digest as _;

use crate::{
    FileLayout, PieceIndex, Sha256,
    merkle::{self, FileTree, Hash, LEAF_SIZE},
};

/// How much a thread reads at once, in bytes: whole leaves, few enough to stay in its second-level cache.
const READ_SIZE: usize = 16 * LEAF_SIZE;

/// Most threads that hash one file: more only wait for the disk.
pub const MAX_THREADS: usize = 64;

/// Hashes the first `size` bytes of a file with up to `threads` threads.
///
/// Reads by position: the file's own offset neither matters nor moves. `on_progress` is told from any of the threads how many
/// bytes more are hashed, some hundred KiB at a time. Whether the file changed meanwhile is for the caller to check.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] if the file has fewer bytes, [`io::ErrorKind::FileTooLarge`] if `size` is over
/// [`crate::layout::MAX_FILE_SIZE`], and whatever reading gives.
pub fn hash_file(
    file: &File,
    size: u64,
    threads: usize,
    on_progress: &(dyn Fn(u64) + Sync),
) -> io::Result<FileTree> {
    let layout = FileLayout::new(size).ok_or(io::ErrorKind::FileTooLarge)?;
    let read = |buffer: &mut [u8], offset| {
        file.read_exact_at(buffer, offset)?;
        on_progress(buffer.len() as u64);
        Ok(())
    };
    hash_with(&layout, threads, &read)
}

/// Hashes bytes in memory.
///
/// # Panics
/// Never: memory is smaller than the largest file.
pub fn hash_bytes(bytes: &[u8]) -> FileTree {
    let layout = FileLayout::new(bytes.len() as u64).expect("memory is smaller than the largest file");
    let mut pieces = Vec::new();
    if layout.piece_count() > 1 {
        pieces = bytes
            .chunks(layout.piece_size() as usize)
            .map(|piece| merkle::piece_hash(piece, &layout))
            .collect();
    }
    let root = merkle::fold(&pieces, &layout).unwrap_or_else(|| merkle::root_of(bytes));
    FileTree {
        size: layout.size(),
        root,
        piece_hashes: pieces,
    }
}

/// Plain SHA-256 of a whole file, from its first byte to its end, wherever its own offset stands.
///
/// `on_progress` is told how many bytes more are hashed.
///
/// # Errors
/// Whatever reading gives.
pub fn sha256_file(file: &File, on_progress: &(dyn Fn(u64) + Sync)) -> io::Result<Sha256> {
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; READ_SIZE];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(Sha256(hash.finalize().into())),
            Ok(count) => {
                hash.update(&buffer[..count]);
                offset += count as u64;
                on_progress(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// How bytes are read: fills the buffer from an offset.
type Read<'a> = dyn Fn(&mut [u8], u64) -> io::Result<()> + Sync + 'a;

/// Hashes a file of any source. Memory: [`READ_SIZE`] and the leaves of one piece for each thread, and the piece layer.
fn hash_with(layout: &FileLayout, threads: usize, read: &Read<'_>) -> io::Result<FileTree> {
    let size = layout.size();
    if layout.piece_count() < 2 {
        let mut bytes = vec![0; size as usize];
        read(&mut bytes, 0)?;
        return Ok(FileTree {
            size,
            root: merkle::root_of(&bytes),
            piece_hashes: Vec::new(),
        });
    }
    let threads = threads.clamp(1, MAX_THREADS).min(layout.piece_count() as usize);
    let work = Work {
        layout,
        read,
        next: AtomicU32::new(0),
        failed: AtomicBool::new(false),
    };
    let parts = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| work.run())).collect();
        let mut parts = vec![work.run()];
        parts.extend(others.into_iter().map(|thread| match thread.join() {
            Ok(part) => part,
            Err(panic) => std::panic::resume_unwind(panic),
        }));
        parts.into_iter().collect::<io::Result<Vec<_>>>()
    })?;
    let mut piece_hashes = vec![[0; 32]; layout.piece_count() as usize];
    for (piece, hash) in parts.into_iter().flatten() {
        piece_hashes[piece.get() as usize] = hash;
    }
    let root = merkle::fold(&piece_hashes, layout).expect("one hash for each of several pieces");
    Ok(FileTree {
        size,
        root,
        piece_hashes,
    })
}

/// Pieces handed out in order, so that the disk sees one nearly sequential read.
struct Work<'a> {
    layout: &'a FileLayout,
    read: &'a Read<'a>,
    next: AtomicU32,
    failed: AtomicBool,
}

impl Work<'_> {
    /// Hashes pieces until there are no more, or another thread failed.
    fn run(&self) -> io::Result<Vec<(PieceIndex, Hash)>> {
        let mut done = Vec::new();
        let mut buffer = vec![0; READ_SIZE];
        while !self.failed.load(Ordering::Relaxed)
            && let Some(piece) = self.layout.piece(self.next.fetch_add(1, Ordering::Relaxed))
        {
            match self.piece(piece, &mut buffer) {
                Ok(hash) => done.push((piece, hash)),
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    fn piece(&self, piece: PieceIndex, buffer: &mut [u8]) -> io::Result<Hash> {
        let range = self.layout.range(piece);
        let mut hasher = merkle::PieceHasher::new(self.layout);
        let mut offset = range.start;
        while offset < range.end {
            let len = (range.end - offset).min(READ_SIZE as u64);
            let part = &mut buffer[..len as usize];
            (self.read)(part, offset)?;
            hasher.update(part);
            offset += len;
        }
        Ok(hasher.finish())
    }
}
