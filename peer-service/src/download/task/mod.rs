//! One run of a download: finds its metadata, recovers earlier data, runs the swarm and finalizes.

pub(crate) mod bootstrap;
mod checkpoints;
mod finish;
pub(crate) mod metadata;
mod planning;
pub(crate) mod preexisting;
pub(crate) mod recover;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use potluck_core::{
    Problem, Reason,
    bitfield::Bitfield,
    model::{Address, Registration},
    problem::RAISE_OPEN_FILES,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    download::{
        context::DownloadContext,
        engine::{
            active::ActiveDownload,
            driver::{DISK_RETRY, DownloadDriver, PEER_EVENTS},
            rate_limit::TransferRateLimiter,
            verifier::UnitVerifier,
        },
        peers::{
            PeerSet,
            discovery::{self, PeerCandidates},
        },
        status::{DownloadSpec, DownloadState, DownloadStatus, TransferLimits, reporter::StatusReporter},
        storage::part_file::{FoundPart, PartFile},
        task::bootstrap::BootstrapPool,
    },
    fs::blocking::blocking,
};
use potluck_swarm::{Swarm, SwarmConfig};

use planning::PlannedDownload;

/// How the task of a download ended.
#[derive(Debug)]
pub(crate) enum RunEnd {
    /// The content is verified and has its final name.
    Done,
    /// The run was stopped; the downloaded data is kept.
    Stopped,
    /// The download cannot continue; the downloaded data is kept.
    Failed(Problem),
}

/// The result of one attempt at the download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FetchOutcome {
    /// Every unit is there.
    Done,
    /// The run was stopped.
    Stopped,
    /// The download was taken for a plain file and may be a collection; it starts again and checks.
    Doubted,
}

/// One run of a download.
#[derive(Debug)]
pub(crate) struct DownloadRun {
    pub(crate) context: Arc<DownloadContext>,
    pub(crate) spec: DownloadSpec,
    /// The current limits; may change during the run.
    pub(crate) limits: watch::Receiver<TransferLimits>,
    /// Addresses of peers that the user named; may grow during the run.
    pub(crate) named_peers: watch::Receiver<Vec<Address>>,
    pub(crate) status: watch::Sender<DownloadStatus>,
    pub(crate) stop: CancellationToken,
    /// Whether the content may be a collection although its metadata claims a plain file. If set,
    /// the run examines its bytes.
    pub(crate) kind_doubted: AtomicBool,
    /// Publishes the running download, so that uploads can read from it.
    pub(crate) active: watch::Sender<Option<Arc<ActiveDownload>>>,
}

impl DownloadRun {
    /// Runs to completion.
    pub(crate) async fn run(self) -> RunEnd {
        let reporter = StatusReporter::new(self.status.clone(), self.stop.clone());
        let (list, sources) = watch::channel(PeerCandidates::default());
        // The guard stops discovery when the run ends for any reason.
        let local = self.stop.child_token();
        let _ends = local.clone().drop_guard();
        let (context, keep_stop) = (Arc::clone(&self.context), local.clone());
        let (id, named, status) = (self.spec.id, self.named_peers.clone(), self.status.subscribe());
        self.context.tracker.spawn(async move {
            let index = context.index.clone();
            discovery::run_discovery(
                (index, status),
                id,
                named,
                |peer, address| context.is_self(peer, address),
                list,
                keep_stop,
            )
            .await;
        });
        let ended = self.run_until_done(&reporter, &sources, &local).await;
        if !matches!(ended, Ok(true)) {
            self.active.send_replace(None);
        }
        match ended {
            Ok(true) => RunEnd::Done,
            Ok(false) => RunEnd::Stopped,
            Err(_) if self.stop.is_cancelled() => RunEnd::Stopped,
            Err(problem) => RunEnd::Failed(problem),
        }
    }

