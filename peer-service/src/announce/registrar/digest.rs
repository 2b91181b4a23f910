//! Whether the index has the registrations that this peer has, by their digests.
//!
//! The digest of what is held is computed at most once for each change, when a lease is renewed. Where the index gives another one, it
//! is asked once more a moment later, as what is held may be changing; only then everything is registered again.

use std::time::Duration;

use potluck_core::{SetDigest, model::Lease};
use tokio::time::Instant;

use crate::announce::registrar::RegistrarTask;

/// When the index is asked again that gave another digest.
const AGAIN: Duration = Duration::from_secs(1);

/// What is known of the digest that the index should give.
#[derive(Debug)]
pub(crate) struct Expectation {
    /// Of what is held, with the number of the last change in it.
    held: Option<(u64, SetDigest)>,
    /// What the index gave when it last differed.
    differed: Option<SetDigest>,
    /// Whether everything was registered again because of it, and the index has not given the right one since.
    replaced: bool,
    /// What the index still gave after that: it will not give another.
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
    /// Whether the index has other registrations of this peer than there are, seen twice.
    pub(crate) async fn differs(&mut self, lease: &Lease) -> bool {
        // Where files were refused, or are still to be told, it cannot be known.
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

    /// The digest of what is held, if the index was told all of it.
    async fn held_digest(&mut self) -> Option<SetDigest> {
        let told = self.synced_version;
        if self.digest.held.is_none_or(|(upto, _)| upto != told) {
            let announce_set = self.listener.holdings();
            // Stays as it was where the runtime is ending.
            self.digest.held = tokio::task::spawn_blocking(move || announce_set.digest())
                .await
                .unwrap_or_default();
        }
        let (upto, digest) = self.digest.held?;
        (upto == told && self.listener.version() == told).then_some(digest)
    }
}
