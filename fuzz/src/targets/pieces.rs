//! Piece layers and the layout of files.

use potluck_core::{
    FileLayout, Root,
    identity::{
        layout::MAX_FILE_SIZE,
        merkle::{self, Hash, LEAF_SIZE},
    },
};
use sha2::{Digest as _, Sha256};

/// Maximum hashes of a piece layer in a run: a fold hashes each node.
const MAX_PIECES: u64 = 9;

/// A piece layer folds into the root that a naive tree has, and into no other root; a list of
/// another length does not fold.
///
/// The input is a size (8 bytes), the index of a bit to flip (2 bytes), and hashes.
pub fn piece_layer(input: &[u8]) -> bool {
    let Some((size, rest)) = input.split_first_chunk() else {
        return false;
    };
    let Some((flip, hashes)) = rest.split_first_chunk() else {
        return false;
    };
    let size = u64::from_le_bytes(*size);
    check_layout(size);
    // Few pieces: most of all sizes would have thousands.
    let size = size % (MAX_PIECES * 128 * 1024);
    let layout = FileLayout::new(size).expect("a small size");
    let (hashes, _) = hashes.as_chunks::<32>();
    let count = layout.piece_count() as usize;
    let folded = merkle::fold(hashes, &layout);
    assert_eq!(folded.is_some(), hashes.len() == count && count > 1);

    let mut layer: Vec<Hash> = hashes.iter().copied().chain(filler()).take(count).collect();
    let folded = merkle::fold(&layer, &layout);
    if count < 2 {
        assert_eq!(folded, None);
        return false;
    }
    let root = folded.expect("the right number of hashes folds");
    let height = (layout.piece_size() as usize / LEAF_SIZE).trailing_zeros();
    assert_eq!(root, Root(naive(&layer, count.next_power_of_two(), height)));
    let flip = usize::from(u16::from_le_bytes(*flip)) % (count * 256);
    layer[flip / 256][flip / 8 % 32] ^= 1 << (flip % 8);
    assert_ne!(
        merkle::fold(&layer, &layout),
        Some(root),
        "a wrong hash folds into the root"
    );
    true
}

/// Hashes for a layer that the input does not fill.
fn filler() -> impl Iterator<Item = Hash> {
    (0..).map(|n: u8| [n; 32])
}

/// The tree as BEP 52 defines it, from nodes of this height.
fn naive(nodes: &[Hash], width: usize, height: u32) -> Hash {
    if width == 1 {
        return nodes.first().copied().unwrap_or_else(|| padding(height));
    }
    let half = width / 2;
    let (left, right) = nodes.split_at(half.min(nodes.len()));
    Sha256::digest([naive(left, half, height), naive(right, half, height)].concat()).into()
}

/// A subtree of zero leaves.
fn padding(height: u32) -> Hash {
    (0..height).fold([0; 32], |node, _| Sha256::digest([node, node].concat()).into())
}

/// Pieces cover a file of any size without gap or overlap.
fn check_layout(size: u64) {
    let Some(layout) = FileLayout::new(size) else {
        assert!(size > MAX_FILE_SIZE);
        return;
    };
    assert!(size <= MAX_FILE_SIZE);
    assert!(layout.piece_size().is_power_of_two());
    let count = layout.piece_count();
    assert!(layout.piece(count).is_none());
    let mut next = 0;
    for index in [0, count / 2, count.wrapping_sub(1)] {
        let Some(piece) = layout.piece(index) else {
            assert_eq!(count, 0, "a piece is missing");
            continue;
        };
        let range = layout.range(piece);
        assert_eq!(range.start, u64::from(index) * layout.piece_size());
        assert!(range.start >= next && range.end > range.start && range.end <= size);
        assert_eq!(range.end == size, index + 1 == count);
        next = range.start;
    }
    assert_eq!(count == 0, size == 0);
}

/// Hashing several messages together gives what `sha2` gives for each, whatever their number, their
/// lengths and their places in memory.
///
/// The input is a place (2 bytes) and a length (2 bytes) for each message, and the bytes of all.
pub fn leaves(input: &[u8]) -> bool {
    let (places, _) = input.as_chunks::<4>();
    let message = |&[a, b, c, d]: &[u8; 4]| {
        let from = usize::from(u16::from_be_bytes([a, b])) % (input.len() + 1);
        let len = usize::from(u16::from_be_bytes([c, d])) % 300;
        &input[from..input.len().min(from + len)]
    };
    let messages: Vec<&[u8]> = places.iter().take(2 * merkle::BATCH).map(message).collect();
    let mut hashes = Vec::new();
    merkle::hash_each(messages.iter().copied(), &mut hashes);
    let expected = messages.iter().map(|message| Hash::from(Sha256::digest(message)));
    assert!(hashes.iter().copied().eq(expected));
    !messages.is_empty()
}

/// Few and many messages of equal and different lengths.
pub fn leaf_seeds() -> Vec<Vec<u8>> {
    let places = |count: u8, step: u8, len: u8| {
        let place = |n: u8| [0, n.wrapping_mul(step), 0, len.wrapping_add(n * (step & 1))];
        (0..count).flat_map(place).collect::<Vec<u8>>()
    };
    vec![
        places(1, 1, 0),
        places(7, 3, 55),
        places(33, 2, 64),
        places(70, 5, 119),
    ]
}

/// Layers of several sizes.
pub fn seeds() -> Vec<Vec<u8>> {
    let sizes = [0, 1, 131_072, 131_073, 400_000, 1 << 20, MAX_FILE_SIZE, u64::MAX];
    let seed = |size: u64| {
        let hashes = (0..MAX_PIECES as u8).flat_map(|n| [n; 32]);
        size.to_le_bytes()
            .into_iter()
            .chain([3, 1])
            .chain(hashes)
            .collect()
    };
    sizes.into_iter().map(seed).collect()
}
