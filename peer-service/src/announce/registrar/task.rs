//! Registers changes, renews the lease, and retries.
//!
//! A pass announces all changes up to the newest one in batches. After a failure it renews the
//! lease first and then continues from the last acknowledged change. The module above lists the
//! invariants.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesOrdered};
use potluck_core::{
    Problem, Reason, SetDigest,
    model::{Address, Lease},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::announce::{
    registrar::{
        connection::IndexConnection,
        digest::{DigestCheck, DigestVerdict},
        refusal::{OWNER_WAIT, Refusal, back_off, classify, jittered},
        state::{Acknowledged, RegistrarStatus},
        sync_state::{MAX_BATCH, SyncState},
    },
    set::{AnnounceChanges, AnnounceListener},
};

/// Maximum bytes of names per batch. With about 150 bytes for each of [`MAX_BATCH`] files, this
/// stays well below the maximum message size.
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// Maximum concurrent batches: one that the index writes, one that it reads, and one being built.
const MAX_CONCURRENT_BATCHES: usize = 3;

/// With more new changes than this, the announcement is delayed a little: the caller gets its
/// answer first, and changes that follow go into the same pass.
const LARGE_CHANGE: u64 = 1000;
const LARGE_CHANGE_DELAY: Duration = Duration::from_millis(20);

/// How long unregistering may delay shutdown.
const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(2);

/// Delay before the index is asked again for its digest after a mismatch.
const DIGEST_RETRY: Duration = Duration::from_secs(1);

/// Registers the contents of an announce set.
pub(crate) struct RegistrarTask {
    index: IndexConnection,
    listener: AnnounceListener,
    status: watch::Sender<RegistrarStatus>,
    acknowledged: watch::Sender<Acknowledged>,
    sync: SyncState,
    digest_check: DigestCheck,
    /// The digest of the announce set, and the number of the last change in it.
    own_digest: Option<(u64, SetDigest)>,
    /// Whether the next batch, which may be empty, must open the lease.
    opens_lease: bool,
    /// When to renew the lease; `None` to renew immediately, because the lease may not exist.
    renew_at: Option<Instant>,
    /// The address of another live peer that uses this peer's token.
    conflicting_address: Option<Address>,
    /// The duration of the last lease.
    lease_duration: Option<Duration>,
    /// The generation of the index's store at the last renewal.
    store_generation: Option<u64>,
    /// Consecutive failures.
    failures: u32,
    /// Consecutive answers that the lease is unknown.
    unknown_leases: u32,
}

/// The state that a registrar reports.
#[derive(Debug, Clone)]
pub(crate) struct RegistrarReports {
    pub(crate) status: watch::Receiver<RegistrarStatus>,
    pub(crate) acknowledged: watch::Receiver<Acknowledged>,
}

impl RegistrarTask {
    /// A task that has not registered anything.
    pub(crate) fn new(
        index: IndexConnection,
        listener: AnnounceListener,
    ) -> (Self, RegistrarReports) {
        let (status, acknowledged) = (watch::Sender::default(), watch::Sender::default());
        let reports = RegistrarReports {
            status: status.subscribe(),
            acknowledged: acknowledged.subscribe(),
        };
        let task = Self {
            index,
            listener,
            status,
            acknowledged,
            sync: SyncState::start(false),
            digest_check: DigestCheck::default(),
            own_digest: None,
            opens_lease: true,
            renew_at: None,
            conflicting_address: None,
            lease_duration: None,
            store_generation: None,
            failures: 0,
            unknown_leases: 0,
        };
        (task, reports)
    }

    /// Runs until `shutdown` is cancelled, then unregisters everything.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        // Cancel-safe: unregistering also undoes an interrupted call.
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.run_sync() => {}
        }
        match tokio::time::timeout(UNREGISTER_TIMEOUT, self.index.unregister(None)).await {
            Ok(Ok(_)) => tracing::debug!("unregistered"),
            // If this fails, the lease expires.
            Ok(Err(problem)) => tracing::debug!(%problem, "could not unregister"),
            Err(_) => tracing::debug!("could not unregister in time"),
        }
        self.status.send_modify(|status| status.registered = false);
    }

    /// Syncs and waits in a loop. Never returns.
    async fn run_sync(&mut self) {
        loop {
            let Err(problem) = self.sync().await else {
                (self.failures, self.unknown_leases) = (0, 0);
                self.wait_for_work().await;
                continue;
            };
            let refusal = classify(problem.reason);
            if refusal == Refusal::LeaseUnknown {
                tracing::info!("the index does not know this peer: registers everything again");
                self.start_over(false);
                self.opens_lease = true;
                self.renew_at = None;
                // Retry the first time without delay, also after failures of another kind: an index
                // that answers again usually forgot the lease meanwhile. Then with backoff, so that
                // an index that never accepts this peer is not flooded.
                self.unknown_leases += 1;
                if self.unknown_leases == 1 {
                    self.failures = 0;
                    continue;
                }
            }
            self.back_off_after(problem, refusal).await;
        }
    }

    /// Registers everything again. With `replace`, the first batch replaces what the index has.
    fn start_over(&mut self, replace: bool) {
        self.opens_lease |= replace;
        self.sync = SyncState::start(replace);
    }

    /// Reports the problem and waits before the next attempt.
    async fn back_off_after(&mut self, problem: Problem, refusal: Refusal) {
        self.failures += 1;
        let is_lasting = matches!(refusal, Refusal::Quota | Refusal::Peer);
        let wait = if is_lasting {
            OWNER_WAIT
        } else {
            back_off(self.failures, self.lease_duration)
        };
        let wait = jittered(wait).max(problem.retry_after.unwrap_or_default());
        let is_new =
            self.status.borrow().error.as_ref().map(|error| error.reason) != Some(problem.reason);
        if is_new {
            tracing::warn!(
                %problem,
                "not registered: others may not find this peer's files; keeps trying"
            );
        }
        // A refusal for quota or a full disk does not end an existing lease.
        let has_lease =
            matches!(refusal, Refusal::Quota | Refusal::Store) && self.has_lease().await;
        self.status.send_modify(|status| {
            status.registered = has_lease;
            status.error = Some(problem.clone());
        });
        if is_lasting {
            self.acknowledged.send_modify(|now| now.blocked = Some(problem));
        }
        let until = Instant::now() + wait;
        match (has_lease, refusal) {
            (true, Refusal::Quota) => self.wait_within_quota(until).await,
            (true, _) => self.wait_with_lease(until).await,
            (false, _) => tokio::time::sleep_until(until).await,
        }
        if refusal == Refusal::Quota {
            self.start_over(false);
            // Do not replace everything again: leftovers of an earlier run are already gone.
            self.sync.has_replaced = true;
        }
        self.acknowledged.send_modify(|now| now.blocked = None);
        // The index may have lost its state meanwhile.
        self.renew_at = None;
    }

    /// Waits for a change, or for the time to renew the lease.
    async fn wait_for_work(&mut self) {
        let renew = self.renew_at.unwrap_or_else(Instant::now);
        // Both arms are cancel-safe: changes are numbered.
        tokio::select! {
            () = self.listener.changed(self.sync.acknowledged) => {}
            () = tokio::time::sleep_until(renew) => {}
        }
        if self.listener.version() > self.sync.acknowledged + LARGE_CHANGE {
            tokio::time::sleep(LARGE_CHANGE_DELAY).await;
        }
    }

    /// Renews the lease if it is due, and announces all changes.
    pub(crate) async fn sync(&mut self) -> Result<(), Problem> {
        if !self.opens_lease && self.renew_at.is_none_or(|at| at <= Instant::now()) {
            self.renew().await?;
        }
        while self.opens_lease || self.listener.version() > self.sync.acknowledged {
            self.sync_up_to(self.listener.version()).await?;
        }
        self.status.send_modify(|status| {
            if !status.registered {
                tracing::info!("registered: the index has all of this peer's files");
            }
            status.registered = true;
            if let Some(conflicting_address) = &self.conflicting_address {
                status.error = Some(identity_in_use(conflicting_address));
            } else if self.sync.refused_files == 0 {
                status.error = None;
            }
        });
        self.acknowledged.send_modify(|now| {
            now.up_to = Some(self.sync.acknowledged);
            now.blocked = None;
        });
        Ok(())
    }

    /// Announces the changes up to the number `up_to` in concurrent batches: while the index writes
    /// one, the next is in flight.
    ///
    /// Each file has one entry in the change log. So until a newer change is made, all batches
    /// contain different files and may arrive in any order.
    async fn sync_up_to(&mut self, up_to: u64) -> Result<(), Problem> {
        let mut calls = FuturesOrdered::new();
        let (mut taken, mut is_last) = (self.sync.acknowledged, false);
        let (mut total, mut lease, mut stale) = (0, None::<Lease>, false);
        // Answers may be lost, so the index's number of files is unknown until the pass is
        // complete.
        self.sync.expected_files = None;
        loop {
            while !is_last
                && calls.len()
                    < if self.sync.must_replace {
                        1
                    } else {
                        MAX_CONCURRENT_BATCHES
                    }
            {
                let changes = self
                    .listener
                    .changes(taken, self.sync.batch_size, MAX_BATCH_BYTES);
                let newer = self.listener.version() != up_to;
                let removes = !changes.removed.is_empty() && !self.sync.must_replace;
                if !calls.is_empty() && (newer || removes) {
                    // These changes are taken again after the earlier batches have been answered.
                    break;
                }
                if removes {
                    self.index.unregister(Some(&changes.removed)).await?;
                    lease = None;
                }
                (taken, total) = (changes.up_to, changes.total);
                stale |= changes.stale;
                is_last = !changes.more || newer;
                calls.push_back(self.register(changes, self.opens_lease && calls.is_empty()));
            }
            let Some((changes, answer)) = calls.next().await else {
                break;
            };
            match answer {
                Ok(answer) => {
                    self.sync.batch_size = (self.sync.batch_size * 2).min(MAX_BATCH);
                    self.sync.acknowledged = changes.up_to;
                    self.listener.forget_removals(self.sync.acknowledged);
                    if let Some(mut answer) = answer {
                        (self.opens_lease, self.sync.must_replace) = (false, false);
                        // A small batch may overtake a large one. Nothing is removed in between, so
                        // the largest reported number is the current one.
                        let max = lease.map_or(0, |lease| lease.file_count);
                        answer.file_count = answer.file_count.max(max);
                        self.record_lease(&answer);
                        lease = Some(answer);
                    }
                }
                Err(problem) => {
                    // It is unknown whether the index has accepted the later batches. They are sent
                    // again; unchanged registrations cost the index nothing.
                    while calls.next().await.is_some() {}
                    self.handle_refusal(&changes, problem)?;
                    (taken, is_last) = (self.sync.acknowledged, false);
                }
            }
        }
        if self.listener.version() == self.sync.acknowledged && !stale {
            self.expect_file_count(total as u64, lease.as_ref());
        } else {
            // The index may lose its state before the newer changes reach it, so only a pass
            // without newer changes counts.
            self.sync.has_replaced = false;
        }
        Ok(())
    }

    /// Reacts to a refused batch.
    ///
    /// # Errors
    /// The problem, if an immediate retry does not help.
    fn handle_refusal(
        &mut self,
        changes: &AnnounceChanges,
        problem: Problem,
    ) -> Result<(), Problem> {
        match classify(problem.reason) {
            // Registrations left by an earlier run may be using up the quota.
            Refusal::Quota if self.sync.is_full && !self.sync.has_replaced => self.start_over(true),
            Refusal::Names if self.listener.announce_set().hide_names() => {
                tracing::warn!(%problem, "shares files by id, without their names");
                self.own_digest = None;
                self.start_over(true);
            }
            Refusal::File | Refusal::Quota if changes.put.len() > 1 => {
                self.sync.batch_size = changes.put.len() / 2;
            }
            Refusal::File if changes.put.len() == 1 => {
                let file = &changes.put[0];
                tracing::warn!(
                    id = %file.file.id, names = ?file.names, %problem,
                    "the index refused a file"
                );
                self.sync.refused_files += 1;
                self.status.send_modify(|status| status.error = Some(problem));
                self.sync.acknowledged = changes.up_to;
            }
            _ => return Err(problem),
        }
        Ok(())
    }

    /// Sends one batch and returns it with the answer. Makes no call if there is nothing to
    /// register and no lease to open.
    fn register(
        &self,
        changes: AnnounceChanges,
        open: bool,
    ) -> impl Future<Output = (AnnounceChanges, Result<Option<Lease>, Problem>)> + use<> {
        let (index, replace) = (self.index.clone(), self.sync.must_replace);
        async move {
            if changes.put.is_empty() && !open && !replace {
                return (changes, Ok(None));
            }
            let answer = index.register(&changes.put, replace).await;
            (changes, answer.map(Some))
        }
    }

    async fn renew(&mut self) -> Result<(), Problem> {
        let lease = self.index.renew().await?;
        self.record_lease(&lease);
        if self.has_wrong_digest(&lease).await {
            tracing::info!(
                "the index has other registrations of this peer: registers everything again"
            );
            self.start_over(true);
            return Ok(());
        }
        match self.sync.expected_files {
            Some(expected) if expected != lease.file_count => {
                tracing::info!(
                    expected,
                    found = lease.file_count,
                    "the index has another number of this peer's files: registers everything again"
                );
                self.start_over(true);
            }
            Some(_) => {}
            None => self.sync.expected_files = Some(lease.file_count),
        }
        Ok(())
    }

    fn record_lease(&mut self, lease: &Lease) {
        if self.conflicting_address != lease.conflicting_address {
            if let Some(conflicting_address) = &lease.conflicting_address {
                tracing::warn!(
                    problem = %identity_in_use(conflicting_address),
                    "another peer uses this peer's identity"
                );
            }
            self.conflicting_address.clone_from(&lease.conflicting_address);
        }
        self.renew_at = Some(Instant::now() + jittered(lease.ttl / 3));
        self.lease_duration = Some(lease.ttl);
        self.status.send_modify(|status| {
            status.file_count = lease.file_count;
            if let Some(address) = &lease.address {
                status.advertised = Some(address.clone());
            }
        });
    }

    /// Remembers how many files the index should have. If the index reports another number, starts
    /// over: it lost some files, or has some of an earlier run. A number reported right after a
    /// full replacement is accepted, because another pass would give the same.
    fn expect_file_count(&mut self, total: u64, lease: Option<&Lease>) {
        let was_full = std::mem::take(&mut self.sync.is_full);
        let accepted = total.saturating_sub(self.sync.refused_files as u64);
        let differs = lease.is_some_and(|lease| lease.file_count != accepted);
        self.sync.expected_files = (self.sync.refused_files == 0 && !differs).then_some(total);
        // Files refused after the full pass cannot be distinguished from those refused in it.
        if differs && (self.sync.refused_files == 0 || was_full) {
            tracing::info!(
                accepted,
                found = lease.map(|lease| lease.file_count),
                "the index has another number of this peer's files"
            );
            if !(was_full && self.sync.has_replaced) {
                self.start_over(true);
            }
        }
    }
}

