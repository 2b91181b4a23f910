//! Keeps this peer's files registered with the index, through failures of the index.
//!
//! | module | purpose |
//! |---|---|
//! | `task` | registers changes, renews the lease, and retries |
//! | `sync_state` | the part of the announce set that the index has |
//! | `digest` | detects that the index has other registrations |
//! | `refusal` | classifies refusals, and computes the backoff |
//! | `reachability` | asks the index whether it can connect to this peer |
//! | `connection` | the client of the index, and the data that every call carries |
//! | `state` | the state that a registrar reports |
//!
//! To detect an index that lost registrations, the registrar compares the number of files after
//! each pass and at each renewal. At renewals, it also compares the digest of all registrations: an
//! index restored from an older state may have the same number of files.
//!
//! Invariants:
//!
//! - A change counts as acknowledged only after the index has answered for it.
//! - After any failure, the lease is renewed before saved state is trusted.
//! - An index that lost its state gets everything again.
//! - A file that the index refuses does not block the other files.
//! - The registrar never stops trying; its backoff grows up to a maximum, with jitter.
//!
//! Non-goals: it knows nothing about files; the announce set determines what to register.

mod connection;
mod digest;
mod reachability;
mod refusal;
mod state;
mod sync_state;
mod task;
#[cfg(test)]
mod tests;

use std::time::Duration;

use potluck_core::{Problem, Reason, model::Reachability};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::announce::{
    registrar::{
        reachability::ReachabilityTask,
        task::{RegistrarReports, RegistrarTask},
    },
    set::AnnounceSet,
};

pub use self::{
    connection::{Caller, IndexConnection},
    state::RegistrarStatus,
};

/// A running registrar. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registrar {
    reports: RegistrarReports,
    reachability: watch::Receiver<Option<Reachability>>,
    announce_set: AnnounceSet,
}

impl Registrar {
    /// Registers the contents of `announce_set` until `shutdown` is cancelled, then unregisters
    /// everything.
    pub fn start(
        index: IndexConnection,
        announce_set: AnnounceSet,
        shutdown: CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let (task, reports) = RegistrarTask::new(index.clone(), announce_set.subscribe());
        let (result, reachability) = watch::channel(None);
        let checks = ReachabilityTask {
            index,
            status: reports.status.clone(),
            result,
        };
        tracker.spawn(checks.run(shutdown.clone()));
        tracker.spawn(task.run(shutdown));
        Self {
            reports,
            reachability,
            announce_set,
        }
    }

    /// The current state of the registration.
    pub fn status(&self) -> RegistrarStatus {
        self.reports.status.borrow().clone()
    }

    /// Whether the index can connect to this peer; `None` until it has checked.
    pub fn reachability(&self) -> Option<Reachability> {
        *self.reachability.borrow()
    }

    /// Waits until the index has acknowledged everything that is in the announce set now.
    ///
    /// # Errors
    /// `QUOTA_EXCEEDED` and other lasting refusals, immediately; after `timeout`, the last problem
    /// with the index, or `TIMED_OUT` if there was none; `SHUTTING_DOWN`.
    pub async fn synced(&self, timeout: Duration) -> Result<(), Problem> {
        let target = self.announce_set.version();
        let mut acknowledged = self.reports.acknowledged.clone();
        let done = acknowledged.wait_for(|now| {
            now.up_to.is_some_and(|up_to| up_to >= target) || now.blocked.is_some()
        });
        match tokio::time::timeout(timeout, done).await {
            Ok(Ok(now)) => match &now.blocked {
                Some(problem) if now.up_to.is_none_or(|up_to| up_to < target) => {
                    Err(problem.clone())
                }
                _ => Ok(()),
            },
            Ok(Err(_)) => Err(Problem::new(Reason::ShuttingDown, "the peer is shutting down")),
            Err(_) => Err(self.status().error.unwrap_or_else(|| {
                Problem::new(
                    Reason::TimedOut,
                    format!("the index did not acknowledge everything within {timeout:?}"),
                )
            })),
        }
    }

    /// Waits like [`Registrar::synced`], but fails immediately if the peer cannot register now.
    ///
    /// # Errors
    /// The errors of [`Registrar::synced`], and the reason why the peer cannot register.
    pub async fn announced(&self, timeout: Duration) -> Result<(), Problem> {
        let mut status = self.reports.status.clone();
        let fails = async {
            let failing = |status: &RegistrarStatus| !status.registered && status.error.is_some();
            match status.wait_for(failing).await {
                Ok(status) => status.error.clone(),
                Err(_) => None,
            }
        };
        tokio::select! {
            biased;
            // Both arms are cancel-safe: they only wait.
            synced = self.synced(timeout) => synced,
            problem = fails => Err(problem.unwrap_or_else(|| {
                Problem::new(Reason::ShuttingDown, "the peer is shutting down")
            })),
        }
    }
}
