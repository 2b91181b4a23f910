//! Drives one running download: events in, actions out.
//!
//! The driver waits for an event, reports it to the swarm, and executes the actions that the swarm
//! decides on.
//!
//! | module | purpose |
//! |---|---|
//! | `events` | the events that the driver waits for |
//! | `requests` | the requests in flight, and the calls that carry them |
//! | `origin` | the origin among the providers |
//! | `limits` | the rate and the part of the in-flight budget |
//! | `disk_wait` | the wait while the disk is full |
//!
//! Invariants:
//!
//! - One task owns the swarm. Other tasks send to it through bounded channels and hold no locks
//!   while they wait.
//! - A unit counts as present only after it was verified and written.
//!
//! Non-goals: which peer to ask for what (the swarm), when to connect to others
//! ([`crate::download::peers::connection_policy`]).

mod disk_wait;
mod events;
mod limits;
mod origin;
mod requests;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use potluck_core::{
    Problem, Reason,
    availability::{AvailabilityChange, AvailabilityUpdate},
    model::{Address, Labels, SameZone},
};
use potluck_swarm::{Action, Failure, PeerKey, RequestId, Swarm, SwarmConfig};
use rand::RngExt as _;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    content::BadPieces,
    download::{
        context::DownloadContext,
        counters::BanReason,
        engine::{
            active::ActiveDownload,
            disk_pool::DiskPool,
            request::{CallContext, RequestEvent, RequestOutcome},
        },
        origin::source::{ORIGIN, OriginSource},
        peers::{
            connection_policy::ConnectionPolicy,
            connector::ConnectorContext,
            event::PeerEvent,
            peer_set::{KnownPeers, PeerSet},
            rpc::availability::PeerReport,
        },
        status::content_map::UnitSenders,
    },
    fs::blocking::blocking,
};

use disk_wait::DiskWait;
use events::{Deadlines, DriverEvent, DriverEvents};
use origin::OriginState;
use requests::{CallBatch, RequestTable};

pub(crate) use events::DriverSignals;
pub(crate) use limits::ActiveLimits;
pub(crate) use origin::OriginView;

/// The result of one attempt at a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptOutcome {
    /// All units are verified.
    Complete,
    /// The download was stopped.
    Stopped,
    /// The content was taken for a plain file and may be a collection: start again and examine it.
    KindDoubted,
}

/// The content of a report.
#[derive(Debug)]
pub(crate) struct DriverView<'a> {
    pub(crate) swarm: &'a Swarm,
    /// The swarm's time.
    pub(crate) now: Duration,
    pub(crate) peers: &'a PeerSet,
    pub(crate) senders: &'a UnitSenders,
    pub(crate) disk: &'a DiskPool,
    /// The origin, if there is one.
    pub(crate) origin: Option<OriginView<'a>>,
    /// The problem of a full disk.
    pub(crate) disk_problem: Option<Problem>,
}

/// Runs the swarm of one download.
pub(crate) struct DownloadDriver<'a> {
    context: Arc<DownloadContext>,
    download: Arc<ActiveDownload>,
    disk: Arc<DiskPool>,
    swarm: Swarm,
    /// The swarm's time zero.
    start: Instant,
    peers: PeerSet,
    /// Where this machine is.
    labels: Labels,
    senders: UnitSenders,
    policy: ConnectionPolicy,
    /// The violation of a peer, until the swarm bans the peer.
    violations: HashMap<PeerKey, String>,
    requests: RequestTable,
    limits: ActiveLimits,
    disk_wait: DiskWait,
    events: DriverEvents,
    /// The origin, if there is one.
    origin: Option<OriginState>,
    /// Whether a different unit count at a peer casts doubt on the kind of the content.
    may_be_collection: bool,
    /// Shows the progress.
    report: Box<dyn FnMut(DriverView<'_>) + Send + 'a>,
}

