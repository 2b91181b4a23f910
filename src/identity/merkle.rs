//! The Merkle tree of BitTorrent v2 (BEP 52): a binary SHA-256 tree over 16 KiB leaves, padded
//! with zero hashes to a power of two.
//!
//! Pure. [`crate::identity::hash`] reads files and uses several threads. It hashes pieces
//! independently and passes the hashes to [`fold`].

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

use sha2::{Digest as _, Sha256};

use crate::{FileId, FileLayout, Root, identity::id::LEN};

/// Size of a leaf in bytes. The last leaf of a file may be shorter.
pub const LEAF_SIZE: usize = 16 * 1024;

/// Hash of a node.
pub type Hash = [u8; LEN];

/// Root of the empty file: SHA-256 of no bytes. BEP 52 defines no root for empty files; this is
/// Potluck's own rule.
pub const EMPTY_ROOT: Root = Root([
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
]);

/// Id of the empty file. It needs no download.
pub const EMPTY_FILE: FileId = FileId([
    0x03, 0xde, 0xce, 0x8d, 0x54, 0xd1, 0xfb, 0xe3, 0x31, 0x24, 0x60, 0x52, 0xb0, 0xe5, 0xfd, 0xf9,
    0xb4, 0xc8, 0x15, 0xcc, 0x2c, 0x63, 0x96, 0xc6, 0x0b, 0x44, 0xcf, 0x7d, 0x63, 0x9d, 0x0b, 0x2e,
]);

/// Hash of a missing leaf, as BEP 52 pads.
const ZERO_LEAF: Hash = [0; LEN];

/// The Merkle tree of a file, reduced to its root and piece layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTree {
    /// The file's size in bytes.
    pub size: u64,
    /// Root of the tree.
    pub root: Root,
    /// The piece layer: the subtree hash of each piece. Empty if the file has fewer than two
    /// pieces.
    pub piece_hashes: Vec<Hash>,
}

impl FileTree {
    /// The file's id.
    pub fn id(&self) -> FileId {
        FileId::derive(self.size, &self.root)
    }
}

fn parent(left: &Hash, right: &Hash) -> Hash {
    let mut hash = Sha256::new();
    hash.update(left);
    hash.update(right);
    hash.finalize().into()
}

/// Root of a tree with `width` leaves: `nodes`, then `padding`. Computed in place.
fn fold_nodes(mut nodes: Vec<Hash>, mut padding: Hash, mut width: usize) -> Hash {
    while width > 1 {
        if nodes.len() % 2 == 1 {
            nodes.push(padding);
        }
        for i in 0..nodes.len() / 2 {
            nodes[i] = parent(&nodes[2 * i], &nodes[2 * i + 1]);
        }
        nodes.truncate(nodes.len() / 2);
        padding = parent(&padding, &padding);
        width /= 2;
    }
    nodes.first().copied().unwrap_or(padding)
}

/// Number of leaves hashed together: a multiple of each backend's lanes (4 with SHA-NI, 8 with
/// AVX2, 16 with AVX-512, 32 where two interleaved runs are faster).
pub const BATCH: usize = 32;

/// Appends the hashes of the leaves of `data`, which starts at a leaf boundary. The last leaf may
/// be short.
///
/// [`hash_each`] hashes several leaves together. In one SHA-256 each step depends on the previous
/// one; independent leaves keep the processor busy and are about twice as fast
/// (docs/decisions/0008).
pub fn hash_leaves(data: &[u8], hashes: &mut Vec<Hash>) {
    hash_each(data.chunks(LEAF_SIZE), hashes);
}

/// Like [`hash_leaves`], for leaves that need not be contiguous, such as those of several small
/// files.
pub fn hash_each<'a>(mut leaves: impl Iterator<Item = &'a [u8]>, hashes: &mut Vec<Hash>) {
    loop {
        let mut run: [&[u8]; BATCH] = [&[]; BATCH];
        let slots = run.iter_mut().zip(&mut leaves);
        let count = slots.map(|(slot, leaf)| *slot = leaf).count();
        if count == 0 {
            return;
        }
        let mut done = [[0; LEN]; BATCH];
        hash_batch(&run[..count], &mut done[..count]);
        hashes.extend_from_slice(&done[..count]);
    }
}

/// Hashes at most [`BATCH`] messages together.
fn hash_batch(messages: &[&[u8]], hashes: &mut [Hash]) {
    static TRUST: BatchTrust = BatchTrust::new();
    TRUST.hash(tape_sha256::hash_many, messages, hashes);
}

