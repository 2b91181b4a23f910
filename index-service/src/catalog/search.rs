//! Paged reads of the catalog: by id, by exact name, by claimed SHA-256, by words.
//!
//! [`SearchScan`] and [`Listing`] hold the state of one page. A caller advances a page in short
//! slices, so that each holds the catalog's lock only briefly. The page counts its steps; a step
//! takes some 30 nanoseconds. A page ends when it has taken [`PAGE_STEPS`] or has enough files or
//! bytes. It may be empty, and it says where the next page begins. However broad the query, one
//! call takes at most [`MAX_CALL_STEPS`].
//!
//! The catalog may change between two slices. A file that stays in it throughout is found; a file
//! that is added or removed meanwhile may be found or not.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    ops::RangeInclusive,
};

use potluck_core::{
    FileId,
    model::{IndexedFile, QueryKey},
};
use rand::Rng;
use roaring::{RoaringBitmap, bitmap};

use crate::catalog::{
    Catalog, SAMPLED_FROM,
    describe::{self, CHECK_STEPS},
    names::block_end,
    words::Matcher,
};

/// Maximum estimated bytes of a page: a quarter of the maximum message, so that a long result needs
/// few pages.
const PAGE_BYTES: usize = 1024 * 1024;

/// Steps after which a page ends: some 4 milliseconds.
pub const PAGE_STEPS: usize = 120_000;

/// Maximum steps of a page: it finishes its current item after it reaches [`PAGE_STEPS`].
pub const MAX_CALL_STEPS: usize = PAGE_STEPS + MAX_ITEM_STEPS;

/// Maximum steps of an item that cannot be interrupted: checking and describing one file and
/// sampling its providers, or looking up one term.
pub const MAX_ITEM_STEPS: usize =
    2 * CHECK_STEPS + describe::MAX_STEPS + 2 * SAMPLED_FROM + TERM_STEPS + 8_000;

/// Maximum steps for looking up one term in one block of names. A term that needs more is a prefix
/// of so many words that checking the names one by one is cheaper.
const TERM_STEPS: usize = 8_192;

/// Maximum words counted per term, to find the rarest term.
const COUNTED_WORDS: usize = 256;

/// Number of candidate names up to which checking each is cheaper than looking up another term.
const FEW_NAMES: u64 = 64;

/// Steps that a term's lookup may take for each name that it could exclude.
const STEPS_A_NAME: usize = 8;

/// Empty slots skipped per step.
const EMPTY_A_STEP: usize = 16;

/// Maximum names of a file that are compared to detect that an earlier name returned it already. A
/// file with more names may appear again on a later page.
const MAX_EARLIER: usize = 32;

/// Maximum files with one name or SHA-256 that are ranked together. The files beyond it form
/// further groups, which follow this one.
const RANKED: usize = 32_768;

/// Steps for ranking one file.
const STEPS_A_RANKED: usize = 2;

/// Limits of one page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SearchBounds {
    /// Steps after which the page ends, by default [`PAGE_STEPS`].
    pub(crate) steps: usize,
    /// Maximum steps per term and block, by default [`TERM_STEPS`].
    pub(crate) term: usize,
    /// Maximum files ranked together, by default [`RANKED`].
    pub(crate) ranked: usize,
}

impl Default for SearchBounds {
    fn default() -> Self {
        Self {
            steps: PAGE_STEPS,
            term: TERM_STEPS,
            ranked: RANKED,
        }
    }
}

/// Where a page of a search ended: at this file with this name.
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

/// Where a page of files, ranked by number of providers, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankCursor {
    /// The range of file slots that are ranked together.
    pub slots: (u32, u32),
    /// Number of providers of the last file.
    pub providers: u64,
    /// Id of the last file.
    pub file: FileId,
}

impl RankCursor {
    /// A cursor before all files from this slot on: no file has `u64::MAX` providers.
    const fn before(slot: u32) -> Self {
        Self {
            slots: (slot, u32::MAX),
            providers: u64::MAX,
            file: FileId([0; 32]),
        }
    }
}

