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
    Two([(u32, u32); 2]),
    Few(Vec<(u32, u32)>),
    #[expect(
        clippy::box_collection,
        reason = "in its own place it would make the other forms larger"
    )]
    Many(Box<BTreeMap<u32, u32>>),
}

impl Default for RefCountedSet {
    fn default() -> Self {
        Self::Two([(0, 0); 2])
    }
}

impl RefCountedSet {
    /// Adds one reference to a file.
    pub(crate) fn add(&mut self, file: u32) {
        match self {
            Self::Two(two) => {
                let taken = used_slots(two);
                match find(&two[..taken], file) {
                    Ok(at) => two[at].1 += 1,
                    Err(at) if taken < two.len() => {
                        two[at..].rotate_right(1);
                        two[at] = (file, 1);
                    }
                    Err(at) => {
                        let mut few = two.to_vec();
                        few.insert(at, (file, 1));
                        *self = Self::Few(few);
                    }
                }
            }
            Self::Few(few) => {
                match find(few, file) {
                    Ok(at) => few[at].1 += 1,
                    Err(at) => few.insert(at, (file, 1)),
                }
                if few.len() > MAX_LIST {
                    *self = Self::Many(Box::new(few.drain(..).collect()));
                }
            }
            Self::Many(many) => *many.entry(file).or_default() += 1,
        }
    }

    /// Removes one reference to a file; true once the set is empty.
    pub(crate) fn subtract(&mut self, file: u32) -> bool {
        match self {
            Self::Two(two) => {
                if let Ok(at) = find(&two[..used_slots(two)], file) {
                    two[at].1 -= 1;
                    if two[at].1 == 0 {
                        two[at..].rotate_left(1);
                    }
                }
            }
            Self::Few(few) => {
                if let Ok(at) = find(few, file) {
                    few[at].1 -= 1;
                    if few[at].1 == 0 {
                        few.remove(at);
                    }
                }
            }
            Self::Many(many) => {
                if let Some(count) = many.get_mut(&file) {
                    *count -= 1;
                    if *count == 0 {
                        many.remove(&file);
                    }
                }
            }
        }
        self.len() == 0
    }

    /// Number of files.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Many(many) => many.len(),
            _ => self.list().len(),
        }
    }

    /// The files in order, from slot `file` on.
    pub(crate) fn from(&self, file: u32) -> impl Iterator<Item = u32> + '_ {
        let list = self.list();
        let start = list.partition_point(|&(slot, _)| slot < file);
        let tree = match self {
            Self::Many(many) => Some(many.range(file..)),
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
            Self::Two(two) => &two[..used_slots(two)],
            Self::Few(few) => few,
            Self::Many(_) => &[],
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
    fn takes_no_more_than_a_list() {
        assert_eq!(size_of::<RefCountedSet>(), size_of::<Vec<(u32, u32)>>());
    }

    #[test]
    fn many_are_no_list_that_is_moved_for_each_that_goes() {
        let mut counted = RefCountedSet::default();
        let all = 0..MAX_LIST as u32 + 1;
        all.clone().for_each(|file| counted.add(file));
        assert!(matches!(counted, RefCountedSet::Many(_)));
        for file in all.clone() {
            assert!(counted.from(0).eq(file..all.end));
            assert_eq!(counted.subtract(file), file + 1 == all.end);
        }
    }

    proptest! {
        /// Compares all three forms with a plain map.
        #[test]
        fn behaves_as_a_plain_map(
            steps in prop::collection::vec((any::<bool>(), 0..100u32), 0..600),
            files in prop::sample::select(vec![2u32, 4, MAX_LIST as u32, 100]),
            from in 0..100u32,
        ) {
            let mut counted = RefCountedSet::default();
            let mut model = BTreeMap::<u32, u32>::new();
            for (more, file) in steps {
                let file = file % files;
                // Add more often than remove, so that every form occurs.
                if more || file % 3 == 0 {
                    counted.add(file);
                    *model.entry(file).or_default() += 1;
                } else {
                    if let Some(count) = model.get_mut(&file) {
                        *count -= 1;
                        model.retain(|_, count| *count > 0);
                    }
                    prop_assert_eq!(counted.subtract(file), model.is_empty());
                }
                prop_assert_eq!(counted.len(), model.len());
            }
            prop_assert!(counted.from(from).eq(model.range(from..).map(|(&file, _)| file)));
            for (file, count) in std::mem::take(&mut model) {
                for left in (0..count).rev() {
                    prop_assert!(counted.from(file).next() == Some(file));
                    let none = counted.subtract(file);
                    prop_assert_eq!(none, left == 0 && counted.len() == 0);
                }
            }
            prop_assert_eq!(counted.len(), 0);
        }
    }
}
