//! Searches: pages of the files with a name that matches, best matches first, then those with the
//! most providers, then by id.
//!
//! A search cannot rank all files that it finds: "model" may find millions. It ranks *groups* of
//! files, each as large as a call can afford. A tier of few files is one group, so its order is
//! exact. Of a tier of many files, those with several providers come first, in classes of similar
//! numbers of providers; within a class, and among the files with one provider, each group has its
//! own order.
//!
//! A page ends at a place in this order, and the next page ranks the same group again. While the
//! catalog changes between pages, a file whose names and number of providers stay the same is found.
//! It is found once, except if it has more than [`MAX_COMPARED_NAMES`] names, or if its group has
//! grown by a third.

pub(crate) mod cursor;
mod name_scan;

use std::{cmp::Reverse, collections::HashSet};

use potluck_core::{FileId, model::IndexedFile};

pub use self::cursor::SearchCursor;
use self::{
    cursor::{END, FileRank, Pass, Place, Tier},
    name_scan::{NameScan, NextName},
};
use crate::catalog::{
    lookup::Catalog,
    query::{
        describe::MAX_MATCHING_STEPS,
        page::{Page, PageBounds},
        ranking::{Best, Ranking},
    },
    tables::{
        popular_files::{self, MAX_CLASS, PopularPlace},
        words::{MatchLevel, Matcher, SearchTerms},
    },
};

/// Maximum names of a file that are compared to find its tier and its place. A file with more names
/// may appear again on a later page.
const MAX_COMPARED_NAMES: usize = 32;

/// Maximum files with several providers that are all checked for a match: about 30 milliseconds.
const MAX_POPULAR_CHECKED: u64 = 50_000;

/// Maximum files with several providers that are checked for each that matches. If a match is rarer,
/// it costs less to go through the matching names once for each class.
const MAX_CHECKED_PER_MATCH: u64 = 16;

/// Steps for looking up the number of providers of a file.
const CLASS_STEPS: usize = 3;

/// Steps by which two rankings of a small group may differ.
const FEW_STEPS: usize = 64;

/// Steps for ranking one file, without its id.
const STEPS_PER_RANKED_FILE: usize = 2;

/// Steps for computing the id of a file and adding it to the ranking.
const STEPS_PER_ID: usize = 6;

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
    /// The current group and the last file of it that was returned: where the page would end.
    at: SearchCursor,
    /// Whether this page has made progress. A page ends only after some progress, so that paging
    /// always terminates.
    has_advanced: bool,
    /// Whether the page is finished.
    is_done: bool,
    /// Whether nothing follows this page.
    is_last: bool,
    stage: Stage,
    group: Group,
    /// Ids of the files on this page.
    file_ids: HashSet<FileId>,
}

#[derive(Debug)]
enum Stage {
    /// A group begins.
    Begin,
    /// A tier of many files begins again. `part` is the number of files with names below a slot.
    Restart { part: (u64, u32) },
    /// The names are checked.
    Names(NameScan),
    /// The files with a name are checked, from this one on.
    Files { name: u32, file: u32, names: NameScan },
    /// The files with several providers are checked, from this one on.
    Popular(PopularPlace),
    /// The ranked files are put on the page.
    Emit(Ranking<RankedFile>),
}

/// A file with its rank and the name that matches best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct RankedFile {
    rank: FileRank,
    name: u32,
}

/// The files of the current group so far.
#[derive(Debug)]
struct Group {
    best: Best<RankedFile>,
    len: usize,
    /// The steps of the page when the first file was added.
    started: usize,
}

/// The names of a file compared with a query.
#[derive(Debug, Clone, Copy)]
struct BestName {
    level: MatchLevel,
    /// The first name in the tier of that level.
    first: u32,
}

impl SearchScan {
    /// Starts a page of a search for terms from [`terms`](crate::catalog::terms). `after` is
    /// the cursor of the previous page.
    pub fn new(terms: SearchTerms, after: Option<SearchCursor>, max_files: usize) -> Self {
        Self::within(PageBounds::default(), terms, after, max_files)
    }

