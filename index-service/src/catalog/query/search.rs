//! Searches: pages of the files with a name that matches all terms, in the order of the names'
//! slots.
//!
//! A search goes through the names in blocks. In each block, the rarest terms select candidate
//! names by word; each candidate is then checked as text.

use std::{collections::HashSet, ops::RangeInclusive};

use potluck_core::{FileId, model::IndexedFile};
use roaring::{RoaringBitmap, bitmap};

use crate::catalog::{
    lookup::Catalog,
    query::{
        describe::MAX_MATCHING_STEPS,
        page::{Page, PageBounds},
    },
    tables::{names::block_end, words::Matcher},
};

/// Maximum words counted per term, to find the rarest term.
const MAX_COUNTED_WORDS: usize = 256;

/// Number of candidate names up to which checking each is cheaper than looking up another term.
const FEW_NAMES: u64 = 64;

/// Steps that a term's lookup may take for each name that it could exclude.
const STEPS_PER_EXCLUDED_NAME: usize = 8;

/// Empty slots skipped per step.
const EMPTY_SLOTS_PER_STEP: usize = 16;

/// Maximum names of a file that are compared to detect that an earlier name returned it already. A
/// file with more names may appear again on a later page.
const MAX_COMPARED_NAMES: usize = 32;

/// The end of a page of a search: at this file with this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SearchCursor {
    /// Slot of the name.
    pub name: u32,
    /// Slot of the file; `u32::MAX` if all files with the name are done.
    pub file: u32,
}

impl SearchCursor {
    const fn past(name: u32) -> Self {
        Self { name, file: u32::MAX }
    }
}

/// A page of a search.
#[derive(Debug)]
pub struct SearchPage {
    /// The files, without providers.
    pub files: Vec<IndexedFile>,
    /// The cursor for the next page; `None` on the last page.
    pub next: Option<SearchCursor>,
    /// The steps that the page took.
    pub steps: usize,
}

/// A page of a search in progress.
#[derive(Debug)]
pub struct SearchScan {
    matcher: Matcher,
    page: Page,
    /// Indices of the terms, rarest first; `None` until they are counted.
    term_order: Option<Vec<usize>>,
    /// One bit per term that is a prefix of too many words to be looked up.
    broad_terms: u32,
    /// The last finished position; `None` at the beginning.
    cursor: Option<SearchCursor>,
    /// Whether this page has made progress. A page ends only after some progress, so that paging
    /// always terminates.
    has_advanced: bool,
    stage: Stage,
    /// Ids of the files on this page.
    file_ids: HashSet<FileId>,
}

#[derive(Debug)]
enum Stage {
    /// A new block of names begins at this slot.
    Block(u32),
    /// The terms are looked up in a block.
    Terms(TermLookup),
    /// The candidate names of a block are checked.
    Names(CandidateNames),
    /// The files with the name are checked, from the cursor on; the remaining candidates of the
    /// block follow.
    Files(SearchCursor, CandidateNames),
    /// No name is left.
    End,
}

/// The lookup of the terms in one block.
#[derive(Debug)]
struct TermLookup {
    /// The first slot of the block.
    first: u32,
    /// Number of terms that were looked up.
    terms_done: usize,
    /// The names that match these terms; `None` stands for all.
    names: Option<RoaringBitmap>,
}

/// Candidate names of a block.
#[derive(Debug)]
struct CandidateNames {
    slots: NameSlots,
    /// The last slot of the block.
    last: u32,
}

enum NameSlots {
    Selected(Box<bitmap::IntoIter>),
    All(RangeInclusive<u32>),
    None,
}

impl std::fmt::Debug for NameSlots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NameSlots")
    }
}

impl CandidateNames {
    const fn none(last: u32) -> Self {
        Self {
            slots: NameSlots::None,
            last,
        }
    }
}

impl Iterator for CandidateNames {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        match &mut self.slots {
            NameSlots::Selected(slots) => slots.next(),
            NameSlots::All(slots) => slots.next(),
            NameSlots::None => None,
        }
    }
}

