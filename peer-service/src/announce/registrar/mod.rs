//! Keeps the index told of what this peer has, whatever happens to the index.
//!
//! Invariants: what is acknowledged is what the index answered for; after any failure the lease is proved before anything is
//! believed; an index that forgot is told everything again; nothing that one file is refused for keeps the others out. It never
//! stops trying, and never hurries: waits grow, are capped and jittered.
//!
//! Whether the index has what this peer has is seen by their number, and when a lease is renewed by the digest of all registrations: an
//! index that was put back to an older state may have as many.
//!
//! Non-goals: knows nothing of files; the holdings say what there is.

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

/// Most files in a batch, well below what the index takes: one in memory, with its message, is some 500 bytes a file.
const MAX_BATCH: usize = 2_500;

/// Most bytes of names in a batch: with some 150 bytes for each of [`MAX_BATCH`] files, well under the largest message.
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// Batches on their way at once: one that the index writes, one that it reads, one that is made.
const MAX_CONCURRENT_BATCHES: usize = 3;

/// More changes than this at once are told a moment later: who made them is answered first, and what follows goes with them.
const LARGE_CHANGE: u64 = 1000;
const LARGE_CHANGE_DELAY: Duration = Duration::from_millis(20);

/// How long taking everything back may hold up the end.
const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(2);

/// How things stand with the index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistrarStatus {
    /// Whether the index holds this peer's lease.
    pub registered: bool,
    /// The address it gives to others.
    pub advertised: Option<Address>,
    /// Why not, or what it refused.
    pub error: Option<Problem>,
    /// How many files it holds for this peer, as of its last answer.
    pub file_count: u64,
}

/// A running registrar. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registrar {
    status: watch::Receiver<RegistrarStatus>,
    acknowledged: watch::Receiver<Acknowledged>,
    announce_set: AnnounceSet,
}

/// What the index has answered for.
#[derive(Debug, Clone, Default)]
struct Acknowledged {
    /// Number of the last change; `None` before the first lease.
    up_to: Option<u64>,
    /// Why it will not go on soon.
    blocked: Option<Problem>,
}

impl Registrar {
    /// Starts registering what is in `announce_set` until `shutdown`, then takes everything back. `ttl`: the index's own unless given.
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

    /// How things stand.
    pub fn status(&self) -> RegistrarStatus {
        self.status.borrow().clone()
    }

    /// Waits until the index has acknowledged everything that is in the holdings now.
    ///
    /// # Errors
    /// `QUOTA_EXCEEDED` and other refusals at once; after `timeout` the last problem with the index, or `TIMED_OUT`;
    /// `SHUTTING_DOWN`.
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
    /// As [`Registrar::synced`], but ends at once where the index cannot be told now.
    ///
    /// # Errors
    /// As of [`Registrar::synced`], and why the index cannot be told.
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
            // Both only wait.
            synced = self.synced(timeout) => synced,
            problem = fails => Err(problem.unwrap_or_else(|| {
                Problem::new(Reason::ShuttingDown, "the peer is shutting down")
            })),
        }
    }
}

