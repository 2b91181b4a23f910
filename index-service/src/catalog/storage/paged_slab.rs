//! Slots for values, in pages that never move.
//!
//! A vector that doubles copies all of its elements at once, and needs room for both copies. This
//! one adds a page. Free slots are linked through the elements themselves, so they take no memory
//! of their own.
//!
//! Invariant: each slot below [`PagedSlab::end`] is either in use or linked once from `free`.

use std::ops::{Index, IndexMut};

/// Elements per page.
const PAGE: u32 = 1024;

/// The end of the list of free slots.
const NONE: u32 = u32::MAX;

/// A value that can also stand for a free slot, so that a slot is no larger than the value.
pub(crate) trait SlabElement {
    /// A free slot. `next` is the next free one.
    fn free(next: u32) -> Self;

    /// The next free slot, if this is a free slot.
    fn next_free(&self) -> Option<u32>;
}

/// A [`SlabElement`] of any value.
#[derive(Debug)]
pub(crate) enum Slot<T> {
    Used(T),
    Free(u32),
}

impl<T> SlabElement for Slot<T> {
    fn free(next: u32) -> Self {
        Self::Free(next)
    }

    fn next_free(&self) -> Option<u32> {
        match self {
            Self::Used(_) => None,
            Self::Free(next) => Some(*next),
        }
    }
}

/// The elements, indexed by slot.
#[derive(Debug)]
pub(crate) struct PagedSlab<E> {
    pages: Vec<Vec<E>>,
    /// Number of slots in use.
    len: u32,
    /// One past the highest slot that was ever used.
    end: u32,
    /// The first free slot.
    free: u32,
}

impl<E> Default for PagedSlab<E> {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            len: 0,
            end: 0,
            free: NONE,
        }
    }
}

impl<E: SlabElement> PagedSlab<E> {
    /// Stores a value and returns its slot.
    pub(crate) fn insert(&mut self, value: E) -> u32 {
        self.len += 1;
        if self.free != NONE {
            let slot = self.free;
            let element = self.at_mut(slot);
            let next = element.next_free().expect("the list links free slots");
            *element = value;
            self.free = next;
            return slot;
        }
        let slot = self.end;
        assert!(slot != NONE, "all slots are in use");
        if slot.is_multiple_of(PAGE) {
            self.pages.push(Vec::with_capacity(PAGE as usize));
        }
        if let Some(page) = self.pages.last_mut() {
            page.push(value);
        }
        self.end += 1;
        slot
    }

    /// Frees a slot in use and returns its value.
    pub(crate) fn remove(&mut self, slot: u32) -> E {
        let free = E::free(self.free);
        let value = std::mem::replace(self.at_mut(slot), free);
        debug_assert!(value.next_free().is_none(), "slot {slot} is free already");
        self.free = slot;
        self.len -= 1;
        value
    }

    /// The value in a slot, if the slot is in use.
    pub(crate) fn get(&self, slot: u32) -> Option<&E> {
        let element = self
            .pages
            .get((slot / PAGE) as usize)?
            .get((slot % PAGE) as usize)?;
        element.next_free().is_none().then_some(element)
    }

    /// Number of slots in use.
    pub(crate) const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether no slot is in use.
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, slot: u32) -> &E {
        &self.pages[(slot / PAGE) as usize][(slot % PAGE) as usize]
    }

    fn at_mut(&mut self, slot: u32) -> &mut E {
        &mut self.pages[(slot / PAGE) as usize][(slot % PAGE) as usize]
    }
}

impl<E: SlabElement> Index<u32> for PagedSlab<E> {
    type Output = E;

    fn index(&self, slot: u32) -> &E {
        self.at(slot)
    }
}

impl<E: SlabElement> IndexMut<u32> for PagedSlab<E> {
    fn index_mut(&mut self, slot: u32) -> &mut E {
        self.at_mut(slot)
    }
}

/// A slab of values that cannot stand for a free slot by themselves.
#[derive(Debug)]
pub(crate) struct Slots<T>(PagedSlab<Slot<T>>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(PagedSlab::default())
    }
}

impl<T> Slots<T> {
    /// Stores a value and returns its slot.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.0.insert(Slot::Used(value))
    }

    /// Frees a slot in use and returns its value.
    pub(crate) fn remove(&mut self, slot: u32) -> T {
        match self.0.remove(slot) {
            Slot::Used(value) => value,
            Slot::Free(_) => panic!("slot {slot} is free already"),
        }
    }

    /// The value in a slot, if the slot is in use.
    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        match self.0.get(slot)? {
            Slot::Used(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    /// One past the highest slot that was ever used.
    pub(crate) const fn end(&self) -> u32 {
        self.0.end
    }

    /// The values, in the order of their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.pages.iter().flatten().filter_map(|slot| match slot {
            Slot::Used(value) => Some(value),
            Slot::Free(_) => None,
        })
    }

    /// Number of slots in use.
    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }
}

impl<T> Index<u32> for Slots<T> {
    type Output = T;

    fn index(&self, slot: u32) -> &T {
        match self.0.at(slot) {
            Slot::Used(value) => value,
            Slot::Free(_) => panic!("slot {slot} is free"),
        }
    }
}

impl<T> IndexMut<u32> for Slots<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        match self.0.at_mut(slot) {
            Slot::Used(value) => value,
            Slot::Free(_) => panic!("slot {slot} is free"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec(any::<Option<u16>>(), 0..3000)) {
            let mut slab = Slots::default();
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Some(value) if value % 3 > 0 || model.is_empty() => {
                        let slot = slab.insert(value);
                        prop_assert_eq!(model.insert(slot, value), None, "a slot in use");
                    }
                    value => {
                        let nth = usize::from(value.unwrap_or_default()) % model.len().max(1);
                        if let Some(slot) = model.keys().nth(nth).copied() {
                            prop_assert_eq!(Some(slab.remove(slot)), model.remove(&slot));
                            prop_assert!(slab.0.get(slot).is_none());
                        }
                    }
                }
                prop_assert_eq!(slab.len(), model.len());
            }
            for slot in 0..slab.0.end {
                let used = slab.0.get(slot).is_some().then(|| slab[slot]);
                prop_assert_eq!(used.as_ref(), model.get(&slot));
            }
        }
    }
}
