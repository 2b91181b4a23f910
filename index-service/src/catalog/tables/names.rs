//! Names, each stored once, with their files and their words.
//!
//! Invariant: a name exists exactly as long as a file has it, and a word exactly as long as a name
//! contains it.

use roaring::RoaringBitmap;

use crate::catalog::{
    storage::file_sets::{FileSets, FilesIn},
    tables::{cost, name_table::NameTable, word_index::WordIndex, words},
};

/// The names, indexed by text and by word.
#[derive(Debug, Default)]
pub(crate) struct Names {
    table: NameTable,
    file_sets: FileSets,
    words: WordIndex,
    /// The words of the names in slots from this one on are not indexed yet. `None` once those of
    /// all names are indexed.
    unindexed: Option<u32>,
    /// One past the highest slot used since the table was last empty.
    end: u32,
    /// Estimate of the memory used, in bytes.
    pub(crate) bytes: u64,
}

impl Names {
    /// The slot of an existing name.
    pub(crate) fn find(&self, text: &str) -> Option<u32> {
        self.table.find(text)
    }

    /// The slot of a name, which is created if new, and whether it is new. The caller must add a
    /// file to a new name.
    pub(crate) fn intern(&mut self, text: &str) -> (u32, bool) {
        let hash = self.table.hash(text.as_bytes());
        if let Some(slot) = self.table.find_hashed(hash, text) {
            return (slot, false);
        }
        let slot = self.table.insert(hash, text);
        self.end = self.end.max(slot + 1);
        self.bytes += cost::name(text);
        if self.has_words(slot) {
            let Self {
                table, words, bytes, ..
            } = self;
            words::each_word(text, |word| {
                if words.add(word, slot, table) {
                    *bytes += cost::word(word.text);
                }
            });
        }
        (slot, true)
    }

    /// Brings what [`Self::intern`] reads of the table into the cache.
    pub(crate) fn touch(&self, text: &str) {
        self.table.touch(text);
    }

    /// Makes room for this many names in an empty table.
    pub(crate) fn reserve(&mut self, names: usize) {
        self.table.reserve(names);
    }

    /// Gives back room that is not used.
    pub(crate) fn shrink(&mut self) {
        self.table.shrink();
    }

    /// Leaves new names out of the index of words until [`Self::index_words`]. No name may be in
    /// the table.
    pub(crate) const fn defer_words(&mut self) {
        self.unindexed = Some(0);
    }

    /// Indexes the words of the names in the next `max` slots after [`Self::defer_words`]; true once
    /// those of all names are indexed.
    pub(crate) fn index_words(&mut self, max: u32) -> bool {
        let Some(from) = self.unindexed else {
            return true;
        };
        let Self {
            table, words, bytes, ..
        } = self;
        let until = from.saturating_add(max).min(self.end);
        for slot in from..until {
            words::each_word(table.get_text(slot).unwrap_or_default(), |word| {
                if words.add(word, slot, table) {
                    *bytes += cost::word(word.text);
                }
            });
        }
        self.unindexed = Some(until).filter(|&until| until < self.end);
        self.unindexed.is_none()
    }

    /// Number of names whose words are not indexed yet, or rather more.
    pub(crate) fn unindexed(&self) -> u32 {
        self.unindexed.map_or(0, |from| self.end - from.min(self.end))
    }

    /// Whether the words of the name in this slot are indexed, or are to be indexed with the name.
    fn has_words(&self, slot: u32) -> bool {
        self.unindexed.is_none_or(|from| slot < from)
    }

    /// Adds one reference from a file to a name.
    pub(crate) fn add_file(&mut self, name: u32, file: u32) {
        self.file_sets.add(self.table.files_mut(name), file);
    }

    /// Removes one reference from a file to a name; removes the name if no file has it.
    pub(crate) fn remove_file(&mut self, name: u32, file: u32) {
        let has_words = self.has_words(name);
        let Self {
            table,
            file_sets,
            words,
            end,
            bytes,
            ..
        } = self;
        if !file_sets.remove(table.files_mut(name), file) {
            return;
        }
        let text = table.text(name).to_owned();
        *bytes -= cost::name(&text);
        if has_words {
            words::each_word(&text, |word| {
                if words.remove(word, name, table) {
                    *bytes -= cost::word(word.text);
                }
            });
        }
        table.remove(name);
        if table.is_empty() {
            *end = 0;
        }
    }

    /// The text of an existing name.
    pub(crate) fn text(&self, name: u32) -> &str {
        self.table.text(name)
    }

    /// The files that have a name.
    pub(crate) fn files_of(&self, name: u32) -> FilesIn<'_> {
        self.file_sets.get(self.table.files(name))
    }

    /// The text of a name, if the slot is in use.
    pub(crate) fn get_text(&self, slot: u32) -> Option<&str> {
        self.table.get_text(slot)
    }

    /// All slots in use are below this one.
    pub(crate) const fn end(&self) -> u32 {
        self.end
    }

    /// The index of the words.
    pub(crate) const fn words(&self) -> WordLookup<'_> {
        WordLookup {
            words: &self.words,
            table: &self.table,
            end: self.end,
        }
    }

    /// Number of names and number of words.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.table.len(), self.words.len())
    }
}

/// Finds names by their words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WordLookup<'a> {
    words: &'a WordIndex,
    table: &'a NameTable,
    end: u32,
}

/// A part of a query that is looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Term<'a> {
    /// The names contain this word.
    Word(&'a str),
    /// The names contain a word that begins like this.
    Prefix(&'a str),
}

impl WordLookup<'_> {
    /// Number of words of a term, counted up to `max`, and the steps taken.
    pub(crate) fn count(&self, term: Term<'_>, max: usize) -> (usize, usize) {
        match term {
            Term::Word(_) => (1, 0),
            Term::Prefix(prefix) => self.words.count(prefix, max, self.table),
        }
    }

    /// Number of names with a term, or rather more; `None` if the term is a prefix of more than
    /// `max_words` words. Also returns the steps taken.
    pub(crate) fn count_names(&self, term: Term<'_>, max_words: usize) -> (Option<u64>, usize) {
        match term {
            Term::Word(word) => {
                let (count, steps) = self.words.count_names_with(word, self.table);
                (Some(count), steps)
            }
            Term::Prefix(prefix) => self.words.count_names(prefix, max_words, self.table),
        }
    }

    /// The names with a term, in slots from `from` to the end of its block, and the steps taken. The
    /// names are `None` if this takes more than `max` steps.
    pub(crate) fn find_in_block(
        &self,
        term: Term<'_>,
        from: u32,
        max: usize,
    ) -> (Option<RoaringBitmap>, usize) {
        match term {
            Term::Word(word) => {
                let (names, steps) = self.words.with_word(word, from, self.end, self.table);
                (Some(names), steps)
            }
            Term::Prefix(prefix) => self.words.with_prefix(prefix, from, self.end, max, self.table),
        }
    }

    /// All names with a term, if there are at most `max` of them, and the steps taken.
    pub(crate) fn find_few(&self, term: Term<'_>, max: u64) -> (Option<RoaringBitmap>, usize) {
        match term {
            Term::Word(word) => self.words.few_with_word(word, max, self.table),
            Term::Prefix(prefix) => self.words.few_with_prefix(prefix, max, self.table),
        }
    }
}
