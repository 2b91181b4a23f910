//! Samples the providers of a file fairly by host instead of by peer.
//!
//! One machine can register many peers. A plain random sample would mostly contain its peers, and a
//! downloader would try them one after another. So each host contributes one peer before any host
//! contributes a second.

use std::collections::HashMap;

use potluck_core::{FileId, model::Provider};
use rand::Rng;

use crate::catalog::{lookup::Catalog, tables::files::ProviderEntry};

/// Number of providers from which a sample is drawn. From a larger crowd this many are picked at
/// random first, to bound the cost.
pub(crate) const MAX_SAMPLED: usize = 1024;

impl Catalog {
    /// A random sample of at most `max` providers of a file, and their total number. Each host
    /// contributes one peer before any host contributes a second.
    pub(crate) fn sample_providers(
        &self,
        file: &FileId,
        max: usize,
        rng: &mut impl Rng,
    ) -> (Vec<Provider>, u64) {
        let Some(slot) = self.files.find(file) else {
            return (Vec::new(), 0);
        };
        (self.sample(slot, max, rng), self.provider_count(slot))
    }

    /// A random sample of at most `max` of the live providers of a file.
    pub(super) fn sample(&self, file: u32, max: usize, rng: &mut impl Rng) -> Vec<Provider> {
        let providers = self.files.providers(file);
        let hidden = self.hidden_count(file, providers);
        // Sample even if all providers are returned: the random order spreads callers over the
        // providers.
        let count = MAX_SAMPLED.max(max);
        let positions = rand::seq::index::sample(
            rng,
            providers.len(),
            count.saturating_add(hidden).min(providers.len()),
        );
        let mut taken_from_host: HashMap<u32, u32> = HashMap::new();
        let mut rounds: Vec<(u32, ProviderEntry)> = positions
            .iter()
            .map(|at| providers[at])
            .filter(|provider| self.is_live(*provider))
            .take(count)
            .map(|provider| {
                let round = taken_from_host
                    .entry(self.peers[provider.peer()].host)
                    .or_default();
                *round += 1;
                (*round, provider)
            })
            .collect();
        // The sort is stable, so the order within a round stays random.
        rounds.sort_by_key(|&(round, _)| round);
        rounds
            .into_iter()
            .take(max)
            .map(|(_, provider)| self.to_provider(provider))
            .collect()
    }
}