    pub(crate) fn within(
        bounds: PageBounds,
        terms: SearchTerms,
        after: Option<SearchCursor>,
        max_files: usize,
    ) -> Self {
        let first = match terms.is_empty() {
            true => Tier::Prefixes,
            false => Tier::Typed,
        };
        Self {
            matcher: Matcher::new(terms),
            page: Page::new(max_files, bounds),
            at: after.unwrap_or_else(|| SearchCursor::tier(first)),
            has_advanced: false,
            is_done: false,
            is_last: false,
            stage: Stage::Begin,
            group: Group {
                // One more than fit on the page shows that another page follows.
                best: Best::new(max_files + 1),
                len: 0,
                started: 0,
            },
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
            next: Some(self.at).filter(|_| !self.is_last),
            steps: self.page.steps,
        }
    }

    /// Maximum steps from the first file of a group to its end. A group that was ranked before gets
    /// more, so that it rarely ends elsewhere when the catalog has changed.
    fn max_group_steps(&self) -> usize {
        match self.at.after == FileRank::FIRST {
            true => self.page.bounds.steps * 3 / 8,
            false => self.page.bounds.steps / 2 + FEW_STEPS,
        }
    }

    /// Comes to a place in the order of the pass. Returns the next stage if the group ends there.
    fn reach(&mut self, place: Place) -> Option<Stage> {
        if place >= self.at.to {
            return Some(self.end_group(self.at.to));
        }
        if self.group.len == 0 {
            if place > self.at.from && self.at.after == FileRank::FIRST {
                self.at.from = place;
                self.has_advanced = true;
            }
            return None;
        }
        let is_full = self.group.len >= self.page.bounds.ranked
            || self.page.steps - self.group.started >= self.max_group_steps();
        is_full.then(|| self.end_group(place))
    }

    /// Ends the group, and ranks it. A tier of many files begins again instead, with those that have
    /// several providers.
    fn end_group(&mut self, to: Place) -> Stage {
        if self.at.pass == Pass::All && to != END {
            if self.at.after == FileRank::FIRST {
                self.has_advanced = true;
                return Stage::Restart {
                    part: (self.group.len as u64, to.0),
                };
            }
            self.at.pass = Pass::Grown;
        }
        self.at.to = to;
        Stage::Emit(self.group.best.take())
    }

    fn begin(&mut self, group: SearchCursor) {
        self.at = group;
        self.group.best.take();
        self.group.len = 0;
    }

    /// Adds a file to the group, unless an earlier page has returned it.
    fn add(&mut self, catalog: &Catalog, file: u32, name: u32, level: MatchLevel) {
        self.page.steps += STEPS_PER_RANKED_FILE;
        if self.group.len == 0 {
            if self.has_advanced
                && self.page.steps + self.max_group_steps() > self.page.bounds.steps
            {
                // The next page has room for the group.
                self.is_done = true;
                return;
            }
            self.group.started = self.page.steps;
        }
        self.group.len += 1;
        // The first bytes of the id rule out most files; the whole id takes longer.
        let providers = Reverse(catalog.files.providers(file).len() as u64);
        let [lowest, highest] = [0, 0xff].map(|rest| {
            let mut id = [rest; 32];
            id[..4].copy_from_slice(&catalog.files.id_prefix(file));
            FileRank {
                level,
                providers,
                file: FileId(id),
            }
        });
        let lowest = RankedFile {
            rank: lowest,
            name: 0,
        };
        if highest <= self.at.after || !self.group.best.may_keep(&lowest) {
            return;
        }
        self.page.steps += STEPS_PER_ID;
        let rank = FileRank {
            file: catalog.files.id(file),
            ..lowest.rank
        };
        if rank > self.at.after {
            self.group.best.add(RankedFile { rank, name });
        }
    }
}

impl Catalog {
    /// Advances a page of a search by about `slice` steps; true once it is finished.
    pub fn advance_search(&self, search: &mut SearchScan, slice: usize) -> bool {
        let until = search.page.steps + slice;
        loop {
            if search.is_done
                || (search.has_advanced && search.group.len == 0 && search.page.is_full())
            {
                return true;
            }
            if search.page.steps >= until {
                return false;
            }
            search.stage = match std::mem::replace(&mut search.stage, Stage::Begin) {
                Stage::Begin => self.begin_group(search),
                Stage::Restart { part } => self.restart_tier(search, part),
                Stage::Names(names) => self.check_names(search, names, until),
                Stage::Files { name, file, names } => {
                    self.check_files(search, (name, file), names, until)
                }
                Stage::Popular(from) => self.check_popular(search, from, until),
                Stage::Emit(ranking) => self.emit(search, ranking, until),
            };
        }
    }