    /// Returns true when done, false when stopped. If the disk is full or file descriptors run out
    /// outside the steps that wait by themselves (for example on a failed flush), starts again from
    /// the data on disk.
    async fn run_until_done(
        &self,
        reporter: &StatusReporter,
        sources: &watch::Receiver<PeerCandidates>,
        local: &CancellationToken,
    ) -> Result<bool, Problem> {
        loop {
            match self.fetch(reporter, sources.clone(), local).await {
                Ok(FetchOutcome::Done) => return Ok(true),
                Ok(FetchOutcome::Stopped) => return Ok(false),
                Ok(FetchOutcome::Doubted) => {
                    tracing::info!(file = %self.spec.id.short(), "said to be a plain file, and may be a folder: looked at again");
                    self.kind_doubted.store(true, Ordering::Relaxed);
                    continue;
                }
                Err(problem) if problem.reason.is_exhaustion() => {
                    tracing::warn!(file = %self.spec.id.short(), %problem, "begins anew in a moment");
                    reporter.set_state(DownloadState::Waiting, Some(problem));
                }
                Err(problem) => return Err(problem),
            }
            tokio::select! {
                () = self.stop.cancelled() => return Ok(false),
                () = tokio::time::sleep(DISK_RETRY) => {}
            }
        }
    }

    async fn fetch(
        &self,
        reporter: &StatusReporter,
        sources: watch::Receiver<PeerCandidates>,
        local: &CancellationToken,
    ) -> Result<FetchOutcome, Problem> {
        let pool = BootstrapPool::new(sources.clone()).leaving_from(self.context.leave_from);
        // Both futures can be dropped: they hold nothing that outlives them.
        let planned = tokio::select! {
            () = self.stop.cancelled() => return Ok(FetchOutcome::Stopped),
            planned = self.plan(reporter, &pool) => planned?,
        };
        let Some(planned) = planned else {
            return Ok(FetchOutcome::Done);
        };
        // Runs to the end: a dropped blocking task would continue and conflict with the next user
        // of the part file.
        let Some((part, found)) = self.open_part(&planned, reporter).await? else {
            return Ok(FetchOutcome::Stopped);
        };
        let checks = tokio::select! {
            () = self.stop.cancelled() => return Ok(FetchOutcome::Stopped),
            checks = self.build_verifier(&planned, reporter, &pool) => checks?,
        };
        let prepared = PreparedDownload {
            planned,
            part_file: Arc::new(part),
            found: Some(found).into(),
            verifier: checks,
        };
        let Some(have) = self.recover_units(&prepared, reporter).await? else {
            return Ok(FetchOutcome::Stopped);
        };
        let download = self.publish(&prepared, have).await?;
        // Announced before the first unit is there, so that peers that download the same file find
        // each other early and know of each other's download.
        let offered = self.context.announce_set.announce_partial(Registration {
            file: download.record,
            names: vec![download.name.clone()],
            is_complete: false,
        });
        let mut finished = self.run_swarm(&download, reporter, sources, pool, local).await;
        if matches!(finished, Ok(FetchOutcome::Done)) && self.is_manifest(&download).await? {
            finished = Ok(FetchOutcome::Doubted);
        }
        let have = download.have();
        if !matches!(finished, Ok(FetchOutcome::Done)) {
            drop(offered);
            self.retire(&download, have).await;
            return finished;
        }
        let placed = self.finalize(&download, prepared, offered, reporter).await;
        if !matches!(placed, Ok(true)) {
            self.retire(&download, have).await;
        }
        Ok(match placed? {
            true => FetchOutcome::Done,
            false => FetchOutcome::Stopped,
        })
    }

    /// Stops serving the download and writes a last checkpoint.
    async fn retire(&self, download: &Arc<ActiveDownload>, have: Bitfield) {
        self.active.send_replace(None);
        let part = Arc::clone(&download.part_file);
        let last = move || {
            let stored = part.checkpoint(&have);
            // An upload may hold the part file a little longer; without the lock the file can be
            // deleted or resumed.
            part.unlock();
            stored
        };
        match blocking(last).await.and_then(|stored| stored) {
            Ok(()) => {}
            Err(problem) => tracing::warn!(%problem, "the last resume state could not be written"),
        }
    }
}