impl<'a> DownloadDriver<'a> {
    /// A driver for a download that is incomplete. `tracker` tracks the tasks of its calls, all of
    /// which must end before the content is finalized.
    pub(crate) fn new(
        context: &Arc<DownloadContext>,
        download: &Arc<ActiveDownload>,
        known_peers: KnownPeers,
        limits: ActiveLimits,
        signals: DriverSignals,
        tracker: TaskTracker,
    ) -> Self {
        let now = Instant::now();
        let plan = download.part_file.plan();
        let unit_lens = (0..plan.unit_count()).map(|unit| plan.unit_len(unit)).collect();
        let swarm = Swarm::new(SwarmConfig::default(), unit_lens, download.have(), rand::random());
        let swarm = match &signals.window {
            Some(window) => swarm.in_order(*window.borrow()),
            None => swarm,
        };
        let disk = context.resources.disk_pools.pool(download.part_file.device());
        let stop: CancellationToken = signals.stop.clone();
        let (events, senders) = DriverEvents::new(signals);
        let connector = ConnectorContext {
            id: download.record.id,
            units: plan.unit_count(),
            own_id: context.local.id,
            outgoing: context.local.outgoing.clone(),
            events: senders.peers,
        };
        let calls = CallContext {
            download: Arc::clone(download),
            disk: Arc::clone(&disk),
            rate_limiter: Arc::clone(limits.rate()),
            events: senders.requests,
            tracker,
            origin: None,
        };
        Self {
            context: Arc::clone(context),
            download: Arc::clone(download),
            disk,
            swarm,
            start: now,
            peers: PeerSet::new(known_peers, connector, stop.clone(), context.tracker.clone()),
            labels: context.local.outgoing.locality.labels(),
            senders: UnitSenders::new(plan.unit_count()),
            policy: ConnectionPolicy::new(now),
            violations: HashMap::new(),
            requests: RequestTable::new(calls, stop),
            limits,
            disk_wait: DiskWait::new(),
            events,
            origin: None,
            may_be_collection: false,
            report: Box::new(|_| {}),
        }
    }

    /// Stops with [`AttemptOutcome::KindDoubted`] if a peer has another number of units.
    #[must_use]
    pub(crate) const fn may_be_collection(mut self, may_be: bool) -> Self {
        self.may_be_collection = may_be;
        self
    }

    /// Requests the earliest missing units first.
    #[must_use]
    pub(crate) fn in_order(mut self, in_order: bool) -> Self {
        if in_order {
            self.swarm = self.swarm.in_order(u32::MAX);
        }
        self
    }

    /// Also asks this origin, for what no peer has.
    #[must_use]
    pub(crate) fn with_origin(mut self, source: Option<Arc<OriginSource>>) -> Self {
        self.origin = source.clone().map(OriginState::new);
        self.requests.set_origin(source);
        self
    }

