//! The index from words to the names that contain them.
//!
//! A word that several names share is stored once, with its posting list, and found by its hash. A
//! word of only one name is not stored: it is a part of the text of that name. Real names contain
//! both kinds in plenty, and most additions find their words by hash.
//!
//! Searches by prefix need an order. The words are divided into *leaves*, each with the words of a
//! range in any order. The tree of leaves contains only the first word of each range, or the
//! beginning of it, so it is small enough for the processor's cache.
//!
//! Invariants:
//!
//! - Each word has exactly one entry, in the leaf with the greatest key that is not greater than
//!   the word.
//! - A word with an entry of one name occurs in that name only.

use std::{
    collections::BTreeMap,
    hash::BuildHasher as _,
    ops::{Bound, ControlFlow},
};

use hashbrown::DefaultHashBuilder;
use roaring::RoaringBitmap;
use smallvec::SmallVec;

use crate::catalog::{
    storage::{
        paged_slab::Slots,
        posting_list::{BlockUnion, PostingList},
        sharded_table::ShardedTable,
    },
    tables::{name_table::NameTable, words::Word},
};

/// Maximum entries of a leaf: a search may have to check the text of two leaves of them. Tests have
/// few words, and want several leaves.
const MAX_LEAF: usize = if cfg!(test) { 4 } else { 64 };

/// Entries up to which a leaf takes those of the next one.
const SMALL_LEAF: usize = MAX_LEAF.div_ceil(8);

/// Steps for checking the text of one entry.
const CHECK_STEPS: usize = 4;

/// Steps for finding a word by its hash, or in its leaf.
const FIND_STEPS: usize = 12;

/// A key of the tree. Most fit inline, so that comparing them follows no pointer.
type Key = SmallVec<[u8; 16]>;

/// The text of a word.
type WordText = SmallVec<[u8; 32]>;

/// A word in its leaf.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// The slot of the shared word, or of the only name that contains the word.
    slot: u32,
    /// A part of the hash of the word.
    fingerprint: u16,
    /// Where the word is in the name.
    start: u8,
    /// Its length; zero for a shared word.
    len: u8,
}

/// A word that several names share, or that is not a part of its name's text as it is.
#[derive(Debug)]
struct SharedWord {
    text: Box<[u8]>,
    names: PostingList,
}

/// The words.
#[derive(Debug, Default)]
pub(crate) struct WordIndex {
    hasher: DefaultHashBuilder,
    shared: Slots<SharedWord>,
    /// The shared words by text.
    by_text: ShardedTable,
    leaves: BTreeMap<Key, Vec<Entry>>,
    len: usize,
}

const fn fingerprint(hash: u64) -> u16 {
    (hash >> 16) as u16
}

impl Entry {
    const fn is_shared(self) -> bool {
        self.len == 0
    }

    /// The text of the word; of a word of one name perhaps in upper case.
    fn text<'a>(self, shared: &'a Slots<SharedWord>, names: &'a NameTable) -> &'a [u8] {
        match self.is_shared() {
            true => &shared[self.slot].text,
            false => self.text_in_name(names),
        }
    }

    fn text_in_name(self, names: &NameTable) -> &[u8] {
        &names.bytes(self.slot)[self.start.into()..][..self.len.into()]
    }

    /// Whether this is the entry of a word that only one name contains.
    fn is_unshared(self, fingerprint: u16, word: &[u8], names: &NameTable) -> bool {
        self.fingerprint == fingerprint
            && usize::from(self.len) == word.len()
            && self.text_in_name(names).eq_ignore_ascii_case(word)
    }

    fn starts_with(self, prefix: &[u8], shared: &Slots<SharedWord>, names: &NameTable) -> bool {
        let text = self.text(shared, names);
        match self.is_shared() {
            true => text.starts_with(prefix),
            false => text
                .get(..prefix.len())
                .is_some_and(|text| text.eq_ignore_ascii_case(prefix)),
        }
    }
}