    fn begin_group(&self, search: &mut SearchScan) -> Stage {
        let SearchCursor { tier, pass, from, .. } = search.at;
        search.page.steps += 1;
        match (pass, from) {
            (Pass::Popular, (0, 0)) => Stage::Popular(self.files.popular().first()),
            (Pass::Popular, (rank, file)) => Stage::Popular(PopularPlace { rank, file }),
            (_, (name, _)) => Stage::Names(NameScan::new(tier, name)),
        }
    }

    /// Chooses the passes for a tier of many files.
    fn restart_tier(&self, search: &mut SearchScan, (files, below): (u64, u32)) -> Stage {
        let tier = search.at.tier;
        let terms = search.matcher.terms();
        let estimate = name_scan::estimate_files(&self.names, terms, tier, &mut search.page.steps);
        // As if the other names were like those so far.
        let end = u64::from(self.names.end());
        let extrapolated = files.saturating_mul(end) / u64::from(below).max(1);
        let popular = self.files.popular();
        let is_worthwhile = popular.len() <= MAX_POPULAR_CHECKED
            || popular.len() / MAX_CHECKED_PER_MATCH <= estimate.min(extrapolated);
        let pass = match is_worthwhile {
            true => Pass::Popular,
            false => Pass::Class(popular.first().rank as u8), // at most MAX_CLASS
        };
        search.begin(SearchCursor::pass(tier, pass));
        Stage::Begin
    }

    fn check_names(&self, search: &mut SearchScan, mut names: NameScan, until: usize) -> Stage {
        let SearchScan { matcher, page, .. } = search;
        let next = names.next(&self.names, matcher.terms(), page.bounds, &mut page.steps, until);
        match next {
            NextName::Name(name) => {
                let (first, file) = search.at.from;
                let file = if name == first { file } else { 0 };
                Stage::Files { name, file, names }
            }
            NextName::Pending => search.reach((names.position(), 0)).unwrap_or(Stage::Names(names)),
            NextName::End => search.end_group(END),
        }
    }

    fn check_files(
        &self,
        search: &mut SearchScan,
        (name, from): Place,
        names: NameScan,
        until: usize,
    ) -> Stage {
        // Another name may have taken the slot by now.
        if let Some(text) = self.names.get_text(name) {
            let (level, steps) = search.matcher.level(text);
            search.page.steps += steps;
            let level = level.filter(|&level| Tier::of(level) == search.at.tier);
            let files = level
                .map(|level| {
                    self.names
                        .files_of(name)
                        .range_from(from)
                        .map(move |file| (file, level))
                })
                .into_iter()
                .flatten();
            for (nth, (file, level)) in files.enumerate() {
                if let Some(stage) = search.reach((name, file)) {
                    return stage;
                }
                // Check at least one file per slice; otherwise checking the name could use up every
                // slice.
                let is_over = search.page.steps >= until
                    || (search.has_advanced && search.group.len == 0 && search.page.is_full());
                if is_over && nth > 0 {
                    return Stage::Files { name, file, names };
                }
                self.add_if_due(search, file, Some((name, level)));
                if search.is_done {
                    return Stage::Begin;
                }
            }
        }
        search.page.steps += 1;
        search
            .reach((name.saturating_add(1), 0))
            .unwrap_or(Stage::Names(names))
    }

    fn check_popular(&self, search: &mut SearchScan, from: PopularPlace, until: usize) -> Stage {
        search.page.steps += 4;
        for place in self.files.popular().from(from) {
            if let Some(stage) = search.reach((place.rank, place.file)) {
                return stage;
            }
            let is_over = search.page.steps >= until
                || (search.has_advanced && search.group.len == 0 && search.page.is_full());
            if is_over && place != from {
                return Stage::Popular(place);
            }
            self.add_if_due(search, place.file, None);
            if search.is_done {
                return Stage::Begin;
            }
        }
        search.end_group(END)
    }

