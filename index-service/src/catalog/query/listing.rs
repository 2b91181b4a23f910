//! Listings: pages of the files with one id, name or SHA-256, ordered by number of providers (most
//! first), then by id.

use std::cmp::Reverse;

use potluck_core::{
    FileId,
    model::{IndexedFile, QueryKey},
};
use rand::Rng;

use crate::catalog::{
    lookup::Catalog,
    query::{
        page::{Page, PageBounds},
        ranking::{Best, Ranking},
        sample::MAX_SAMPLED,
    },
};

/// Steps for ranking one file.
const STEPS_PER_RANKED_FILE: usize = 2;

/// Steps for computing the id of a file and adding it to the ranking.
const STEPS_PER_ID: usize = 6;

/// The end of a page of files, ranked by number of providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListingCursor {
    /// The range of file slots that are ranked together.
    pub slots: (u32, u32),
    /// Number of providers of the last file.
    pub providers: u64,
    /// Id of the last file.
    pub file: FileId,
}

impl ListingCursor {
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
pub struct ListingPage {
    /// The files with samples of their providers.
    pub files: Vec<IndexedFile>,
    /// The cursor for the next page; `None` on the last page.
    pub next: Option<ListingCursor>,
    /// The steps that the page took.
    pub steps: usize,
}

/// The order of the files on a page: number of providers, then id.
type Rank = (Reverse<u64>, FileId);

/// A page in progress of the files with one id, name or SHA-256, ordered by number of providers
/// (most first).
#[derive(Debug)]
pub struct Listing {
    by: QueryKey,
    max_providers: usize,
    page: Page,
    /// The files that are ranked together, and the file after which the page begins.
    cursor: ListingCursor,
    /// The slot of the next file to rank; `None` once ranking is done.
    rank_from: Option<u32>,
    /// Number of files ranked so far.
    ranked: usize,
    /// Whether files remain beyond those that are ranked together.
    has_more_groups: bool,
    /// The best-ranked files, one more than fit on the page: the extra file shows that another page
    /// follows.
    best: Best<Rank>,
    /// The content of `best` after ranking.
    ranking: Ranking<Rank>,
}

impl Listing {
    /// Starts a page of files by id, name or SHA-256, each with up to `max_providers` of its
    /// providers.
    pub fn new(
        by: QueryKey,
        after: Option<ListingCursor>,
        max_files: usize,
        max_providers: usize,
    ) -> Self {
        Self::within(PageBounds::default(), by, after, max_files, max_providers)
    }

    pub(crate) fn within(
        bounds: PageBounds,
        by: QueryKey,
        after: Option<ListingCursor>,
        max_files: usize,
        max_providers: usize,
    ) -> Self {
        let cursor = after.unwrap_or(ListingCursor::before(0));
        Self {
            by,
            max_providers,
            page: Page::new(max_files, bounds),
            cursor,
            rank_from: Some(cursor.slots.0),
            ranked: 0,
            has_more_groups: false,
            best: Best::new(max_files + 1),
            ranking: Ranking::default(),
        }
    }

    /// The steps taken so far.
    pub(crate) const fn steps(&self) -> usize {
        self.page.steps
    }

    /// Returns the page.
    pub fn finish(self) -> ListingPage {
        // Files that were ranked worse may follow though all of the ranking are hidden by now.
        let is_group_done = self.ranking.items.is_empty() && !self.ranking.is_truncated;
        let next = match (is_group_done, self.has_more_groups) {
            (false, _) => Some(self.cursor),
            (true, true) => Some(ListingCursor::before(self.cursor.slots.1)),
            (true, false) => None,
        };
        ListingPage {
            files: self.page.files,
            next,
            steps: self.page.steps,
        }
    }
}

impl Catalog {
    /// Advances a page of files by about `slice` steps; true once it is finished.
    pub fn advance_listing(&self, listing: &mut Listing, slice: usize, rng: &mut impl Rng) -> bool {
        let until = listing.page.steps + slice;
        if let QueryKey::Id(id) = listing.by {
            listing.rank_from = None;
            if let Some(slot) = self.files.find(&id) {
                self.add_listed_file(slot, listing, rng);
            }
            return true;
        }
        if let Some(from) = listing.rank_from {
            let files = match &listing.by {
                QueryKey::Name(name) => self.names.find(name).map(|name| self.names.files_of(name)),
                QueryKey::Sha256(sum) => {
                    let sums = &self.claims.sums;
                    sums.find(sum).map(|sum| sums.files_of(sum))
                }
                QueryKey::Id(_) | QueryKey::IdPrefix(_) => None,
            };
            let is_ranked = match listing.by {
                QueryKey::IdPrefix(prefix) => {
                    let files = self.files.with_prefix(&prefix).into_iter();
                    self.rank(listing, files.filter(|&file| file >= from), until)
                }
                _ => {
                    let files = files.map(|files| files.range_from(from)).into_iter().flatten();
                    self.rank(listing, files, until)
                }
            };
            if !is_ranked {
                return false;
            }
            listing.rank_from = None;
            listing.ranking = listing.best.take();
        }
        while let Some(&(Reverse(providers), file)) = listing.ranking.items.last() {
            // The remaining file only shows that another page follows.
            if listing.page.is_full() && !listing.page.files.is_empty() {
                return true;
            }
            if listing.page.steps >= until {
                return false;
            }
            listing.ranking.items.pop();
            (listing.cursor.providers, listing.cursor.file) = (providers, file);
            match self.files.find(&file) {
                Some(slot) => self.add_listed_file(slot, listing, rng),
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
                listing.has_more_groups = true;
                return true;
            }
            if listing.page.steps >= until {
                listing.rank_from = Some(slot);
                return false;
            }
            listing.ranked += 1;
            listing.page.steps += STEPS_PER_RANKED_FILE;
            // The first bytes of the id rule out most files; the whole id takes longer.
            let providers = Reverse(self.files.providers(slot).len() as u64);
            let [lowest, highest] = [0, 0xff].map(|rest| {
                let mut id = [rest; 32];
                id[..4].copy_from_slice(&self.files.id_prefix(slot));
                (providers, FileId(id))
            });
            if highest <= after || !listing.best.may_keep(&lowest) {
                continue;
            }
            listing.page.steps += STEPS_PER_ID;
            let rank = (providers, self.files.id(slot));
            if rank > after {
                listing.best.add(rank);
            }
        }
        true
    }

    /// Puts a file with a sample of its providers on the page, unless all of them are hidden.
    fn add_listed_file(&self, slot: u32, listing: &mut Listing, rng: &mut impl Rng) {
        let (mut file, steps) = self.describe(slot, None);
        let sampled = self.files.providers(slot).len().min(MAX_SAMPLED);
        file.providers = self.sample(slot, listing.max_providers, rng);
        listing.page.steps += steps + 2 * sampled + 2 * file.providers.len();
        if file.provider_count > 0 {
            listing.page.push(file);
        }
    }
}
