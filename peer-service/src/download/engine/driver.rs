//! The driver of one running transfer: carries out what the swarm decides, and tells it what happens.
//!
//! Invariant: one task owns the swarm; everything else talks to it through bounded channels and never waits for it while holding
//! anything. A unit counts only after it was verified and written.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use potluck_core::{Problem, Reason};
use rand::RngExt as _;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    content::BadPieces,
    download::{
        context::DownloadContext,
        engine::{
            active::ActiveDownload,
            disk_pool::DiskPool,
            rate_limit::TransferRateLimiter,
            request::{RequestEvent, RequestOutcome, RequestTask, UnitRequest},
        },
        peers::{PeerEvent, PeerSet, client::AvailabilityEvent, discovery::PeerCandidates},
        status::TransferLimits,
        task::FetchOutcome,
    },
    fs::blocking::blocking,
    limits::budget::BudgetShare,
};
use potluck_swarm::{Action, PeerKey, RequestId, StuckReason, Swarm};

/// How often the transfer's view is renewed.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// How often a full disk is looked at again.
pub(crate) const DISK_RETRY: Duration = Duration::from_secs(3);

/// How long at most nothing is asked for where the disk seems to have room and takes nothing, such as where a quota or the file system's
/// inodes are used up: what came is lost each time.
const MAX_DISK_RETRY: Duration = Duration::from_secs(120);

/// How often a peer's place is given to another where none of those that are connected has what is missing.
const REPLACE_IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// How long nobody has what is missing before all peers that are connected are asked anew what they
/// have: one answer that was lost or damaged must not decide. Doubles each time, up to
/// [`MAX_ASK_ANEW`].
const ASK_ANEW: Duration = Duration::from_secs(30);

/// Longest such wait.
const MAX_ASK_ANEW: Duration = Duration::from_secs(600);

/// Events of calls that may wait for the driver.
const EVENTS: usize = 1024;

/// Events of peers that may wait for the driver: few, as one can speak of every unit.
pub(crate) const PEER_EVENTS: usize = 64;

/// Most bytes asked for in one call; larger units go alone.
const MAX_REQUEST_BYTES: u64 = 4 * 1024 * 1024;

/// Most spans in one call, as the contract has it.
const MAX_REQUEST_SPANS: usize = 4096;

/// Shows how a transfer stands: the swarm, its peers, the swarm's time, and what is wrong if
/// anything is.
type ReportFn<'a> = Box<dyn FnMut(&Swarm, &PeerSet, Duration, Option<Problem>) + Send + 'a>;

/// See the module.
pub(crate) struct DownloadDriver<'a> {
    pub(crate) context: Arc<DownloadContext>,
    pub(crate) download: Arc<ActiveDownload>,
    /// Where it is written to.
    pub(crate) disk: Arc<DiskPool>,
    pub(crate) swarm: Swarm,
    pub(crate) peers: PeerSet,
    pub(crate) candidates: watch::Receiver<PeerCandidates>,
    /// What it is held to; changes on the way.
    pub(crate) limits: watch::Receiver<TransferLimits>,
    /// How fast it may be.
    pub(crate) rate_limiter: Arc<TransferRateLimiter>,
    /// How much it may have asked for.
    pub(crate) budget_share: BudgetShare,
    pub(crate) start: Instant,
    pub(crate) stop: &'a CancellationToken,
    /// Told at every report, and at once when something is wrong.
    pub(crate) report: ReportFn<'a>,
    /// Open requests.
    pub(crate) requests: HashMap<RequestId, (PeerKey, u32, CancellationToken)>,
    /// When a place was last made for a peer that waits.
    pub(crate) idle_peer_replaced_at: Instant,
    /// When peers are asked anew what they have, where nobody has what is missing.
    pub(crate) ask_anew: AskAnew,
    /// The disk is full: nothing is asked for until there is room.
    pub(crate) disk_full: Option<DiskFull>,
    /// When that is looked at if a write fails now: twice as late each time until one succeeds.
    pub(crate) disk_retry: Duration,
    /// The tasks of this transfer's calls: over before its bytes are given their name.
    pub(crate) calls: TaskTracker,
    /// What a banned peer did, until its ban arrives.
    pub(crate) violations: HashMap<PeerKey, String>,
    /// Whether others were ever seen to fetch the same.
    pub(crate) saw_crowd: bool,
    /// Whether it is doubted that this is a plain file where a peer counts the units otherwise, and whether one did.
    pub(crate) may_be_collection: bool,
    pub(crate) kind_doubted: bool,
}

