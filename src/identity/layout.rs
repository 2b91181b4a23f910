//! How a file is split into pieces: arithmetic on the file's size.
//!
//! Invariants:
//! - Pieces cover the file without gap or overlap.
//! - All pieces but the last are `piece_size` long.
//! - Only a [`FileLayout`] creates a [`PieceIndex`], so the index is in its range.

use std::ops::Range;

/// Minimum piece size in bytes: 8 leaves. In a crowd that starts together, the last peer finishes
/// later by about one piece per peer: 64 MiB to 16 peers take 1.06 times as long as to one, or
/// 1.12 times with pieces twice as large. Smaller pieces would cost more in requests than they
/// gain.
pub const MIN_PIECE_SIZE: u64 = 128 * 1024;

/// Maximum piece size in bytes: a receiver buffers this much per request before it can verify.
pub const MAX_PIECE_SIZE: u64 = 16 * 1024 * 1024;

/// Maximum number of pieces before the piece size doubles: enough work for a swarm of thousands,
/// with a piece layer of 128 KiB. Only files over `TARGET_PIECES * MAX_PIECE_SIZE` (64 GiB) have
/// more.
pub const TARGET_PIECES: u64 = 4096;

/// Maximum file size in bytes: 16 TiB, the limit of ext4. Sizes are unverified claims; a claim of
/// this size costs at most 32 MiB of piece hashes. Larger sizes are rejected before any
/// arithmetic.
pub const MAX_FILE_SIZE: u64 = MAX_PIECE_SIZE << 20;

/// Index of a piece in a file, from 0. Created only by [`FileLayout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    /// The index as a number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Piece size in bytes of content with this many bytes; a power of two.
pub fn piece_size(content: u64) -> u64 {
    // At most 2^52, so the power of two fits.
    content
        .div_ceil(TARGET_PIECES)
        .next_power_of_two()
        .clamp(MIN_PIECE_SIZE, MAX_PIECE_SIZE)
}

/// The split of a file of one size into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLayout {
    size: u64,
    piece_size: u64,
}

impl FileLayout {
    /// The layout of a file of `size` bytes; `None` above [`MAX_FILE_SIZE`].
    pub fn new(size: u64) -> Option<Self> {
        if size > MAX_FILE_SIZE {
            return None;
        }
        Some(Self {
            size,
            piece_size: piece_size(size),
        })
    }

    /// The file's size in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Size in bytes of every piece but the last; a power of two.
    pub const fn piece_size(&self) -> u64 {
        self.piece_size
    }

    /// Number of pieces; 0 for the empty file.
    pub const fn piece_count(&self) -> u32 {
        // Fits: `new` limits the size.
        self.size.div_ceil(self.piece_size) as u32
    }

    /// The index of piece `index`; `None` if it is out of range.
    pub fn piece(&self, index: u32) -> Option<PieceIndex> {
        (index < self.piece_count()).then_some(PieceIndex(index))
    }

    /// All piece indexes in ascending order.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = PieceIndex> + use<> {
        (0..self.piece_count()).map(PieceIndex)
    }

    /// Byte range of a piece in the file. Empty if the index is from another layout and out of
    /// range here.
    pub fn range(&self, piece: PieceIndex) -> Range<u64> {
        let start = u64::from(piece.0) * self.piece_size;
        start.min(self.size)..(start + self.piece_size).min(self.size)
    }

    /// The piece that contains the byte at `offset`.
    pub fn piece_at(&self, offset: u64) -> Option<PieceIndex> {
        // Fits: below `piece_count`.
        (offset < self.size).then(|| PieceIndex((offset / self.piece_size) as u32))
    }

    /// Length of a piece in bytes.
    pub fn len(&self, piece: PieceIndex) -> u64 {
        let range = self.range(piece);
        range.end - range.start
    }

    /// Whether the file is empty and has no pieces.
    pub const fn is_empty(&self) -> bool {
        self.size == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::merkle::LEAF_SIZE;

    const MIB: u64 = 1024 * 1024;

    fn sizes() -> impl Strategy<Value = u64> {
        let near = (18..=44_u32, 0..4_u64).prop_map(|(power, near)| (1 << power) + near - 2);
        prop_oneof![0..64 * MIB, 0..=MAX_FILE_SIZE, near].prop_map(|size| size.min(MAX_FILE_SIZE))
    }

    #[test]
    fn piece_sizes_are_as_documented() {
        for (size, piece_size, pieces) in [
            (0, 128 * 1024, 0),
            (1, 128 * 1024, 1),
            (128 * 1024, 128 * 1024, 1),
            (128 * 1024 + 1, 128 * 1024, 2),
            (512 * MIB, 128 * 1024, 4096),
            (512 * MIB + 1, 256 * 1024, 2049),
            (1024 * MIB, 256 * 1024, 4096),
            (1024 * MIB + 1, 512 * 1024, 2049),
            (65_536 * MIB, 16 * MIB, 4096),
            (65_536 * MIB + 1, 16 * MIB, 4097),
            (MAX_FILE_SIZE, 16 * MIB, 1 << 20),
        ] {
            let layout = FileLayout::new(size).unwrap();
            assert_eq!(
                (layout.piece_size(), layout.piece_count()),
                (piece_size, pieces),
                "{size}"
            );
        }
        assert_eq!(FileLayout::new(MAX_FILE_SIZE + 1), None);
        assert_eq!(FileLayout::new(u64::MAX), None);
    }

    #[test]
    fn a_piece_of_another_layout_has_an_empty_range() {
        let piece = FileLayout::new(MAX_FILE_SIZE).unwrap().pieces().last().unwrap();
        assert_eq!(FileLayout::new(5).unwrap().len(piece), 0);
    }

    proptest! {
        #[test]
        fn pieces_cover_the_file(size in sizes(), any in any::<u32>()) {
            let layout = FileLayout::new(size).unwrap();
            let count = layout.piece_count();
            prop_assert!(layout.piece_size().is_power_of_two());
            prop_assert_eq!(layout.piece_size() % LEAF_SIZE as u64, 0);
            prop_assert_eq!(layout.is_empty(), count == 0);
            prop_assert_eq!(layout.pieces().len(), count as usize);
            prop_assert_eq!(layout.piece(count), None);
            prop_assert_eq!(layout.piece_at(size), None);
            if count == 0 {
                return Ok(());
            }
            let range = |index| layout.range(layout.piece(index).unwrap());
            prop_assert_eq!(range(0).start, 0);
            prop_assert_eq!(range(count - 1).end, size);
            let index = any % count;
            prop_assert!(range(index).start < range(index).end);
            prop_assert_eq!(layout.piece_at(range(index).start), layout.piece(index));
            prop_assert_eq!(layout.piece_at(range(index).end - 1), layout.piece(index));
            if index + 1 < count {
                prop_assert_eq!(range(index).end, range(index + 1).start);
                prop_assert_eq!(layout.len(layout.piece(index).unwrap()), layout.piece_size());
            }
        }

        #[test]
        fn a_large_file_has_enough_pieces_and_not_too_many(size in 1024 * MIB + 1..=65_536 * MIB) {
            let count = u64::from(FileLayout::new(size).unwrap().piece_count());
            prop_assert!(count > TARGET_PIECES / 2 && count <= TARGET_PIECES, "{}", count);
        }
    }
}
