//! Keeps the index informed of what this peer has, whatever happens to the index.
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
//! - The registrar never gives up; its backoff grows up to a maximum, with jitter.
//!
//! Non-goals: it knows nothing about files; the announce set says what there is.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesOrdered};
use potluck_core::{
    Problem, Reason, Token,
    index_client::{INSTANCE, IndexClient},
    model::{Address, Lease},
};
use rand::RngExt as _;
use refusal::{OWNER_WAIT, Refusal, back_off, classify, jittered};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::announce::set::{AnnounceChanges, AnnounceListener, AnnounceSet};

mod digest;
mod refusal;
#[cfg(test)]
mod tests;

/// Maximum files per batch, well below the index's limit. A batch in memory, with its message,
/// takes some 500 bytes per file.
const MAX_BATCH: usize = 2_500;

/// Maximum bytes of names per batch. With some 150 bytes for each of [`MAX_BATCH`] files, this
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

/// The state of the registration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistrarStatus {
    /// Whether the index holds this peer's lease.
    pub registered: bool,
    /// The address that the index gives to other peers.
    pub advertised: Option<Address>,
    /// Why the peer is not registered, or what the index refused.
    pub error: Option<Problem>,
    /// Number of this peer's files in the index, as of its last answer.
    pub file_count: u64,
}

/// A running registrar. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registrar {
    status: watch::Receiver<RegistrarStatus>,
    acknowledged: watch::Receiver<Acknowledged>,
    announce_set: AnnounceSet,
}

/// What the index has acknowledged.
#[derive(Debug, Clone, Default)]
struct Acknowledged {
    /// Number of the last acknowledged change; `None` before the first lease.
    up_to: Option<u64>,
    /// A refusal that will last, such as an exceeded quota.
    blocked: Option<Problem>,
}

impl Registrar {
    /// Registers the contents of `announce_set` until `shutdown` is cancelled, then unregisters
    /// everything. `ttl` is the lease's duration; `None` for the index's default.
    pub fn start(
        client: IndexClient,
        token: Token,
        address: Address,
        ttl: Option<Duration>,
        announce_set: AnnounceSet,
        shutdown: CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let status = watch::Sender::default();
        let acknowledged = watch::Sender::default();
        let registrar = Self {
            status: status.subscribe(),
            acknowledged: acknowledged.subscribe(),
            announce_set: announce_set.clone(),
        };
        let index = IndexConnection {
            client: client.with_instance(rand::rng().random::<[u8; INSTANCE]>()),
            token,
            address,
            ttl,
        };
        let task = RegistrarTask::new(index, announce_set.subscribe(), status, acknowledged);
        tracker.spawn(task.run(shutdown));
        registrar
    }

    /// The current state of the registration.
    pub fn status(&self) -> RegistrarStatus {
        self.status.borrow().clone()
    }

    /// Waits until the index has acknowledged everything that is in the announce set now.
    ///
    /// # Errors
    /// `QUOTA_EXCEEDED` and other lasting refusals, immediately; after `timeout`, the last problem
    /// with the index, or `TIMED_OUT` if there was none; `SHUTTING_DOWN`.
    pub async fn synced(&self, timeout: Duration) -> Result<(), Problem> {
        let target = self.announce_set.version();
        let mut acknowledged = self.acknowledged.clone();
        let done = acknowledged
            .wait_for(|now| now.up_to.is_some_and(|upto| upto >= target) || now.blocked.is_some());
        match tokio::time::timeout(timeout, done).await {
            Ok(Ok(now)) => match &now.blocked {
                Some(problem) if now.up_to.is_none_or(|upto| upto < target) => Err(problem.clone()),
                _ => Ok(()),
            },
            Ok(Err(_)) => Err(Problem::new(Reason::ShuttingDown, "the peer is shutting down")),
            Err(_) => Err(self.status().error.unwrap_or_else(|| {
                Problem::new(
                    Reason::TimedOut,
                    format!("the index has not taken everything within {timeout:?}"),
                )
            })),
        }
    }
}