impl WordIndex {
    /// Adds a name to a word; true if the word is new.
    pub(crate) fn add(&mut self, word: Word<'_>, name: u32, names: &NameTable) -> bool {
        let text = word.text.as_bytes();
        let hash = self.hasher.hash_one(text);
        if let Some(slot) = self.find_shared(hash, text) {
            self.shared[slot].names.add(name);
            return false;
        }
        let fingerprint = fingerprint(hash);
        let Self {
            hasher,
            shared,
            by_text,
            leaves,
            len,
        } = self;
        let mut insert = |names| insert_shared(hasher, shared, by_text, (hash, text.into(), names));
        let mut leaf = range_to(leaves, text).next_back().map(|(_, leaf)| leaf);
        let unshared = leaf.iter_mut().flat_map(|leaf| leaf.iter_mut());
        let mut unshared = unshared.filter(|entry| entry.is_unshared(fingerprint, text, names));
        if let Some(entry) = unshared.next() {
            let mut posting = PostingList::of(entry.slot);
            posting.add(name);
            (entry.slot, entry.len) = (insert(posting), 0);
            return false;
        }
        let (slot, start, word_len) = match word.start.zip(u8::try_from(text.len()).ok()) {
            Some((start, word_len)) => (name, start, word_len),
            None => (insert(PostingList::of(name)), 0, 0),
        };
        let entry = Entry {
            slot,
            fingerprint,
            start,
            len: word_len,
        };
        *len += 1;
        match leaf {
            Some(leaf) if leaf.len() < MAX_LEAF => leaf.push(entry),
            _ => self.leaf_for_insert(text, names).push(entry),
        }
        true
    }

    /// Removes a name from a word that it contains; true if that was the last name.
    pub(crate) fn remove(&mut self, word: Word<'_>, name: u32, names: &NameTable) -> bool {
        let text = word.text.as_bytes();
        let hash = self.hasher.hash_one(text);
        let shared = self.find_shared(hash, text);
        if let Some(slot) = shared {
            if !self.shared[slot].names.remove(name) {
                return false;
            }
            self.shared.remove(slot);
            self.by_text.remove(hash, slot);
        }
        let Some((key, leaf)) = range_to(&mut self.leaves, text).next_back() else {
            return false;
        };
        let fingerprint = fingerprint(hash);
        let at = leaf.iter().position(|entry| match shared {
            Some(slot) => entry.is_shared() && entry.slot == slot,
            None => entry.slot == name && entry.is_unshared(fingerprint, text, names),
        });
        if let Some(at) = at {
            leaf.swap_remove(at);
            self.len -= 1;
            if leaf.len() <= SMALL_LEAF {
                let key = key.clone();
                self.merge_leaf(&key);
            }
        }
        true
    }

    /// Number of words.
    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    fn find_shared(&self, hash: u64, text: &[u8]) -> Option<u32> {
        self.by_text.find(hash, |slot| &*self.shared[slot].text == text)
    }

    /// The leaf of a word, with room for one more.
    fn leaf_for_insert(&mut self, word: &[u8], names: &NameTable) -> &mut Vec<Entry> {
        let full = range_to(&mut self.leaves, word)
            .next_back()
            .filter(|(_, leaf)| leaf.len() >= MAX_LEAF)
            .map(|(key, _)| key.clone());
        if let Some(key) = full {
            self.split_leaf(&key, names);
        } else if self.leaves.is_empty() {
            self.leaves.insert(Key::new(), Vec::new());
        }
        let (_, leaf) = range_to(&mut self.leaves, word)
            .next_back()
            .expect("the first leaf has an empty key");
        leaf
    }

    fn split_leaf(&mut self, key: &Key, names: &NameTable) {
        let Some(leaf) = self.leaves.get_mut(key) else {
            return;
        };
        let mut entries: Vec<(WordText, Entry)> = leaf
            .iter()
            .map(|&entry| {
                let mut text = WordText::from_slice(entry.text(&self.shared, names));
                if !entry.is_shared() {
                    text.make_ascii_lowercase();
                }
                (text, entry)
            })
            .collect();
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let upper = entries.split_off(entries.len() / 2);
        let (Some((last, _)), Some((first, _))) = (entries.last(), upper.first()) else {
            return;
        };
        // The shortest text that divides the two halves.
        let common = last.iter().zip(first).take_while(|(a, b)| a == b).count();
        let separator = Key::from_slice(&first[..=common]);
        leaf.clear();
        leaf.extend(entries.iter().map(|&(_, entry)| entry));
        let mut new = Vec::with_capacity(MAX_LEAF);
        new.extend(upper.iter().map(|&(_, entry)| entry));
        self.leaves.insert(separator, new);
    }