/// A page of files, ordered by number of providers (most first), then by id.
#[derive(Debug)]
pub struct RankedPage {
    /// The files with samples of their providers.
    pub files: Vec<IndexedFile>,
    /// The cursor for the next page; `None` on the last page.
    pub next: Option<RankCursor>,
    /// The steps that the page took.
    pub steps: usize,
}

/// The results of a page so far.
#[derive(Debug)]
struct Page {
    files: Vec<IndexedFile>,
    bytes: usize,
    most: usize,
    steps: usize,
    bounds: SearchBounds,
}

impl Page {
    const fn new(max: usize, bounds: SearchBounds) -> Self {
        Self {
            files: Vec::new(),
            bytes: 0,
            most: max,
            steps: 0,
            bounds,
        }
    }

    fn push(&mut self, found: IndexedFile) {
        self.bytes += encoded_size(&found);
        self.files.push(found);
    }

    fn is_full(&self) -> bool {
        self.files.len() >= self.most || self.bytes > PAGE_BYTES || self.steps >= self.bounds.steps
    }
}

/// A page of a search in progress: files with a name that matches all terms, in the order of the
/// names' slots.
///
/// The search goes through the names in blocks. In each block, the rarest terms select candidate
/// names by word; each candidate is then checked as text.
#[derive(Debug)]
pub struct SearchScan {
    matcher: Matcher,
    page: Page,
    /// The terms by index, rarest first; `None` until they are counted.
    order: Option<Vec<usize>>,
    /// One bit per term that matches too many words to be looked up.
    wide: u32,
    /// The last position that is done; `None` at the beginning.
    after: Option<SearchCursor>,
    /// Whether this page has made progress. A page ends only after some progress, so that paging
    /// always terminates.
    moved: bool,
    stage: Stage,
    /// Ids of the files on this page.
    given: HashSet<FileId>,
}

#[derive(Debug)]
enum Stage {
    /// A new block of names begins at this slot.
    Block(u32),
    /// The terms are looked up in a block.
    Terms {
        /// The first slot of the block.
        from: u32,
        /// Number of terms that are looked up.
        done: usize,
        /// The candidate names; `None` stands for all.
        names: Option<RoaringBitmap>,
    },
    /// The candidate names of a block are checked.
    Names(CandidateNames),
    /// The files with a name are checked, from the given file slot on; the remaining candidates of
    /// the block follow.
    Files(u32, u32, CandidateNames),
    /// No name is left.
    End,
}

/// Candidate names of a block.
#[derive(Debug)]
struct CandidateNames {
    slots: Slots,
    /// The last slot that these candidates cover.
    last: u32,
}

enum Slots {
    Some(Box<bitmap::IntoIter>),
    All(RangeInclusive<u32>),
    None,
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slots")
    }
}

impl CandidateNames {
    const fn none(last: u32) -> Self {
        Self {
            slots: Slots::None,
            last,
        }
    }
}

impl Iterator for CandidateNames {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        match &mut self.slots {
            Slots::Some(slots) => slots.next(),
            Slots::All(slots) => slots.next(),
            Slots::None => None,
        }
    }
}

impl SearchScan {
    /// Starts a page of a search for terms from [`crate::catalog::words::terms`]. `after` is the
    /// cursor of the previous page.
    pub fn new(terms: Vec<String>, after: Option<SearchCursor>, max: usize) -> Self {
        Self::within(SearchBounds::default(), terms, after, max)
    }

    pub(crate) fn within(
        bounds: SearchBounds,
        terms: Vec<String>,
        after: Option<SearchCursor>,
        max: usize,
    ) -> Self {
        let stage = match after {
            None => Stage::Block(0),
            Some(SearchCursor { name, file: u32::MAX }) => {
                name.checked_add(1).map_or(Stage::End, Stage::Block)
            }
            // The block continues with the next name.
            Some(SearchCursor { name, file }) => Stage::Files(name, file + 1, CandidateNames::none(name)),
        };
        Self {
            matcher: Matcher::new(terms),
            page: Page::new(max, bounds),
            order: None,
            wide: 0,
            after,
            moved: false,
            stage,
            given: HashSet::new(),
        }
    }

