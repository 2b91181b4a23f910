//! Hashes whole files of any size on several threads, in bounded memory.
//!
//! Blocks; do not call on async threads. [`merkle::hash_leaves`] hashes the leaves.

use std::{
    fs::File,
    io,
    ops::ControlFlow,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use sha2::Digest as _;

use crate::{
    FileLayout, PieceIndex, Sha256,
    identity::{
        id::LEN,
        merkle::{self, FileTree, Hash, LEAF_SIZE},
    },
    read_buffer::ReadBuffer,
};

/// Bytes that a thread reads at a time: a whole number of leaves that fits its L2 cache.
pub const READ_SIZE: usize = merkle::BATCH * LEAF_SIZE;

/// Maximum threads per file: more would only wait for the disk.
pub const MAX_THREADS: usize = 64;

/// Hashes a file of `size` bytes with up to `threads` threads.
///
/// Reads at explicit offsets, so that the file's cursor is neither used nor moved. `on_progress` is
/// called on any of the threads with the number of bytes hashed since its last call, a few hundred
/// KiB at a time, and may stop the work. The caller must check whether the file changed meanwhile.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] if the file is shorter than `size`,
/// [`io::ErrorKind::InvalidData`] if it is longer, [`io::ErrorKind::FileTooLarge`] if `size` is
/// over [`crate::identity::layout::MAX_FILE_SIZE`], [`io::ErrorKind::Interrupted`] if
/// `on_progress` stopped the work, and any read error.
pub fn hash_file(
    file: &File,
    size: u64,
    threads: usize,
    on_progress: &OnProgress<'_>,
) -> io::Result<FileTree> {
    let tree = hash_with(size, threads, &|buffer, offset| {
        file.read_exact_at(buffer, offset)?;
        check_stop(on_progress(buffer.len() as u64))
    })?;
    ends_at(file, size).map(|()| tree)
}

/// Checks that the file ends at `size` by reading: the reported length may be wrong.
fn ends_at(file: &File, size: u64) -> io::Result<()> {
    loop {
        return match file.read_at(&mut [0], size) {
            Ok(0) => Ok(()),
            Ok(_) => Err(longer_than(size)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
    }
}

fn longer_than(size: u64) -> io::Error {
    let message = format!("the file has more than {size} bytes");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Reads a file of `size` bytes into the start of `buffer`, which must have room for one byte
/// more. The extra byte detects a longer file without another system call.
///
/// # Errors
/// Those of [`hash_file`].
///
/// # Panics
/// If `buffer` is not longer than `size`.
pub fn read_whole(file: &File, size: usize, buffer: &mut [u8]) -> io::Result<()> {
    let buffer = &mut buffer[..=size];
    let mut filled = 0;
    loop {
        match file.read_at(&mut buffer[filled..], filled as u64) {
            Ok(0) if filled == size => return Ok(()),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        match filled.cmp(&size) {
            // The read asked for one byte more, so a short result means the end of the file.
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Greater => return Err(longer_than(size as u64)),
            std::cmp::Ordering::Less => {}
        }
    }
}

/// Progress callback: gets the number of bytes hashed since its last call, and may stop the work.
pub type OnProgress<'a> = dyn Fn(u64) -> ControlFlow<()> + Sync + 'a;

/// An [`OnProgress`] callback that does nothing.
pub const fn ignore_progress(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// `Interrupted` if the callback stopped the work. Reads retry on `Interrupted`, so the error is
/// unambiguous.
fn check_stop(flow: ControlFlow<()>) -> io::Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// Hashes `size` bytes from any source with up to `threads` threads. `read` fills the given buffer
/// from the given offset; all threads call it.
///
/// Memory: [`READ_SIZE`] and the leaf hashes of one piece per thread, and the piece layer.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] if `size` is over [`crate::identity::layout::MAX_FILE_SIZE`],
/// or the first error of `read`.
pub fn hash_with(
    size: u64,
    threads: usize,
    read: &(dyn Fn(&mut [u8], u64) -> io::Result<()> + Sync),
) -> io::Result<FileTree> {
    let layout = FileLayout::new(size).ok_or(io::ErrorKind::FileTooLarge)?;
    if layout.piece_count() < 2 {
        let mut bytes = ReadBuffer::new(size as usize);
        read(&mut bytes, 0)?;
        return Ok(FileTree {
            size,
            root: merkle::root_of(&bytes),
            piece_hashes: Vec::new(),
        });
    }
    let threads = threads.clamp(1, MAX_THREADS).min(layout.piece_count() as usize);
    let work = PieceQueue {
        layout: &layout,
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
    let mut piece_hashes = vec![[0; LEN]; layout.piece_count() as usize];
    for (piece, hash) in parts.into_iter().flatten() {
        piece_hashes[piece.get() as usize] = hash;
    }
    let root = merkle::fold(&piece_hashes, &layout).expect("one hash for each of several pieces");
    Ok(FileTree {
        size,
        root,
        piece_hashes,
    })
}

/// Hashes a file in memory.
///
/// # Panics
/// Never: memory is smaller than the maximum file size.
pub fn hash_bytes(bytes: &[u8]) -> FileTree {
    hash_batch(&[bytes]).pop().expect("one tree for one file")
}

/// Hashes several files in memory with their leaves together. Alone, a file of a few leaves takes
/// as long as one of sixteen.
///
/// # Panics
/// Never: memory is smaller than the maximum file size.
pub fn hash_batch(files: &[&[u8]]) -> Vec<FileTree> {
    let mut leaves = Vec::new();
    merkle::hash_each(files.iter().flat_map(|file| file.chunks(LEAF_SIZE)), &mut leaves);
    let mut rest = &leaves[..];
    let trees = files.iter().map(|file| {
        let layout =
            FileLayout::new(file.len() as u64).expect("memory is smaller than the largest file");
        let (own, after) = rest.split_at(file.len().div_ceil(LEAF_SIZE));
        rest = after;
        merkle::tree_of(own, &layout)
    });
    trees.collect()
}

/// SHA-256 of a whole file. Reads from offset 0 and ignores the file's cursor.
///
/// `on_progress` gets the number of bytes hashed since its last call, and may stop the work.
///
/// # Errors
/// [`io::ErrorKind::Interrupted`] if `on_progress` stopped the work, and any read error.
pub fn sha256_file(file: &File, on_progress: &OnProgress<'_>) -> io::Result<Sha256> {
    let mut hash = sha2::Sha256::new();
    let mut buffer = ReadBuffer::new(READ_SIZE);
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(Sha256(hash.finalize().into())),
            Ok(count) => {
                hash.update(&buffer[..count]);
                offset += count as u64;
                check_stop(on_progress(count as u64))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Hands out pieces in order, so that the disk sees a nearly sequential read.
struct PieceQueue<'a> {
    layout: &'a FileLayout,
    read: &'a (dyn Fn(&mut [u8], u64) -> io::Result<()> + Sync),
    next: AtomicU32,
    failed: AtomicBool,
}

impl PieceQueue<'_> {
    /// Hashes pieces until none are left or another thread fails.
    fn run(&self) -> io::Result<Vec<(PieceIndex, Hash)>> {
        let mut done = Vec::new();
        let mut buffer = ReadBuffer::new(READ_SIZE);
        // Small pieces are taken several at a time, so that their leaves are hashed together.
        let at_once = (READ_SIZE as u64 / self.layout.piece_size()).max(1) as u32;
        while !self.failed.load(Ordering::Relaxed) {
            let first = self.next.fetch_add(at_once, Ordering::Relaxed);
            let pieces: Vec<PieceIndex> = (first..first.saturating_add(at_once))
                .map_while(|piece| self.layout.piece(piece))
                .collect();
            let hashes = match pieces[..] {
                [] => break,
                [piece] => self.hash_piece(piece, &mut buffer).map(|hash| vec![hash]),
                [first, .., last] => self.hash_pieces(first, last, &mut buffer),
            };
            match hashes {
                Ok(hashes) => done.extend(pieces.into_iter().zip(hashes)),
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    /// Hashes consecutive pieces that fit the buffer together.
    fn hash_pieces(
        &self,
        first: PieceIndex,
        last: PieceIndex,
        buffer: &mut [u8],
    ) -> io::Result<Vec<Hash>> {
        let range = self.layout.range(first).start..self.layout.range(last).end;
        let bytes = &mut buffer[..(range.end - range.start) as usize];
        (self.read)(bytes, range.start)?;
        Ok(merkle::piece_hashes(bytes, self.layout))
    }

    /// Hashes a piece that may be larger than the buffer.
    fn hash_piece(&self, piece: PieceIndex, buffer: &mut [u8]) -> io::Result<Hash> {
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

#[cfg(test)]
mod tests {
    use std::{
        io::{Seek as _, Write as _},
        sync::atomic::AtomicU64,
    };

    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn bytes(size: usize) -> Vec<u8> {
        (0..size).map(|i| (i / 251) as u8 ^ (i % 249) as u8).collect()
    }

    #[test]
    fn hashing_from_disk_and_memory_agree_for_any_number_of_threads() {
        for size in [0, 1, LEAF_SIZE, 131_072, 131_073, 262_145, 1_000_000, 2_097_152] {
            let bytes = bytes(size);
            let expected = hash_bytes(&bytes);
            assert_eq!(expected.root, merkle::root_of(&bytes));
            let file = file(&bytes);
            for threads in [0, 1, 2, 5, usize::MAX] {
                let reported = AtomicU64::new(0);
                let tree = hash_file(&file, size as u64, threads, &|more| {
                    reported.fetch_add(more, Ordering::Relaxed);
                    ControlFlow::Continue(())
                });
                assert_eq!(tree.unwrap(), expected, "{size} bytes, {threads} threads");
                assert_eq!(reported.into_inner(), size as u64);
            }
        }
    }

    #[test]
    fn the_files_offset_does_not_matter() {
        let mut file = file(b"potluck");
        file.seek(io::SeekFrom::Start(3)).unwrap();
        assert_eq!(
            hash_file(&file, 7, 1, &ignore_progress).unwrap(),
            hash_bytes(b"potluck")
        );
        let sum = Sha256(sha2::Sha256::digest(b"potluck").into());
        assert_eq!(sha256_file(&file, &ignore_progress).unwrap(), sum);
        assert_eq!(file.stream_position().unwrap(), 3);
    }

    #[test]
    fn a_file_that_is_shorter_or_longer_is_an_error() {
        for (has, size) in [(0, 1), (999_999, 1_000_000), (1_000_000, 5_000_000)] {
            let error = hash_file(&file(&bytes(has)), size, 3, &ignore_progress).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        for (has, size) in [(1, 0), (16_385, 16_384), (1_000_001, 1_000_000)] {
            let error = hash_file(&file(&bytes(has)), size, 3, &ignore_progress).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let error = hash_file(&file(b""), u64::MAX, 1, &ignore_progress).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_whole_file_is_read_only_if_it_has_its_size() {
        let content = bytes(1000);
        let mut buffer = vec![0; 1001];
        read_whole(&file(&content), 1000, &mut buffer).unwrap();
        assert_eq!(buffer[..1000], content);
        read_whole(&file(b""), 0, &mut buffer).unwrap();
        for (has, kind) in [
            (999, io::ErrorKind::UnexpectedEof),
            (1001, io::ErrorKind::InvalidData),
        ] {
            let error = read_whole(&file(&bytes(has)), 1000, &mut buffer).unwrap_err();
            assert_eq!(error.kind(), kind);
        }
    }

    #[test]
    fn hashing_stops_soon_after_a_request() {
        let file = tempfile::tempfile().unwrap();
        // A sparse file: a gigabyte to hash without disk usage.
        file.set_len(1 << 30).unwrap();
        let reported = AtomicU64::new(0);
        let stop = |more| match reported.fetch_add(more, Ordering::Relaxed) + more {
            0..1_000_000 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        };
        let error = hash_file(&file, 1 << 30, 2, &stop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        let error = sha256_file(&file, &stop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert!(reported.into_inner() < 8_000_000);
    }

    #[test]
    fn an_error_stops_all_threads() {
        let reads = AtomicU64::new(0);
        let error = hash_with(crate::identity::layout::MAX_FILE_SIZE, 2, &|_, offset| {
            reads.fetch_add(1, Ordering::Relaxed);
            match offset {
                0 => Err(io::Error::other("unplugged")),
                _ => Ok(()),
            }
        });
        assert_eq!(error.unwrap_err().to_string(), "unplugged");
        assert!(reads.into_inner() < 1_000_000, "16 TiB would be 64 million reads");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn files_hashed_together_have_the_same_trees_as_alone(
            sizes in proptest::collection::vec(0..300_000_usize, 0..24),
        ) {
            let files: Vec<Vec<u8>> = sizes.iter().map(|&size| bytes(size)).collect();
            let slices: Vec<&[u8]> = files.iter().map(|file| &file[..]).collect();
            let trees = hash_batch(&slices);
            prop_assert_eq!(trees.len(), files.len());
            for (tree, bytes) in trees.iter().zip(&files) {
                prop_assert_eq!(tree.root, merkle::root_of(bytes));
                let alone = hash_file(&file(bytes), bytes.len() as u64, 1, &ignore_progress).unwrap();
                prop_assert_eq!(tree, &alone);
            }
        }

        #[test]
        fn sha256_of_a_file_is_that_of_its_bytes(size in 0..800_000_usize) {
            let bytes = bytes(size);
            let told = AtomicU64::new(0);
            let sum = sha256_file(&file(&bytes), &|more| {
                told.fetch_add(more, Ordering::Relaxed);
                ControlFlow::Continue(())
            });
            prop_assert_eq!(sum.unwrap(), Sha256(sha2::Sha256::digest(&bytes).into()));
            prop_assert_eq!(told.into_inner(), size as u64);
        }
    }
}