/// Hashes several messages together.
type HashMany = fn(&[&[u8]], &mut [Hash]);

/// Hashes one message with the reference implementation.
fn reference(message: &[u8]) -> Hash {
    Sha256::digest(message).into()
}

/// Whether batch hashing may be used: it is compared with the reference before its first use, and
/// one hash in [`CHECK_EVERY`] batches after that. A faulty backend must only cost speed; it must
/// not give wrong ids or ban honest peers.
#[derive(Debug)]
struct BatchTrust {
    is_correct: OnceLock<bool>,
    /// Number of batches; [`BatchTrust::DISTRUSTED`] once a hash was wrong.
    batches: AtomicU32,
}

/// Number of batches of which one hash is compared: 8 MiB of leaves, so that comparing costs 0.3 %
/// of the time of hashing.
const CHECK_EVERY: u32 = 16;

impl BatchTrust {
    const DISTRUSTED: u32 = u32::MAX;

    const fn new() -> Self {
        Self {
            is_correct: OnceLock::new(),
            batches: AtomicU32::new(0),
        }
    }

    fn hash(&self, hash_many: HashMany, messages: &[&[u8]], hashes: &mut [Hash]) {
        let batch = self.batches.load(Ordering::Relaxed);
        if batch != Self::DISTRUSTED && *self.is_correct.get_or_init(|| is_correct(hash_many)) {
            hash_many(messages, hashes);
            // A race between threads only repeats a number. The position moves with each check, so
            // that all positions of a batch are compared.
            let position = (batch / CHECK_EVERY) as usize % messages.len();
            let is_due = batch.is_multiple_of(CHECK_EVERY);
            if !is_due || hashes[position] == reference(messages[position]) {
                let next = (batch + 1) % Self::DISTRUSTED;
                let _ = self.batches.compare_exchange(
                    batch,
                    next,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                return;
            }
            self.batches.store(Self::DISTRUSTED, Ordering::Relaxed);
        }
        for (hash, message) in hashes.iter_mut().zip(messages) {
            *hash = reference(message);
        }
    }
}

/// Appends the roots of files of at most one leaf. Such a root is the SHA-256 of the file.
///
/// # Panics
/// If a file is larger than one leaf.
pub fn small_file_roots(files: &[&[u8]], roots: &mut Vec<Root>) {
    assert!(
        files.iter().all(|file| file.len() <= LEAF_SIZE),
        "files of one leaf"
    );
    for files in files.chunks(BATCH) {
        let mut done = [[0; LEN]; BATCH];
        hash_batch(files, &mut done[..files.len()]);
        roots.extend(done[..files.len()].iter().map(|&hash| Root(hash)));
    }
}

/// The ids of several files, hashed together.
pub fn ids_of<'a>(trees: impl Iterator<Item = &'a FileTree>) -> Vec<FileId> {
    let each = trees.map(|tree| FileId::preimage(tree.size, &tree.root));
    let preimages: Vec<_> = each.collect();
    let mut hashes = Vec::with_capacity(preimages.len());
    hash_each(preimages.iter().map(|bytes| &bytes[..]), &mut hashes);
    hashes.into_iter().map(FileId).collect()
}

/// Reference implementation: `sha2`, one leaf at a time.
#[cfg(test)]
fn hash_leaves_one_by_one(data: &[u8], hashes: &mut Vec<Hash>) {
    hashes.extend(
        data.chunks(LEAF_SIZE)
            .map(|leaf| Hash::from(Sha256::digest(leaf))),
    );
}

/// Whether batch hashing agrees with the reference on this processor, in about a millisecond. Which
/// code runs depends on the processor, on the number of messages, and on whether their lengths are
/// equal; so all numbers are tried, with equal and with different lengths.
fn is_correct(hash_many: HashMany) -> bool {
    let bytes: Vec<u8> = (0..LEAF_SIZE as u32 + 256)
        .map(|i| (i * 31 + i / 256) as u8)
        .collect();
    let agree = |lengths: &[usize]| {
        let messages: Vec<&[u8]> =
            (0..).zip(lengths).map(|(at, len)| &bytes[at..at + len]).collect();
        let mut done = vec![[0; LEN]; messages.len()];
        hash_many(&messages, &mut done);
        messages.iter().map(|message| reference(message)).eq(done)
    };
    // Lengths around block and padding boundaries; a full batch of leaves; long leaves with a
    // short last one.
    let around = [
        0, 1, 55, 56, 63, 64, 65, 119, 120, 127, 128, 129, 200, 256, 256, 256,
    ];
    let mixed = around.repeat(2 * BATCH / around.len());
    let mut last = [LEAF_SIZE / 4; BATCH];
    last[BATCH - 1] = 1000;
    (1..=BATCH).all(|count| {
        let different = &mixed[count..2 * count];
        agree(&[128; BATCH][..count]) && agree(different)
    }) && agree(&around)
        && agree(&[LEAF_SIZE; BATCH])
        && agree(&last)
}