    /// Moves the entries of the leaf that follows a small leaf into it, if there are few.
    fn merge_leaf(&mut self, key: &Key) {
        let next = self
            .leaves
            .range::<[u8], _>((Bound::Excluded(&**key), Bound::Unbounded))
            .next();
        let next = next
            .filter(|(_, next)| next.len() <= MAX_LEAF / 2)
            .map(|(key, _)| key.clone());
        if let Some(next) = next
            && let Some(entries) = self.leaves.remove(&next)
            && let Some(leaf) = self.leaves.get_mut(key)
        {
            leaf.extend(entries);
        }
        if let Some(leaf) = self.leaves.get_mut(key) {
            match leaf.is_empty() && !key.is_empty() {
                // The words of its range belong to the leaf before it from now on.
                true => drop(self.leaves.remove(key)),
                false => leaf.shrink_to(MAX_LEAF / 2),
            }
        }
    }

    /// Calls `each` for the entries of the words with this prefix, in no order, with the steps for
    /// finding the entry, until it returns [`ControlFlow::Break`]. `skipped` adds up the steps for
    /// other entries.
    fn each_with_prefix(
        &self,
        prefix: &[u8],
        names: &NameTable,
        skipped: &mut usize,
        mut each: impl FnMut(Entry, usize) -> ControlFlow<()>,
    ) {
        let first = self
            .leaves
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(prefix)))
            .next_back();
        let Some((first, _)) = first else {
            return;
        };
        let mut leaves = self.leaves.range::<Key, _>(first..).peekable();
        while let Some((key, leaf)) = leaves.next() {
            let begins_inside = key.starts_with(prefix);
            if !begins_inside && &**key > prefix {
                return;
            }
            let next = leaves.peek();
            let is_inside = begins_inside && next.is_some_and(|(next, _)| next.starts_with(prefix));
            *skipped += 1;
            for &entry in leaf {
                let steps = if is_inside { 0 } else { CHECK_STEPS };
                if !is_inside && !entry.starts_with(prefix, &self.shared, names) {
                    *skipped += steps;
                } else if each(entry, steps).is_break() {
                    return;
                }
            }
        }
    }

    /// Number of words with this prefix, counted up to `max`, and the steps taken.
    pub(crate) fn count(&self, prefix: &str, max: usize, names: &NameTable) -> (usize, usize) {
        let (mut count, mut steps, mut skipped) = (0, 0, 0);
        self.each_with_prefix(prefix.as_bytes(), names, &mut skipped, |_, checked| {
            count += 1;
            steps += 1 + checked;
            match count < max {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        (count, steps + skipped)
    }

    /// Number of names with a word that starts with `prefix`, or more: a name counts once per word.
    /// `None` if more than `max_words` words start like this. Also returns the steps taken.
    pub(crate) fn count_names(
        &self,
        prefix: &str,
        max_words: usize,
        names: &NameTable,
    ) -> (Option<u64>, usize) {
        let (mut words, mut count, mut steps, mut skipped) = (0, 0, 0, 0);
        self.each_with_prefix(prefix.as_bytes(), names, &mut skipped, |entry, checked| {
            words += 1;
            steps += 1 + checked;
            count += match entry.is_shared() {
                true => self.shared[entry.slot].names.len(),
                false => 1,
            };
            match words <= max_words {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        ((words <= max_words).then_some(count), steps + skipped)
    }

    /// Number of names with this word, and the steps taken.
    pub(crate) fn count_names_with(&self, word: &str, names: &NameTable) -> (u64, usize) {
        let count = match self.find_word(word, names) {
            Some(FoundWord::Shared(posting)) => posting.len(),
            Some(FoundWord::InName(_)) => 1,
            None => 0,
        };
        (count, FIND_STEPS)
    }

    /// The names with a word that starts with `prefix`, in slots from `from` to the end of its
    /// block, and the steps taken. The names are `None` if this takes more than `max` steps, not
    /// counting the entries of other words. All names are below `end`.
    pub(crate) fn with_prefix(
        &self,
        prefix: &str,
        from: u32,
        end: u32,
        max: usize,
        names: &NameTable,
    ) -> (Option<RoaringBitmap>, usize) {
        let mut union = BlockUnion::new(from, end);
        let (mut steps, mut skipped) = (0, 0);
        self.each_with_prefix(prefix.as_bytes(), names, &mut skipped, |entry, checked| {
            steps += checked
                + match entry.is_shared() {
                    true => union.add(&self.shared[entry.slot].names),
                    false => union.add_name(entry.slot),
                };
            match steps <= max {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        let names = (steps <= max).then(|| union.into_bitmap());
        (names, steps + skipped)
    }

    /// The names with this word, in slots from `from` to the end of its block, and the steps taken.
    pub(crate) fn with_word(
        &self,
        word: &str,
        from: u32,
        end: u32,
        names: &NameTable,
    ) -> (RoaringBitmap, usize) {
        let mut union = BlockUnion::new(from, end);
        let steps = match self.find_word(word, names) {
            Some(FoundWord::Shared(posting)) => union.add(posting),
            Some(FoundWord::InName(name)) => union.add_name(name),
            None => 0,
        };
        (union.into_bitmap(), steps + FIND_STEPS)
    }

    /// All names with a word that starts with `prefix`, if there are at most `max` of them, and the
    /// steps taken: at most `max` and those for other words.
    pub(crate) fn few_with_prefix(
        &self,
        prefix: &str,
        max: u64,
        names: &NameTable,
    ) -> (Option<RoaringBitmap>, usize) {
        let mut few = RoaringBitmap::new();
        let (mut steps, mut skipped, mut found) = (0, 0, 0);
        self.each_with_prefix(prefix.as_bytes(), names, &mut skipped, |entry, checked| {
            steps += 1 + checked;
            if entry.is_shared() {
                let posting = &self.shared[entry.slot].names;
                found += posting.len();
                if found <= max {
                    steps += posting.len() as usize;
                    few.extend(posting.iter());
                }
            } else {
                found += 1;
                few.insert(entry.slot);
            }
            match found <= max {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        ((found <= max).then_some(few), steps + skipped)
    }

    /// All names with this word, if there are at most `max` of them, and the steps taken.
    pub(crate) fn few_with_word(
        &self,
        word: &str,
        max: u64,
        names: &NameTable,
    ) -> (Option<RoaringBitmap>, usize) {
        match self.find_word(word, names) {
            Some(FoundWord::Shared(posting)) if posting.len() > max => (None, FIND_STEPS),
            Some(FoundWord::Shared(posting)) => (
                Some(posting.iter().collect()),
                FIND_STEPS + posting.len() as usize,
            ),
            Some(FoundWord::InName(name)) => (Some([name].into()), FIND_STEPS),
            None => (Some(RoaringBitmap::new()), FIND_STEPS),
        }
    }

    fn find_word(&self, word: &str, names: &NameTable) -> Option<FoundWord<'_>> {
        let text = word.as_bytes();
        let hash = self.hasher.hash_one(text);
        if let Some(slot) = self.find_shared(hash, text) {
            return Some(FoundWord::Shared(&self.shared[slot].names));
        }
        let leaf = self
            .leaves
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(text)))
            .next_back()?;
        let fingerprint = fingerprint(hash);
        let entry = leaf
            .1
            .iter()
            .find(|entry| entry.is_unshared(fingerprint, text, names))?;
        Some(FoundWord::InName(entry.slot))
    }
}

/// Where a word occurs.
enum FoundWord<'a> {
    /// In these names.
    Shared(&'a PostingList),
    /// In this name only.
    InName(u32),
}

/// Adds a shared word with its hash, and returns its slot.
fn insert_shared(
    hasher: &DefaultHashBuilder,
    shared: &mut Slots<SharedWord>,
    by_text: &mut ShardedTable,
    (hash, text, names): (u64, Box<[u8]>, PostingList),
) -> u32 {
    let slot = shared.insert(SharedWord { text, names });
    by_text.insert(hash, slot, |slot| hasher.hash_one(&*shared[slot].text));
    slot
}

/// The leaves whose range begins at or before a word.
fn range_to<'a>(
    leaves: &'a mut BTreeMap<Key, Vec<Entry>>,
    word: &[u8],
) -> std::collections::btree_map::RangeMut<'a, Key, Vec<Entry>> {
    leaves.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(word)))
}
