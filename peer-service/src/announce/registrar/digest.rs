//! Compares the index's registrations with this peer's, by their digests.
//!
//! The digest of the announce set is computed at most once per change, when the lease is renewed.
//! If the index reports a different digest, it is asked again a moment later, because the set may
//! be changing. Only a second mismatch makes the registrar register everything again.

use std::time::Duration;

use potluck_core::{SetDigest, model::Lease};
use tokio::time::Instant;

use crate::announce::registrar::RegistrarTask;

/// When the index is asked again after a mismatch.
const AGAIN: Duration = Duration::from_secs(1);

/// The digest that the index should report, and the mismatches so far.
#[derive(Debug)]
pub(crate) struct Expectation {
    /// The digest of the announce set, and the number of the last change in it.
    held: Option<(u64, SetDigest)>,
    /// The digest of the last mismatch; `None` after a match.
    differed: Option<SetDigest>,
    /// Whether everything was registered again because of a mismatch, without a match since.
    replaced: bool,
    /// A digest that the index still reported after that. It is accepted: registering again would
    /// not change it.
    believed: Option<SetDigest>,
}

impl Expectation {
    pub(crate) const fn new() -> Self {
        Self {
            held: None,
            differed: None,
            replaced: false,
            believed: None,
        }
    }
}

impl RegistrarTask {
    /// Whether the index reported the same wrong digest twice, so that everything must be
    /// registered again.
    pub(crate) async fn differs(&mut self, lease: &Lease) -> bool {
        // If files were refused or are not announced yet, the digests cannot be compared.
        let is_told = self.expected_files == Some(lease.file_count) && self.skipped == 0;
        let (Some(found), true) = (lease.digest, is_told) else {
            return false;
        };
        let Some(held) = self.held_digest().await else {
            return false;
        };
        if held == found {
            self.digest.differed = None;
            self.digest.replaced = false;
            self.digest.believed = None;
            return false;
        }
        if self.digest.believed == Some(found) {
            return false;
        }
        if self.digest.differed.replace(found) != Some(found) {
            let again = Instant::now() + AGAIN;
            self.renew_at = Some(self.renew_at.map_or(again, |at| at.min(again)));
            return false;
        }
        self.digest.differed = None;
        if std::mem::replace(&mut self.digest.replaced, true) {
            tracing::warn!(
                "the index still gives another digest of this peer's registrations, which is believed"
            );
            self.digest.replaced = false;
            self.digest.believed = Some(found);
            return false;
        }
        true
    }

    /// The digest of the announce set, if the index has acknowledged all of it.
    async fn held_digest(&mut self) -> Option<SetDigest> {
        let told = self.synced_version;
        if self.digest.held.is_none_or(|(upto, _)| upto != told) {
            let announce_set = self.listener.holdings();
            // `None` if the runtime is shutting down.
            self.digest.held = tokio::task::spawn_blocking(move || announce_set.digest())
                .await
                .unwrap_or_default();
        }
        let (upto, digest) = self.digest.held?;
        (upto == told && self.listener.version() == told).then_some(digest)
    }
}
