//! Reading the catalog page by page: by id, by exact name, by claim, by words.
//!
//! Every page is bounded in files, in bytes and in memory, and that of a search in work too, whatever the catalog holds: a page may be
//! shorter than asked for, even empty, and still have a next one. A page by exact name or by claim goes through all files that have it,
//! since any of them may be the one of most providers: whoever asks for one is to be charged by their number.

use std::cmp::Reverse;

use itertools::Itertools as _;
use potluck_core::{FileId, Sha256, index_client::Found};
use rand::Rng;
use roaring::RoaringBitmap;

use super::{Catalog, counted::Counted, words};

/// Most bytes of a page, estimated: a quarter of what one message may hold, so that few are enough
/// for whoever asks for many.
const PAGE_BYTES: usize = 1024 * 1024;

/// Most steps of one page of a search: some 20 milliseconds.
pub const PAGE_WORK: usize = 200_000;

/// Most words that one term is widened to by its beginning; a term that fits more is checked name by name instead, since
/// such a term fits so many names that going through them finds a page soon.
const MAX_WIDENED: usize = 4096;

/// What one page of a search may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// As [`PAGE_WORK`]: two steps at least, as the name where the last page ended is one.
    pub(super) work: usize,
    /// As [`MAX_WIDENED`].
    pub(super) widened: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            work: PAGE_WORK,
            widened: MAX_WIDENED,
        }
    }
}

/// Where a page of a search ended: at this file under this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// Slot of the name.
    pub name: u32,
    /// Slot of the file.
    pub file: u32,
}

/// A page of a search.
#[derive(Debug)]
pub struct Searched {
    /// The files, without providers.
    pub files: Vec<Found>,
    /// Where the next page begins after; `None` on the last.
    pub next: Option<Cursor>,
}

/// Where a page of files by number of providers ended: after this number and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankCursor {
    /// How many providers the last file had.
    pub providers: u64,
    /// Its id.
    pub file: FileId,
}

/// A page of files, those of most providers first, then by id.
#[derive(Debug)]
pub struct Ranked {
    /// The files with samples of their providers.
    pub files: Vec<Found>,
    /// Where the next page begins after; `None` on the last.
    pub next: Option<RankCursor>,
}

impl Catalog {
    /// A file with a sample of its providers.
    pub fn by_id(&self, id: &FileId, max_providers: usize, rng: &mut impl Rng) -> Option<Found> {
        let slot = self.find_file(id)?;
        Some(self.found(slot, max_providers, rng))
    }

    /// How many files have exactly this name.
    pub fn count_by_name(&self, name: &str) -> usize {
        let name = self.names.find(name);
        name.map_or(0, |name| self.names.file_count(name))
    }

    /// How many files some peer claims to have this SHA-256.
    pub fn count_by_sha256(&self, sum: &Sha256) -> usize {
        self.claims.get(sum).map_or(0, Counted::len)
    }

    /// Files with exactly this name.
    pub fn by_name(
        &self,
        name: &str,
        after: Option<RankCursor>,
        most: usize,
        max_providers: usize,
        rng: &mut impl Rng,
    ) -> Ranked {
        let slots = self
            .names
            .find(name)
            .map(|name| self.names.files(name, 0))
            .into_iter()
            .flatten();
        self.ranked(slots, after, most, max_providers, rng)
    }

    /// Files that some peer claims to have this SHA-256.
    pub fn by_sha256(
        &self,
        sum: &Sha256,
        after: Option<RankCursor>,
        most: usize,
        max_providers: usize,
        rng: &mut impl Rng,
    ) -> Ranked {
        let slots = self
            .claims
            .get(sum)
            .map(|files| files.from(0))
            .into_iter()
            .flatten();
        self.ranked(slots, after, most, max_providers, rng)
    }

    /// Files with a name that fits all terms (as [`words::terms`] gives them), in the order in which the names came to be known.
    pub fn search(&self, terms: &[String], after: Option<Cursor>, most: usize) -> Searched {
        self.search_within(Bounds::default(), terms, after, most)
    }

    pub(super) fn search_within(
        &self,
        bounds: Bounds,
        terms: &[String],
        after: Option<Cursor>,
        most: usize,
    ) -> Searched {
        let mut widened: Option<RoaringBitmap> = None;
        let mut broad: Vec<String> = Vec::new();
        for term in terms {
            match self.names.beginning(term, bounds.widened) {
                Some(names) => match &mut widened {
                    Some(all) => *all &= names,
                    None => widened = Some(names),
                },
                None => broad.push(term.clone()),
            }
        }
        let search = Search {
            catalog: self,
            widened: widened.as_ref(),
            broad: &broad,
            work: bounds.work,
        };
        let from = after.map_or(0, |cursor| cursor.name);
        match &widened {
            Some(names) => search.page(names.range(from..), after, most),
            None => search.page(self.names.slots(from), after, most),
        }
    }

