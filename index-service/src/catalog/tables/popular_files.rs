//! The files with several providers, in classes of similar numbers of providers.
//!
//! A search that finds very many files begins with those of the highest class, so that it need not
//! rank all of them. Class 1 is for 2 to 7 providers, and each further class for four times as many.
//! Few files change their class at a time, and a bitmap takes at most two bytes per file.
//!
//! Invariant: a file with several providers is in the bitmap of its class, and in no other.

use roaring::RoaringBitmap;

/// The files with several providers.
#[derive(Debug, Default)]
pub(crate) struct PopularFiles {
    /// By class, without class 0.
    classes: Vec<RoaringBitmap>,
}

/// A place in the order of the popular files: highest class first, then by slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PopularPlace {
    /// [`MAX_CLASS`] less the class.
    pub(crate) rank: u32,
    /// The slot of the file.
    pub(crate) file: u32,
}

/// No file has more providers than fit 32 bits.
pub(crate) const MAX_CLASS: u32 = 16;

/// The class of a file; 0 if it has at most one provider.
pub(crate) const fn class_of(providers: usize) -> u32 {
    match providers.checked_ilog2() {
        Some(log) => log.div_ceil(2),
        None => 0,
    }
}

impl PopularFiles {
    /// Tells that the number of providers of a file changed.
    pub(crate) fn update(&mut self, file: u32, old: usize, new: usize) {
        let (old, new) = (class_of(old), class_of(new));
        if old == new {
            return;
        }
        if old > 0 {
            self.classes[old as usize - 1].remove(file);
        }
        if new > 0 {
            if self.classes.len() < new as usize {
                self.classes.resize_with(new as usize, RoaringBitmap::new);
            }
            self.classes[new as usize - 1].insert(file);
        }
    }

    /// Number of files with several providers.
    pub(crate) fn len(&self) -> u64 {
        self.classes.iter().map(RoaringBitmap::len).sum()
    }

    /// The first place, of the most popular files.
    pub(crate) const fn first(&self) -> PopularPlace {
        let class = self.classes.len() as u32; // at most MAX_CLASS
        PopularPlace {
            rank: MAX_CLASS.saturating_sub(class),
            file: 0,
        }
    }

    /// The files from a place on.
    pub(crate) fn from(&self, place: PopularPlace) -> impl Iterator<Item = PopularPlace> + '_ {
        (place.rank..MAX_CLASS).flat_map(move |rank| {
            let from = if rank == place.rank { place.file } else { 0 };
            let files = self.classes.get((MAX_CLASS - rank) as usize - 1);
            files
                .into_iter()
                .flat_map(move |files| files.range(from..))
                .map(move |file| PopularPlace { rank, file })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn classes_are_four_times_as_large_as_the_one_before() {
        let classes: Vec<u32> = [0, 1, 2, 7, 8, 31, 32, 127, 128].map(class_of).to_vec();
        assert_eq!(classes, [0, 0, 1, 1, 2, 2, 3, 3, 4]);
        assert_eq!(class_of(u32::MAX as usize), MAX_CLASS);
    }

    proptest! {
        #[test]
        fn files_are_ordered_by_class(
            changes in prop::collection::vec((0..20u32, 0..40usize), 0..60),
            from in (0..=MAX_CLASS, 0..20u32),
        ) {
            let mut popular = PopularFiles::default();
            let mut model: BTreeMap<u32, usize> = BTreeMap::new();
            for (file, count) in changes {
                let old = model.insert(file, count).unwrap_or_default();
                popular.update(file, old, count);
            }
            let from = PopularPlace { rank: from.0, file: from.1 };
            let places = model.iter().map(|(&file, &count)| PopularPlace {
                rank: MAX_CLASS - class_of(count),
                file,
            });
            let mut expected: Vec<_> =
                places.filter(|place| place.rank < MAX_CLASS && *place >= from).collect();
            expected.sort_unstable();
            prop_assert!(popular.from(from).eq(expected));
        }
    }
}
