//! Names, each held once, with the files that bear them and the words they hold.
//!
//! Invariant: a name is here exactly as long as a file bears it, a word exactly as long as a name holds it.

use std::{
    collections::{BTreeMap, btree_map},
    hash::BuildHasher as _,
    ops::Bound,
};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};
use roaring::RoaringBitmap;
use slab::Slab;
use smallvec::SmallVec;

use super::{cost, counted::Counted, words};

/// Names that hold a word. Most words are in a few names, some in most of them.
#[derive(Debug)]
enum Posting {
    Few(SmallVec<[u32; 4]>),
    Many(Box<RoaringBitmap>),
}

/// Where a list of names becomes a bitmap: below it inserting into the list is cheaper.
const FEW: usize = 64;

impl Posting {
    fn add(&mut self, name: u32) {
        match self {
            Self::Few(few) => {
                if let Err(at) = few.binary_search(&name) {
                    few.insert(at, name);
                }
                if few.len() > FEW {
                    *self = Self::Many(Box::new(few.iter().copied().collect()));
                }
            }
            Self::Many(many) => {
                many.insert(name);
            }
        }
    }

    /// True once no name is left.
    fn remove(&mut self, name: u32) -> bool {
        match self {
            Self::Few(few) => {
                if let Ok(at) = few.binary_search(&name) {
                    few.remove(at);
                }
                few.is_empty()
            }
            Self::Many(many) => {
                many.remove(name);
                many.is_empty()
            }
        }
    }

    fn add_to(&self, set: &mut RoaringBitmap) {
        match self {
            Self::Few(few) => set.extend(few.iter().copied()),
            Self::Many(many) => *set |= &**many,
        }
    }
}

/// A word. Most lie in the tree itself, where they are compared without going elsewhere.
type Word = SmallVec<[u8; 16]>;

#[derive(Debug)]
struct Name {
    text: Box<str>,
    files: Counted,
}

/// Names by text and by word.
#[derive(Debug, Default)]
pub(super) struct Names {
    hasher: DefaultHashBuilder,
    slots: HashTable<u32>,
    names: Slab<Name>,
    words: BTreeMap<Word, Posting>,
    /// Estimate of the memory held, in bytes.
    pub(super) bytes: u64,
}

impl Names {
    /// The slot of a name that some file bears.
    pub(super) fn find(&self, text: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(text);
        self.slots
            .find(hash, |&slot| &*self.names[slot as usize].text == text)
            .copied()
    }

    /// The slot of a name, made where it is new; it stays only once a file is added to it.
    pub(super) fn intern(&mut self, text: &str) -> u32 {
        let Self {
            hasher,
            slots,
            names,
            words: index,
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
            files: Counted::default(),
        }) as u32;
        vacant.insert(slot);
        *bytes += cost::name(text);
        words::each_word(text, |word| {
            *bytes += cost::POSTING;
            // Looked for once, whether it is new or not.
            match index.entry(Word::from_slice(word.as_bytes())) {
                btree_map::Entry::Occupied(posting) => posting.into_mut().add(slot),
                btree_map::Entry::Vacant(vacant) => {
                    *bytes += cost::word(word);
                    vacant.insert(Posting::Few(SmallVec::from_slice(&[slot])));
                }
            }
        });
        slot
    }

    /// Says that a file bears the name, once more.
    pub(super) fn add_file(&mut self, name: u32, file: u32) {
        self.names[name as usize].files.add(file);
    }

    /// Says that a file bears the name once less; a name that no file bears is forgotten.
    pub(super) fn remove_file(&mut self, name: u32, file: u32) {
        if !self.names[name as usize].files.subtract(file) {
            return;
        }
        let Name { text, .. } = self.names.remove(name as usize);
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

    /// The text of a name.
    pub(super) fn text(&self, name: u32) -> &str {
        &self.names[name as usize].text
    }

    /// How many files bear a name.
    pub(super) fn file_count(&self, name: u32) -> usize {
        self.names[name as usize].files.len()
    }

    /// The files that bear a name, from this slot on.
    pub(super) fn files(&self, name: u32, from: u32) -> impl Iterator<Item = u32> + '_ {
        self.names[name as usize].files.from(from)
    }

    /// The names in order of their slots, from this one on.
    pub(super) fn slots(&self, from: u32) -> impl Iterator<Item = u32> + '_ {
        (from..u32::try_from(self.names.capacity()).unwrap_or(u32::MAX))
            .filter(|&slot| self.names.contains(slot as usize))
    }

    /// The names with a word that begins with `prefix`; `None` where more than `most` words do.
    pub(super) fn beginning(&self, prefix: &str, most: usize) -> Option<RoaringBitmap> {
        let prefix = prefix.as_bytes();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let mut set = RoaringBitmap::new();
        let mut count = 0;
        for (word, posting) in self.words.range::<[u8], _>(from) {
            if !word.starts_with(prefix) {
                break;
            }
            count += 1;
            if count > most {
                return None;
            }
            posting.add_to(&mut set);
        }
        Some(set)
    }

    /// How many names and words there are.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.names.len(), self.words.len())
    }
}