/// The problem to report if another live peer uses this peer's token.
fn identity_in_use(address: &Address) -> Problem {
    Problem::new(
        Reason::IdentityInUse,
        format!(
            "another peer at {address} uses this peer's token, and the index refuses this peer: \
             stop one of the two, and remove `state/token` from the home that is a copy"
        ),
    )
}

impl RegistrarTask {
    /// Whether the index reported the same wrong digest twice, so that everything must be
    /// registered again.
    async fn has_wrong_digest(&mut self, lease: &Lease) -> bool {
        // If files were refused or are not announced yet, the digests cannot be compared.
        let is_comparable =
            self.sync.expected_files == Some(lease.file_count) && self.sync.refused_files == 0;
        let (Some(reported), true) = (lease.digest, is_comparable) else {
            return false;
        };
        let known = self.store_generation.replace(lease.store_generation);
        let has_lost = known.is_some_and(|known| known != lease.store_generation);
        let Some(own) = self.own_digest().await else {
            return false;
        };
        match self.digest_check.compare(own, reported, has_lost) {
            DigestVerdict::Fine => false,
            DigestVerdict::AskAgain => {
                let again = Instant::now() + DIGEST_RETRY;
                self.renew_at = Some(self.renew_at.map_or(again, |at| at.min(again)));
                false
            }
            DigestVerdict::RegisterAgain => true,
            DigestVerdict::Accepted => {
                tracing::warn!(
                    "the index reports another digest of this peer's registrations, also after \
                     everything was registered again: accepts it"
                );
                false
            }
        }
    }

