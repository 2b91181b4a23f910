//! A set of files, each with a reference count, ordered by slot. Pure.
//!
//! Invariant: a file is in the set exactly as long as its count is positive. Most sets contain one
//! or two files, which are stored inline. Some sets contain a large part of all files and change
//! one file at a time, so they use a tree.

use std::collections::BTreeMap;

/// Maximum length of a list before it becomes a tree: a shorter list is smaller and as fast to
/// change.
const MAX_LIST: usize = 64;

/// A set of file slots with reference counts.
#[derive(Debug)]
pub(crate) enum RefCountedSet {
    /// Two slots with counts; unused elements have count zero and come last.
    Inline([(u32, u32); 2]),
    List(Vec<(u32, u32)>),
    #[expect(
        clippy::box_collection,
        reason = "unboxed, it would make the other variants larger"
    )]
    Tree(Box<BTreeMap<u32, u32>>),
}

impl Default for RefCountedSet {
    fn default() -> Self {
        Self::Inline([(0, 0); 2])
    }
}

impl RefCountedSet {
    /// Adds one reference to a file.
    pub(crate) fn add(&mut self, file: u32) {
        match self {
            Self::Inline(inline) => {
                let used = used_slots(inline);
                match find(&inline[..used], file) {
                    Ok(at) => inline[at].1 += 1,
                    Err(at) if used < inline.len() => {
                        inline[at..].rotate_right(1);
                        inline[at] = (file, 1);
                    }
                    Err(at) => {
                        let mut list = inline.to_vec();
                        list.insert(at, (file, 1));
                        *self = Self::List(list);
                    }
                }
            }
            Self::List(list) => {
                match find(list, file) {
                    Ok(at) => list[at].1 += 1,
                    Err(at) => list.insert(at, (file, 1)),
                }
                if list.len() > MAX_LIST {
                    *self = Self::Tree(Box::new(list.drain(..).collect()));
                }
            }
            Self::Tree(tree) => *tree.entry(file).or_default() += 1,
        }
    }

    /// Removes one reference to a file; true once the set is empty.
    pub(crate) fn remove(&mut self, file: u32) -> bool {
        match self {
            Self::Inline(inline) => {
                if let Ok(at) = find(&inline[..used_slots(inline)], file) {
                    inline[at].1 -= 1;
                    if inline[at].1 == 0 {
                        inline[at..].rotate_left(1);
                    }
                }
            }
            Self::List(list) => {
                if let Ok(at) = find(list, file) {
                    list[at].1 -= 1;
                    if list[at].1 == 0 {
                        list.remove(at);
                    }
                }
            }
            Self::Tree(tree) => {
                if let Some(count) = tree.get_mut(&file) {
                    *count -= 1;
                    if *count == 0 {
                        tree.remove(&file);
                    }
                }
            }
        }
        self.len() == 0
    }

    /// The only file, if the set contains one file with one reference. A tree never becomes small
    /// again, so that a set that grows and shrinks stays as it is.
    pub(crate) fn only(&self) -> Option<u32> {
        match self {
            Self::Tree(_) => None,
            _ => match self.list() {
                [(file, 1)] => Some(*file),
                _ => None,
            },
        }
    }

    /// Number of files.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Tree(tree) => tree.len(),
            _ => self.list().len(),
        }
    }

    /// The files in order, from slot `file` on.
    pub(crate) fn range_from(&self, file: u32) -> impl Iterator<Item = u32> + '_ {
        let list = self.list();
        let start = list.partition_point(|&(slot, _)| slot < file);
        let tree = match self {
            Self::Tree(tree) => Some(tree.range(file..)),
            _ => None,
        };
        list[start..]
            .iter()
            .map(|&(slot, _)| slot)
            .chain(tree.into_iter().flatten().map(|(&slot, _)| slot))
    }

    /// The elements in list form; empty if the set is a tree.
    fn list(&self) -> &[(u32, u32)] {
        match self {
            Self::Inline(inline) => &inline[..used_slots(inline)],
            Self::List(list) => list,
            Self::Tree(_) => &[],
        }
    }
}

/// Number of used elements.
fn used_slots(slots: &[(u32, u32)]) -> usize {
    slots.partition_point(|&(_, count)| count > 0)
}

/// The position of a file, or where to insert it.
fn find(files: &[(u32, u32)], file: u32) -> Result<usize, usize> {
    files.binary_search_by_key(&file, |&(slot, _)| slot)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_set_is_no_larger_than_a_vector() {
        assert_eq!(size_of::<RefCountedSet>(), size_of::<Vec<(u32, u32)>>());
    }

    #[test]
    fn a_large_set_is_a_tree() {
        let mut set = RefCountedSet::default();
        let all = 0..MAX_LIST as u32 + 1;
        all.clone().for_each(|file| set.add(file));
        assert!(matches!(set, RefCountedSet::Tree(_)));
        for file in all.clone() {
            assert!(set.range_from(0).eq(file..all.end));
            assert_eq!(set.remove(file), file + 1 == all.end);
        }
    }

    proptest! {
        /// Compares all three forms with a plain map.
        #[test]
        fn behaves_like_a_plain_map(
            steps in prop::collection::vec((any::<bool>(), 0..100u32), 0..600),
            files in prop::sample::select(vec![2u32, 4, MAX_LIST as u32, 100]),
            from in 0..100u32,
        ) {
            let mut set = RefCountedSet::default();
            let mut model = BTreeMap::<u32, u32>::new();
            for (is_add, file) in steps {
                let file = file % files;
                // Add more often than remove, so that every form occurs.
                if is_add || file % 3 == 0 {
                    set.add(file);
                    *model.entry(file).or_default() += 1;
                } else {
                    if let Some(count) = model.get_mut(&file) {
                        *count -= 1;
                        model.retain(|_, count| *count > 0);
                    }
                    prop_assert_eq!(set.remove(file), model.is_empty());
                }
                prop_assert_eq!(set.len(), model.len());
            }
            prop_assert!(set.range_from(from).eq(model.range(from..).map(|(&file, _)| file)));
            for (file, count) in std::mem::take(&mut model) {
                for remaining in (0..count).rev() {
                    prop_assert!(set.range_from(file).next() == Some(file));
                    let is_empty = set.remove(file);
                    prop_assert_eq!(is_empty, remaining == 0 && set.len() == 0);
                }
            }
            prop_assert_eq!(set.len(), 0);
        }
    }
}