    /// Adds a file to the group if this pass returns the file, and returns it here. `found` is the
    /// name by which the pass came to the file.
    fn add_if_due(&self, search: &mut SearchScan, file: u32, found: Option<(u32, MatchLevel)>) {
        let SearchCursor { tier, pass, .. } = search.at;
        let class = popular_files::class_of(self.files.providers(file).len());
        if matches!(pass, Pass::Class(rank) if u32::from(rank) + class != MAX_CLASS) {
            search.page.steps += CLASS_STEPS;
            return;
        }
        let (best, steps) = self.best_name(file, found, &mut search.matcher);
        search.page.steps += steps;
        let in_tier = best.filter(|best| Tier::of(best.level) == tier);
        let due = match (found, in_tier) {
            (None, in_tier) => in_tier.map(|best| (best.first, best.level)),
            // `Pass::Popular` returned it.
            (Some(_), Some(_)) if pass == Pass::Others && class > 0 => None,
            (Some((name, _)), Some(best)) => (best.first == name).then_some((name, best.level)),
            // The name is not among those that were compared. An earlier tier returned the file if
            // one of them is better.
            (Some(found), None) => {
                let is_later = best.is_none_or(|best| Tier::of(best.level) > tier);
                is_later.then_some(found)
            }
        };
        if let Some((name, level)) = due {
            search.add(self, file, name, level);
        }
    }

    /// Compares the names of a file, at most [`MAX_COMPARED_NAMES`] of them, with a query. `known` is
    /// a name whose level is known. Also returns the steps taken.
    fn best_name(
        &self,
        file: u32,
        known: Option<(u32, MatchLevel)>,
        matcher: &mut Matcher,
    ) -> (Option<BestName>, usize) {
        let claims = self.files.claims(file);
        let names = claims.iter().flat_map(|&(claim, _)| {
            let names = self.claims.get(claim).names;
            (0..names.len()).map(move |at| names[at])
        });
        let mut best: Option<BestName> = None;
        let mut steps = 2;
        for name in names.take(MAX_COMPARED_NAMES) {
            steps += 1;
            let (level, match_steps) = match known {
                Some((known, level)) if known == name => (Some(level), 0),
                _ => matcher.level(self.names.text(name)),
            };
            steps += match_steps;
            if let Some(level) = level {
                let found = BestName { level, first: name };
                best = Some(match best {
                    None => found,
                    Some(best) if Tier::of(level) < Tier::of(best.level) => found,
                    Some(best) if Tier::of(level) > Tier::of(best.level) => best,
                    Some(best) => BestName {
                        level: best.level.min(level),
                        first: best.first.min(name),
                    },
                });
            }
            if steps >= MAX_MATCHING_STEPS {
                break;
            }
        }
        (best, steps)
    }

    /// Puts the ranked files of the group on the page, then begins the next group.
    fn emit(
        &self,
        search: &mut SearchScan,
        mut ranking: Ranking<RankedFile>,
        until: usize,
    ) -> Stage {
        while let Some(&next) = ranking.items.last() {
            // The remaining file only shows that another page follows.
            if search.has_advanced && search.page.is_full() {
                search.is_done = true;
                return Stage::Begin;
            }
            if search.page.steps >= until {
                return Stage::Emit(ranking);
            }
            ranking.items.pop();
            search.at.after = next.rank;
            search.has_advanced = true;
            search.page.steps += 4;
            if search.file_ids.insert(next.rank.file)
                && let Some(file) = self.files.find(&next.rank.file)
            {
                self.add_found_file(search, file, next.name);
            }
        }
        if ranking.is_truncated {
            // The group has more files, but those that were kept are hidden by now.
            search.is_done = true;
            return Stage::Begin;
        }
        search.has_advanced = true;
        match search.at.next() {
            Some(next) => search.begin(next),
            None => (search.is_last, search.is_done) = (true, true),
        }
        Stage::Begin
    }

    fn add_found_file(&self, search: &mut SearchScan, file: u32, name: u32) {
        let has_name = self.names.get_text(name).is_some()
            && self.names.files_of(name).range_from(file).next() == Some(file);
        let matched = (!search.matcher.terms().is_empty())
            .then_some((has_name.then_some(name), &mut search.matcher));
        let (found, steps) = self.describe(file, matched);
        search.page.steps += steps;
        // All providers may be hidden.
        if found.provider_count > 0 {
            search.page.push(found);
        }
    }
}