    /// The digest of the announce set, if the index has acknowledged all of it. Computed at most
    /// once per change.
    async fn own_digest(&mut self) -> Option<SetDigest> {
        let acknowledged = self.sync.acknowledged;
        if self.own_digest.is_none_or(|(up_to, _)| up_to != acknowledged) {
            let announce_set = self.listener.announce_set();
            // `None` if the runtime is shutting down.
            self.own_digest = tokio::task::spawn_blocking(move || announce_set.digest())
                .await
                .unwrap_or_default();
        }
        let (up_to, digest) = self.own_digest?;
        (up_to == acknowledged && self.listener.version() == acknowledged).then_some(digest)
    }

    /// Whether the index holds a lease of this peer, from its last answer or from a renewal now. A
    /// full index may never have granted a lease.
    async fn has_lease(&mut self) -> bool {
        self.renew_at.is_some() || self.renew().await.is_ok()
    }

    /// Keeps the lease until it is time to retry after a quota refusal. Returns earlier if a file
    /// was unregistered, because that makes room.
    async fn wait_within_quota(&mut self, until: Instant) {
        loop {
            let version = self.listener.version();
            match self.unregister_removed().await {
                Ok(false) => {}
                Ok(true) | Err(_) => return,
            }
            let renew = self.renew_at.unwrap_or(until);
            // All arms are cancel-safe: changes are numbered.
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = self.listener.changed(version) => {}
                () = tokio::time::sleep_until(renew) => {
                    if self.renew().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Keeps the lease until it is time to retry.
    async fn wait_with_lease(&mut self, until: Instant) {
        while let Some(renew) = self.renew_at.filter(|at| *at < until) {
            tokio::time::sleep_until(renew).await;
            if self.renew().await.is_err() {
                return;
            }
        }
        tokio::time::sleep_until(until).await;
    }

    /// Unregisters files that were removed after the last acknowledged change. Returns whether the
    /// index had any of them.
    async fn unregister_removed(&mut self) -> Result<bool, Problem> {
        let mut since = self.sync.acknowledged;
        let mut any = false;
        loop {
            let changes = self.listener.changes(since, MAX_BATCH, MAX_BATCH_BYTES);
            if !changes.removed.is_empty() {
                any |= self.index.unregister(Some(&changes.removed)).await? > 0;
            }
            since = changes.up_to;
            if !changes.more {
                return Ok(any);
            }
        }
    }
}

#[cfg(test)]
impl RegistrarTask {
    /// The part of the announce set that the index has acknowledged.
    pub(crate) const fn sync_state(&self) -> &SyncState {
        &self.sync
    }
}