fn leaves(data: &[u8]) -> Vec<Hash> {
    let mut hashes = Vec::with_capacity(data.len().div_ceil(LEAF_SIZE) + 1);
    hash_leaves(data, &mut hashes);
    hashes
}

/// Subtree hash of one piece of a file with several pieces. `data` is the piece, of at most
/// `layout.piece_size()` bytes.
///
/// Missing leaves of the last piece count as zero hashes, so that all subtrees have the same
/// height. More than a piece of data gives the hash of a taller tree, which matches no piece.
pub fn piece_hash(data: &[u8], layout: &FileLayout) -> Hash {
    fold_piece(leaves(data), layout)
}

/// Like [`piece_hash`], for several consecutive pieces, of which the last may be short. Leaves of
/// different pieces are hashed together.
pub fn piece_hashes(data: &[u8], layout: &FileLayout) -> Vec<Hash> {
    let per_piece = layout.piece_size() as usize / LEAF_SIZE;
    leaves(data)
        .chunks(per_piece)
        .map(|leaves| fold_piece(leaves.to_vec(), layout))
        .collect()
}

fn fold_piece(leaves: Vec<Hash>, layout: &FileLayout) -> Hash {
    let width = (layout.piece_size() as usize / LEAF_SIZE).max(leaves.len().next_power_of_two());
    fold_nodes(leaves, ZERO_LEAF, width)
}

/// Incremental [`piece_hash`]. Holds the leaf hashes (at most 32 KiB per piece) and one partial
/// leaf.
#[derive(Debug, Clone)]
pub struct PieceHasher {
    layout: FileLayout,
    leaves: Vec<Hash>,
    incomplete_leaf: Vec<u8>,
}

impl PieceHasher {
    /// Starts a piece of a file with this layout.
    pub const fn new(layout: &FileLayout) -> Self {
        Self {
            layout: *layout,
            leaves: Vec::new(),
            incomplete_leaf: Vec::new(),
        }
    }

    /// Appends the next bytes of the piece.
    pub fn update(&mut self, mut data: &[u8]) {
        if !self.incomplete_leaf.is_empty() {
            let taken = data.len().min(LEAF_SIZE - self.incomplete_leaf.len());
            self.incomplete_leaf.extend_from_slice(&data[..taken]);
            data = &data[taken..];
            if self.incomplete_leaf.len() < LEAF_SIZE {
                return;
            }
            hash_leaves(&self.incomplete_leaf, &mut self.leaves);
            self.incomplete_leaf.clear();
        }
        let (whole, rest) = data.split_at(data.len() - data.len() % LEAF_SIZE);
        hash_leaves(whole, &mut self.leaves);
        self.incomplete_leaf.extend_from_slice(rest);
    }

    /// The subtree hash of all bytes so far.
    pub fn finish(mut self) -> Hash {
        hash_leaves(&self.incomplete_leaf, &mut self.leaves);
        fold_piece(self.leaves, &self.layout)
    }
}

/// The tree of a file, computed from the hashes of all its leaves.
pub fn tree_of(leaves: &[Hash], layout: &FileLayout) -> FileTree {
    let per_piece = layout.piece_size() as usize / LEAF_SIZE;
    let mut piece_hashes = Vec::new();
    if layout.piece_count() > 1 {
        let pieces = leaves.chunks(per_piece);
        piece_hashes.extend(pieces.map(|piece| fold_piece(piece.to_vec(), layout)));
    }
    let root = fold(&piece_hashes, layout).unwrap_or_else(|| match leaves {
        [] => EMPTY_ROOT,
        leaves => Root(fold_nodes(
            leaves.to_vec(),
            ZERO_LEAF,
            leaves.len().next_power_of_two(),
        )),
    });
    FileTree {
        size: layout.size(),
        root,
        piece_hashes,
    }
}

