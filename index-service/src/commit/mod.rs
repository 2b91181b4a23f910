//! The committer: one thread makes all changes, so that many changes share one flush.
//!
//! For each batch, the thread
//!
//! 1. takes the waiting changes and checks their quotas (`check`),
//! 2. makes all of them durable in the store with one flush,
//! 3. applies them to the registry, so that queries see them,
//! 4. answers the callers.
//!
//! Each change is made whole or not at all. Only this thread changes the catalog, so a quota check
//! stays valid during the flush without a lock.
//!
//! The thread also collects expired leases, some with each batch. Queries stop seeing an expired
//! peer immediately, and the batch's flush removes it from the store. Expiry and registrations
//! share one order, so a peer that registers again at that moment stays. Between batches the thread
//! clears what hidden peers leave in the catalog.
//!
//! After a failure the store stays closed until it can be opened again; the thread retries on its
//! own (`recovery`). Until then it refuses changes. Leases still work, because a renewal touches
//! no disk.
//!
//! The queue is bounded in changes and in bytes. Callers beyond either bound must retry later.

mod check;
mod committer;
mod recovery;
mod request;
#[cfg(test)]
mod tests;
mod worker;

pub(crate) use self::{
    committer::Committer,
    request::{CommitError, CommitRequest},
};
pub(crate) use worker::MAX_RETRY_DELAY;
