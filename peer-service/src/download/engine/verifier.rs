//! Verifies units against the id of the download. Pure.
//!
//! Invariant: a piece layer is kept only if it folds to the root behind its file's id, so data that
//! passes [`UnitVerifier::verify`] belongs to the requested id.

use std::{
    borrow::Cow,
    ops::Range,
    sync::{Arc, OnceLock},
};

use potluck_core::{
    FileId, FileLayout, Root,
    collection::plan::{Plan, PlanSpan},
    identity::{
        hash,
        merkle::{self, EMPTY_FILE, EMPTY_ROOT, FileTree, Hash, LEAF_SIZE, PieceHasher},
    },
};

use crate::{content::BadPieces, download::engine::chunk_list::ChunkList};

/// One-leaf files that are hashed together: a multiple of the number of hash lanes.
const SMALL_BATCH: usize = 64;

/// Verifies the units of a plan.
#[derive(Debug)]
pub(crate) struct UnitVerifier {
    plan: Arc<Plan>,
    /// The root of each file of the plan, from a piece layer that folded or from verified bytes.
    roots: Vec<OnceLock<Root>>,
    /// For each file with several pieces, in plan order: its index, and its piece layer once known.
    layers: Vec<(usize, OnceLock<Arc<[Hash]>>)>,
}

impl UnitVerifier {
    /// A verifier without piece layers.
    pub(crate) fn new(plan: Arc<Plan>) -> Self {
        let several = plan.files().enumerate().filter(|(_, file)| has_layer(file.size));
        Self {
            roots: plan.files().map(|_| OnceLock::new()).collect(),
            layers: several.map(|(file, _)| (file, OnceLock::new())).collect(),
            plan,
        }
    }

    /// The plan indices of the files whose piece layer is missing.
    pub(crate) fn missing_layers(&self) -> Vec<usize> {
        let unknown = self.layers.iter().filter(|(_, layer)| layer.get().is_none());
        let unknown = unknown.map(|&(file, _)| file);
        let needed = unknown.filter(|&file| self.plan.needs(file));
        needed.filter(|&file| self.plan.is_large(file)).collect()
    }

    /// The plan whose units it verifies.
    pub(crate) const fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Takes a file's piece layer from an untrusted peer; false if it does not fold to the file's
    /// id.
    pub(crate) fn add_layer(&self, file: usize, layer: Vec<Hash>) -> bool {
        let tree = self
            .plan
            .file(file)
            .and_then(|planned| tree_of(planned.id, planned.size, layer));
        tree.map(|tree| self.record_tree(file, tree)).is_some()
    }

    /// If another thread recorded a tree first, it is the same tree, because the id commits to it.
    fn record_tree(&self, file: usize, tree: FileTree) {
        if let Some((_, layer)) = self.layer_entry(file) {
            let _ = layer.set(tree.piece_hashes.into());
        }
        if let Some(root) = self.roots.get(file) {
            let _ = root.set(tree.root);
        }
    }

    fn layer_entry(&self, file: usize) -> Option<&(usize, OnceLock<Arc<[Hash]>>)> {
        let index = self.layers.binary_search_by_key(&file, |(file, _)| *file).ok()?;
        self.layers.get(index)
    }

    /// Whether these are the bytes of the unit. Hashes all of them, so call it on a blocking
    /// thread.
    pub(crate) fn verify(&self, unit: u32, data: &ChunkList) -> bool {
        if data.len() as u64 != self.plan.unit_len(unit) {
            return false;
        }
        let mut at = 0;
        let mut small = Vec::with_capacity(SMALL_BATCH);
        let good = self.plan.spans(unit).all(|span| {
            let range = at..at + span.len as usize;
            at = range.end;
            match span.is_whole_file {
                true if range.len() <= LEAF_SIZE => {
                    small.push((span, data.contiguous(range)));
                    small.len() < SMALL_BATCH || self.verify_small(&mut small)
                }
                true => self.verify_whole(&span, data, range),
                false => self.first_bad_piece(&span, data, range).is_none(),
            }
        });
        good && self.verify_small(&mut small)
    }

