//! Samples the providers of a file fairly by host instead of by peer.
//!
//! One machine can register many peers. A plain random sample would mostly contain its peers, and a
//! downloader would try them one after another. So each host contributes one peer before any host
//! contributes a second.

use std::collections::HashMap;

use potluck_core::{FileId, model::Provider};
use rand::Rng;

use crate::catalog::{Catalog, ProviderSlot};

/// Number of providers from which a sample is drawn. From a larger crowd this many are picked at
/// random first, to bound the cost.
pub(crate) const SAMPLED_FROM: usize = 1024;

impl Catalog {
    /// A random sample of at most `max` providers of a file, and their total number. Each host
    /// contributes one peer before any host contributes a second.
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
        // Sample even if all providers are returned: the random order spreads callers over the
        // providers.
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
        // The sort is stable, so the order within a round stays random.
        picked.sort_by_key(|&(round, _)| round);
        picked
            .into_iter()
            .take(max)
            .map(|(_, held)| self.to_provider(held))
            .collect()
    }
}
