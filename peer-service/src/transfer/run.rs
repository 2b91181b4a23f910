//! The life of one transfer, from what was asked for to a verified file in its place.

mod checkpoints;
mod ending;
mod planning;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use potluck_core::{
    Problem, Reason,
    index_client::{Address, Registration},
    problem::RAISE_OPEN_FILES,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    allowance::Allowance,
    context::Context,
    dialer::Dialer,
    driver::{DISK_RETRY, Driver, PEER_EVENTS},
    live::Live,
    part::{Found, Part},
    peers::Peers,
    recover,
    report::Reporter,
    sources::{self, Sources},
    verify::Checks,
    view::{FetchSpec, State, Terms, View},
};
use crate::{
    bits::Bitfield,
    blocking::blocking,
    swarm::{Swarm, SwarmConfig},
};

use planning::Planned;

/// How a transfer's task ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// In its place, verified.
    Done,
    /// Told to stop; what was fetched is kept.
    Stopped,
    /// Cannot go on; what was fetched is kept.
    Failed(Problem),
}

/// What came of fetching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// All of it.
    Done,
    /// It was told to stop.
    Stopped,
    /// It was taken for a plain file, and may be none: to be looked at, and begun anew.
    Doubted,
}

/// One run of a transfer.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) context: Arc<Context>,
    pub(crate) spec: FetchSpec,
    /// What it is held to; changes on the way.
    pub(crate) terms: watch::Receiver<Terms>,
    /// Who was named to be asked; grows on the way.
    pub(crate) named: watch::Receiver<Vec<Address>>,
    pub(crate) view: watch::Sender<View>,
    pub(crate) stop: CancellationToken,
    /// Whether it was doubted that this is a plain file: its bytes are looked at, whatever is said.
    pub(crate) doubted: AtomicBool,
    /// Where the running transfer is put for others to serve from.
    pub(crate) live: watch::Sender<Option<Arc<Live>>>,
}

impl Run {
    /// Runs to the end.
    pub(crate) async fn run(self) -> Ended {
        let reporter = Reporter::new(self.view.clone(), self.stop.clone());
        let (list, sources) = watch::channel(Sources::default());
        // Ends with the run, however that ends.
        let local = self.stop.child_token();
        let _ends = local.clone().drop_guard();
        let (context, keep_stop) = (Arc::clone(&self.context), local.clone());
        let (id, named, view) = (self.spec.id, self.named.clone(), self.view.subscribe());
        self.context.tracker.spawn(async move {
            let index = context.index.clone();
            sources::keep(
                (index, view),
                id,
                named,
                |peer, address| context.is_self(peer, address),
                list,
                keep_stop,
            )
            .await;
        });
        let ended = self.until_done(&reporter, &sources, &local).await;
        if !matches!(ended, Ok(true)) {
            self.live.send_replace(None);
        }
        match ended {
            Ok(true) => Ended::Done,
            Ok(false) => Ended::Stopped,
            Err(_) if self.stop.is_cancelled() => Ended::Stopped,
            Err(problem) => Ended::Failed(problem),
        }
    }

