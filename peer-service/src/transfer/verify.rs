//! Whether the bytes of a unit are what the id commits to. Pure.
//!
//! Invariant: a piece layer is kept only if it folds into its file's id, so whatever passes [`Checks::verify`] belongs to the id
//! that the transfer is for.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use potluck_core::{
    FileId, FileLayout, Root, hash,
    merkle::{self, FileTree, Hash, PieceHasher},
    plan::{BUNDLE_SIZE, Plan},
};

use super::rope::Rope;

/// What the units of a plan are checked against.
#[derive(Debug)]
pub(crate) struct Checks {
    plan: Arc<Plan>,
    /// Of each file of the plan: its tree, from a layer that folded or from bytes that verified.
    trees: Vec<OnceLock<FileTree>>,
}

impl Checks {
    /// Checks without any piece layer yet.
    pub(crate) fn new(plan: Arc<Plan>) -> Self {
        let trees = plan.files().iter().map(|_| OnceLock::new()).collect();
        Self { plan, trees }
    }

    /// The files, by their place in the plan, whose piece layer is needed.
    pub(crate) fn needed(&self) -> Vec<usize> {
        let files = self.plan.files().iter().enumerate();
        files
            .filter(|(_, file)| match file.entries.is_empty() {
                true => FileLayout::new(file.size).is_some_and(|layout| layout.piece_count() > 1),
                false => file.size > BUNDLE_SIZE,
            })
            .map(|(index, _)| index)
            .filter(|&index| self.trees[index].get().is_none())
            .collect()
    }

    /// Takes a file's piece layer from a stranger; false where it does not fold into the file's id.
    pub(crate) fn offer_layer(&self, file: usize, layer: Vec<Hash>) -> bool {
        let planned = &self.plan.files()[file];
        match tree_of(planned.id, planned.size, layer) {
            Some(tree) => {
                // Whoever was first had the same tree: the id commits to it.
                let _ = self.trees[file].set(tree);
                true
            }
            None => false,
        }
    }

    /// Whether these are the unit's bytes. Hashes all of them: not for the async threads.
    pub(crate) fn verify(&self, unit: u32, data: &Rope) -> bool {
        if data.len() as u64 != self.plan.unit_len(unit) {
            return false;
        }
        let mut at = 0;
        self.plan.spans(unit).all(|span| {
            let range = at..at + span.len as usize;
            at = range.end;
            match span.whole {
                true => self.verify_whole(span.file, data, range),
                false => self.verify_piece(span.file, span.offset, data, range),
            }
        })
    }

    fn verify_piece(&self, file: usize, offset: u64, data: &Rope, range: Range<usize>) -> bool {
        let Some(layout) = FileLayout::new(self.plan.files()[file].size) else {
            return false;
        };
        let piece = (offset / layout.piece_size()) as usize;
        let expected = self.trees[file]
            .get()
            .and_then(|tree| tree.piece_hashes.get(piece));
        let mut hasher = PieceHasher::new(&layout);
        data.slices(range).for_each(|run| hasher.update(run));
        expected == Some(&hasher.finish())
    }

    fn verify_whole(&self, file: usize, data: &Rope, range: Range<usize>) -> bool {
        let runs: Vec<&[u8]> = data.slices(range).collect();
        let tree = match runs[..] {
            [run] => hash::hash_bytes(run),
            _ => hash::hash_bytes(&runs.concat()),
        };
        let good = tree.id() == self.plan.files()[file].id;
        if good {
            let _ = self.trees[file].set(tree);
        }
        good
    }

    /// The file's tree, where it is known by now.
    pub(crate) fn tree(&self, file: usize) -> Option<&FileTree> {
        self.trees.get(file)?.get()
    }

    /// Whether every empty file of the plan is what its id says: no unit brings its content. The first that is not.
    pub(crate) fn false_empty(&self) -> Option<FileId> {
        let empty = hash::hash_bytes(&[]);
        for (index, file) in self.plan.files().iter().enumerate() {
            if file.size == 0 {
                if file.id != empty.id() {
                    return Some(file.id);
                }
                let _ = self.trees[index].set(empty.clone());
            }
        }
        None
    }
}

/// The tree of a file of several pieces with this layer; `None` where the layer does not fold into the id.
pub(crate) fn tree_of(id: FileId, size: u64, layer: Vec<Hash>) -> Option<FileTree> {
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

    fn verify(checks: &Checks, unit: u32, data: &[u8]) -> bool {
        checks.verify(unit, &data.to_vec().into())
    }

    #[test]
    fn pieces_of_a_file_are_checked_one_by_one() {
        let data = bytes(3 * 128 * 1024 + 5);
        let tree = hash::hash_bytes(&data);
        let plan = Arc::new(Plan::file(tree.id(), tree.size).unwrap());
        let checks = Checks::new(Arc::clone(&plan));
        assert_eq!(checks.needed(), [0]);
        let first = &data[..128 * 1024];
        assert!(!verify(&checks, 0, first), "without the layer nothing passes");
        let mut wrong = tree.piece_hashes.clone();
        wrong[1][0] ^= 1;
        assert!(!checks.offer_layer(0, wrong));
        assert!(!checks.offer_layer(0, tree.piece_hashes[1..].to_vec()));
        assert!(checks.offer_layer(0, tree.piece_hashes));
        assert!(verify(&checks, 0, first));
        assert!(verify(&checks, 3, &data[3 * 128 * 1024..]));
        assert!(!verify(&checks, 1, first), "a good piece in the wrong place");
        assert!(!verify(&checks, 0, &first[1..]), "too short");
        let mut flipped = first.to_vec();
        flipped[77_777] ^= 1;
        assert!(!verify(&checks, 0, &flipped));
    }

    #[test]
    fn a_file_of_one_piece_is_its_id() {
        let data = bytes(1000);
        let tree = hash::hash_bytes(&data);
        let checks = Checks::new(Arc::new(Plan::file(tree.id(), tree.size).unwrap()));
        assert!(checks.needed().is_empty());
        assert!(verify(&checks, 0, &data));
        assert!(!verify(&checks, 0, &data[1..]));
        assert_eq!(checks.tree(0), Some(&tree));
    }

    #[test]
    fn an_empty_file_with_a_made_up_root_is_noticed() {
        let id = FileId::derive(0, &Root([3; 32]));
        let checks = Checks::new(Arc::new(Plan::file(id, 0).unwrap()));
        assert_eq!(checks.false_empty(), Some(id));
        let id = hash::hash_bytes(&[]).id();
        let checks = Checks::new(Arc::new(Plan::file(id, 0).unwrap()));
        assert_eq!(checks.false_empty(), None);
    }
}