/// When to ask all peers anew what they have.
#[derive(Debug, Default)]
pub(crate) struct AskAnew {
    /// Set while nobody has what is missing.
    at: Option<Instant>,
    /// How often that was done in a row.
    times: u32,
}

impl AskAnew {
    /// Whether to ask now.
    fn is_due(&mut self, nobody_has_it: bool, now: Instant) -> bool {
        if !nobody_has_it {
            self.at = None;
            return false;
        }
        let delay = (ASK_ANEW * (1 << self.times.min(10))).min(MAX_ASK_ANEW);
        let delay = delay.mul_f64(rand::rng().random_range(0.75..1.25));
        let is_due = *self.at.get_or_insert(now + delay) <= now;
        if is_due {
            self.at = None;
            self.times += 1;
        }
        is_due
    }
}

/// A disk without room.
pub(crate) struct DiskFull {
    problem: Problem,
    /// When to look again.
    at: Instant,
}

impl DownloadDriver<'_> {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Runs until all units are there, or it is stopped or put in doubt.
    ///
    /// # Errors
    /// Where units cannot be written and waiting does not help.
    pub(crate) async fn run(
        &mut self,
        mut peer_events: mpsc::Receiver<(PeerKey, PeerEvent)>,
    ) -> Result<FetchOutcome, Problem> {
        let (event_sender, mut events) = mpsc::channel(EVENTS);
        let mut report = tokio::time::interval(REPORT_INTERVAL);
        let list = Arc::clone(&self.candidates.borrow_and_update().list);
        self.peers.update_candidates(&list);
        // Those that lied before the swarm began.
        for key in self.peers.banned() {
            let now = self.now();
            self.swarm.misbehaved(key, now);
        }
        loop {
            self.swarm.set_max_in_flight_bytes(self.budget_share.bytes());
            if self.kind_doubted {
                return Ok(FetchOutcome::Doubted);
            }
            let finished = self.run_actions(&event_sender);
            self.budget_share.report_in_flight(self.swarm.in_flight_bytes());
            if finished {
                return Ok(FetchOutcome::Done);
            }
            let timeout = self.swarm.poll_timeout().map(|at| self.start + at);
            let look = self.disk_full.as_ref().map(|full| full.at);
            // Each arm is cancel-safe: channels and timers lose nothing when another arm is taken.
            tokio::select! {
                () = self.stop.cancelled() => return Ok(FetchOutcome::Stopped),
                Some(event) = events.recv() => {
                    self.on_request_event(event)?;
                    while let Ok(event) = events.try_recv() {
                        self.on_request_event(event)?;
                    }
                }
                Some((peer, event)) = peer_events.recv() => {
                    self.on_peer_event(peer, event);
                    // A crowd tells much at once, and a turn costs more than an event. Not for ever: requests must go out.
                    for _ in 1..PEER_EVENTS {
                        let Ok((peer, event)) = peer_events.try_recv() else {
                            break;
                        };
                        self.on_peer_event(peer, event);
                    }
                }
                Ok(()) = self.candidates.changed() => {
                    let list = Arc::clone(&self.candidates.borrow_and_update().list);
                    self.peers.update_candidates(&list);
                }
                // Looked at above.
                Ok(()) = self.budget_share.changed() => {}
                Ok(()) = self.limits.changed() => {
                    let limits = *self.limits.borrow_and_update();
                    self.rate_limiter.set_limits(limits);
                    self.budget_share.set_priority(limits.priority);
                }
                _ = report.tick() => {
                    self.connect_more_peers();
                    let wrong = self.disk_full.as_ref().map(|full| full.problem.clone());
                    self.show(wrong);
                }
                () = sleep_until(look) => self.retry_full_disk().await,
                () = sleep_until(timeout) => {
                    let now = self.now();
                    self.swarm.handle_timeout(now);
                }
            }
        }
    }

    /// Connects to more peers where that helps: in a crowd a few are enough, unless none of them has what is missing and time for it.
    fn connect_more_peers(&mut self) {
        self.peers.pass_over_silent();
        self.saw_crowd |= self.swarm.is_crowd();
        let stuck = self.swarm.stuck_reason();
        let others_help = matches!(
            stuck,
            Some(
                StuckReason::NoProvider { .. } | StuckReason::Refused { .. } | StuckReason::BackedOff { .. }
            )
        );
        if !self.saw_crowd || others_help {
            self.peers.raise_connection_cap();
        }
        let nobody_has_it = matches!(
            stuck,
            Some(StuckReason::NoProvider { .. } | StuckReason::NoAvailability)
        );
        if self.ask_anew.is_due(nobody_has_it, Instant::now()) {
            let now = self.now();
            for key in self.peers.reconnect() {
                self.swarm.peer_left(key, now);
            }
        }
        // Those that are connected may never have it, and those that wait may.
        let nobody_helps = matches!(
            stuck,
            Some(StuckReason::NoProvider { .. } | StuckReason::Refused { .. } | StuckReason::NoPeers)
        );
        if nobody_helps && self.idle_peer_replaced_at.elapsed() >= REPLACE_IDLE_INTERVAL {
            self.idle_peer_replaced_at = Instant::now();
            if let Some(key) = self.peers.replace_idle_peer() {
                let now = self.now();
                self.swarm.peer_left(key, now);
                self.close_requests_of(key);
            }
        }
    }

    /// A last look at how it stands.
    pub(crate) fn report_final(&mut self) {
        self.show(None);
    }

    fn show(&mut self, wrong: Option<Problem>) {
        let now = self.now();
        (self.report)(&self.swarm, &self.peers, now, wrong);
    }

    /// Does what the swarm wants; true once it is finished.
    fn run_actions(&mut self, event_sender: &mpsc::Sender<RequestEvent>) -> bool {
        if self.disk_full.is_some() {
            return false;
        }
        let now = self.now();
        let mut calls: Vec<(PeerKey, Vec<UnitRequest>, u64, usize)> = Vec::new();
        let mut finished = false;
        while let Some(action) = self.swarm.poll_action(now) {
            match action {
                Action::Request { id, peer, unit } => {
                    let token = self.stop.child_token();
                    tracing::trace!(file = %self.download.record.id.short(), unit, ?peer, "asked for");
                    self.requests.insert(id, (peer, unit, token.clone()));
                    let plan = self.download.part_file.plan();
                    let (bytes, spans) = (plan.unit_len(unit), plan.spans(unit).count());
                    let request = UnitRequest { id, unit, token };
                    let fits = |call: &&mut (PeerKey, Vec<UnitRequest>, u64, usize)| {
                        call.0 == peer
                            && call.2 + bytes <= MAX_REQUEST_BYTES
                            && call.3 + spans <= MAX_REQUEST_SPANS
                    };
                    match calls.iter_mut().rev().find(fits) {
                        Some(call) => {
                            call.1.push(request);
                            call.2 += bytes;
                            call.3 += spans;
                        }
                        None => calls.push((peer, vec![request], bytes, spans)),
                    }
                    self.download.update(|units| units.fetching.set(unit, true));
                }
                Action::Cancel { id } => self.close_request(id),
                Action::Ban { peer, unit } => {
                    let what = self
                        .violations
                        .remove(&peer)
                        .unwrap_or_else(|| format!("unit {unit} failed verification"));
                    if let Some(known) = self.peers.get(peer) {
                        let address = &known.candidate.address;
                        tracing::warn!(file = %self.download.record.id.short(), peer = %address, unit, what, "banned a peer");
                    }
                    self.peers.ban(peer, what);
                }
                Action::Forget { peer } => self.peers.reconnect_later(peer),
                Action::Readmit { peer } => {
                    if let Some(known) = self.peers.get(peer) {
                        let address = &known.candidate.address;
                        tracing::info!(file = %self.download.record.id.short(), peer = %address, "tries a banned peer again: no other peer serves what is missing");
                    }
                    self.peers.readmit(peer);
                }
                Action::Finished => finished = true,
            }
        }
        for (peer, mut request, _, _) in calls {
            request.retain(|request| !request.token.is_cancelled());
            self.start_requests(peer, request, event_sender);
        }
        finished || self.swarm.is_finished()
    }

    fn start_requests(
        &mut self,
        peer: PeerKey,
        requests: Vec<UnitRequest>,
        event_sender: &mpsc::Sender<RequestEvent>,
    ) {
        let Some(client) = self.peers.get(peer).and_then(|known| known.client.clone()) else {
            let now = self.now();
            for request in requests {
                self.close_request(request.id);
                self.swarm
                    .failed(request.id, potluck_swarm::Failure::Disconnected, now);
            }
            return;
        };
        let caller = RequestTask {
            download: Arc::clone(&self.download),
            disk: Arc::clone(&self.disk),
            rate_limiter: Arc::clone(&self.rate_limiter),
            peer,
            client,
            events: event_sender.clone(),
            tasks: self.calls.clone(),
        };
        self.calls.spawn(caller.run(requests));
    }

    /// A request is over: its call drops it, and its unit may no longer be on its way.
    fn close_request(&mut self, id: RequestId) {
        let Some((_, unit, token)) = self.requests.remove(&id) else {
            return;
        };
        token.cancel();
        let others = self.requests.values().any(|(_, other, _)| *other == unit);
        if !others {
            self.download.update(|units| units.fetching.set(unit, false));
        }
    }

    /// Tells a peer which of its pieces were wrong: its disk or memory may be at fault, and its
    /// owner not know of it. Whether it listens changes nothing here.
    fn report_bad_pieces(&self, peer: PeerKey, bad: Option<BadPieces>) {
        let client = self.peers.get(peer).and_then(|known| known.client.clone());
        if let Some((client, bad)) = client.zip(bad) {
            self.context.tracker.spawn(client.report_bad_pieces(bad));
        }
    }

    fn on_request_event(&mut self, event: RequestEvent) -> Result<(), Problem> {
        let now = self.now();
        match event.outcome {
            RequestOutcome::Progress(bytes) => {
                self.peers.mark_sending(event.peer);
                self.swarm.progressed(event.id, bytes, now);
            }
            RequestOutcome::LocallyThrottled => self.swarm.locally_throttled(event.id, now),
            RequestOutcome::Verified => {
                // Of use even if the race was lost meanwhile: the bytes are there. The swarm counts them once.
                self.disk_retry = DISK_RETRY;
                self.ask_anew = AskAnew::default();
                if self.swarm.verified(event.id, now) {
                    if let Some(known) = self.peers.get(event.peer) {
                        tracing::trace!(file = %self.download.record.id.short(), unit = event.unit, peer = %known.candidate.address, "verified");
                    }
                    let len = self.download.part_file.plan().unit_len(event.unit);
                    self.context.downloaded_bytes.fetch_add(len, Ordering::Relaxed);
                    self.peers.credit_bytes(event.peer, len);
                    self.download.update(|units| units.have.set(event.unit, true));
                }
                self.close_request(event.id);
            }
            RequestOutcome::Corrupt(what) => {
                self.violations.entry(event.peer).or_insert(what);
                self.swarm.corrupt(event.id, now);
                self.close_request(event.id);
            }
            RequestOutcome::Unverified(what, bad) => {
                self.report_bad_pieces(event.peer, bad);
                self.violations.entry(event.peer).or_insert(what);
                self.swarm.corrupt(event.id, now);
                self.close_request(event.id);
            }
            RequestOutcome::NotWritten(problem) => {
                // It was good, and is nobody's fault: counted, then taken back.
                if self.swarm.verified(event.id, now) {
                    self.swarm.reset_unit(event.unit, now);
                }
                self.close_request(event.id);
                if !problem.reason.is_exhaustion() {
                    return Err(problem);
                }
                if self.disk_full.is_none() {
                    tracing::warn!(file = %self.download.record.id.short(), %problem, "waiting until it can write again");
                    self.show(Some(problem.clone()));
                    self.disk_full = Some(DiskFull {
                        problem,
                        at: Instant::now() + self.disk_retry,
                    });
                    self.disk_retry = (2 * self.disk_retry).min(MAX_DISK_RETRY);
                }
            }
            RequestOutcome::Failed(failure, problem) => {
                tracing::debug!(file = %self.download.record.id.short(), unit = event.unit, %problem, "a request failed");
                self.peers.record_error(event.peer, problem.message);
                self.swarm.failed(event.id, failure, now);
                self.close_request(event.id);
            }
        }
        Ok(())
    }

    fn on_peer_event(&mut self, key: PeerKey, event: PeerEvent) {
        let now = self.now();
        match event {
            PeerEvent::Connected(client, round_trip) => {
                if self.peers.mark_connected(key, *client) {
                    if let Some(known) = self.peers.get(key) {
                        tracing::debug!(file = %self.download.record.id.short(), peer = %known.candidate.address, ?round_trip, "a peer joined");
                    }
                    self.swarm.peer_joined(key, now);
                    self.swarm.round_trip(key, round_trip);
                }
            }
            PeerEvent::Availability(AvailabilityEvent::Snapshot(units)) => {
                self.swarm.availability(key, &units, now)
            }
            PeerEvent::Availability(AvailabilityEvent::Change {
                have,
                fetching,
                abandoned,
            }) => {
                self.swarm
                    .availability_changed(key, &have, &fetching, &abandoned, now);
            }
            PeerEvent::UnitCountMismatch
            | PeerEvent::Availability(AvailabilityEvent::UnitCountMismatch(_)) => {
                self.kind_doubted |= self.may_be_collection;
            }
            PeerEvent::Lost(problem) => {
                tracing::debug!(file = %self.download.record.id.short(), %problem, "a peer is not connected");
                self.swarm.peer_left(key, now);
                self.peers.mark_lost(key, &problem);
                self.close_requests_of(key);
            }
            PeerEvent::Unusable(problem) => match problem.reason {
                Reason::VerificationFailed => {
                    tracing::warn!(file = %self.download.record.id.short(), %problem, "banned a peer");
                    self.swarm.misbehaved(key, now);
                    self.close_requests_of(key);
                    self.peers.ban(key, problem.message);
                }
                _ => {
                    self.swarm.peer_left(key, now);
                    self.close_requests_of(key);
                    self.peers.forget(key);
                }
            },
        }
    }

    fn close_requests_of(&mut self, key: PeerKey) {
        let open = self.requests.iter().filter(|(_, (peer, ..))| *peer == key);
        let open: VecDeque<RequestId> = open.map(|(&id, _)| id).collect();
        open.into_iter().for_each(|id| self.close_request(id));
    }

    /// Goes on where the disk has room for a few units again.
    async fn retry_full_disk(&mut self) {
        let download = Arc::clone(&self.download);
        let space = blocking(move || download.part_file.has_room(&download.have())).await;
        if space.is_ok_and(|space| space) {
            tracing::info!(file = %self.download.record.id.short(), "tries to write again");
            self.disk_full = None;
        } else if let Some(full) = &mut self.disk_full {
            full.at = Instant::now() + DISK_RETRY;
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_asked_anew_later_each_time_while_nobody_has_what_is_missing() {
        let (mut ask, begun) = (AskAnew::default(), Instant::now());
        let mut times = Vec::new();
        for second in 0..3600 {
            let now = begun + Duration::from_secs(second);
            if ask.is_due(true, now) {
                times.push(second);
            }
        }
        assert!((22..=38).contains(&times[0]), "{times:?}");
        // 30, 60, 120, 240, 480, and then 600 s each.
        assert!((8..=11).contains(&times.len()), "{times:?}");
        assert!(!ask.is_due(false, begun + 2 * MAX_ASK_ANEW * 10));
    }
}
