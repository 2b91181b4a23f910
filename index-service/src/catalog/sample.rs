//! A sample of a file's providers in which hosts count, not peers.
//!
//! One machine can register many peers. If a sample were drawn from peers, whoever asks would mostly be given these and would have to
//! try one after another. So every host gives one peer before any gives a second.

use std::collections::HashMap;

use potluck_core::{FileId, model::Provider};
use rand::Rng;

use crate::catalog::{Catalog, ProviderSlot};

/// Providers among which a sample is drawn: of a larger crowd so many are picked at random first, to bound what a sample costs.
pub(crate) const SAMPLED_FROM: usize = 1024;

impl Catalog {
    /// Who has a file: a random sample of at most `most`, and how many there are. Peers of one host come after one peer each of
    /// all other hosts.
    pub fn providers(&self, file: &FileId, max: usize, rng: &mut impl Rng) -> (Vec<Provider>, u64) {
        let Some(slot) = self.find_file(file) else {
            return (Vec::new(), 0);
        };
        let all = &self.files[slot as usize].providers;
        (self.sample(all, max, rng), self.provider_count(slot))
    }

    pub(crate) fn sample(&self, all: &[ProviderSlot], max: usize, rng: &mut impl Rng) -> Vec<Provider> {
        let live: Vec<ProviderSlot>;
        let mut all = all;
        if self.has_hidden() {
            live = all.iter().copied().filter(|held| self.is_live(*held)).collect();
            all = &live;
        }
        // Sampled even where all are given: in random order, so that callers do not all begin with the same one.
        let picked = rand::seq::index::sample(rng, all.len(), SAMPLED_FROM.max(max).min(all.len()));
        let mut from_host: HashMap<u32, u32> = HashMap::new();
        let mut picked: Vec<(u32, ProviderSlot)> = picked
            .iter()
            .map(|at| {
                let before = from_host
                    .entry(self.peers[all[at].peer as usize].host)
                    .or_default();
                *before += 1;
                (*before, all[at])
            })
            .collect();
        // Stable: within a round the order stays random.
        picked.sort_by_key(|&(round, _)| round);
        picked
            .into_iter()
            .take(max)
            .map(|(_, held)| self.to_provider(held))
            .collect()
    }
}