    fn found(&self, slot: u32, max_providers: usize, rng: &mut impl Rng) -> Found {
        let mut found = self.describe(slot, |_| false);
        found.providers = self.sample(&self.files[slot as usize].providers, max_providers, rng);
        found
    }

    fn ranked(
        &self,
        slots: impl Iterator<Item = u32>,
        after: Option<RankCursor>,
        most: usize,
        max_providers: usize,
        rng: &mut impl Rng,
    ) -> Ranked {
        let key = |providers: u64, file: FileId| (Reverse(providers), file);
        let after = after.map(|cursor| key(cursor.providers, cursor.file));
        let rest = slots
            .map(|slot| {
                let file = &self.files[slot as usize];
                (key(file.providers.len() as u64, file.id), slot)
            })
            .filter(|(key, _)| after.is_none_or(|after| *key > after));
        // One more tells whether there is a next page.
        let mut rest: Vec<_> = rest.k_smallest(most.saturating_add(1)).collect();
        let mut more = rest.len() > most;
        rest.truncate(most);
        let mut files = Vec::with_capacity(rest.len());
        let mut bytes = 0;
        let mut last = None;
        for (key, slot) in rest {
            if bytes > PAGE_BYTES {
                more = true;
                break;
            }
            let found = self.found(slot, max_providers, rng);
            bytes += weight(&found);
            files.push(found);
            last = Some(RankCursor {
                providers: key.0.0,
                file: key.1,
            });
        }
        Ranked {
            files,
            next: last.filter(|_| more),
        }
    }
}

/// One search: names that fit all terms that could be widened, and the terms to check name by name.
struct Search<'a> {
    catalog: &'a Catalog,
    widened: Option<&'a RoaringBitmap>,
    broad: &'a [String],
    work: usize,
}

impl Search<'_> {
    /// Whether a name fits all terms.
    fn fits(&self, name: u32) -> bool {
        self.widened.is_none_or(|names| names.contains(name)) && self.fits_broad(name)
    }

    fn fits_broad(&self, name: u32) -> bool {
        self.broad.is_empty() || words::fits(self.catalog.names.text(name), self.broad)
    }

    fn page(&self, names: impl Iterator<Item = u32>, after: Option<Cursor>, most: usize) -> Searched {
        let mut files = Vec::new();
        let mut bytes = 0;
        let mut work = 0;
        let mut last = after;
        for name in names {
            work += 1;
            let from = match after {
                Some(cursor) if cursor.name == name => cursor.file.saturating_add(1),
                _ => 0,
            };
            if !self.fits_broad(name) {
                // It is done with: wherever the page ends, the next one goes on after it.
                last = Some(Cursor { name, file: u32::MAX });
                if work > self.work {
                    return Searched { files, next: last };
                }
                continue;
            }
            for file in self.catalog.names.files(name, from) {
                if files.len() >= most || bytes > PAGE_BYTES || work > self.work {
                    return Searched { files, next: last };
                }
                last = Some(Cursor { name, file });
                let (first, steps) = self.is_first_name(file, name);
                work += steps;
                if first {
                    let found = self.catalog.describe(file, |name| self.fits(name));
                    bytes += weight(&found);
                    files.push(found);
                }
            }
        }
        Searched { files, next: None }
    }

    /// Whether no earlier name of the file fits as well, under which it was given already; and the steps it took to tell.
    fn is_first_name(&self, file: u32, name: u32) -> (bool, usize) {
        let mut steps = 1;
        for &(variant, _) in &self.catalog.files[file as usize].tally {
            for &other in &self.catalog.variants[variant].names {
                steps += 1;
                if other < name && self.fits(other) {
                    return (false, steps);
                }
            }
        }
        (true, steps)
    }
}

/// What a result takes in an answer, in bytes, roughly and rather too much.
fn weight(found: &Found) -> usize {
    let names: usize = found.names.iter().map(|name| name.len() + 4).sum();
    let providers: usize = found
        .providers
        .iter()
        .map(|provider| provider.address.host.len() + 56)
        .sum();
    160 + names + providers
}