    /// Calls `report` at intervals, immediately when a problem occurs, and at the end.
    #[must_use]
    pub(crate) fn report_to(mut self, report: impl FnMut(DriverView<'_>) + Send + 'a) -> Self {
        self.report = Box::new(report);
        self
    }

    /// Runs until the download has all units, stops, or its kind is in doubt.
    ///
    /// # Errors
    /// If units cannot be written and waiting does not help.
    pub(crate) async fn run(mut self) -> Result<AttemptOutcome, Problem> {
        let outcome = self.run_events().await;
        self.report(None);
        outcome
    }

    async fn run_events(&mut self) -> Result<AttemptOutcome, Problem> {
        let candidates = self.events.candidates();
        self.peers.update_candidates(&candidates);
        // Peers that were banned while the metadata was downloaded.
        let now = self.now();
        for key in self.peers.banned() {
            self.swarm.misbehaved(key, now);
        }
        if self.origin.is_some() {
            self.swarm.reserve_joined(ORIGIN, now);
        }
        loop {
            self.swarm.set_max_in_flight_bytes(self.limits.in_flight_budget());
            let is_finished = self.run_actions();
            self.limits.report_in_flight(self.swarm.in_flight_bytes());
            if is_finished {
                return Ok(AttemptOutcome::Complete);
            }
            let deadlines = Deadlines {
                swarm: self.swarm.poll_timeout().map(|at| self.start + at),
                disk: self.disk_wait.check_at(),
            };
            let mut event = self.events.next(&mut self.limits, deadlines).await;
            loop {
                if let Some(outcome) = self.on_event(event).await? {
                    return Ok(outcome);
                }
                match self.events.next_in_batch() {
                    Some(next) => event = next,
                    None => break,
                }
            }
        }
    }

    /// The swarm's time.
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Handles an event; `Some` if it ends the attempt.
    async fn on_event(&mut self, event: DriverEvent) -> Result<Option<AttemptOutcome>, Problem> {
        match event {
            DriverEvent::Stopped => return Ok(Some(AttemptOutcome::Stopped)),
            DriverEvent::Peer(_, PeerEvent::UnitCountMismatch) if self.may_be_collection => {
                return Ok(Some(AttemptOutcome::KindDoubted));
            }
            DriverEvent::Peer(key, event) => self.on_peer_event(key, event),
            DriverEvent::Request(event) => self.on_request_event(event)?,
            DriverEvent::Candidates(list) => self.peers.update_candidates(&list),
            // The loop reads the new budget.
            DriverEvent::LimitsChanged => {}
            DriverEvent::WindowMoved(end) => self.swarm.extend_window(end),
            DriverEvent::ReportDue => {
                if self.origin.as_mut().is_some_and(OriginState::must_rejoin) {
                    let now = self.now();
                    self.swarm.reserve_joined(ORIGIN, now);
                }
                self.download.set_known_peers(self.peers.iter().count());
                self.adjust_connections();
                self.report(self.disk_wait.problem());
            }
            DriverEvent::DiskCheckDue => self.check_full_disk().await,
            DriverEvent::SwarmTimeout => {
                let now = self.now();
                self.swarm.handle_timeout(now);
            }
        }
        Ok(None)
    }

    /// Executes the actions of the swarm; true once the download is complete.
    fn run_actions(&mut self) -> bool {
        if self.disk_wait.is_waiting() {
            return false;
        }
        let now = self.now();
        let mut batch = CallBatch::default();
        while let Some(action) = self.swarm.poll_action(now) {
            match action {
                Action::Request { id, peer, unit } => {
                    tracing::trace!(
                        file = %self.download.record.id.short(), unit, ?peer,
                        "requests a unit"
                    );
                    let request = self.requests.add(id, peer, unit);
                    batch.add(peer, request, self.download.part_file.plan());
                }
                Action::Cancel { id } => self.requests.close(id),
                Action::Ban { peer, unit } => self.ban(peer, unit),
                Action::Forget { peer: ORIGIN } => {
                    self.origin.iter_mut().for_each(OriginState::lose_for_now);
                }
                Action::Forget { peer } => self.peers.reconnect_later(peer),
                Action::Readmit { peer } => self.readmit(peer),
                // `is_finished` below returns this as well.
                Action::Finished => {}
            }
        }
        for (peer, requests) in batch.into_calls() {
            if peer == ORIGIN {
                self.requests.start_origin_call(requests);
                continue;
            }
            match self.peers.get(peer).and_then(|entry| entry.client.clone()) {
                Some(client) => self.requests.start_call(peer, client, requests),
                None => {
                    for request in requests {
                        self.fail_request(request.id, Failure::Disconnected);
                    }
                }
            }
        }
        self.swarm.is_finished()
    }

    fn ban(&mut self, peer: PeerKey, unit: u32) {
        let violation = self.violations.remove(&peer);
        self.context.counters.add_ban(match violation {
            Some(_) => BanReason::Violation,
            None => BanReason::WrongBytes,
        });
        let violation = violation.unwrap_or_else(|| format!("unit {unit} failed verification"));
        if let Some(address) = self.address(peer) {
            tracing::warn!(
                file = %self.download.record.id.short(), peer = %address, unit, violation,
                "banned a peer"
            );
        }
        self.peers.ban(peer, violation);
        // Nothing verified what else the peer sent.
        if let Some(pieces) = &self.download.pieces {
            let units = pieces.ban(peer);
            self.forget_units(&units);
        }
    }

    /// Makes units missing again that no longer count.
    fn forget_units(&mut self, units: &[u32]) {
        let now = self.now();
        for &unit in units {
            if self.swarm.have().get(unit) {
                self.swarm.reset_unit(unit, now);
            }
        }
        self.download.update(|state| {
            units.iter().for_each(|&unit| _ = state.have.set(unit, false));
            !units.is_empty()
        });
    }

    fn readmit(&mut self, peer: PeerKey) {
        if let Some(address) = self.address(peer) {
            tracing::info!(
                file = %self.download.record.id.short(), peer = %address,
                "asks a banned peer again: no other peer serves the missing units"
            );
        }
        self.peers.readmit(peer);
        if let Some(pieces) = &self.download.pieces {
            pieces.readmit(peer);
        }
    }

    fn address(&self, peer: PeerKey) -> Option<&Address> {
        self.peers.get(peer).map(|entry| &entry.candidate.address)
    }

    fn fail_request(&mut self, id: RequestId, failure: Failure) {
        self.requests.close(id);
        let now = self.now();
        self.swarm.failed(id, failure, now);
    }

    /// Connects to other peers if that helps.
    fn adjust_connections(&mut self) {
        self.peers.connect_past_silent();
        let (stuck, is_crowd) = (self.swarm.stuck_reason(), self.swarm.is_crowd());
        let jitter = rand::rng().random_range(0.75..1.25);
        let advice = self.policy.advise(stuck, is_crowd, Instant::now(), jitter);
        let now = self.now();
        if advice.raise_cap {
            self.peers.raise_connection_cap();
        }
        if advice.reconnect {
            for key in self.peers.reconnect() {
                self.swarm.peer_left(key, now);
            }
        }
        if advice.replace_idle
            && let Some(key) = self.peers.replace_idle_peer()
        {
            self.swarm.peer_left(key, now);
            self.requests.close_all_of(key);
        }
    }

    fn report(&mut self, disk_problem: Option<Problem>) {
        let view = DriverView {
            swarm: &self.swarm,
            now: self.start.elapsed(),
            peers: &self.peers,
            senders: &self.senders,
            disk: &self.disk,
            origin: self.origin.as_ref().map(OriginState::view),
            disk_problem,
        };
        (self.report)(view);
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
                self.disk_wait.record_write();
                self.policy.record_progress();
                // The unit counts even if a hedged request was faster; the swarm counts it once.
                if self.swarm.verified(event.id, now) {
                    self.record_unit(event.peer, event.unit);
                }
                self.requests.close(event.id);
            }
            RequestOutcome::ProtocolViolation(violation) => {
                self.on_violation(event.peer, event.id, violation);
            }
            RequestOutcome::Unverified(violation, bad_pieces) => {
                self.report_bad_pieces(event.peer, bad_pieces);
                self.on_violation(event.peer, event.id, violation);
            }
            RequestOutcome::NotWritten(problem) => {
                // The unit was valid and no peer is at fault: counts it, then resets it.
                if self.swarm.verified(event.id, now) {
                    self.swarm.reset_unit(event.unit, now);
                }
                self.requests.close(event.id);
                if !problem.reason.is_exhaustion() {
                    return Err(problem);
                }
                if self.disk_wait.start(problem.clone(), Instant::now()) {
                    let may_make_room = problem.reason == Reason::DiskFull
                        && self.context.cache.totals().entries > 0;
                    if may_make_room {
                        self.disk_wait.check_early(Instant::now());
                        return Ok(());
                    }
                    tracing::warn!(
                        file = %self.download.record.id.short(), %problem,
                        "waits until it can write again"
                    );
                    self.report(Some(problem));
                }
            }
            RequestOutcome::Failed(failure, problem) => {
                tracing::debug!(
                    file = %self.download.record.id.short(), unit = event.unit, %problem,
                    "a request failed"
                );
                if let Some(origin) = self.origin.as_mut().filter(|_| event.peer == ORIGIN) {
                    origin.record_error(&problem);
                }
                self.peers.record_error(event.peer, problem.message);
                self.fail_request(event.id, failure);
            }
            RequestOutcome::OriginFailed(problem) => self.lose_origin(problem)?,
        }
        Ok(())
    }

    /// The origin will not send anything any more.
    ///
    /// # Errors
    /// Its problem, if the root is not known: no peer can vouch for the content then.
    fn lose_origin(&mut self, problem: Problem) -> Result<(), Problem> {
        if self.download.pieces.is_some() {
            return Err(problem);
        }
        if let Some(origin) = &mut self.origin {
            origin.lose(&problem);
        }
        let now = self.now();
        self.swarm.peer_left(ORIGIN, now);
        self.requests.close_all_of(ORIGIN);
        Ok(())
    }

    /// Records that a unit was verified and written.
    fn record_unit(&mut self, peer: PeerKey, unit: u32) {
        let len = self.download.part_file.plan().unit_len(unit);
        if let Some(entry) = self.peers.get(peer) {
            let same_zone = SameZone::of(self.labels.zone.as_ref(), entry.labels.zone.as_ref());
            let locality = &self.context.local.outgoing.locality;
            locality.add_received(same_zone, len);
            let address = &entry.candidate.address;
            self.senders.record(unit, peer, address);
            tracing::trace!(
                file = %self.download.record.id.short(), unit, peer = %address, "verified a unit"
            );
        }
        let address = self.address(peer).cloned();
        if let Some((pieces, address)) = self.download.pieces.as_ref().zip(address) {
            pieces.name(peer, &address);
        }
        if let Some(origin) = self.origin.as_mut().filter(|_| peer == ORIGIN) {
            origin.credit_bytes(len);
        }
        self.context.downloaded_bytes.fetch_add(len, Ordering::Relaxed);
        self.context.counters.add_verified_unit();
        self.peers.credit_bytes(peer, len);
        self.download.update(|units| units.have.set(unit, true));
    }

    /// Records the violation of a peer, which the swarm then bans.
    fn on_violation(&mut self, peer: PeerKey, request: RequestId, violation: String) {
        self.violations.entry(peer).or_insert(violation);
        let now = self.now();
        self.swarm.corrupt(request, now);
        self.requests.close(request);
    }

    /// Reports to a peer which of its pieces failed verification, because its disk or memory may be
    /// faulty without its owner's knowledge. The outcome does not matter here.
    fn report_bad_pieces(&self, peer: PeerKey, bad_pieces: Option<BadPieces>) {
        let client = self.peers.get(peer).and_then(|entry| entry.client.clone());
        if let Some((client, bad_pieces)) = client.zip(bad_pieces) {
            self.context.tracker.spawn(client.report_bad_pieces(bad_pieces));
        }
    }

    fn on_peer_event(&mut self, key: PeerKey, event: PeerEvent) {
        let now = self.now();
        match event {
            PeerEvent::Connected(client, round_trip) => {
                if self.peers.mark_connected(key, *client) {
                    if let Some(address) = self.address(key) {
                        tracing::debug!(
                            file = %self.download.record.id.short(), peer = %address, ?round_trip,
                            "connected to a peer"
                        );
                    }
                    self.swarm.peer_joined(key, now);
                    self.swarm.round_trip(key, round_trip);
                }
            }
            PeerEvent::Availability(report) => self.on_report(key, report, now),
            // The connector reports the peer as lost.
            PeerEvent::UnitCountMismatch => {}
            PeerEvent::Lost(problem) => {
                tracing::debug!(file = %self.download.record.id.short(), %problem, "lost a peer");
                self.swarm.peer_left(key, now);
                self.peers.mark_lost(key, &problem);
                self.requests.close_all_of(key);
            }
            PeerEvent::Unusable(problem) if problem.reason == Reason::VerificationFailed => {
                tracing::warn!(file = %self.download.record.id.short(), %problem, "banned a peer");
                self.swarm.misbehaved(key, now);
                self.requests.close_all_of(key);
                self.context.counters.add_ban(BanReason::Violation);
                self.peers.ban(key, problem.message);
            }
            PeerEvent::Unusable(_) => {
                self.swarm.peer_left(key, now);
                self.requests.close_all_of(key);
                self.peers.forget(key);
            }
        }
    }

    /// A peer reported its availability, and where it is.
    fn on_report(&mut self, key: PeerKey, report: PeerReport, now: Duration) {
        if let Some(labels) = report.labels {
            self.swarm.set_distance(key, self.labels.distance_to(&labels));
            self.peers.set_labels(key, labels);
        }
        match report.update {
            AvailabilityUpdate::Snapshot(units) => self.swarm.availability(key, &units, now),
            AvailabilityUpdate::Change(change) => {
                let AvailabilityChange {
                    have,
                    fetching,
                    abandoned,
                } = &change;
                self.swarm
                    .availability_changed(key, have, fetching, abandoned, now);
            }
        }
    }

    /// Requests units again if the disk has room for a few of them, or if the cache can make some.
    async fn check_full_disk(&mut self) {
        let (download, cache) = (Arc::clone(&self.download), self.context.cache.clone());
        let is_early = self.disk_wait.is_early();
        let work = move || {
            let (have, part) = (download.have(), &download.part_file);
            let make_room = || cache.free_disk(part.target_path(), part.missing_bytes(&have)) > 0;
            match is_early || !part.has_room(&have) {
                true => make_room() && part.has_room(&have),
                false => true,
            }
        };
        let has_room = blocking(work).await.unwrap_or(false);
        if is_early && !has_room {
            self.disk_wait.record_no_room_made();
            return self.report(self.disk_wait.problem());
        }
        if has_room {
            tracing::info!(
                file = %self.download.record.id.short(),
                "the disk has room: tries to write again"
            );
        }
        self.disk_wait.record_check(has_room, Instant::now());
    }
}
