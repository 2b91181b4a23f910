//! Names, each stored once, with their files and their words.
//!
//! Invariant: a name exists exactly as long as a file has it, and a word exactly as long as a name
//! contains it.

use std::{
    collections::{BTreeMap, btree_map},
    hash::BuildHasher as _,
    ops::Bound,
};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};
use roaring::RoaringBitmap;
use slab::Slab;
use smallvec::SmallVec;

use crate::catalog::tables::{cost, ref_counted_set::RefCountedSet, words};

/// The names that contain a word. Most words occur in few names, but some occur in most names.
#[derive(Debug)]
enum PostingList {
    List(SmallVec<[u32; 4]>),
    Bitmap(Box<RoaringBitmap>),
}

/// Maximum length of a list before it becomes a bitmap: inserting into a shorter list is cheaper.
const MAX_LIST: usize = 64;

impl PostingList {
    fn add(&mut self, name: u32) {
        match self {
            Self::List(list) => {
                if let Err(at) = list.binary_search(&name) {
                    list.insert(at, name);
                }
                if list.len() > MAX_LIST {
                    *self = Self::Bitmap(Box::new(list.iter().copied().collect()));
                }
            }
            Self::Bitmap(bitmap) => {
                bitmap.insert(name);
            }
        }
    }

    /// Removes a name; true once no name is left.
    fn remove(&mut self, name: u32) -> bool {
        match self {
            Self::List(list) => {
                if let Ok(at) = list.binary_search(&name) {
                    list.remove(at);
                }
                list.is_empty()
            }
            Self::Bitmap(bitmap) => {
                bitmap.remove(name);
                bitmap.is_empty()
            }
        }
    }
}

/// Slots per block: those of one container of a [`RoaringBitmap`].
const BLOCK: u32 = 1 << 16;

/// The last slot of the block that contains `slot`.
pub(crate) const fn block_end(slot: u32) -> u32 {
    slot | (BLOCK - 1)
}

/// The union of many posting lists within one block of slots.
struct BlockUnion {
    range: RoaringBitmap,
    from: u32,
    end: u32,
    /// Names from lists, one bit each; allocated on first use.
    bits: Vec<u8>,
    /// Names from bitmaps.
    bitmap: RoaringBitmap,
}

impl BlockUnion {
    /// An empty union for the slots from `from` to the end of its block.
    fn new(from: u32) -> Self {
        let end = block_end(from);
        let mut range = RoaringBitmap::new();
        range.insert_range(from..=end);
        Self {
            range,
            from,
            end,
            bits: Vec::new(),
            bitmap: RoaringBitmap::new(),
        }
    }

    /// Adds a posting list; returns the steps taken.
    fn add(&mut self, posting: &PostingList, blocks: usize) -> usize {
        match posting {
            PostingList::List(list) => {
                let list = &list[list.partition_point(|&slot| slot < self.from)..];
                let in_block = &list[..list.partition_point(|&slot| slot <= self.end)];
                if !in_block.is_empty() && self.bits.is_empty() {
                    self.bits = vec![0; BLOCK as usize / 8];
                }
                for slot in in_block {
                    let at = slot & (BLOCK - 1);
                    self.bits[at as usize / 8] |= 1 << (at % 8);
                }
                2 + in_block.len() / 8
            }
            PostingList::Bitmap(bitmap) => {
                /// Maximum entries of a sparse container; a larger one is stored as plain bits.
                const SPARSE: u64 = 4096;
                let in_block = &**bitmap & &self.range;
                let steps = in_block.len().min(SPARSE) + self.bitmap.len().min(SPARSE);
                if self.bitmap.is_empty() {
                    self.bitmap = in_block;
                } else {
                    self.bitmap |= in_block;
                }
                16 + blocks / 8 + steps as usize / 16
            }
        }
    }

    fn into_bitmap(mut self) -> RoaringBitmap {
        if !self.bits.is_empty() {
            self.bitmap |= RoaringBitmap::from_lsb0_bytes(self.from & !(BLOCK - 1), &self.bits);
        }
        self.bitmap
    }
}

/// A word. Most fit inline in the tree's nodes, so that comparing them follows no pointer.
type Word = SmallVec<[u8; 16]>;

#[derive(Debug)]
struct Name {
    text: Box<str>,
    files: RefCountedSet,
}

/// The names, indexed by text and by word.
#[derive(Debug, Default)]
pub(crate) struct Names {
    hasher: DefaultHashBuilder,
    slots: HashTable<u32>,
    names: Slab<Name>,
    words: BTreeMap<Word, PostingList>,
    /// One past the highest slot used since the table was last empty.
    end: u32,
    /// Estimate of the memory used, in bytes.
    pub(crate) bytes: u64,
}

