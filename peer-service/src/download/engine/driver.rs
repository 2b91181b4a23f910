//! Drives one running download: executes the actions of the swarm and feeds events to it.
//!
//! Invariants:
//!
//! - One task owns the swarm. Other tasks send to it through bounded channels and hold no locks
//!   while they wait.
//! - A unit counts as present only after it was verified and written.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use potluck_core::{
    Problem, Reason,
    availability::{AvailabilityChange, AvailabilityUpdate},
};
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
        peers::{PeerSet, discovery::PeerCandidates, event::PeerEvent},
        status::TransferLimits,
        task::FetchOutcome,
    },
    fs::blocking::blocking,
    limits::budget::BudgetShare,
};
use potluck_swarm::{Action, PeerKey, RequestId, StuckReason, Swarm};

/// Interval between updates of the status.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// Interval between checks of a full disk.
pub(crate) const DISK_RETRY: Duration = Duration::from_secs(3);

/// Maximum pause if the disk reports free space but writes fail, for example because of a quota or
/// exhausted inodes. Each attempt loses the data that it received.
const MAX_DISK_RETRY: Duration = Duration::from_secs(120);

/// Minimum interval between replacements of an idle peer if no connected peer has the missing
/// units.
const REPLACE_IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// Delay before the driver reconnects to all peers if none reports a missing unit, because an
/// answer may have been lost or damaged. Doubles each time, up to [`MAX_ASK_ANEW`].
const ASK_ANEW: Duration = Duration::from_secs(30);

/// Maximum of that delay.
const MAX_ASK_ANEW: Duration = Duration::from_secs(600);

/// Capacity of the channel for request events.
const EVENTS: usize = 1024;

/// Capacity of the channel for peer events: small, because one event can list every unit.
pub(crate) const PEER_EVENTS: usize = 64;

/// Maximum bytes per call; a larger unit has a call of its own.
const MAX_REQUEST_BYTES: u64 = 4 * 1024 * 1024;

/// Maximum spans per call, as the API specifies.
const MAX_REQUEST_SPANS: usize = 4096;

/// Updates the status from the swarm, its peers, the swarm's time, and a problem if there is one.
type ReportFn<'a> = Box<dyn FnMut(&Swarm, &PeerSet, Duration, Option<Problem>) + Send + 'a>;

/// Runs the swarm of one download.
pub(crate) struct DownloadDriver<'a> {
    pub(crate) context: Arc<DownloadContext>,
    pub(crate) download: Arc<ActiveDownload>,
    /// The pool that verifies and writes the units.
    pub(crate) disk: Arc<DiskPool>,
    pub(crate) swarm: Swarm,
    pub(crate) peers: PeerSet,
    pub(crate) candidates: watch::Receiver<PeerCandidates>,
    /// The current limits; may change while the download runs.
    pub(crate) limits: watch::Receiver<TransferLimits>,
    /// Limits the rate of the download.
    pub(crate) rate_limiter: Arc<TransferRateLimiter>,
    /// This download's part of the in-flight budget.
    pub(crate) budget_share: BudgetShare,
    pub(crate) start: Instant,
    pub(crate) stop: &'a CancellationToken,
    /// Called at every report, and immediately when a problem occurs.
    pub(crate) report: ReportFn<'a>,
    /// Requests in flight.
    pub(crate) requests: HashMap<RequestId, (PeerKey, u32, CancellationToken)>,
    /// When an idle peer was last replaced.
    pub(crate) idle_peer_replaced_at: Instant,
    /// When to reconnect to all peers because no peer has the missing units.
    pub(crate) ask_anew: AskAnew,
    /// Set while the disk is full; the driver then sends no requests.
    pub(crate) disk_full: Option<DiskFull>,
    /// Delay before the next attempt if a write fails; doubles until a write succeeds.
    pub(crate) disk_retry: Duration,
    /// The tasks of this download's calls; all end before the content is finalized.
    pub(crate) calls: TaskTracker,
    /// The violation of a peer, until the swarm bans the peer.
    pub(crate) violations: HashMap<PeerKey, String>,
    /// Whether other peers were ever seen downloading the same content.
    pub(crate) saw_crowd: bool,
    /// Whether a different unit count at a peer casts doubt on the kind of the content, and whether
    /// that happened.
    pub(crate) may_be_collection: bool,
    pub(crate) kind_doubted: bool,
}

/// Schedules reconnecting to all peers to learn their availability again.
#[derive(Debug, Default)]
pub(crate) struct AskAnew {
    /// Set while no peer has the missing units.
    at: Option<Instant>,
    /// Consecutive rounds so far.
    times: u32,
}

impl AskAnew {
    /// Whether to reconnect now.
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

/// A disk without free space.
pub(crate) struct DiskFull {
    problem: Problem,
    /// When to check again.
    at: Instant,
}

impl DownloadDriver<'_> {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Runs until all units are there, the download stops, or its kind is in doubt.
    ///
    /// # Errors
    /// If units cannot be written and waiting does not help.
    pub(crate) async fn run(
        &mut self,
        mut peer_events: mpsc::Receiver<(PeerKey, PeerEvent)>,
    ) -> Result<FetchOutcome, Problem> {
        let (event_sender, mut events) = mpsc::channel(EVENTS);
        let mut report = tokio::time::interval(REPORT_INTERVAL);
        let list = Arc::clone(&self.candidates.borrow_and_update().list);
        self.peers.update_candidates(&list);
        // Peers that were banned while the metadata was downloaded.
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
            // All arms are cancel-safe: channels and timers lose nothing if another arm completes.
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
                    // Drains a batch, because a crowd sends many events and a loop turn costs more
                    // than an event. The batch is bounded so that requests still go out.
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
                // The top of the loop reads the new budget.
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

    /// Connects to more peers if that helps. In a crowd a few peers suffice, unless none of them
    /// has the missing units and capacity to send them.
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
        // The connected peers may never get the missing units, while waiting candidates may have
        // them.
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

    /// Reports the final state.
    pub(crate) fn report_final(&mut self) {
        self.show(None);
    }

    fn show(&mut self, wrong: Option<Problem>) {
        let now = self.now();
        (self.report)(&self.swarm, &self.peers, now, wrong);
    }

    /// Executes the actions of the swarm; true once the download is finished.
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

    /// Ends a request: its call drops it, and its unit is no longer fetching unless another request
    /// has it.
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

    /// Reports to a peer which of its pieces failed verification, because its disk or memory may be
    /// faulty without its owner's knowledge. The outcome does not matter here.
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
                // The bytes count even if a hedged request was faster; the swarm counts them once.
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
                // The unit was valid and no peer is at fault: counts it, then resets it.
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
            PeerEvent::Availability(AvailabilityUpdate::Snapshot(units)) => {
                self.swarm.availability(key, &units, now)
            }
            PeerEvent::Availability(AvailabilityUpdate::Change(change)) => {
                let AvailabilityChange {
                    have,
                    fetching,
                    abandoned,
                } = &change;
                self.swarm
                    .availability_changed(key, have, fetching, abandoned, now);
            }
            PeerEvent::UnitCountMismatch => self.kind_doubted |= self.may_be_collection,
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

    /// Resumes requests if the disk has room for a few units again.
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
        // Delays of 30, 60, 120, 240 and 480 s, then 600 s each.
        assert!((8..=11).contains(&times.len()), "{times:?}");
        assert!(!ask.is_due(false, begun + 2 * MAX_ASK_ANEW * 10));
    }
}
