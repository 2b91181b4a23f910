//! Reading the catalog page by page: by id, by exact name, by claim, by words.
//!
//! A page is a state ([`SearchScan`], [`Listing`]) that is advanced in short slices, so that the catalog is locked for a moment each time,
//! and that counts its steps. Once a page has taken [`PAGE_STEPS`], or has enough files or bytes, it ends, maybe empty, and says where the
//! next one begins: however broad the question, a call costs no more than [`MAX_CALL_STEPS`].
//!
//! Between two slices the catalog may change. What is there the whole time is found; what comes or goes meanwhile may be.
//!
//! A step is some 30 nanoseconds.

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

/// Most bytes of a page, estimated: a quarter of what one message may hold, so that few are enough
/// for whoever asks for many.
const PAGE_BYTES: usize = 1024 * 1024;

/// Steps after which a page ends: some 4 milliseconds.
pub const PAGE_STEPS: usize = 120_000;

/// Most steps that a page can take: what is under way when it reaches [`PAGE_STEPS`] is finished.
pub const MAX_CALL_STEPS: usize = PAGE_STEPS + MAX_ITEM_STEPS;

/// Most steps of what is not interrupted: one file looked at, described and its providers drawn, or one term looked up.
pub const MAX_ITEM_STEPS: usize =
    2 * CHECK_STEPS + describe::MAX_STEPS + 2 * SAMPLED_FROM + TERM_STEPS + 8_000;

/// Most steps of looking up one term in one block of names. A term that needs more has so many words that names are checked for it
/// one by one instead.
const TERM_STEPS: usize = 8_192;

/// Words up to which those that begin with a term are counted, to begin with the rarest term.
const COUNTED_WORDS: usize = 256;

/// Names up to which checking each costs less than looking up one more term.
const FEW_NAMES: u64 = 64;

/// Steps that looking up a term may take for each name that it could rule out.
const STEPS_A_NAME: usize = 8;

/// Empty slots that are passed over in one step.
const EMPTY_A_STEP: usize = 16;

/// Names of a file that are looked at to see whether it was given already under an earlier one. A file of more can come again on a
/// later page.
const MAX_EARLIER: usize = 32;

/// Files of one name or claim that are ranked against each other. Where there are more, these are given first, then the next as many.
const RANKED: usize = 32_768;

/// Steps of ranking one file.
const STEPS_A_RANKED: usize = 2;

/// What one page may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SearchBounds {
    /// As [`PAGE_STEPS`].
    pub(crate) steps: usize,
    /// As [`TERM_STEPS`].
    pub(crate) term: usize,
    /// As [`RANKED`].
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

/// Where a page of a search ended: at this file under this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SearchCursor {
    /// Slot of the name.
    pub name: u32,
    /// Slot of the file; the highest number where the name is done with.
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
    /// Where the next page begins after; `None` on the last.
    pub next: Option<SearchCursor>,
    /// What it cost.
    pub steps: usize,
}

/// Where a page of files by number of providers ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankCursor {
    /// The slots of the files that are ranked against each other.
    pub slots: (u32, u32),
    /// How many providers the last file had.
    pub providers: u64,
    /// Its id.
    pub file: FileId,
}

impl RankCursor {
    /// Before all files from this slot on: no file has so many providers.
    const fn before(slot: u32) -> Self {
        Self {
            slots: (slot, u32::MAX),
            providers: u64::MAX,
            file: FileId([0; 32]),
        }
    }
}

/// A page of files, those of most providers first, then by id.
#[derive(Debug)]
pub struct RankedPage {
    /// The files with samples of their providers.
    pub files: Vec<IndexedFile>,
    /// Where the next page begins after; `None` on the last.
    pub next: Option<RankCursor>,
    /// What it cost.
    pub steps: usize,
}

/// The files of a page so far.
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

