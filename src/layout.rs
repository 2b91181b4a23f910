//! How a file is cut into pieces. Pure arithmetic on the file's size.
//!
//! Invariants: pieces cover the file without gap or overlap; all but the last are `piece_size` long; a [`PieceIndex`] comes
//! only from a [`FileLayout`] and so is never out of its range.

use std::ops::Range;

/// Smallest piece, in bytes: 16 leaves. Smaller ones would cost more in requests than they gain in spread.
pub const MIN_PIECE_SIZE: u64 = 256 * 1024;

/// Largest piece, in bytes: what a receiver holds in memory for each request before it can verify.
pub const MAX_PIECE_SIZE: u64 = 16 * 1024 * 1024;

/// Most pieces before the piece size doubles: enough for a swarm of thousands to stay busy, while the list of hashes stays
/// at 128 KiB. Only files over `TARGET_PIECES * MAX_PIECE_SIZE` (64 GiB) have more.
pub const TARGET_PIECES: u64 = 4096;

/// Largest file, in bytes: 16 TiB, the most that ext4 holds. Sizes are claims of strangers, and a claim of this size still costs
/// no more than a list of 32 MiB of piece hashes. Sizes beyond it are refused before any arithmetic.
pub const MAX_FILE_SIZE: u64 = MAX_PIECE_SIZE << 20;

/// A piece of a file, counted from 0. Minted only by [`FileLayout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The pieces of a file of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLayout {
    size: u64,
    piece_size: u64,
}

impl FileLayout {
    /// The layout of a file of `size` bytes, or `None` if it is over [`MAX_FILE_SIZE`].
    pub fn new(size: u64) -> Option<Self> {
        if size > MAX_FILE_SIZE {
            return None;
        }
        let piece_size = size
            .div_ceil(TARGET_PIECES)
            .next_power_of_two()
            .clamp(MIN_PIECE_SIZE, MAX_PIECE_SIZE);
        Some(Self { size, piece_size })
    }

    /// The file's size in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Size of every piece but the last, in bytes: a power of two.
    pub const fn piece_size(&self) -> u64 {
        self.piece_size
    }

    /// How many pieces: 0 for the empty file.
    pub const fn piece_count(&self) -> u32 {
        // Fits: `new` bounds the size.
        self.size.div_ceil(self.piece_size) as u32
    }

    /// The piece numbered `index`, if there is one.
    pub fn piece(&self, index: u32) -> Option<PieceIndex> {
        (index < self.piece_count()).then_some(PieceIndex(index))
    }

    /// All pieces in order.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = PieceIndex> + use<> {
        (0..self.piece_count()).map(PieceIndex)
    }

    /// The bytes of a piece, as offsets in the file.
    pub fn range(&self, piece: PieceIndex) -> Range<u64> {
        let start = u64::from(piece.0) * self.piece_size;
        start..(start + self.piece_size).min(self.size)
    }

    /// Length of a piece in bytes.
    pub fn len(&self, piece: PieceIndex) -> u64 {
        let range = self.range(piece);
        range.end - range.start
    }

    /// Whether the file has no bytes, and so no pieces.
    pub const fn is_empty(&self) -> bool {
        self.size == 0
    }
}
