//! The best of many items, in bounded memory. Pure.

use std::collections::BinaryHeap;

/// The least items of those that were added, up to a maximum number.
#[derive(Debug)]
pub(crate) struct Best<T> {
    items: BinaryHeap<T>,
    max: usize,
    is_truncated: bool,
}

/// The least items that were added.
#[derive(Debug)]
pub(crate) struct Ranking<T> {
    /// In descending order: the next item is the last.
    pub(crate) items: Vec<T>,
    /// Whether other items were added.
    pub(crate) is_truncated: bool,
}

impl<T> Default for Ranking<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            is_truncated: false,
        }
    }
}

impl<T: Ord> Best<T> {
    /// Keeps at most `max` items.
    pub(crate) const fn new(max: usize) -> Self {
        Self {
            items: BinaryHeap::new(),
            max,
            is_truncated: false,
        }
    }

    /// Whether an item that is not less than `bound` may be among the best. Each item for which this
    /// is false counts as added.
    pub(crate) fn may_keep(&mut self, bound: &T) -> bool {
        let may_keep =
            self.items.len() < self.max || self.items.peek().is_some_and(|worst| bound < worst);
        self.is_truncated |= !may_keep;
        may_keep
    }

    /// Adds an item.
    pub(crate) fn add(&mut self, item: T) {
        if self.may_keep(&item) {
            self.items.push(item);
            if self.items.len() > self.max {
                self.items.pop();
                self.is_truncated = true;
            }
        }
    }

    /// Takes the items and leaves none.
    pub(crate) fn take(&mut self) -> Ranking<T> {
        let mut items = std::mem::take(&mut self.items).into_sorted_vec();
        items.reverse();
        Ranking {
            items,
            is_truncated: std::mem::take(&mut self.is_truncated),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_least_items_remain(items in prop::collection::vec(0..50u8, 0..40), max in 0..10usize) {
            let mut best = Best::new(max);
            items.iter().for_each(|&item| best.add(item));
            let mut sorted = items.clone();
            sorted.sort_unstable();
            sorted.truncate(max);
            sorted.reverse();
            let Ranking { items: found, is_truncated } = best.take();
            prop_assert_eq!(found, sorted);
            prop_assert_eq!(is_truncated, items.len() > max);
            prop_assert!(best.take().items.is_empty());
        }
    }
}