/// A page of a search in the making: files with a name that fits all terms, in the order in which the names came to be known.
///
/// Names are gone through block by block. The terms that few words begin with say which names of a block come into question; each of
/// these is then checked as text.
#[derive(Debug)]
pub struct SearchScan {
    matcher: Matcher,
    page: Page,
    /// The terms, rarest first; `None` until they are counted.
    order: Option<Vec<usize>>,
    /// Terms with too many words to be looked up, a bit each.
    wide: u32,
    /// What is done with; `None` at the beginning.
    after: Option<SearchCursor>,
    /// Whether anything was done with in this page: if not, it must not end.
    moved: bool,
    stage: Stage,
    /// Files on this page.
    given: HashSet<FileId>,
}

#[derive(Debug)]
enum Stage {
    /// A new block of names begins at this slot.
    Block(u32),
    /// Terms of a block are looked up.
    Terms {
        /// The block's first slot.
        from: u32,
        /// How many terms were.
        done: usize,
        /// The names that come into question; `None`: all.
        names: Option<RoaringBitmap>,
    },
    /// A block's names are checked.
    Names(CandidateNames),
    /// The files of one name are looked at, from this one on; then the rest of the block is.
    Files(u32, u32, CandidateNames),
    /// No name is left.
    End,
}

/// Names of a block that come into question.
#[derive(Debug)]
struct CandidateNames {
    slots: Slots,
    /// Up to this slot all is done with once these are.
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
    /// Begins a page: for terms as [`crate::catalog::words::terms`] gives them, after a page that ended at `after`.
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
            // The block goes on with the next name.
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

    /// What it has cost so far.
    pub const fn steps(&self) -> usize {
        self.page.steps
    }

    /// The page.
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

/// A page of the files that have one name or claim in the making, those of most providers first.
#[derive(Debug)]
pub struct Listing {
    by: QueryKey,
    max_providers: usize,
    page: Page,
    /// The files that are ranked against each other, and after which of them the page begins.
    cursor: RankCursor,
    /// The next file to rank; `None` once all were.
    at: Option<u32>,
    ranked: usize,
    /// Whether there are files past those that are ranked.
    more: bool,
    /// The first of them, one more than fit the page: that tells whether there are more.
    best: BinaryHeap<(Reverse<u64>, FileId)>,
    /// The same, the last one first, once all were ranked.
    rest: Vec<(Reverse<u64>, FileId)>,
}

impl Listing {
    /// Begins a page of files by name, claim or id, each with up to `max_providers` of its providers.
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

    /// What it has cost so far.
    pub const fn steps(&self) -> usize {
        self.page.steps
    }

    /// The page.
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
    /// Goes on with a page of a search for some `slice` steps; true once it is finished.
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
        // The slot may be another name's by now.
        if let Some(text) = self.names.get(name) {
            let (fits, steps) = search.matcher.fits(text);
            search.page.steps += steps;
            let files = fits.then(|| self.names.files(name, from)).into_iter().flatten();
            for (nth, file) in files.enumerate() {
                // At least one each time, or checking the name could take all of each slice.
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

    /// Puts a file on the page unless it was given already.
    fn offer(&self, search: &mut SearchScan, name: u32, file: u32) {
        let (is_first, steps) = self.is_first_name(file, name, &mut search.matcher);
        search.page.steps += steps;
        if !is_first || !search.given.insert(self.files[file as usize].id) {
            return;
        }
        let under = (!search.matcher.terms().is_empty()).then_some((name, &mut search.matcher));
        let (found, steps) = self.describe(file, under);
        search.page.steps += steps;
        // Peers that are hidden may be all that have it.
        if found.provider_count > 0 {
            search.page.push(found);
        }
    }

    /// Whether no earlier name of the file fits as well, under which it was given already, as far as [`MAX_EARLIER`] names tell;
    /// and the steps it took.
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

    /// Goes on with a page of files by name or claim for some `slice` steps; true once it is finished.
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
            // Only to tell that there are more.
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

    /// Ranks files; true once all were that are to be.
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

/// What a result takes in an answer, in bytes, roughly and rather too much.
fn encoded_size(found: &IndexedFile) -> usize {
    let names: usize = found.names.iter().map(|name| name.len() + 4).sum();
    let providers: usize = found
        .providers
        .iter()
        .map(|provider| provider.address.host.len() + 56)
        .sum();
    160 + names + providers
}
