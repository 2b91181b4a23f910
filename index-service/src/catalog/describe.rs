//! What most providers say of a file.

use potluck_core::{
    Sha256,
    index_client::{FileRecord, Found, Kind},
};

use super::{Catalog, MAX_NAMES};

/// Most variants of one file that are asked what most providers say: a crowd that says a different thing each must not make
/// every query slow.
const MAX_VARIANTS: usize = 256;

impl Catalog {
    /// What most providers say of a file. Names come most used first, then by text; `first` sorts before both.
    pub(super) fn describe(&self, slot: u32, first: impl Fn(u32) -> bool) -> Found {
        let file = &self.files[slot as usize];
        let mut names: Vec<(u32, u32)> = Vec::new();
        let mut sums: Vec<(Sha256, u32)> = Vec::new();
        let mut collections = 0;
        for (variant, count) in commonest(&file.tally) {
            let said = &self.variants[variant];
            names.extend(said.names.iter().map(|&name| (name, count)));
            sums.extend(said.sha256.map(|sum| (sum, count)));
            if said.kind == Kind::Collection {
                collections += count as usize;
            }
        }
        sum_up(&mut names);
        sum_up(&mut sums);
        names.sort_unstable_by_key(|&(name, count)| {
            (!first(name), std::cmp::Reverse(count), self.names.text(name))
        });
        let sha256 = sums
            .iter()
            .max_by_key(|&&(sum, count)| (count, std::cmp::Reverse(sum)));
        // Half are enough: whoever fetches it sees by its bytes whether it is a folder, but only where it was told so.
        let kind = match collections > 0 && 2 * collections >= file.providers.len() {
            true => Kind::Collection,
            false => Kind::File,
        };
        Found {
            file: FileRecord {
                id: file.id,
                size: file.size,
                root: file.root,
                sha256: sha256.map(|&(sum, _)| sum),
                kind,
            },
            names: names
                .iter()
                .take(MAX_NAMES)
                .map(|&(name, _)| self.names.text(name).to_owned())
                .collect(),
            provider_count: file.providers.len() as u64,
            providers: Vec::new(),
        }
    }
}

/// The variants that most providers claim, at most [`MAX_VARIANTS`].
fn commonest(tally: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut tally = tally.to_vec();
    if tally.len() > MAX_VARIANTS {
        tally.select_nth_unstable_by_key(MAX_VARIANTS, |&(variant, count)| {
            (std::cmp::Reverse(count), variant)
        });
        tally.truncate(MAX_VARIANTS);
    }
    tally
}

/// Makes one pair of all pairs with the same key, adding their counts.
fn sum_up<K: Copy + Ord>(pairs: &mut Vec<(K, u32)>) {
    pairs.sort_unstable();
    pairs.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 += next.1;
        }
        same
    });
}
