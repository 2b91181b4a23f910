//! Describes a file by its providers' most common claims.
//!
//! A description takes at most [`MAX_STEPS`], however many claims the file has.

use std::cmp::Reverse;

use potluck_core::{
    Sha256,
    model::{FileKind, FileRecord, IndexedFile},
};

use crate::catalog::{Catalog, MAX_NAMES, words::Matcher};

/// Maximum claims of a file that a description considers. It bounds the cost of a query if each
/// provider of a crowd makes a different claim.
const MAX_CLAIMS: usize = 64;

/// Maximum claims of a file among which the most common are searched: the number of peers in a very
/// large crowd.
const MAX_TALLIED: usize = 65_536;

/// Claims searched per step.
const TALLIED_A_STEP: usize = 16;

/// Maximum names of a file that are matched against a search, the most common first.
const MAX_CHECKED: usize = 64;

/// Steps after which no further name is matched.
pub(crate) const CHECK_STEPS: usize = 2048;

/// Maximum steps for matching one name: each character of the longest name expands to eighteen.
const ONE_CHECK: usize = 6_000;

/// Maximum steps for describing one file.
pub(crate) const MAX_STEPS: usize =
    MAX_TALLIED / TALLIED_A_STEP + 4 * MAX_CLAIMS * MAX_NAMES + CHECK_STEPS + ONE_CHECK + 16;

impl Catalog {
    /// Describes a file by its most common claims; also returns the steps taken. The names are
    /// ordered by number of providers (most first), then by text. If the file was found by a
    /// search, the names that match it come first, including the name that found it.
    pub(crate) fn describe(&self, slot: u32, search: Option<(u32, &mut Matcher)>) -> (IndexedFile, usize) {
        let file = &self.files[slot as usize];
        let mut names: Vec<(u32, u32)> = Vec::new();
        let mut sha256s: Vec<(Sha256, u32)> = Vec::new();
        let mut collections = 0;
        for (variant, count) in commonest(&file.claims) {
            let claim = &self.claims[variant];
            names.extend(claim.names.iter().map(|&name| (name, count)));
            sha256s.extend(claim.sha256.map(|sum| (sum, count)));
            if claim.kind == FileKind::Collection {
                collections += count as usize;
            }
        }
        let mut steps = 8 + file.claims.len().min(MAX_TALLIED) / TALLIED_A_STEP + 4 * names.len();
        merge_counts(&mut names);
        merge_counts(&mut sha256s);
        let (names, checked) = self.best_names(names, search);
        steps += checked;
        let sha256 = sha256s.iter().max_by_key(|&&(sum, count)| (count, Reverse(sum)));
        // Half of the providers are enough. A downloader recognises a collection by its content,
        // but checks only if the index says so.
        let kind = match collections > 0 && 2 * collections >= file.providers.len() {
            true => FileKind::Collection,
            false => FileKind::File,
        };
        let found = IndexedFile {
            file: FileRecord {
                id: file.id,
                size: file.size,
                root: file.root,
                sha256: sha256.map(|&(sum, _)| sum),
                kind,
            },
            names,
            provider_count: self.provider_count(slot),
            providers: Vec::new(),
        };
        (found, steps)
    }

    /// Selects the names to return from pairs of name and number of providers. Also returns the
    /// steps for matching them.
    fn best_names(
        &self,
        mut names: Vec<(u32, u32)>,
        search: Option<(u32, &mut Matcher)>,
    ) -> (Vec<String>, usize) {
        let text = |name: u32| self.names.text(name);
        let by_use = |a: &(u32, u32), b: &(u32, u32)| (b.1.cmp(&a.1)).then_with(|| text(a.0).cmp(text(b.0)));
        if names.len() > MAX_CHECKED {
            names.select_nth_unstable_by(MAX_CHECKED, by_use);
            names.truncate(MAX_CHECKED);
        }
        names.sort_unstable_by(by_use);
        let mut names: Vec<u32> = names.into_iter().map(|(name, _)| name).collect();
        let mut steps = 0;
        if let Some((found_under, matcher)) = search {
            if !names.contains(&found_under) {
                names.insert(0, found_under);
            }
            // The sort is stable, so matching and other names each keep their order.
            names.sort_by_cached_key(|&name| {
                if name == found_under {
                    return false;
                }
                if steps >= CHECK_STEPS {
                    return true;
                }
                let (fits, took) = matcher.fits(text(name));
                steps += took;
                !fits
            });
        }
        names.truncate(MAX_NAMES);
        (
            names.into_iter().map(|name| text(name).to_owned()).collect(),
            steps,
        )
    }
}

/// The most common claims, at most [`MAX_CLAIMS`], from the first [`MAX_TALLIED`].
fn commonest(tally: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let order = |&(variant, count): &(u32, u32)| (Reverse(count), variant);
    let (head, rest) = tally.split_at(tally.len().min(MAX_CLAIMS));
    let mut best = head.to_vec();
    if rest.is_empty() {
        return best;
    }
    // If every provider makes its own claim, hardly any of the rest is inserted.
    best.sort_unstable_by_key(order);
    for claim in &rest[..rest.len().min(MAX_TALLIED - MAX_CLAIMS)] {
        if best.last().is_some_and(|last| order(claim) < order(last)) {
            best.pop();
            let at = best.partition_point(|kept| order(kept) < order(claim));
            best.insert(at, *claim);
        }
    }
    best
}

/// Merges pairs with the same key and adds their counts.
fn merge_counts<K: Copy + Ord>(pairs: &mut Vec<(K, u32)>) {
    pairs.sort_unstable();
    pairs.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 += next.1;
        }
        same
    });
}
