//! The numbers of the last changes, and of what: one compact line for each id, in the order of the changes. Pure.
//!
//! Invariants: lines are sorted by number; an id has one line that counts, and the table knows where; lines that do not count any more
//! are at most a fraction of all.

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::{HashTable, hash_table::Entry};
use potluck_core::FileId;

/// One line in so many may be one that does not count, before all those are taken out.
const SPARE: usize = 4;

/// What a change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// The whole is there.
    Whole,
    /// A part is there.
    Part,
    /// It is not there any more.
    Removed,
    /// There is a later line of this id, or nobody has to know any more.
    Nothing,
}

/// A change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) version: u64,
    pub(super) id: FileId,
    pub(super) what: What,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Log {
    lines: Vec<Line>,
    /// Where in the lines an id's is. Ids may be chosen by strangers: hashed with a secret.
    places: HashTable<u32>,
    hasher: RandomState,
    last: u64,
    there: usize,
    removed: usize,
    nothing: usize,
}

impl Log {
    /// Number of the last change.
    pub(super) const fn last(&self) -> u64 {
        self.last
    }

    /// How many files are there.
    pub(super) const fn there(&self) -> usize {
        self.there
    }

    /// What changed after this number, oldest first.
    pub(super) fn after(&self, version: u64) -> impl Iterator<Item = &Line> {
        let start = self.lines.partition_point(|line| line.version <= version);
        self.lines[start..]
            .iter()
            .filter(|line| line.what != What::Nothing)
    }

    /// Makes room for so many in all: growing by doubling would take twice as much for a moment.
    pub(super) fn reserve(&mut self, all: usize) {
        let (lines, hasher) = (&mut self.lines, &self.hasher);
        let more = all.saturating_sub(lines.len());
        lines.reserve_exact(more);
        self.places
            .reserve(more, |&at| hasher.hash_one(lines[at as usize].id));
    }

    /// Adds or replaces; false where that would put a part in the place of a whole.
    pub(super) fn put(&mut self, id: FileId, what: What) -> bool {
        if what == What::Part && self.line(&id).is_some_and(|line| line.what == What::Whole) {
            return false;
        }
        self.push(id, what);
        true
    }

    /// Takes away what is there; `remember`: somebody has to know.
    pub(super) fn remove(&mut self, id: &FileId, remember: bool) {
        if self.line(id).is_none_or(|line| line.what == What::Removed) {
            return;
        }
        if remember {
            self.push(*id, What::Removed);
        } else {
            self.take(id);
            self.last += 1;
        }
    }

    /// Forgets what was removed up to this number.
    pub(super) fn forget_removed(&mut self, upto: u64) {
        if self.removed == 0 {
            return;
        }
        let gone = self.lines.iter().take_while(|line| line.version <= upto);
        let gone = gone.filter(|line| line.what == What::Removed);
        for id in gone.map(|line| line.id).collect::<Vec<_>>() {
            self.take(&id);
        }
        self.tidy();
    }

    fn line(&self, id: &FileId) -> Option<&Line> {
        let lines = &self.lines;
        let at = self
            .places
            .find(self.hasher.hash_one(id), |&at| lines[at as usize].id == *id)?;
        lines.get(*at as usize)
    }

    /// Lets an id's line, if it has one, count no more.
    fn take(&mut self, id: &FileId) {
        let lines = &self.lines;
        let found = self
            .places
            .find_entry(self.hasher.hash_one(id), |&at| lines[at as usize].id == *id);
        if let Ok(found) = found {
            let (at, _) = found.remove();
            self.retire(at);
        }
    }

    /// Lets a line that no place leads to count no more.
    fn retire(&mut self, at: u32) {
        match std::mem::replace(&mut self.lines[at as usize].what, What::Nothing) {
            What::Removed => self.removed -= 1,
            _ => self.there -= 1,
        }
        self.nothing += 1;
    }

    /// Gives an id a new line, the one that counts from now on.
    fn push(&mut self, id: FileId, what: What) {
        self.tidy();
        self.last += 1;
        match what {
            What::Removed => self.removed += 1,
            _ => self.there += 1,
        }
        // A peer has far fewer than 2^32 files.
        let at = self.lines.len() as u32;
        let (lines, hasher) = (&self.lines, &self.hasher);
        let place = self.places.entry(
            hasher.hash_one(id),
            |&at| lines[at as usize].id == id,
            |&at| hasher.hash_one(lines[at as usize].id),
        );
        match place {
            Entry::Vacant(place) => drop(place.insert(at)),
            Entry::Occupied(mut place) => {
                let old = std::mem::replace(place.get_mut(), at);
                self.retire(old);
            }
        }
        self.lines.push(Line {
            version: self.last,
            id,
            what,
        });
    }

    fn index(&mut self, at: u32) {
        let (lines, hasher) = (&self.lines, &self.hasher);
        let hash = |&at: &u32| hasher.hash_one(lines[at as usize].id);
        self.places.insert_unique(hash(&at), at, hash);
    }

    /// Takes out what does not count, once that is worth it.
    fn tidy(&mut self) {
        if self.nothing <= self.lines.len() / SPARE {
            return;
        }
        self.lines.retain(|line| line.what != What::Nothing);
        self.lines.shrink_to(self.lines.len() + self.lines.len() / SPARE);
        self.nothing = 0;
        self.places.clear();
        (0..self.lines.len() as u32).for_each(|at| self.index(at));
    }
}