impl SearchScan {
    /// Starts a page of a search for terms from [`terms`](crate::catalog::terms). `after` is
    /// the cursor of the previous page.
    pub fn new(terms: Vec<String>, after: Option<SearchCursor>, max_files: usize) -> Self {
        Self::within(PageBounds::default(), terms, after, max_files)
    }

    pub(crate) fn within(
        bounds: PageBounds,
        terms: Vec<String>,
        after: Option<SearchCursor>,
        max_files: usize,
    ) -> Self {
        let stage = match after {
            None => Stage::Block(0),
            Some(SearchCursor { name, file: u32::MAX }) => {
                name.checked_add(1).map_or(Stage::End, Stage::Block)
            }
            // The block continues with the next name.
            Some(SearchCursor { name, file }) => {
                let next = SearchCursor { name, file: file + 1 };
                Stage::Files(next, CandidateNames::none(name))
            }
        };
        Self {
            matcher: Matcher::new(terms),
            page: Page::new(max_files, bounds),
            term_order: None,
            broad_terms: 0,
            cursor: after,
            has_advanced: false,
            stage,
            file_ids: HashSet::new(),
        }
    }

    /// The steps taken so far.
    pub(crate) const fn steps(&self) -> usize {
        self.page.steps
    }

    /// Returns the page.
    pub fn finish(self) -> SearchPage {
        SearchPage {
            files: self.page.files,
            next: self.cursor.filter(|_| !matches!(self.stage, Stage::End)),
            steps: self.page.steps,
        }
    }

    fn advance_to(&mut self, cursor: SearchCursor) {
        self.cursor = Some(cursor);
        self.has_advanced = true;
    }
}

impl Catalog {
    /// Advances a page of a search by about `slice` steps; true once it is finished.
    pub fn advance_search(&self, search: &mut SearchScan, slice: usize) -> bool {
        let until = search.page.steps + slice;
        loop {
            if matches!(search.stage, Stage::End) || (search.has_advanced && search.page.is_full())
            {
                return true;
            }
            if search.page.steps >= until {
                return false;
            }
            search.stage = match std::mem::replace(&mut search.stage, Stage::End) {
                Stage::Block(first) => self.begin_block(search, first),
                Stage::Terms(lookup) => self.look_up_term(search, lookup),
                Stage::Names(names) => self.check_names(search, names, until),
                Stage::Files(from, names) => self.check_files(search, from, names, until),
                Stage::End => Stage::End,
            };
        }
    }

    fn begin_block(&self, search: &mut SearchScan, first: u32) -> Stage {
        search.page.steps += 1;
        if first >= self.names.end() {
            return Stage::End;
        }
        if search.term_order.is_none() {
            let terms = search.matcher.terms().iter();
            let counts: Vec<usize> = terms
                .map(|term| self.names.count_words(term, MAX_COUNTED_WORDS))
                .collect();
            search.page.steps += counts.iter().map(|count| count + 8).sum::<usize>();
            if counts.contains(&0) {
                return Stage::End;
            }
            let mut order: Vec<usize> = (0..counts.len()).collect();
            order.sort_by_key(|&term| counts[term]);
            search.term_order = Some(order);
        }
        Stage::Terms(TermLookup {
            first,
            terms_done: 0,
            names: None,
        })
    }

    fn look_up_term(&self, search: &mut SearchScan, lookup: TermLookup) -> Stage {
        let TermLookup {
            first,
            terms_done,
            names,
        } = lookup;
        let left = names.as_ref().map_or(u64::MAX, RoaringBitmap::len);
        let term = search
            .term_order
            .as_ref()
            .and_then(|order| order.get(terms_done).copied());
        let Some(term) = term.filter(|_| left > FEW_NAMES) else {
            let last = block_end(first).min(self.names.end().max(first + 1) - 1);
            let slots = match names {
                Some(names) => NameSlots::Selected(Box::new(names.into_iter())),
                None => NameSlots::All(first..=last),
            };
            return Stage::Names(CandidateNames { slots, last });
        };
        let next = |names| {
            Stage::Terms(TermLookup {
                first,
                terms_done: terms_done + 1,
                names,
            })
        };
        if search.broad_terms & (1 << term) != 0 {
            search.page.steps += 1;
            return next(names);
        }
        let worthwhile = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .saturating_mul(STEPS_PER_EXCLUDED_NAME);
        let max = search.page.bounds.term_steps.min(worthwhile);
        let (matches, steps) = self.names.with_prefix(&search.matcher.terms()[term], first, max);
        search.page.steps += steps;
        next(match (matches, names) {
            (Some(matches), Some(names)) => Some(matches & names),
            (Some(matches), None) => Some(matches),
            (None, names) => {
                if max == search.page.bounds.term_steps {
                    search.broad_terms |= 1 << term;
                }
                names
            }
        })
    }