impl Names {
    /// The slot of an existing name.
    pub(crate) fn find(&self, text: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(text);
        self.slots
            .find(hash, |&slot| &*self.names[slot as usize].text == text)
            .copied()
    }

    /// The slot of a name, created if new. The caller must add a file to a new name.
    pub(crate) fn intern(&mut self, text: &str) -> u32 {
        let Self {
            hasher,
            slots,
            names,
            words,
            end,
            bytes,
        } = self;
        let hash = hasher.hash_one(text);
        let entry = slots.entry(
            hash,
            |&slot| &*names[slot as usize].text == text,
            |&slot| hasher.hash_one(&*names[slot as usize].text),
        );
        let vacant = match entry {
            Entry::Occupied(entry) => return *entry.get(),
            Entry::Vacant(vacant) => vacant,
        };
        let slot = names.insert(Name {
            text: text.into(),
            files: RefCountedSet::default(),
        }) as u32;
        vacant.insert(slot);
        *end = (*end).max(slot + 1);
        *bytes += cost::name(text);
        words::each_word(text, |word| {
            *bytes += cost::POSTING;
            // The entry API searches the tree only once.
            match words.entry(Word::from_slice(word.as_bytes())) {
                btree_map::Entry::Occupied(posting) => posting.into_mut().add(slot),
                btree_map::Entry::Vacant(vacant) => {
                    *bytes += cost::word(word);
                    vacant.insert(PostingList::List(SmallVec::from_slice(&[slot])));
                }
            }
        });
        slot
    }

    /// Adds one reference from a file to a name.
    pub(crate) fn add_file(&mut self, name: u32, file: u32) {
        self.names[name as usize].files.add(file);
    }

    /// Removes one reference from a file to a name; removes the name if no file has it.
    pub(crate) fn remove_file(&mut self, name: u32, file: u32) {
        if !self.names[name as usize].files.remove(file) {
            return;
        }
        let Name { text, .. } = self.names.remove(name as usize);
        if self.names.is_empty() {
            self.end = 0;
        }
        let hash = self.hasher.hash_one(&*text);
        if let Ok(entry) = self.slots.find_entry(hash, |&slot| slot == name) {
            entry.remove();
        }
        self.bytes -= cost::name(&text);
        words::each_word(&text, |word| {
            self.bytes -= cost::POSTING;
            if let Some(posting) = self.words.get_mut(word.as_bytes())
                && posting.remove(name)
            {
                self.words.remove(word.as_bytes());
                self.bytes -= cost::word(word);
            }
        });
    }

    /// The text of an existing name.
    pub(crate) fn text(&self, name: u32) -> &str {
        &self.names[name as usize].text
    }

    /// The files that have a name.
    pub(crate) fn files_of(&self, name: u32) -> &RefCountedSet {
        &self.names[name as usize].files
    }

    /// The text of a name, if the slot is in use.
    pub(crate) fn get_text(&self, slot: u32) -> Option<&str> {
        self.names.get(slot as usize).map(|name| &*name.text)
    }

    /// All slots in use are below this one.
    pub(crate) const fn end(&self) -> u32 {
        self.end
    }

    /// Number of words with this prefix, counted up to `max`.
    pub(crate) fn count_words(&self, prefix: &str, max: usize) -> usize {
        self.posting_lists(prefix).take(max).count()
    }

    /// The names with a word that starts with `prefix`, in slots from `from` to the end of its
    /// block, and the steps taken. The names are `None` if this takes more than `max` steps.
    pub(crate) fn with_prefix(
        &self,
        prefix: &str,
        from: u32,
        max: usize,
    ) -> (Option<RoaringBitmap>, usize) {
        let blocks = (self.end / BLOCK) as usize;
        let mut names = BlockUnion::new(from);
        let mut steps = 0;
        for posting in self.posting_lists(prefix) {
            steps += names.add(posting, blocks);
            if steps > max {
                return (None, steps);
            }
        }
        (Some(names.into_bitmap()), steps)
    }

    fn posting_lists<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a PostingList> {
        let prefix = prefix.as_bytes();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        self.words
            .range::<[u8], _>(from)
            .take_while(move |(word, _)| word.starts_with(prefix))
            .map(|(_, posting)| posting)
    }

    /// Number of names and number of words.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.names.len(), self.words.len())
    }
}