    /// The steps taken so far.
    pub const fn steps(&self) -> usize {
        self.page.steps
    }

    /// Returns the page.
    pub fn finish(self) -> SearchPage {
        SearchPage {
            files: self.page.files,
            next: self.after.filter(|_| !matches!(self.stage, Stage::End)),
            steps: self.page.steps,
        }
    }

    fn move_to(&mut self, after: SearchCursor) {
        self.after = Some(after);
        self.moved = true;
    }
}

/// A page in progress of the files with one id, name or SHA-256, ordered by number of providers
/// (most first).
#[derive(Debug)]
pub struct Listing {
    by: QueryKey,
    max_providers: usize,
    page: Page,
    /// The files that are ranked together, and the file after which the page begins.
    cursor: RankCursor,
    /// The next file to rank; `None` once ranking is done.
    at: Option<u32>,
    ranked: usize,
    /// Whether files remain beyond those that are ranked together.
    more: bool,
    /// The best-ranked files, one more than fit on the page: the extra file shows that another page
    /// follows.
    best: BinaryHeap<(Reverse<u64>, FileId)>,
    /// The content of `best` after ranking, best file last.
    rest: Vec<(Reverse<u64>, FileId)>,
}

impl Listing {
    /// Starts a page of files by id, name or SHA-256, each with up to `max_providers` of its
    /// providers.
    pub fn new(by: QueryKey, after: Option<RankCursor>, max: usize, max_providers: usize) -> Self {
        Self::within(SearchBounds::default(), by, after, max, max_providers)
    }

    pub(crate) fn within(
        bounds: SearchBounds,
        by: QueryKey,
        after: Option<RankCursor>,
        max: usize,
        max_providers: usize,
    ) -> Self {
        let cursor = after.unwrap_or(RankCursor::before(0));
        Self {
            by,
            max_providers,
            page: Page::new(max, bounds),
            cursor,
            at: Some(cursor.slots.0),
            ranked: 0,
            more: false,
            best: BinaryHeap::new(),
            rest: Vec::new(),
        }
    }

    /// The steps taken so far.
    pub const fn steps(&self) -> usize {
        self.page.steps
    }

    /// Returns the page.
    pub fn finish(self) -> RankedPage {
        let next = match (self.rest.is_empty(), self.more) {
            (false, _) => Some(self.cursor),
            (true, true) => Some(RankCursor::before(self.cursor.slots.1)),
            (true, false) => None,
        };
        RankedPage {
            files: self.page.files,
            next,
            steps: self.page.steps,
        }
    }
}

impl Catalog {
    /// Advances a page of a search by about `slice` steps; true once it is finished.
    pub fn advance_search(&self, search: &mut SearchScan, slice: usize) -> bool {
        let until = search.page.steps + slice;
        loop {
            if matches!(search.stage, Stage::End) || (search.moved && search.page.is_full()) {
                return true;
            }
            if search.page.steps >= until {
                return false;
            }
            search.stage = match std::mem::replace(&mut search.stage, Stage::End) {
                Stage::Block(from) => self.begin_block(search, from),
                Stage::Terms { from, done, names } => self.look_up_term(search, from, done, names),
                Stage::Names(names) => self.check_names(search, names, until),
                Stage::Files(name, from, names) => self.look_at_files(search, name, from, names, until),
                Stage::End => Stage::End,
            };
        }
    }

    fn begin_block(&self, search: &mut SearchScan, from: u32) -> Stage {
        search.page.steps += 1;
        if from >= self.names.end() {
            return Stage::End;
        }
        if search.order.is_none() {
            let terms = search.matcher.terms().iter();
            let counts: Vec<usize> = terms
                .map(|term| self.names.count_words(term, COUNTED_WORDS))
                .collect();
            search.page.steps += counts.iter().map(|count| count + 8).sum::<usize>();
            if counts.contains(&0) {
                return Stage::End;
            }
            let mut order: Vec<usize> = (0..counts.len()).collect();
            order.sort_by_key(|&term| counts[term]);
            search.order = Some(order);
        }
        Stage::Terms {
            from,
            done: 0,
            names: None,
        }
    }