    /// The first bad piece of a unit that failed verification, if it can be identified. For a file
    /// received as a whole, all of its pieces. Slow; meant for units that failed.
    pub(crate) fn bad_pieces(&self, unit: u32, data: &ChunkList) -> Option<BadPieces> {
        if data.len() as u64 != self.plan.unit_len(unit) {
            return None;
        }
        let mut at = 0;
        self.plan.spans(unit).find_map(|span| {
            let range = at..at + span.len as usize;
            at = range.end;
            let layout = FileLayout::new(self.plan.file(span.file)?.size)?;
            let (first, count) = if !span.is_whole_file {
                (self.first_bad_piece(&span, data, range)?, 1)
            } else if self.verify_whole(&span, data, range) {
                return None;
            } else {
                (0, layout.piece_count())
            };
            let id = span.id;
            Some(BadPieces { id, first, count })
        })
    }

    /// Hashes one-leaf files together, which keeps the processor busier than hashing them in turn.
    /// Empties `small`.
    fn verify_small(&self, small: &mut Vec<(PlanSpan, Cow<'_, [u8]>)>) -> bool {
        let files: Vec<&[u8]> = small.iter().map(|(_, bytes)| &**bytes).collect();
        let mut roots = Vec::with_capacity(files.len());
        merkle::small_file_roots(&files, &mut roots);
        small.drain(..).zip(roots).all(|((span, _), root)| {
            let good = FileId::derive(span.len, &root) == span.id;
            if good {
                // If another thread set the root first, it is the same root, because the id commits
                // to it.
                let _ = self.roots[span.file].set(root);
            }
            good
        })
    }

    /// The first piece of a span that does not have its hash; `None` if all have. Without the
    /// piece layer, no piece has.
    fn first_bad_piece(
        &self,
        span: &PlanSpan,
        data: &ChunkList,
        range: Range<usize>,
    ) -> Option<u32> {
        let size = self.plan.file(span.file).map_or(0, |file| file.size);
        let layout = FileLayout::new(size)?;
        // Fits, because it is less than the number of pieces.
        let first = (span.offset / layout.piece_size()) as u32;
        let Some(layer) = self.layer(span.file) else {
            return Some(first);
        };
        let mut pieces = (first..).zip(piece_hashes(layout, data, range));
        let bad = pieces.find(|(piece, hash)| layer.get(*piece as usize) != Some(hash));
        bad.map(|(piece, _)| piece)
    }

    fn verify_whole(&self, span: &PlanSpan, data: &ChunkList, range: Range<usize>) -> bool {
        let tree = match FileLayout::new(span.len).filter(|_| has_layer(span.len)) {
            Some(layout) => tree_of(span.id, span.len, piece_hashes(layout, data, range).collect()),
            None => {
                let tree = hash::hash_bytes(&data.contiguous(range));
                (tree.id() == span.id).then_some(tree)
            }
        };
        tree.map(|tree| self.record_tree(span.file, tree)).is_some()
    }

    /// The hash of a unit of a plain file, which is one piece; `None` if the length is wrong.
    pub(crate) fn unit_hash(&self, unit: u32, data: &ChunkList) -> Option<Hash> {
        let layout = FileLayout::new(self.plan.total())?;
        let fits = data.len() as u64 == self.plan.unit_len(unit);
        fits.then(|| piece_hashes(layout, data, 0..data.len()).next())?
    }

    /// Records the piece layer of a plain file whose bytes were checked in another way.
    pub(crate) fn settle(&self, layer: Vec<Hash>) -> Option<FileTree> {
        let size = self.plan.total();
        let layout = FileLayout::new(size).filter(|_| has_layer(size))?;
        let tree = FileTree {
            size,
            root: merkle::fold(&layer, &layout)?,
            piece_hashes: layer,
        };
        self.record_tree(0, tree.clone());
        Some(tree)
    }

    /// The root of the file, if known.
    pub(crate) fn root(&self, file: usize) -> Option<Root> {
        self.roots.get(file)?.get().copied()
    }

    /// The piece layer of a file with several pieces, if known.
    pub(crate) fn layer(&self, file: usize) -> Option<Arc<[Hash]>> {
        self.layer_entry(file)?.1.get().cloned()
    }

    /// The tree of the file, if known.
    pub(crate) fn tree(&self, file: usize) -> Option<FileTree> {
        let (root, size) = (self.root(file)?, self.plan.file(file)?.size);
        let piece_hashes = match has_layer(size) {
            true => self.layer(file)?.to_vec(),
            false => Vec::new(),
        };
        Some(FileTree {
            size,
            root,
            piece_hashes,
        })
    }

    /// The first empty file of the plan whose id is not that of an empty file. No unit carries its
    /// content, so no unit would reveal it.
    pub(crate) fn invalid_empty_file(&self) -> Option<FileId> {
        for (index, file) in self.plan.files().enumerate() {
            if file.size == 0 {
                if file.id != EMPTY_FILE {
                    return Some(file.id);
                }
                let _ = self.roots[index].set(EMPTY_ROOT);
            }
        }
        None
    }
}

/// The hashes of the consecutive pieces in this range of a unit.
fn piece_hashes(
    layout: FileLayout,
    data: &ChunkList,
    range: Range<usize>,
) -> impl Iterator<Item = Hash> {
    // Fits: a piece is at most 16 MiB.
    let piece_size = layout.piece_size() as usize;
    range.clone().step_by(piece_size).map(move |start| {
        let mut hasher = PieceHasher::new(&layout);
        let piece = start..range.end.min(start + piece_size);
        data.slices(piece).for_each(|run| hasher.update(run));
        hasher.finish()
    })
}

fn has_layer(size: u64) -> bool {
    FileLayout::new(size).is_some_and(|layout| layout.piece_count() > 1)
}

/// The tree of a file with several pieces and this piece layer; `None` if the layer does not fold
/// to the id.
fn tree_of(id: FileId, size: u64, layer: Vec<Hash>) -> Option<FileTree> {
    let root: Root = merkle::fold(&layer, &FileLayout::new(size)?)?;
    (FileId::derive(size, &root) == id).then_some(FileTree {
        size,
        root,
        piece_hashes: layer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    fn verify(verifier: &UnitVerifier, unit: u32, data: &[u8]) -> bool {
        verifier.verify(unit, &bytes::Bytes::copy_from_slice(data).into())
    }

    #[test]
    fn each_piece_of_a_file_is_verified() {
        let data = bytes(3 * 128 * 1024 + 5);
        let tree = hash::hash_bytes(&data);
        let plan = Arc::new(Plan::of_file(tree.id(), tree.size).unwrap());
        let verifier = UnitVerifier::new(Arc::clone(&plan));
        assert_eq!(verifier.missing_layers(), [0]);
        let first = &data[..128 * 1024];
        assert!(!verify(&verifier, 0, first), "nothing passes without the layer");
        let mut wrong = tree.piece_hashes.clone();
        wrong[1][0] ^= 1;
        assert!(!verifier.add_layer(0, wrong));
        assert!(!verifier.add_layer(0, tree.piece_hashes[1..].to_vec()));
        assert!(verifier.add_layer(0, tree.piece_hashes));
        assert!(verify(&verifier, 0, first));
        assert!(verify(&verifier, 3, &data[3 * 128 * 1024..]));
        assert!(!verify(&verifier, 1, first), "a good piece in the wrong place");
        assert!(!verify(&verifier, 0, &first[1..]), "too short");
        let mut flipped = first.to_vec();
        flipped[77_777] ^= 1;
        assert!(!verify(&verifier, 0, &flipped));
    }

    #[test]
    fn a_file_of_one_piece_is_verified_by_its_id() {
        let data = bytes(1000);
        let tree = hash::hash_bytes(&data);
        let verifier = UnitVerifier::new(Arc::new(Plan::of_file(tree.id(), tree.size).unwrap()));
        assert!(verifier.missing_layers().is_empty());
        assert!(verify(&verifier, 0, &data));
        assert!(!verify(&verifier, 0, &data[1..]));
        assert_eq!(verifier.tree(0), Some(tree));
    }

    /// A verifier of these files, and their trees. A file of 3 GiB that nobody has makes the unit
    /// size 1 MiB.
    fn in_large_folder(files: &[Vec<u8>]) -> (UnitVerifier, Vec<FileTree>) {
        use potluck_core::collection::{
            manifest::{EntryContent, Manifest, ManifestEntry},
            path::RelPath,
        };
        let names: Vec<String> = (0..=files.len()).map(|n| format!("{n:04}")).collect();
        let trees: Vec<_> = files.iter().map(|file| hash::hash_bytes(file)).collect();
        let contents = trees.iter().map(|tree| (tree.id(), tree.size));
        let contents = contents.chain([(FileId([1; 32]), 3 << 30)]);
        let entries = names
            .iter()
            .zip(contents)
            .map(|(name, (id, size))| ManifestEntry {
                path: RelPath::parse(name).unwrap(),
                content: EntryContent::File {
                    id,
                    size,
                    executable: false,
                },
            });
        let manifest = Arc::new(Manifest::new(entries).unwrap());
        let verifier = UnitVerifier::new(Arc::new(Plan::of_collection(&manifest)));
        (verifier, trees)
    }

    #[test]
    fn every_file_of_a_bundle_is_verified() {
        let mut files: Vec<Vec<u8>> = (0..3 * SMALL_BATCH + 7)
            .map(|n| bytes(1 + n * 23).into_iter().map(|byte| byte ^ n as u8).collect())
            .collect();
        // A file of one piece, and one of several.
        files.extend([bytes(100_000), bytes(400_000)]);
        let (verifier, trees) = in_large_folder(&files);
        let good = files.concat();
        for at in [0, good.len() / 3, good.len() / 2, good.len() - 1] {
            let mut wrong = good.clone();
            wrong[at] ^= 1;
            assert!(!verify(&verifier, 0, &wrong), "byte {at}");
        }
        // Splits the bundle into chunks that do not align with the files.
        let mut chunk_list = ChunkList::default();
        let mut left = good.len();
        for run in good.chunks(40_001) {
            chunk_list.push(run.to_vec().into(), left);
            left -= run.len();
        }
        assert!(verifier.verify(0, &chunk_list));
        for (file, tree) in trees.into_iter().enumerate() {
            assert_eq!(verifier.tree(file), Some(tree));
        }
    }

    #[test]
    fn a_unit_of_several_pieces_is_verified_piece_by_piece() {
        const MIB: usize = 1 << 20;
        let data = bytes(MIB + 300_000);
        let (verifier, mut trees) = in_large_folder(std::slice::from_ref(&data));
        let tree = trees.remove(0);
        let id = tree.id();
        let (first, rest) = data.split_at(MIB);
        assert_eq!(verifier.missing_layers(), [0, 1], "the files of several units");
        assert!(!verify(&verifier, 0, first), "without the layer nothing passes");
        assert!(verifier.add_layer(0, tree.piece_hashes));
        assert!(verify(&verifier, 0, first) && verify(&verifier, 1, rest));
        assert!(
            !verify(&verifier, 1, &first[..rest.len()]),
            "another part of the file"
        );
        for (unit, part, at, piece) in
            [(0, first, 0, 0), (0, first, 400_000, 3), (1, rest, 299_999, 10)]
        {
            let mut wrong = part.to_vec();
            wrong[at] ^= 1;
            assert!(!verify(&verifier, unit, &wrong));
            let wrong = bytes::Bytes::from(wrong).into();
            let bad = verifier.bad_pieces(unit, &wrong).unwrap();
            assert_eq!((bad.id, bad.first, bad.count), (id, piece, 1));
        }
    }

    #[test]
    fn an_empty_file_with_a_wrong_root_is_detected() {
        let id = FileId::derive(0, &Root([3; 32]));
        let verifier = UnitVerifier::new(Arc::new(Plan::of_file(id, 0).unwrap()));
        assert_eq!(verifier.invalid_empty_file(), Some(id));
        let id = hash::hash_bytes(&[]).id();
        let verifier = UnitVerifier::new(Arc::new(Plan::of_file(id, 0).unwrap()));
        assert_eq!(verifier.invalid_empty_file(), None);
    }
}