/// Everything that is prepared before the first unit is requested.
#[derive(Debug)]
pub(crate) struct PreparedDownload {
    planned: PlannedDownload,
    part_file: Arc<PartFile>,
    found: parking_lot::Mutex<Option<FoundPart>>,
    verifier: Arc<UnitVerifier>,
}

impl DownloadRun {
    /// Opens the part file; waits if the disk is full. `None` if stopped.
    async fn open_part(
        &self,
        planned: &PlannedDownload,
        reporter: &StatusReporter,
    ) -> Result<Option<(PartFile, FoundPart)>, Problem> {
        let id = self.spec.id;
        while !self.stop.is_cancelled() {
            let (target, plan) = (planned.target.clone(), Arc::clone(&planned.plan));
            let manifest = planned.collection.as_ref().map(|it| Arc::clone(&it.manifest));
            let stop = self.stop.clone();
            match blocking(move || PartFile::open(id, target, plan, manifest, &stop)).await? {
                Err(problem) if problem.reason.is_exhaustion() => {
                    reporter.set_state(DownloadState::Waiting, Some(problem));
                    tokio::select! {
                        () = self.stop.cancelled() => {}
                        () = tokio::time::sleep(DISK_RETRY) => {}
                    }
                }
                opened => return opened.map(Some),
            }
        }
        Ok(None)
    }