    fn look_up_term(
        &self,
        search: &mut SearchScan,
        from: u32,
        done: usize,
        names: Option<RoaringBitmap>,
    ) -> Stage {
        let left = names.as_ref().map_or(u64::MAX, RoaringBitmap::len);
        let term = search.order.as_ref().and_then(|order| order.get(done).copied());
        let Some(term) = term.filter(|_| left > FEW_NAMES) else {
            let last = block_end(from).min(self.names.end().max(from + 1) - 1);
            let slots = match names {
                Some(names) => Slots::Some(Box::new(names.into_iter())),
                None => Slots::All(from..=last),
            };
            return Stage::Names(CandidateNames { slots, last });
        };
        let done = done + 1;
        if search.wide & (1 << term) != 0 {
            search.page.steps += 1;
            return Stage::Terms { from, done, names };
        }
        let worth = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .saturating_mul(STEPS_A_NAME);
        let max = search.page.bounds.term.min(worth);
        let (found, steps) = self.names.with_prefix(&search.matcher.terms()[term], from, max);
        search.page.steps += steps;
        let names = match (found, names) {
            (Some(found), Some(names)) => Some(found & names),
            (Some(found), None) => Some(found),
            (None, names) => {
                if max == search.page.bounds.term {
                    search.wide |= 1 << term;
                }
                names
            }
        };
        Stage::Terms { from, done, names }
    }

    fn check_names(&self, search: &mut SearchScan, mut names: CandidateNames, until: usize) -> Stage {
        let mut empty = 0;
        loop {
            if search.page.steps >= until || (search.moved && search.page.is_full()) {
                return Stage::Names(names);
            }
            let Some(name) = names.next() else {
                search.move_to(SearchCursor::past(names.last));
                let next = names.last.checked_add(1).filter(|&next| next < self.names.end());
                return next.map_or(Stage::End, Stage::Block);
            };
            let Some(text) = self.names.get(name) else {
                empty += 1;
                search.page.steps += usize::from(empty % EMPTY_A_STEP == 1);
                search.move_to(SearchCursor::past(name));
                continue;
            };
            let (fits, steps) = search.matcher.fits(text);
            search.page.steps += steps;
            if fits {
                return Stage::Files(name, 0, names);
            }
            search.move_to(SearchCursor::past(name));
        }
    }

    fn look_at_files(
        &self,
        search: &mut SearchScan,
        name: u32,
        from: u32,
        names: CandidateNames,
        until: usize,
    ) -> Stage {
        // Another name may have taken the slot by now.
        if let Some(text) = self.names.get(name) {
            let (fits, steps) = search.matcher.fits(text);
            search.page.steps += steps;
            let files = fits.then(|| self.names.files(name, from)).into_iter().flatten();
            for (nth, file) in files.enumerate() {
                // Check at least one file per slice; otherwise checking the name could use up every
                // slice.
                if (search.page.steps >= until && nth > 0) || (search.moved && search.page.is_full()) {
                    return Stage::Files(name, file, names);
                }
                self.offer(search, name, file);
                search.move_to(SearchCursor { name, file });
            }
        }
        search.page.steps += 1;
        search.move_to(SearchCursor::past(name));
        Stage::Names(names)
    }

    /// Puts a file on the page unless an earlier page or name returned it.
    fn offer(&self, search: &mut SearchScan, name: u32, file: u32) {
        let (is_first, steps) = self.is_first_name(file, name, &mut search.matcher);
        search.page.steps += steps;
        if !is_first || !search.given.insert(self.files[file as usize].id) {
            return;
        }
        let under = (!search.matcher.terms().is_empty()).then_some((name, &mut search.matcher));
        let (found, steps) = self.describe(file, under);
        search.page.steps += steps;
        // All providers may be hidden.
        if found.provider_count > 0 {
            search.page.push(found);
        }
    }