/// The index and what every call to it carries.
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
    /// Number of the last change that the index was told of.
    synced_version: u64,
    /// Whether the lease has to be opened, by a batch that may be empty.
    opens_lease: bool,
    /// Whether the next batch replaces all that the index knows of this peer: only once it is seen to have what this peer has not,
    /// as what it has already need not be written again.
    replace: bool,
    /// Whether that was done in this pass.
    replaced: bool,
    /// How many files the next batch may have.
    batch_size: usize,
    /// Whether this pass tells everything from the first change on.
    is_full_sync: bool,
    /// Files that the index refused one by one.
    skipped: usize,
    /// How many files the index should say it has; `None` where that cannot be known.
    expected_files: Option<u64>,
    /// What is known of the digest that it should give.
    digest: digest::Expectation,
    /// Where another live peer is that uses this one's token.
    rival: Option<Address>,
    /// `None`: at once, as it is not known whether there is a lease.
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
            rival: None,
            renew_at: None,
            failures: 0,
        }
    }

    async fn run(mut self, shutdown: CancellationToken) {
        // Cancel-safe: a call that is cut off leaves nothing that taking everything back does not end.
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.run_sync() => {}
        }
        let IndexConnection { client, token, .. } = &self.index;
        match tokio::time::timeout(UNREGISTER_TIMEOUT, client.unregister(token, None)).await {
            Ok(Ok(_)) => tracing::debug!("the index took back everything"),
            // The lease runs out by itself.
            Ok(Err(problem)) => tracing::debug!(%problem, "the index did not take back everything"),
            Err(_) => tracing::debug!("the index did not answer in time to take back everything"),
        }
        self.status.send_modify(|status| status.registered = false);
    }

    /// Never ends.
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
                // Once at once, then as any failure: an index that never knows it must not be flooded.
                self.failures += 1;
                if self.failures == 1 {
                    continue;
                }
            }
            self.back_off_after(problem, refusal).await;
        }
    }

    /// Tells everything again; `replace`: in place of what the index has.
    fn start_over(&mut self, replace: bool) {
        self.synced_version = 0;
        self.opens_lease |= replace;
        (self.replace, self.replaced) = (replace, replace);
        self.is_full_sync = true;
        self.batch_size = MAX_BATCH;
        self.skipped = 0;
        self.expected_files = None;
    }

    /// Says what is wrong and waits.
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
        // With a full quota or a full disk a lease is held all the same, if there is one.
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
            // What an earlier run left was looked for already.
            self.replaced = true;
        }
        self.acknowledged.send_modify(|now| now.blocked = None);
        // Whatever the index knew before may be gone.
        self.renew_at = None;
    }

    /// Waits for something to do.
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

    /// Renews the lease if it is time and tells all that changed.
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
            if let Some(rival) = &self.rival {
                status.error = Some(identity_in_use(rival));
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

    /// Tells what changed up to the number `up_to`, several batches at once: while the index writes one, the next is on its way.
    ///
    /// A file has one number, so that batches taken before anything newer is known are of different files and may arrive in any order.
    async fn sync_up_to(&mut self, upto: u64) -> Result<(), Problem> {
        let mut calls = FuturesOrdered::new();
        let (mut taken, mut ended) = (self.synced_version, false);
        let (mut total, mut lease, mut stale) = (0, None::<Lease>, false);
        // An answer may be lost on its way: until all is told nobody knows how many files the index has.
        self.expected_files = None;
        loop {
            while !ended && calls.len() < if self.replace { 1 } else { MAX_CONCURRENT_BATCHES } {
                let changes = self.listener.changes(taken, self.batch_size, MAX_BATCH_BYTES);
                let newer = self.listener.version() != upto;
                let removes = !changes.removed.is_empty() && !self.replace;
                if !calls.is_empty() && (newer || removes) {
                    // Taken again when those before it have arrived.
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
                        // A small batch may have overtaken a large one: where nothing is removed, the index has the most that it said.
                        let max = lease.map_or(0, |lease| lease.file_count);
                        result.file_count = result.file_count.max(max);
                        self.record_lease(&result);
                        lease = Some(result);
                    }
                }
                Err(problem) => {
                    // The index may have taken those behind it, or not: they are told again, and what it has costs it nothing.
                    while calls.next().await.is_some() {}
                    self.handle_refusal(&changes, problem)?;
                    (taken, ended) = (self.synced_version, false);
                }
            }
        }
        if self.listener.version() == self.synced_version && !stale {
            self.expect_file_count(total as u64, lease.as_ref());
        } else {
            // The index may forget all before it hears of what is newer: only a pass without any is believed.
            self.replaced = false;
        }
        Ok(())
    }

    /// What to do about a batch that was refused.
    ///
    /// # Errors
    /// The problem, where going on at once does not help.
    fn handle_refusal(&mut self, changes: &AnnounceChanges, problem: Problem) -> Result<(), Problem> {
        match classify(problem.reason) {
            // What the index still has of an earlier run may be what is too much.
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

    /// One batch, and what the index says to it; no call where there is nothing to put and no lease to `opens_lease`.
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
        if self.rival != lease.rival {
            if let Some(rival) = &lease.rival {
                tracing::warn!(problem = %identity_in_use(rival), "another peer uses this peer's identity");
            }
            self.rival.clone_from(&lease.rival);
        }
        self.renew_at = Some(Instant::now() + jittered(lease.ttl / 3));
        self.status.send_modify(|status| {
            status.file_count = lease.file_count;
            if let Some(address) = &lease.address {
                status.advertised = Some(address.clone());
            }
        });
    }

    /// Remembers how many files the index should have now, and starts over where it says otherwise: it forgot some, or has some of an
    /// earlier run. What it says right after all that it had was replaced is believed: asking again would give the same.
    fn expect_file_count(&mut self, total: u64, lease: Option<&Lease>) {
        let whole = std::mem::take(&mut self.is_full_sync);
        let accepted = total.saturating_sub(self.skipped as u64);
        let differs = lease.is_some_and(|lease| lease.file_count != accepted);
        self.expected_files = (self.skipped == 0 && !differs).then_some(total);
        // Files refused since the whole was told cannot be told from those refused in it.
        if differs && (self.skipped == 0 || whole) {
            tracing::info!(accepted, found = ?lease, "the index has another number of this peer's files");
            if !(whole && self.replaced) {
                self.start_over(true);
            }
        }
    }
}

/// What to do about another live peer with this one's token.
fn identity_in_use(rival: &Address) -> Problem {
    Problem::new(
        Reason::IdentityInUse,
        format!(
            "another peer at {}:{} uses this peer's token, and the index refuses it: stop one of the two, and remove `state/token` \
             from the home that is a copy",
            rival.host, rival.port
        ),
    )
}

impl RegistrarTask {
    /// Whether the index holds a lease of this peer: the last answer said so, or it says so now. An index that is full may never have
    /// given one.
    pub(crate) async fn has_lease(&mut self) -> bool {
        self.renew_at.is_some() || self.renew().await.is_ok()
    }

    /// Holds the lease, which there is, until it is time to try again with what was too much. A removal makes room: then it is time at once.
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

    /// Holds the lease, which there is, until it is time to try again.
    pub(crate) async fn wait_with_lease(&mut self, until: Instant) {
        while let Some(renew) = self.renew_at.filter(|at| *at < until) {
            tokio::time::sleep_until(renew).await;
            if self.renew().await.is_err() {
                return;
            }
        }
        tokio::time::sleep_until(until).await;
    }

    /// Takes back what was removed after what the index was told of; whether there was anything that it had.
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