    /// True when done, false when stopped. Where room was lacking and nothing else waited for it, such as for what had been written
    /// and could not be flushed, it begins anew with what is there.
    async fn until_done(
        &self,
        reporter: &Reporter,
        sources: &watch::Receiver<Sources>,
        local: &CancellationToken,
    ) -> Result<bool, Problem> {
        loop {
            match self.fetch(reporter, sources.clone(), local).await {
                Ok(Fetched::Done) => return Ok(true),
                Ok(Fetched::Stopped) => return Ok(false),
                Ok(Fetched::Doubted) => {
                    tracing::info!(file = %self.spec.id.short(), "said to be a plain file, and may be a folder: looked at again");
                    self.doubted.store(true, Ordering::Relaxed);
                    continue;
                }
                Err(problem) if problem.reason.is_exhaustion() => {
                    tracing::warn!(file = %self.spec.id.short(), %problem, "begins anew in a moment");
                    reporter.state(State::Waiting, Some(problem));
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
        reporter: &Reporter,
        sources: watch::Receiver<Sources>,
        local: &CancellationToken,
    ) -> Result<Fetched, Problem> {
        let dialer = Dialer::new(sources.clone()).leaving_from(self.context.leave_from);
        // Neither of the two that can be dropped holds anything that is not dropped whole.
        let planned = tokio::select! {
            () = self.stop.cancelled() => return Ok(Fetched::Stopped),
            planned = self.plan(reporter, &dialer) => planned?,
        };
        let Some(planned) = planned else {
            return Ok(Fetched::Done);
        };
        // To its end: left alone it would go on, and whoever removes the part or goes on with it next would meet it.
        let Some((part, found)) = self.open_part(&planned, reporter).await? else {
            return Ok(Fetched::Stopped);
        };
        let checks = tokio::select! {
            () = self.stop.cancelled() => return Ok(Fetched::Stopped),
            checks = self.checks(&planned, reporter, &dialer) => checks?,
        };
        let prepared = Prepared {
            planned,
            part: Arc::new(part),
            found: Some(found).into(),
            checks,
        };
        let Some(have) = self.gather(&prepared, reporter).await? else {
            return Ok(Fetched::Stopped);
        };
        let live = self.go_live(&prepared, have).await?;
        // At once, with nothing to give yet: those who fetch the same find each other while the first pieces come, and each knows
        // that the others fetch.
        let offered = self.context.holdings.put_part(Registration {
            file: live.record,
            names: vec![live.name.clone()],
            partial: true,
        });
        let mut finished = self.drive(&live, reporter, sources, dialer, local).await;
        if matches!(finished, Ok(Fetched::Done)) && self.is_manifest(&live).await? {
            finished = Ok(Fetched::Doubted);
        }
        let have = live.have();
        if !matches!(finished, Ok(Fetched::Done)) {
            drop(offered);
            self.leave(&live, have).await;
            return finished;
        }
        let placed = self.place(&live, prepared, offered, reporter).await;
        if !matches!(placed, Ok(true)) {
            self.leave(&live, have).await;
        }
        Ok(match placed? {
            true => Fetched::Done,
            false => Fetched::Stopped,
        })
    }

    /// Takes the transfer off the shelf and records what it has.
    async fn leave(&self, live: &Arc<Live>, have: Bitfield) {
        self.live.send_replace(None);
        let part = Arc::clone(&live.part);
        let last = move || {
            let stored = part.checkpoint(&have);
            // Whoever is being served holds the part for a while longer, and must not keep it from being removed or gone on with.
            part.release();
            stored
        };
        match blocking(last).await.and_then(|stored| stored) {
            Ok(()) => {}
            Err(problem) => tracing::warn!(%problem, "the last resume state could not be written"),
        }
    }
}

/// Everything that is known before the first unit.
#[derive(Debug)]
struct Prepared {
    planned: Planned,
    part: Arc<Part>,
    found: std::sync::Mutex<Option<Found>>,
    checks: Arc<Checks>,
}

impl Run {
    /// Opens the part; where the disk is full, waits for room. `None` when stopped.
    async fn open_part(
        &self,
        planned: &Planned,
        reporter: &Reporter,
    ) -> Result<Option<(Part, Found)>, Problem> {
        let id = self.spec.id;
        while !self.stop.is_cancelled() {
            let (target, plan) = (planned.target.clone(), Arc::clone(&planned.plan));
            let manifest = planned.collection.as_ref().map(|it| Arc::clone(&it.manifest));
            let stop = self.stop.clone();
            match blocking(move || Part::open(id, target, plan, manifest, &stop)).await? {
                Err(problem) if problem.reason.is_exhaustion() => {
                    reporter.state(State::Waiting, Some(problem));
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

    /// Units of an earlier run and units that are elsewhere on this machine; `None` when stopped.
    async fn gather(&self, prepared: &Prepared, reporter: &Reporter) -> Result<Option<Bitfield>, Problem> {
        let found = prepared
            .found
            .lock()
            .map_or(None, |mut found| found.take())
            .unwrap_or(Found::Unknown);
        let (part, checks) = (Arc::clone(&prepared.part), Arc::clone(&prepared.checks));
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
                // The swarm will meet the same trouble, and says it.
                tracing::warn!(%error, "could not copy what is here already");
            }
            (have, resumed)
        });
        tokio::pin!(work);
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let (have, resumed) = loop {
            // The work is pinned outside: polling the other arm loses nothing of it.
            tokio::select! {
                told = &mut work => break told?,
                _ = tick.tick() => reporter.bytes(done.load(Ordering::Relaxed)),
            }
        };
        reporter.resumed(resumed);
        reporter.bytes(done.load(Ordering::Relaxed));
        Ok(Some(have).filter(|_| !self.stop.is_cancelled()))
    }

    /// Puts the transfer where others can be served from it.
    async fn go_live(&self, prepared: &Prepared, have: Bitfield) -> Result<Arc<Live>, Problem> {
        let (record, name) = (prepared.planned.record, prepared.planned.name.clone());
        let (part, checks) = (Arc::clone(&prepared.part), Arc::clone(&prepared.checks));
        let collection = prepared.planned.collection.clone();
        let live = blocking(move || {
            let manifest = collection
                .as_ref()
                .map(|it| (it.tree.clone(), &**it.manifest.bytes()));
            Live::new(record, name, part, checks, manifest, have)
        });
        let live = live.await?.map_err(|error| {
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
        let live = Arc::new(live);
        self.live.send_replace(Some(Arc::clone(&live)));
        Ok(live)
    }

    /// The swarm's part, until all units are there.
    async fn drive(
        &self,
        live: &Arc<Live>,
        reporter: &Reporter,
        sources: watch::Receiver<Sources>,
        dialer: Dialer,
        local: &CancellationToken,
    ) -> Result<Fetched, Problem> {
        let plan = live.part.plan();
        let have = live.have();
        if have.is_full() {
            return Ok(Fetched::Done);
        }
        let lens = (0..plan.unit_count()).map(|unit| plan.unit_len(unit)).collect();
        let swarm = Swarm::new(SwarmConfig::default(), lens, have.clone(), rand::random());
        let (links, liars) = dialer.into_parts();
        let (tell, events) = mpsc::channel(PEER_EVENTS);
        let stop = local.child_token();
        let ends = stop.clone().drop_guard();
        let calls = TaskTracker::new();
        let mut terms = self.terms.clone();
        let now = *terms.borrow_and_update();
        let disk = self.context.verifying.disk(live.part.device());
        let mut driver = Driver {
            context: Arc::clone(&self.context),
            live: Arc::clone(live),
            disk: Arc::clone(&disk),
            swarm,
            peers: Peers::new(
                (self.spec.id, plan.unit_count(), self.context.peer_id),
                tell,
                links,
                liars,
                stop.clone(),
                self.context.tracker.clone(),
            )
            .leaving_from(self.context.leave_from),
            sources: sources.clone(),
            terms,
            allowance: Arc::new(Allowance::new(now, &self.context.limits)),
            share: self.context.budget.share(now.priority),
            start: Instant::now(),
            stop: &stop,
            report: Box::new(|swarm, peers, now, wrong| {
                reporter.swarm(plan, (swarm, now), peers, &sources.borrow(), wrong, &disk)
            }),
            requests: Default::default(),
            place_made: Instant::now(),
            ask_anew: Default::default(),
            full: None,
            disk_retry: DISK_RETRY,
            calls: calls.clone(),
            lies: Default::default(),
            crowded: false,
            doubts: self.may_doubt(plan),
            doubted: false,
        };
        let (part, over) = (Arc::clone(&live.part), stop.clone());
        calls.spawn_blocking(move || {
            if let Err(error) = part.preallocate(|| !over.is_cancelled()) {
                // Whatever is written next meets the same trouble, and says it.
                tracing::debug!(%error, "the room could not be taken in advance");
            }
        });
        let checkpoints = self
            .context
            .tracker
            .spawn(checkpoints::keep(Arc::clone(live), stop.clone()));
        tracing::debug!(file = %self.spec.id.short(), units = plan.unit_count(), "fetching");
        let finished = driver.run(events).await;
        tracing::debug!(file = %self.spec.id.short(), "fetched");
        driver.last_report();
        drop(driver);
        drop(ends);
        calls.close();
        calls.wait().await;
        // Ends by itself now; a checkpoint under way must not come after what follows.
        if let Ok(Err(problem)) = checkpoints.await {
            return Err(problem);
        }
        finished.map(|finished| match finished {
            Fetched::Done if !live.have().is_full() => Fetched::Stopped,
            finished => finished,
        })
    }
}