impl Registrar {
    /// Waits like [`Registrar::synced`], but fails immediately if the peer cannot register now.
    ///
    /// # Errors
    /// The errors of [`Registrar::synced`], and the reason why the peer cannot register.
    pub async fn announced(&self, timeout: Duration) -> Result<(), Problem> {
        let mut status = self.status.clone();
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

/// The client of the index, and what every call carries.
#[derive(Clone)]
struct IndexConnection {
    client: IndexClient,
    token: Token,
    address: Address,
    ttl: Option<Duration>,
}

struct RegistrarTask {
    index: IndexConnection,
    listener: AnnounceListener,
    status: watch::Sender<RegistrarStatus>,
    acknowledged: watch::Sender<Acknowledged>,
    /// Number of the last change that the index has acknowledged.
    synced_version: u64,
    /// Whether the next batch, which may be empty, must open the lease.
    opens_lease: bool,
    /// Whether the next batch replaces all registrations of this peer. Set only if the index is
    /// found to have registrations that this peer does not have; otherwise the index would rewrite
    /// unchanged data.
    replace: bool,
    /// Whether this pass has already replaced all registrations.
    replaced: bool,
    /// Maximum files in the next batch; smaller after a refusal.
    batch_size: usize,
    /// Whether this pass announces everything, from the first change on.
    is_full_sync: bool,
    /// Number of files that the index refused individually.
    skipped: usize,
    /// The number of files that the index should report; `None` if unknown.
    expected_files: Option<u64>,
    /// The state of the digest comparison.
    digest: digest::Expectation,
    /// The address of another live peer that uses this peer's token.
    conflicting_address: Option<Address>,
    /// When to renew the lease; `None` to renew immediately, because the lease may not exist.
    renew_at: Option<Instant>,
    failures: u32,
}

impl RegistrarTask {
    const fn new(
        index: IndexConnection,
        listener: AnnounceListener,
        status: watch::Sender<RegistrarStatus>,
        acknowledged: watch::Sender<Acknowledged>,
    ) -> Self {
        Self {
            index,
            listener,
            status,
            acknowledged,
            synced_version: 0,
            opens_lease: true,
            replace: false,
            replaced: false,
            is_full_sync: true,
            batch_size: MAX_BATCH,
            skipped: 0,
            expected_files: None,
            digest: digest::Expectation::new(),
            conflicting_address: None,
            renew_at: None,
            failures: 0,
        }
    }

    async fn run(mut self, shutdown: CancellationToken) {
        // Cancel-safe: unregistering also undoes a call that was cut off.
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.run_sync() => {}
        }
        let IndexConnection { client, token, .. } = &self.index;
        match tokio::time::timeout(UNREGISTER_TIMEOUT, client.unregister(token, None)).await {
            Ok(Ok(_)) => tracing::debug!("the index took back everything"),
            // The lease expires without it.
            Ok(Err(problem)) => tracing::debug!(%problem, "the index did not take back everything"),
            Err(_) => tracing::debug!("the index did not answer in time to take back everything"),
        }
        self.status.send_modify(|status| status.registered = false);
    }

    /// Syncs and waits in a loop. Never returns.
    async fn run_sync(&mut self) {
        loop {
            let Err(problem) = self.sync().await else {
                self.failures = 0;
                self.wait_for_work().await;
                continue;
            };
            let refusal = classify(problem.reason);
            if refusal == Refusal::LeaseUnknown {
                tracing::info!("the index does not know this peer: everything is registered again");
                self.start_over(false);
                self.opens_lease = true;
                self.renew_at = None;
                // Retry the first time without delay, then with backoff, so that an index that
                // never accepts this peer is not flooded.
                self.failures += 1;
                if self.failures == 1 {
                    continue;
                }
            }
            self.back_off_after(problem, refusal).await;
        }
    }

    /// Announces everything again. With `replace`, the first batch replaces what the index has.
    fn start_over(&mut self, replace: bool) {
        self.synced_version = 0;
        self.opens_lease |= replace;
        (self.replace, self.replaced) = (replace, replace);
        self.is_full_sync = true;
        self.batch_size = MAX_BATCH;
        self.skipped = 0;
        self.expected_files = None;
    }

    /// Reports the problem and waits before the next attempt.
    async fn back_off_after(&mut self, problem: Problem, refusal: Refusal) {
        self.failures += 1;
        let lasting = matches!(refusal, Refusal::Quota | Refusal::Peer);
        let wait = if lasting {
            OWNER_WAIT
        } else {
            back_off(self.failures)
        };
        let wait = jittered(wait).max(problem.retry_after.unwrap_or_default());
        let is_new = self.status.borrow().error.as_ref().map(|error| error.reason) != Some(problem.reason);
        if is_new {
            tracing::warn!(
                %problem,
                "not registered: others may not find what this peer has; it keeps trying"
            );
        }
        // A refusal for quota or a full disk does not end an existing lease.
        let held = matches!(refusal, Refusal::Quota | Refusal::Store) && self.has_lease().await;
        self.status.send_modify(|status| {
            status.registered = held;
            status.error = Some(problem.clone());
        });
        if lasting {
            self.acknowledged.send_modify(|now| now.blocked = Some(problem));
        }
        let until = Instant::now() + wait;
        match (held, refusal) {
            (true, Refusal::Quota) => self.wait_within_quota(until).await,
            (true, _) => self.wait_with_lease(until).await,
            (false, _) => tokio::time::sleep_until(until).await,
        }
        if refusal == Refusal::Quota {
            self.start_over(false);
            // Do not replace everything again: leftovers of an earlier run are already gone.
            self.replaced = true;
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
            () = self.listener.changed(self.synced_version) => {}
            () = tokio::time::sleep_until(renew) => {}
        }
        if self.listener.version() > self.synced_version + LARGE_CHANGE {
            tokio::time::sleep(LARGE_CHANGE_DELAY).await;
        }
    }

    /// Renews the lease if it is due, and announces all changes.
    async fn sync(&mut self) -> Result<(), Problem> {
        if !self.opens_lease && self.renew_at.is_none_or(|at| at <= Instant::now()) {
            self.renew().await?;
        }
        while self.opens_lease || self.listener.version() > self.synced_version {
            self.sync_up_to(self.listener.version()).await?;
        }
        self.status.send_modify(|status| {
            if !status.registered {
                tracing::info!("registered: the index knows what this peer has");
            }
            status.registered = true;
            if let Some(conflicting_address) = &self.conflicting_address {
                status.error = Some(identity_in_use(conflicting_address));
            } else if self.skipped == 0 {
                status.error = None;
            }
        });
        self.acknowledged.send_modify(|now| {
            now.up_to = Some(self.synced_version);
            now.blocked = None;
        });
        Ok(())
    }

    /// Announces the changes up to the number `upto` in concurrent batches: while the index writes
    /// one, the next is on its way.
    ///
    /// Each file has one entry in the change log. So batches taken before any newer change contain
    /// different files, and may arrive in any order.
    async fn sync_up_to(&mut self, upto: u64) -> Result<(), Problem> {
        let mut calls = FuturesOrdered::new();
        let (mut taken, mut ended) = (self.synced_version, false);
        let (mut total, mut lease, mut stale) = (0, None::<Lease>, false);
        // An answer may be lost, so the index's number of files is unknown until the pass is
        // complete.
        self.expected_files = None;
        loop {
            while !ended && calls.len() < if self.replace { 1 } else { MAX_CONCURRENT_BATCHES } {
                let changes = self.listener.changes(taken, self.batch_size, MAX_BATCH_BYTES);
                let newer = self.listener.version() != upto;
                let removes = !changes.removed.is_empty() && !self.replace;
                if !calls.is_empty() && (newer || removes) {
                    // These changes are taken again after the earlier batches have been answered.
                    break;
                }
                if removes {
                    let IndexConnection { client, token, .. } = &self.index;
                    client.unregister(token, Some(&changes.removed)).await?;
                    lease = None;
                }
                (taken, total) = (changes.up_to, changes.total);
                stale |= changes.stale;
                ended = !changes.more || newer;
                calls.push_back(self.register(changes, self.opens_lease && calls.is_empty()));
            }
            let Some((changes, result)) = calls.next().await else {
                break;
            };
            match result {
                Ok(result) => {
                    self.batch_size = (self.batch_size * 2).min(MAX_BATCH);
                    self.synced_version = changes.up_to;
                    self.listener.acknowledged(self.synced_version);
                    if let Some(mut result) = result {
                        (self.opens_lease, self.replace) = (false, false);
                        // A small batch may overtake a large one. Nothing is removed in between, so
                        // the largest reported number is the current one.
                        let max = lease.map_or(0, |lease| lease.file_count);
                        result.file_count = result.file_count.max(max);
                        self.record_lease(&result);
                        lease = Some(result);
                    }
                }
                Err(problem) => {
                    // The index may have accepted the later batches or not. They are sent again;
                    // unchanged registrations cost the index nothing.
                    while calls.next().await.is_some() {}
                    self.handle_refusal(&changes, problem)?;
                    (taken, ended) = (self.synced_version, false);
                }
            }
        }
        if self.listener.version() == self.synced_version && !stale {
            self.expect_file_count(total as u64, lease.as_ref());
        } else {
            // The index may lose its state before the newer changes reach it, so only a pass
            // without newer changes counts.
            self.replaced = false;
        }
        Ok(())
    }

    /// Reacts to a refused batch.
    ///
    /// # Errors
    /// The problem, if an immediate retry does not help.
    fn handle_refusal(&mut self, changes: &AnnounceChanges, problem: Problem) -> Result<(), Problem> {
        match classify(problem.reason) {
            // Registrations left by an earlier run may be using up the quota.
            Refusal::Quota if self.is_full_sync && !self.replaced => self.start_over(true),
            Refusal::File | Refusal::Quota if changes.put.len() > 1 => {
                self.batch_size = changes.put.len() / 2;
            }
            Refusal::File if changes.put.len() == 1 => {
                let file = &changes.put[0];
                tracing::warn!(id = %file.file.id, names = ?file.names, %problem, "the index refuses a file");
                self.skipped += 1;
                self.status.send_modify(|status| status.error = Some(problem));
                self.synced_version = changes.up_to;
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
        let IndexConnection {
            client,
            token,
            address,
            ttl,
        } = self.index.clone();
        let replace = self.replace;
        async move {
            if changes.put.is_empty() && !open && !replace {
                return (changes, Ok(None));
            }
            let result = client
                .register(&token, &address, &changes.put, ttl, replace)
                .await;
            (changes, result.map(Some))
        }
    }

    async fn renew(&mut self) -> Result<(), Problem> {
        let IndexConnection {
            client,
            token,
            address,
            ..
        } = &self.index;
        let lease = client.renew(token, address).await?;
        self.record_lease(&lease);
        if self.differs(&lease).await {
            tracing::info!("the index has other registrations of this peer: everything is registered again");
            self.start_over(true);
            return Ok(());
        }
        match self.expected_files {
            Some(expected) if expected != lease.file_count => {
                tracing::info!(
                    expected,
                    found = lease.file_count,
                    "the index has another number of this peer's files: everything is registered again"
                );
                self.start_over(true);
            }
            Some(_) => {}
            None => self.expected_files = Some(lease.file_count),
        }
        Ok(())
    }

    fn record_lease(&mut self, lease: &Lease) {
        if self.conflicting_address != lease.conflicting_address {
            if let Some(conflicting_address) = &lease.conflicting_address {
                tracing::warn!(problem = %identity_in_use(conflicting_address), "another peer uses this peer's identity");
            }
            self.conflicting_address.clone_from(&lease.conflicting_address);
        }
        self.renew_at = Some(Instant::now() + jittered(lease.ttl / 3));
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
        let whole = std::mem::take(&mut self.is_full_sync);
        let accepted = total.saturating_sub(self.skipped as u64);
        let differs = lease.is_some_and(|lease| lease.file_count != accepted);
        self.expected_files = (self.skipped == 0 && !differs).then_some(total);
        // Files refused after the full pass cannot be distinguished from those refused in it.
        if differs && (self.skipped == 0 || whole) {
            tracing::info!(accepted, found = ?lease, "the index has another number of this peer's files");
            if !(whole && self.replaced) {
                self.start_over(true);
            }
        }
    }
}

/// The problem to report if another live peer uses this peer's token.
fn identity_in_use(conflicting_address: &Address) -> Problem {
    Problem::new(
        Reason::IdentityInUse,
        format!(
            "another peer at {}:{} uses this peer's token, and the index refuses it: stop one of the two, and remove `state/token` \
             from the home that is a copy",
            conflicting_address.host, conflicting_address.port
        ),
    )
}

impl RegistrarTask {
    /// Whether the index holds a lease of this peer, from its last answer or from a renewal now. A
    /// full index may never have granted one.
    pub(crate) async fn has_lease(&mut self) -> bool {
        self.renew_at.is_some() || self.renew().await.is_ok()
    }

    /// Keeps the lease until it is time to retry after a quota refusal. Returns earlier if a file
    /// was unregistered, because that makes room.
    pub(crate) async fn wait_within_quota(&mut self, until: Instant) {
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
    pub(crate) async fn wait_with_lease(&mut self, until: Instant) {
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
        let mut since = self.synced_version;
        let mut any = false;
        loop {
            let changes = self.listener.changes(since, MAX_BATCH, MAX_BATCH_BYTES);
            if !changes.removed.is_empty() {
                let IndexConnection { client, token, .. } = &self.index;
                any |= client.unregister(token, Some(&changes.removed)).await? > 0;
            }
            since = changes.up_to;
            if !changes.more {
                return Ok(any);
            }
        }
    }
}
