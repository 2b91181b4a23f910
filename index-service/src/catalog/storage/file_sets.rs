//! Sets of files with reference counts, most of which contain one file once.
//!
//! Such a set is only the slot of its file. Larger ones are in a table.

use crate::catalog::storage::{paged_slab::Slots, ref_counted_set::RefCountedSet};

/// Marks a slot in the table of larger sets.
const IS_LARGE: u32 = 1 << 31;

/// A set without files.
const EMPTY: u32 = u32::MAX;

/// One set: the slot of its only file, or of the set in [`FileSets`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileSet(u32);

impl Default for FileSet {
    fn default() -> Self {
        Self(EMPTY)
    }
}

impl FileSet {
    /// Stands for no set at all.
    pub(crate) const FREE: Self = Self(EMPTY - 1);

    const fn large(&self) -> Option<u32> {
        match self.0 != EMPTY && self.0 & IS_LARGE != 0 {
            true => Some(self.0 & !IS_LARGE),
            false => None,
        }
    }
}

/// The larger sets.
#[derive(Debug, Default)]
pub(crate) struct FileSets {
    large: Slots<RefCountedSet>,
}

/// The files in a set.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FilesIn<'a> {
    One(u32),
    Large(&'a RefCountedSet),
}

impl<'a> FilesIn<'a> {
    /// Number of files.
    pub(crate) fn len(self) -> u64 {
        match self {
            Self::One(_) => 1,
            Self::Large(set) => set.len() as u64,
        }
    }

    /// The files in order, from slot `file` on.
    pub(crate) fn range_from(self, file: u32) -> impl Iterator<Item = u32> + 'a {
        let (one, large) = match self {
            Self::One(one) => (Some(one).filter(|&one| one >= file), None),
            Self::Large(set) => (None, Some(set.range_from(file))),
        };
        one.into_iter().chain(large.into_iter().flatten())
    }
}

impl FileSets {
    /// Adds one reference to a file.
    pub(crate) fn add(&mut self, set: &mut FileSet, file: u32) {
        debug_assert!(file < IS_LARGE, "too many files");
        if let Some(large) = set.large() {
            self.large[large].add(file);
        } else if set.0 == EMPTY {
            set.0 = file;
        } else {
            let mut large = RefCountedSet::default();
            large.add(set.0);
            large.add(file);
            set.0 = self.large.insert(large) | IS_LARGE;
        }
    }

    /// Removes one reference to a file; true once the set is empty.
    pub(crate) fn remove(&mut self, set: &mut FileSet, file: u32) -> bool {
        if let Some(large) = set.large() {
            if self.large[large].remove(file) {
                self.large.remove(large);
                set.0 = EMPTY;
            } else if let Some(only) = self.large[large].only() {
                self.large.remove(large);
                set.0 = only;
            }
        } else if set.0 == file {
            set.0 = EMPTY;
        }
        set.0 == EMPTY
    }

    /// The files in a set.
    pub(crate) fn get(&self, set: &FileSet) -> FilesIn<'_> {
        match set.large() {
            Some(large) => FilesIn::Large(&self.large[large]),
            None => FilesIn::One(set.0),
        }
    }

    /// Number of larger sets.
    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.large.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_plain_maps(
            steps in prop::collection::vec((0..3usize, any::<bool>(), 0..4u32), 0..200)
        ) {
            let mut sets = FileSets::default();
            let mut all: [FileSet; 3] = Default::default();
            let mut models: [BTreeMap<u32, u32>; 3] = Default::default();
            for (n, is_add, file) in steps {
                let model = &mut models[n];
                if is_add {
                    sets.add(&mut all[n], file);
                    *model.entry(file).or_default() += 1;
                } else if let Some(count) = model.get_mut(&file) {
                    *count -= 1;
                    model.retain(|_, count| *count > 0);
                    prop_assert_eq!(sets.remove(&mut all[n], file), model.is_empty());
                }
                for (set, model) in all.iter().zip(&models) {
                    if !model.is_empty() {
                        let files: Vec<u32> = sets.get(set).range_from(1).collect();
                        prop_assert!(files.iter().eq(model.range(1..).map(|(file, _)| file)));
                    }
                }
                // Only sets of several files or references take room in the table.
                let large = models.iter().filter(|model| model.values().sum::<u32>() > 1);
                prop_assert_eq!(sets.len(), large.count());
            }
        }
    }
}