    /// Recovers units of an earlier run and copies units from the library. `None` if stopped.
    async fn recover_units(
        &self,
        prepared: &PreparedDownload,
        reporter: &StatusReporter,
    ) -> Result<Option<Bitfield>, Problem> {
        let found = prepared.found.lock().take().unwrap_or(FoundPart::Unverified);
        let (part, checks) = (Arc::clone(&prepared.part_file), Arc::clone(&prepared.verifier));
        let (library, threads, stop) = (
            self.context.library.clone(),
            self.context.hash_threads,
            self.stop.clone(),
        );
        let done = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&done);
        let work = blocking(move || {
            let on_unit = |len: u64| {
                counted.fetch_add(len, Ordering::Relaxed);
            };
            let wanted = || !stop.is_cancelled();
            let mut have = recover::recover(&part, &checks, found, threads, &wanted, &on_unit);
            let resumed: u64 = have.ones().map(|unit| part.plan().unit_len(unit)).sum();
            let copied = recover::copy_local(&library, &part, &checks, &mut have, &wanted, &on_unit);
            if let Err(error) = copied {
                // The swarm's first write fails the same way and reports the error.
                tracing::warn!(%error, "could not copy what is here already");
            }
            (have, resumed)
        });
        tokio::pin!(work);
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let (have, resumed) = loop {
            // The work is pinned outside the loop, so polling the other arm does not drop it.
            tokio::select! {
                told = &mut work => break told?,
                _ = tick.tick() => reporter.set_bytes(done.load(Ordering::Relaxed)),
            }
        };
        reporter.set_resumed_bytes(resumed);
        reporter.set_bytes(done.load(Ordering::Relaxed));
        Ok(Some(have).filter(|_| !self.stop.is_cancelled()))
    }

    /// Makes the download available to uploads.
    async fn publish(
        &self,
        prepared: &PreparedDownload,
        have: Bitfield,
    ) -> Result<Arc<ActiveDownload>, Problem> {
        let (record, name) = (prepared.planned.record, prepared.planned.name.clone());
        let (part, checks) = (Arc::clone(&prepared.part_file), Arc::clone(&prepared.verifier));
        let collection = prepared.planned.collection.clone();
        let download = blocking(move || {
            let manifest = collection
                .as_ref()
                .map(|it| (it.tree.clone(), &**it.manifest.bytes()));
            ActiveDownload::new(record, name, part, checks, manifest, have)
        });
        let download = download.await?.map_err(|error| {
            let folder = std::env::temp_dir();
            let folder = folder.display();
            match Reason::of_exhaustion(&error) {
                Some(Reason::DiskFull) => Problem::new(
                    Reason::DiskFull,
                    format!(
                        "no room for a temporary file in {folder}: make room there, and it goes on by itself"
                    ),
                ),
                Some(reason) => Problem::new(
                    reason,
                    format!("cannot make a temporary file: {RAISE_OPEN_FILES}; it goes on by itself"),
                ),
                None => Problem::new(
                    Reason::Internal,
                    format!("cannot make a temporary file in {folder}: {error}"),
                ),
            }
        })?;
        let download = Arc::new(download);
        self.active.send_replace(Some(Arc::clone(&download)));
        Ok(download)
    }

    /// Runs the swarm until all units are there.
    async fn run_swarm(
        &self,
        download: &Arc<ActiveDownload>,
        reporter: &StatusReporter,
        sources: watch::Receiver<PeerCandidates>,
        pool: BootstrapPool,
        local: &CancellationToken,
    ) -> Result<FetchOutcome, Problem> {
        let plan = download.part_file.plan();
        let have = download.have();
        if have.is_full() {
            return Ok(FetchOutcome::Done);
        }
        let lens = (0..plan.unit_count()).map(|unit| plan.unit_len(unit)).collect();
        let swarm = Swarm::new(SwarmConfig::default(), lens, have.clone(), rand::random());
        let (clients, misbehaving) = pool.into_parts();
        let (tell, events) = mpsc::channel(PEER_EVENTS);
        let stop = local.child_token();
        let ends = stop.clone().drop_guard();
        let calls = TaskTracker::new();
        let mut update = self.limits.clone();
        let now = *update.borrow_and_update();
        let disk = self.context.disk_pools.pool(download.part_file.device());
        let mut driver = DownloadDriver {
            context: Arc::clone(&self.context),
            download: Arc::clone(download),
            disk: Arc::clone(&disk),
            swarm,
            peers: PeerSet::new(
                (self.spec.id, plan.unit_count(), self.context.peer_id),
                tell,
                clients,
                misbehaving,
                stop.clone(),
                self.context.tracker.clone(),
            )
            .leaving_from(self.context.leave_from),
            candidates: sources.clone(),
            limits: update,
            rate_limiter: Arc::new(TransferRateLimiter::new(now, &self.context.limits)),
            budget_share: self.context.budget.join(now.priority),
            start: Instant::now(),
            stop: &stop,
            report: Box::new(|swarm, peers, now, wrong| {
                reporter.update_from_swarm(plan, (swarm, now), peers, &sources.borrow(), wrong, &disk)
            }),
            requests: Default::default(),
            idle_peer_replaced_at: Instant::now(),
            ask_anew: Default::default(),
            disk_full: None,
            disk_retry: DISK_RETRY,
            calls: calls.clone(),
            violations: Default::default(),
            saw_crowd: false,
            may_be_collection: self.may_be_collection(plan),
            kind_doubted: false,
        };
        let (part, over) = (Arc::clone(&download.part_file), stop.clone());
        calls.spawn_blocking(move || {
            if let Err(error) = part.preallocate(|| !over.is_cancelled()) {
                // The next write fails the same way and reports the error.
                tracing::debug!(%error, "the room could not be taken in advance");
            }
        });
        let checkpoints = self
            .context
            .tracker
            .spawn(checkpoints::run_checkpoints(Arc::clone(download), stop.clone()));
        tracing::debug!(file = %self.spec.id.short(), units = plan.unit_count(), "fetching");
        let finished = driver.run(events).await;
        tracing::debug!(file = %self.spec.id.short(), "fetched");
        driver.report_final();
        drop(driver);
        drop(ends);
        calls.close();
        calls.wait().await;
        // The checkpoint task ends with `stop`. Waiting for it keeps a late checkpoint from
        // overlapping the next step.
        if let Ok(Err(problem)) = checkpoints.await {
            return Err(problem);
        }
        finished.map(|finished| match finished {
            FetchOutcome::Done if !download.have().is_full() => FetchOutcome::Stopped,
            finished => finished,
        })
    }
}