    fn check_names(
        &self,
        search: &mut SearchScan,
        mut names: CandidateNames,
        until: usize,
    ) -> Stage {
        let mut empty_slots = 0;
        loop {
            if search.page.steps >= until || (search.has_advanced && search.page.is_full()) {
                return Stage::Names(names);
            }
            let Some(name) = names.next() else {
                search.advance_to(SearchCursor::past(names.last));
                let next = names.last.checked_add(1).filter(|&next| next < self.names.end());
                return next.map_or(Stage::End, Stage::Block);
            };
            let Some(text) = self.names.get_text(name) else {
                empty_slots += 1;
                search.page.steps += usize::from(empty_slots % EMPTY_SLOTS_PER_STEP == 1);
                search.advance_to(SearchCursor::past(name));
                continue;
            };
            let (matches, steps) = search.matcher.matches(text);
            search.page.steps += steps;
            if matches {
                return Stage::Files(SearchCursor { name, file: 0 }, names);
            }
            search.advance_to(SearchCursor::past(name));
        }
    }

    fn check_files(
        &self,
        search: &mut SearchScan,
        SearchCursor { name, file: from }: SearchCursor,
        names: CandidateNames,
        until: usize,
    ) -> Stage {
        // Another name may have taken the slot by now.
        if let Some(text) = self.names.get_text(name) {
            let (matches, steps) = search.matcher.matches(text);
            search.page.steps += steps;
            let files = matches
                .then(|| self.names.files_of(name).range_from(from))
                .into_iter()
                .flatten();
            for (nth, file) in files.enumerate() {
                // Check at least one file per slice; otherwise checking the name could use up every
                // slice.
                if (search.page.steps >= until && nth > 0)
                    || (search.has_advanced && search.page.is_full())
                {
                    return Stage::Files(SearchCursor { name, file }, names);
                }
                self.add_file(search, name, file);
                search.advance_to(SearchCursor { name, file });
            }
        }
        search.page.steps += 1;
        search.advance_to(SearchCursor::past(name));
        Stage::Names(names)
    }

    /// Puts a file on the page unless an earlier page or name returned it.
    fn add_file(&self, search: &mut SearchScan, name: u32, file: u32) {
        let (is_first, steps) = self.is_first_name(file, name, &mut search.matcher);
        search.page.steps += steps;
        if !is_first || !search.file_ids.insert(self.files[file].id) {
            return;
        }
        let matched = (!search.matcher.terms().is_empty()).then_some((name, &mut search.matcher));
        let (file, steps) = self.describe(file, matched);
        search.page.steps += steps;
        // All providers may be hidden.
        if file.provider_count > 0 {
            search.page.push(file);
        }
    }

    /// Whether this is the first name of the file that matches the terms; an earlier one would have
    /// returned the file already. Compares at most [`MAX_COMPARED_NAMES`] names. Also returns the
    /// steps taken.
    fn is_first_name(&self, file: u32, name: u32, matcher: &mut Matcher) -> (bool, usize) {
        let claims = self.files[file].claims.iter();
        let names = claims.flat_map(|&(claim, _)| &self.claims[claim].names);
        let mut steps = 2;
        for &other in names.take(MAX_COMPARED_NAMES) {
            steps += 1;
            if other < name {
                let (matches, match_steps) = matcher.matches(self.names.text(other));
                steps += match_steps;
                if matches {
                    return (false, steps);
                }
            }
            if steps >= MAX_MATCHING_STEPS {
                break;
            }
        }
        (true, steps)
    }
}