    /// Whether this is the first name of the file that matches the terms; an earlier one would have
    /// returned the file already. Compares at most [`MAX_EARLIER`] names. Also returns the steps
    /// taken.
    fn is_first_name(&self, file: u32, name: u32, matcher: &mut Matcher) -> (bool, usize) {
        let tally = self.files[file as usize].claims.iter();
        let names = tally.flat_map(|&(variant, _)| &self.claims[variant].names);
        let mut steps = 2;
        for &other in names.take(MAX_EARLIER) {
            steps += 1;
            if other < name {
                let (fits, took) = matcher.fits(self.names.text(other));
                steps += took;
                if fits {
                    return (false, steps);
                }
            }
            if steps >= CHECK_STEPS {
                break;
            }
        }
        (true, steps)
    }

    /// Advances a page of files by about `slice` steps; true once it is finished.
    pub fn advance_listing(&self, listing: &mut Listing, slice: usize, rng: &mut impl Rng) -> bool {
        let until = listing.page.steps + slice;
        if let QueryKey::Id(id) = listing.by {
            listing.at = None;
            if let Some(slot) = self.find_file(&id) {
                self.list(slot, listing, rng);
            }
            return true;
        }
        if let Some(at) = listing.at {
            let files = match &listing.by {
                QueryKey::Name(name) => self.names.find(name).map(|name| self.names.files_of(name)),
                QueryKey::Sha256(sum) => self.by_sha256.get(sum),
                QueryKey::Id(_) => None,
            };
            let rest = files.map(|files| files.from(at)).into_iter().flatten();
            if !self.rank(listing, rest, until) {
                return false;
            }
            listing.at = None;
            listing.rest = std::mem::take(&mut listing.best).into_sorted_vec();
            listing.rest.reverse();
        }
        while let Some(&(Reverse(providers), file)) = listing.rest.last() {
            // The remaining file only shows that another page follows.
            if listing.page.is_full() && !listing.page.files.is_empty() {
                return true;
            }
            if listing.page.steps >= until {
                return false;
            }
            listing.rest.pop();
            (listing.cursor.providers, listing.cursor.file) = (providers, file);
            match self.find_file(&file) {
                Some(slot) => self.list(slot, listing, rng),
                None => listing.page.steps += 1,
            }
        }
        true
    }

    /// Ranks files; true once all files of the group are ranked.
    fn rank(&self, listing: &mut Listing, files: impl Iterator<Item = u32>, until: usize) -> bool {
        let after = (Reverse(listing.cursor.providers), listing.cursor.file);
        listing.page.steps += 4;
        for slot in files {
            if slot >= listing.cursor.slots.1 || listing.ranked >= listing.page.bounds.ranked {
                listing.cursor.slots.1 = slot.min(listing.cursor.slots.1);
                listing.more = true;
                return true;
            }
            if listing.page.steps >= until {
                listing.at = Some(slot);
                return false;
            }
            listing.ranked += 1;
            listing.page.steps += STEPS_A_RANKED;
            let file = &self.files[slot as usize];
            let key = (Reverse(file.providers.len() as u64), file.id);
            let is_full = listing.best.len() > listing.page.most;
            if key > after && !(is_full && listing.best.peek().is_some_and(|worst| key >= *worst)) {
                listing.best.push(key);
                listing.page.steps += STEPS_A_RANKED;
                if is_full {
                    listing.best.pop();
                }
            }
        }
        true
    }

    /// Puts a file with a sample of its providers on the page, unless all of them are hidden.
    fn list(&self, slot: u32, listing: &mut Listing, rng: &mut impl Rng) {
        let (mut found, steps) = self.describe(slot, None);
        let providers = &self.files[slot as usize].providers;
        found.providers = self.sample(providers, listing.max_providers, rng);
        listing.page.steps += steps + 2 * providers.len().min(SAMPLED_FROM) + 2 * found.providers.len();
        if found.provider_count > 0 {
            listing.page.push(found);
        }
    }
}

/// Estimated size of a result in a response, in bytes; rather too large.
fn encoded_size(found: &IndexedFile) -> usize {
    let names: usize = found.names.iter().map(|name| name.len() + 4).sum();
    let providers: usize = found
        .providers
        .iter()
        .map(|provider| provider.address.host.len() + 56)
        .sum();
    160 + names + providers
}