/// Root of a file, computed from its content. [`EMPTY_ROOT`] for the empty file.
pub fn root_of(data: &[u8]) -> Root {
    if data.is_empty() {
        return EMPTY_ROOT;
    }
    let leaves = leaves(data);
    let width = leaves.len().next_power_of_two();
    Root(fold_nodes(leaves, ZERO_LEAF, width))
}

/// Folds a piece layer into the root of a file with more than one piece.
///
/// `None` if the file has fewer than two pieces or the number of hashes does not match the layout.
pub fn fold(piece_hashes: &[Hash], layout: &FileLayout) -> Option<Root> {
    if piece_hashes.len() < 2 || piece_hashes.len() != layout.piece_count() as usize {
        return None;
    }
    let leaves_per_piece = layout.piece_size() as usize / LEAF_SIZE;
    let padding = fold_nodes(Vec::new(), ZERO_LEAF, leaves_per_piece);
    let width = piece_hashes.len().next_power_of_two();
    Some(Root(fold_nodes(piece_hashes.to_vec(), padding, width)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The tree as BEP 52 defines it: missing leaves are zero, up to a power of two.
    fn naive(leaves: &[Hash], width: usize) -> Hash {
        if width == 1 {
            return leaves.first().copied().unwrap_or([0; LEN]);
        }
        let half = width / 2;
        let middle = half.min(leaves.len());
        let (left, right) = leaves.split_at(middle);
        Sha256::digest([naive(left, half), naive(right, half)].concat()).into()
    }

    fn naive_root(data: &[u8]) -> Root {
        let leaves: Vec<Hash> = data
            .chunks(LEAF_SIZE)
            .map(|leaf| Sha256::digest(leaf).into())
            .collect();
        Root(naive(&leaves, leaves.len().next_power_of_two()))
    }

    fn bytes(size: usize, seed: u8) -> Vec<u8> {
        (0..size)
            .map(|i| (i / 257) as u8 ^ (i % 253) as u8 ^ seed)
            .collect()
    }

    #[test]
    fn the_constants_of_the_empty_file_are_correct() {
        assert_eq!(EMPTY_ROOT, Root(Sha256::digest([]).into()));
        assert_eq!(EMPTY_FILE, FileId::derive(0, &EMPTY_ROOT));
        assert_eq!(root_of(&[]), EMPTY_ROOT);
    }

    /// A backend that is wrong for long messages in the second half of a batch, which the first
    /// comparison does not find.
    fn wrong_later(messages: &[&[u8]], hashes: &mut [Hash]) {
        for (at, (hash, message)) in hashes.iter_mut().zip(messages).enumerate() {
            *hash = reference(message);
            hash[0] ^= u8::from(at >= BATCH / 2 && message.len() == LEAF_SIZE - 1);
        }
    }

    #[test]
    fn a_backend_that_is_wrong_is_not_used() {
        let wrong: HashMany = |messages, hashes| {
            tape_sha256::hash_many(messages, hashes);
            if messages.len() == 7 && messages[6].len() != messages[0].len() {
                hashes[6] = [0; LEN];
            }
        };
        assert!(is_correct(tape_sha256::hash_many));
        assert!(!is_correct(wrong));
        let trust = BatchTrust::new();
        let messages: Vec<&[u8]> = vec![b"a", b"b", b"c", b"d", b"e", b"f", b"gg"];
        let mut hashes = vec![[0; LEN]; 7];
        trust.hash(wrong, &messages, &mut hashes);
        assert_eq!(hashes[6], reference(b"gg"));
    }

    #[test]
    fn a_backend_that_turns_out_to_be_wrong_is_no_longer_used() {
        assert!(is_correct(wrong_later), "found too early for this test");
        let trust = BatchTrust::new();
        let leaf = vec![7; LEAF_SIZE - 1];
        let messages = [&leaf[..]; BATCH];
        let batches = |count: u32| {
            let mut wrong = 0;
            for _ in 0..count {
                let mut hashes = [[0; LEN]; BATCH];
                trust.hash(wrong_later, &messages, &mut hashes);
                wrong += u32::from(hashes.iter().any(|hash| *hash != reference(&leaf)));
            }
            wrong
        };
        let until_found = CHECK_EVERY * BATCH as u32 / 2;
        assert_eq!(batches(until_found), until_found);
        assert_eq!(batches(100), 0, "the check of the next position finds it");
    }

    #[test]
    fn a_list_of_another_length_does_not_fold() {
        let layout = FileLayout::new(3 * 131_072).unwrap();
        for count in [0, 1, 2, 4, 5] {
            assert_eq!(fold(&vec![[1; LEN]; count], &layout), None, "{count}");
        }
        assert!(fold(&[[1; LEN]; 3], &layout).is_some());
        assert_eq!(fold(&[[1; LEN]], &FileLayout::new(131_072).unwrap()), None);
        assert_eq!(fold(&[], &FileLayout::new(0).unwrap()), None);
    }

    #[test]
    fn too_much_data_does_not_hash_to_the_piece() {
        let data = bytes(3 * 131_072, 0);
        let layout = FileLayout::new(data.len() as u64).unwrap();
        let piece = piece_hash(&data[..131_072], &layout);
        for longer in [131_073, 2 * 131_072, 3 * 131_072] {
            assert_ne!(piece_hash(&data[..longer], &layout), piece, "{longer}");
        }
    }

    proptest! {
        #[test]
        fn folding_is_the_naive_tree(count in 0..70_usize, spare in 0..3_u32) {
            let leaves: Vec<Hash> = (0..count).map(|i| [i as u8 + 1; LEN]).collect();
            let width = count.next_power_of_two() << spare;
            prop_assert_eq!(fold_nodes(leaves.clone(), ZERO_LEAF, width), naive(&leaves, width));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn pieces_fold_into_the_naive_root(
            size in 1..1_500_000_usize,
            seed: u8,
            steps in 1..200_000_usize,
        ) {
            let data = bytes(size, seed);
            let layout = FileLayout::new(size as u64).unwrap();
            let root = naive_root(&data);
            prop_assert_eq!(root_of(&data), root);

            let pieces: Vec<&[u8]> = data.chunks(layout.piece_size() as usize).collect();
            let hashes: Vec<Hash> = pieces.iter().map(|piece| piece_hash(piece, &layout)).collect();
            if pieces.len() > 1 {
                prop_assert_eq!(fold(&hashes, &layout), Some(root));
            }
            // The same hashes, computed incrementally.
            for (piece, hash) in pieces.iter().zip(&hashes) {
                let mut hasher = PieceHasher::new(&layout);
                piece.chunks(steps).for_each(|step| hasher.update(step));
                prop_assert_eq!(hasher.finish(), *hash);
            }
        }

        #[test]
        fn batched_leaves_hash_as_single_leaves(size in 0..40 * LEAF_SIZE, seed: u8) {
            let data = bytes(size, seed);
            let (mut fast, mut reference) = (Vec::new(), Vec::new());
            hash_leaves(&data, &mut fast);
            hash_leaves_one_by_one(&data, &mut reference);
            prop_assert_eq!(fast, reference);
        }

        #[test]
        fn small_files_have_the_roots_that_they_have_alone(
            sizes in proptest::collection::vec(0..=LEAF_SIZE, 0..40),
        ) {
            let files: Vec<_> = (0..).zip(sizes).map(|(seed, size)| bytes(size, seed)).collect();
            let slices: Vec<_> = files.iter().map(|file| &file[..]).collect();
            let mut roots = Vec::new();
            small_file_roots(&slices, &mut roots);
            prop_assert_eq!(roots, files.iter().map(|file| root_of(file)).collect::<Vec<_>>());
        }

        #[test]
        fn ids_at_once_are_the_ids_of_each(
            trees in proptest::collection::vec((0_u64.., proptest::array::uniform32(0_u8..)), 0..70),
        ) {
            let tree = |(size, root)| FileTree { size, root: Root(root), piece_hashes: Vec::new() };
            let trees: Vec<FileTree> = trees.into_iter().map(tree).collect();
            let each: Vec<FileId> = trees.iter().map(FileTree::id).collect();
            prop_assert_eq!(ids_of(trees.iter()), each);
        }

        #[test]
        fn one_wrong_bit_changes_the_piece(
            size in 1..600_000_usize,
            at: proptest::sample::Index,
            bit in 0..8_u8,
        ) {
            let mut data = bytes(size, 0);
            let layout = FileLayout::new(1 << 30).unwrap();
            let before = piece_hash(&data[..size.min(131_072)], &layout);
            data[at.index(size.min(131_072))] ^= 1 << bit;
            prop_assert_ne!(piece_hash(&data[..size.min(131_072)], &layout), before);
        }
    }
}
