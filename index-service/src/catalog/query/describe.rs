//! Describes a file by its providers' most common claims.
//!
//! A description takes at most [`MAX_STEPS`], however many claims the file has.

use std::cmp::Reverse;

use potluck_core::{
    Sha256,
    model::{FileKind, FileRecord, IndexedFile},
};

use crate::catalog::{
    lookup::Catalog,
    tables::{files::ClaimCount, words::Matcher},
};

/// Maximum names returned per file, as the contract defines it.
pub(crate) const MAX_NAMES: usize = 16;

/// Maximum claims of a file that a description considers. It bounds the cost of a query if each
/// provider of a crowd makes a different claim.
const MAX_CLAIMS: usize = 64;

/// Maximum claims of a file from which the most common are selected: the number of peers in a very
/// large crowd.
const MAX_COUNTED_CLAIMS: usize = 65_536;

/// Claims compared per step.
const CLAIMS_PER_STEP: usize = 16;

/// Maximum names of a file that are matched against a search, the most common first.
const MAX_MATCHED_NAMES: usize = 64;

/// Steps after which no further name is matched.
pub(crate) const MAX_MATCHING_STEPS: usize = 2048;

/// In place of a level: the name does not match.
const NO_MATCH: u8 = u8::MAX;

/// Maximum steps for matching one name: each character of the longest name expands to eighteen.
const MAX_MATCH_STEPS: usize = 6_000;

/// Maximum steps for describing one file.
pub(crate) const MAX_STEPS: usize = MAX_COUNTED_CLAIMS / CLAIMS_PER_STEP
    + 4 * MAX_CLAIMS * MAX_NAMES
    + MAX_MATCHING_STEPS
    + MAX_MATCH_STEPS
    + 16;

impl Catalog {
    /// Describes a file by its most common claims; also returns the steps taken. The names are
    /// ordered by number of providers (most first), then by text. If a search found the file,
    /// `search` is the name that it found and its matcher: the names that match best come first, and
    /// include that name.
    pub(super) fn describe(
        &self,
        slot: u32,
        search: Option<(Option<u32>, &mut Matcher)>,
    ) -> (IndexedFile, usize) {
        let claims = self.files.claims(slot);
        let provider_count = self.files.providers(slot).len();
        let mut names: Vec<(u32, u32)> = Vec::new();
        let mut sha256s: Vec<(Sha256, u32)> = Vec::new();
        let mut collections = 0;
        for (claim, count) in most_common(&claims) {
            let claim = self.claims.get(claim);
            names.extend(claim.names.iter().map(|&name| (name, count)));
            sha256s.extend(self.claims.sha256(&claim).map(|&sum| (sum, count)));
            if claim.kind == FileKind::Collection {
                collections += count as usize;
            }
        }
        let compared = claims.len().min(MAX_COUNTED_CLAIMS);
        let mut steps = 12 + compared / CLAIMS_PER_STEP + 4 * names.len();
        merge_counts(&mut names);
        merge_counts(&mut sha256s);
        let (names, match_steps) = self.select_names(names, search);
        steps += match_steps;
        let sha256 = sha256s.iter().max_by_key(|&&(sum, count)| (count, Reverse(sum)));
        // Half of the providers are enough. A downloader recognises a collection by its content,
        // but checks only if the index says so.
        let is_collection = collections > 0 && 2 * collections >= provider_count;
        let kind = match self.files.is_provisional(slot) {
            true => FileKind::Provisional,
            false if is_collection => FileKind::Collection,
            false => FileKind::File,
        };
        let described = IndexedFile {
            file: FileRecord {
                id: self.files.id(slot),
                size: self.files.size(slot),
                root: self.files.root(slot),
                sha256: sha256.map(|&(sum, _)| sum),
                kind,
            },
            names,
            provider_count: self.provider_count(slot),
            providers: Vec::new(),
        };
        (described, steps)
    }

    /// Selects the names to return from pairs of name and number of providers. Also returns the
    /// steps for matching them.
    fn select_names(
        &self,
        mut names: Vec<(u32, u32)>,
        search: Option<(Option<u32>, &mut Matcher)>,
    ) -> (Vec<String>, usize) {
        let text = |name: u32| self.names.text(name);
        let by_count = |a: &(u32, u32), b: &(u32, u32)| {
            let (more_first, then_text) = (b.1.cmp(&a.1), || text(a.0).cmp(text(b.0)));
            more_first.then_with(then_text)
        };
        if names.len() > MAX_MATCHED_NAMES {
            names.select_nth_unstable_by(MAX_MATCHED_NAMES, by_count);
            names.truncate(MAX_MATCHED_NAMES);
        }
        names.sort_unstable_by(by_count);
        let mut names: Vec<u32> = names.into_iter().map(|(name, _)| name).collect();
        let mut steps = 0;
        if let Some((found_name, matcher)) = search {
            if let Some(name) = found_name.filter(|name| !names.contains(name)) {
                names.insert(0, name);
            }
            // The sort is stable, so names that match equally well keep their order.
            names.sort_by_cached_key(|&name| {
                if steps >= MAX_MATCHING_STEPS && Some(name) != found_name {
                    return NO_MATCH;
                }
                let (level, match_steps) = matcher.level(text(name));
                steps += match_steps;
                level.map_or(NO_MATCH, |level| level as u8)
            });
        }
        names.truncate(MAX_NAMES);
        (
            names.into_iter().map(|name| text(name).to_owned()).collect(),
            steps,
        )
    }
}

/// The most common claims, at most [`MAX_CLAIMS`], from the first [`MAX_COUNTED_CLAIMS`].
fn most_common(claims: &[ClaimCount]) -> Vec<ClaimCount> {
    let order = |&(claim, count): &ClaimCount| (Reverse(count), claim);
    let (head, rest) = claims.split_at(claims.len().min(MAX_CLAIMS));
    let mut best = head.to_vec();
    if rest.is_empty() {
        return best;
    }
    // If every provider makes its own claim, hardly any of the rest is inserted.
    best.sort_unstable_by_key(order);
    for claim in &rest[..rest.len().min(MAX_COUNTED_CLAIMS - MAX_CLAIMS)] {
        if best.last().is_some_and(|last| order(claim) < order(last)) {
            best.pop();
            let at = best.partition_point(|other| order(other) < order(claim));
            best.insert(at, *claim);
        }
    }
    best
}

/// Merges pairs with the same key and adds their counts.
fn merge_counts<K: Copy + Ord>(pairs: &mut Vec<(K, u32)>) {
    pairs.sort_unstable();
    pairs.dedup_by(|next, kept| {
        let is_same = next.0 == kept.0;
        if is_same {
            kept.1 += next.1;
        }
        is_same
    });
}
