//! Writes the progress of a run into the status of its download.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;
use potluck_core::{
    Problem, Reason,
    collection::plan::Plan,
    model::{Address, FileKind},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::download::{
    engine::disk_pool::DiskPool,
    peers::{
        ConnectionState, PeerEntry, PeerSet, diagnostics::no_provider_serves, discovery::PeerCandidates,
    },
    status::{DownloadState, DownloadStatus, MissingUnits, PeerState, PeerStatus, rate::RateWindow},
    task::bootstrap,
};
use potluck_swarm::{Failure, PeerKey, PeerPhase, PeerView, StuckReason, Swarm, Time};

/// Maximum peers in the status, as the API specifies.
const MAX_PEERS: usize = 1_000;

/// Maximum ranges of missing units in the status, as the API specifies.
const MAX_RUNS: usize = 1_000;

/// Time without a finished unit after which the disk counts as hung: longer than a slow, busy disk
/// takes for a unit.
const HUNG_AFTER: Duration = Duration::from_secs(5);

/// Interval between scans of the missing units.
const MISSING_INTERVAL: Duration = Duration::from_secs(1);

/// Writes the status of one run.
#[derive(Debug)]
pub(crate) struct StatusReporter {
    status: watch::Sender<DownloadStatus>,
    /// Once cancelled, updates no longer show activity.
    stop: CancellationToken,
    start: Instant,
    state: Mutex<ReporterState>,
}

#[derive(Debug, Default)]
struct ReporterState {
    /// Bytes that were there before the swarm started.
    initial_bytes: u64,
    rate: RateWindow,
    peer_rates: HashMap<PeerKey, RateWindow>,
    missing_at: Option<Instant>,
}

impl StatusReporter {
    /// Resets the status for a new run. Once `stop` is cancelled, updates no longer show activity.
    pub(crate) fn new(status: watch::Sender<DownloadStatus>, stop: CancellationToken) -> Self {
        status.send_modify(|status| {
            status.state = DownloadState::Preparing;
            status.error = None;
            status.resumed_bytes = 0;
            status.unverified_bytes = 0;
            status.copied_bytes = 0;
            status.not_kept.clear();
            status.bytes_per_second = 0;
            status.elapsed = Duration::ZERO;
            status.peers.clear();
            status.missing.clear();
            status.findings.clear();
            status.sharing_error = None;
        });
        Self {
            status,
            stop,
            start: Instant::now(),
            state: Mutex::default(),
        }
    }

    fn update(&self, change: impl FnOnce(&mut DownloadStatus)) {
        self.status.send_modify(|status| {
            let before = status.state;
            change(status);
            if self.stop.is_cancelled() {
                status.rest(before);
            }
            status.elapsed = self.start.elapsed();
        });
    }

    /// Changes the state to finishing; false if the run is stopping. The check is atomic with
    /// pausing: a download is either paused before this or finishes.
    pub(crate) fn finishing(&self) -> bool {
        let mut finishes = false;
        self.update(|status| {
            finishes = !self.stop.is_cancelled();
            if finishes {
                status.rest(DownloadState::Finishing);
            }
        });
        finishes
    }

    /// Sets the state and the problem.
    pub(crate) fn set_state(&self, state: DownloadState, error: Option<Problem>) {
        self.update(|status| {
            status.state = state;
            status.error = error;
            // Nothing arrives until the swarm reports again.
            status.unverified_bytes = 0;
            status.bytes_per_second = 0;
            status.peers.iter_mut().for_each(|row| row.bytes_per_second = 0);
        });
    }

    /// Sets the final path.
    pub(crate) fn set_path(&self, path: &Path) {
        self.update(|status| status.path = path.to_owned());
    }

    /// Sets name and size.
    pub(crate) fn set_identity(&self, name: &str, size: u64) {
        self.update(|status| {
            status.state = DownloadState::Preparing;
            status.error = None;
            status.name = name.to_owned();
            status.bytes_total = size;
        });
    }

    /// Sets the kind, and the totals from the plan.
    pub(crate) fn set_plan(&self, kind: FileKind, plan: &Plan) {
        self.update(|status| {
            status.kind = Some(kind);
            status.bytes_total = plan.written();
            status.units_total = plan.unit_count();
        });
    }

    /// Reports that all content was already there.
    pub(crate) fn set_preexisting(&self, kind: FileKind, size: u64) {
        self.update(|status| {
            status.kind = Some(kind);
            status.bytes_total = size;
            status.bytes_done = size;
            status.resumed_bytes = size;
            if status.name.is_empty() {
                status.name = status
                    .path
                    .file_name()
                    .map_or_else(String::new, |name| name.to_string_lossy().into());
            }
        });
    }

    /// Reports that the content is not shared, or only until the peer stops.
    pub(crate) fn not_shared(&self, problem: Problem) {
        self.update(|status| status.sharing_error = Some(problem));
    }

    /// Sets the bytes that were there before the swarm started.
    pub(crate) fn set_bytes(&self, bytes: u64) {
        self.state.lock().initial_bytes = bytes;
        self.update(|status| {
            status.bytes_done = bytes;
            status.copied_bytes = 0;
        });
    }

    /// Sets the bytes copied so far of content with several paths.
    pub(crate) fn copied(&self, copied: u64) {
        self.update(|status| {
            let fetched = status.bytes_done - status.copied_bytes;
            status.copied_bytes = copied;
            status.bytes_done = fetched + copied;
        });
    }

    /// Sets the notes on what the file system could not preserve.
    pub(crate) fn not_kept(&self, what: Vec<String>) {
        self.update(|status| status.not_kept = what);
    }

    /// Sets the bytes of an earlier run.
    pub(crate) fn set_resumed_bytes(&self, bytes: u64) {
        self.update(|status| status.resumed_bytes = bytes);
    }

    /// Reports the state of the swarm, its peers and the disk.
    pub(crate) fn update_from_swarm(
        &self,
        plan: &Arc<Plan>,
        (swarm, time): (&Swarm, Time),
        peers: &PeerSet,
        sources: &PeerCandidates,
        wrong: Option<Problem>,
        disk: &DiskPool,
    ) {
        let now = Instant::now();
        let (done, rate, rows, missing_due) = {
            let mut state = self.state.lock();
            let done = (state.initial_bytes + swarm.counters().verified_bytes).min(plan.total());
            // The rate counts unverified bytes, because a unit may take minutes.
            let rate = state.rate.sample(now, swarm.counters().received_bytes);
            let rows = peer_statuses((swarm, time), peers, &mut state.peer_rates, now);
            let due = state.missing_at.is_none_or(|at| now - at >= MISSING_INTERVAL);
            if due {
                state.missing_at = Some(now);
            }
            (done, rate, rows, due)
        };
        let stuck = wrong
            .or_else(|| stuck_problem((swarm, time), peers, sources))
            .or_else(|| hung_disk_problem(disk));
        self.update(|status| {
            status.state = if stuck.is_some() {
                DownloadState::Waiting
            } else {
                DownloadState::Running
            };
            status.findings = findings(&rows, sources);
            status.error = stuck;
            status.bytes_done = done;
            status.copied_bytes = 0;
            status.unverified_bytes = swarm.unverified_bytes().min(plan.total() - done);
            status.bytes_per_second = rate;
            status.units_total = plan.unit_count();
            status.units_done = swarm.have().count();
            status.peers = rows;
            if missing_due {
                status.missing = missing_units(swarm);
            }
        });
    }
}

fn peer_statuses(
    (swarm, time): (&Swarm, Time),
    peers: &PeerSet,
    rates: &mut HashMap<PeerKey, RateWindow>,
    now: Instant,
) -> Vec<PeerStatus> {
    let retries = Retries::of(swarm, time);
    let views: HashMap<_, PeerView> = swarm.peers().map(|status| (status.key, status)).collect();
    rates.retain(|key, _| views.contains_key(key));
    let mut rows: Vec<PeerStatus> = peers
        .iter()
        .map(|(key, peer)| {
            let status = views.get(&key);
            let rate = status.map_or(0, |status| {
                rates.entry(key).or_default().sample(now, status.bytes)
            });
            peer_status(peer, status, &retries, rate)
        })
        .collect();
    rows.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.address.cmp(&b.address)));
    rows.truncate(MAX_PEERS);
    rows
}

fn peer_status(peer: &PeerEntry, status: Option<&PeerView>, retries: &Retries, rate: u64) -> PeerStatus {
    let last = peer.last_error.clone().unwrap_or_default();
    let state = status.map(|status| status.phase);
    let (standing, reason) = match (&peer.connection, state) {
        (ConnectionState::Banned(what), state) => (PeerState::Banned, retries.of_banned(what, state)),
        (ConnectionState::Lost(what), _) => (PeerState::Unreachable, what.message.clone()),
        (ConnectionState::Waiting | ConnectionState::Dialing, _) => (PeerState::Connecting, last),
        (ConnectionState::Connected, Some(PeerPhase::Banned { .. })) => {
            (PeerState::Banned, peer.ban.clone().unwrap_or_default())
        }
        (ConnectionState::Connected, Some(PeerPhase::Active)) => (PeerState::Active, String::new()),
        (ConnectionState::Connected, Some(PeerPhase::Stalled)) => (
            PeerState::Active,
            "sends nothing: others are asked as well".into(),
        ),
        (ConnectionState::Connected, Some(PeerPhase::BackedOff { .. })) if last.is_empty() => {
            let failure = status.and_then(|status| status.last_failure);
            (PeerState::BackingOff, failure.map_or("", failure_text).into())
        }
        (ConnectionState::Connected, Some(PeerPhase::BackedOff { .. })) => (PeerState::BackingOff, last),
        (ConnectionState::Connected, Some(PeerPhase::Refusing { until })) => {
            (PeerState::BackingOff, retries.of_refusing(peer, until))
        }
        (ConnectionState::Connected, Some(PeerPhase::Joining | PeerPhase::Idle) | None) => {
            (PeerState::Idle, String::new())
        }
    };
    let reason = match (&peer.ban, status) {
        (Some(what), Some(status)) if status.on_probation && reason.is_empty() => {
            format!("was banned: {what}; asked for one unit at a time while nobody else can serve")
        }
        _ => reason,
    };
    PeerStatus {
        peer: peer.candidate.peer,
        address: peer.candidate.address.clone(),
        state: standing,
        reason,
        bytes: peer.bytes,
        bytes_per_second: rate,
        requests: status.map_or(0, |status| status.requests),
        units: status.map_or(0, |status| status.units),
    }
}

const fn failure_text(failure: Failure) -> &'static str {
    match failure {
        Failure::Busy { .. } => "had no free upload slot",
        Failure::TimedOut => "was silent for too long",
        Failure::Disconnected => "the connection broke",
        Failure::NotAvailable => "did not have the requested unit",
        Failure::Refused => "refused to send",
    }
}

/// Explains when banned or refusing peers are asked again.
struct Retries {
    now: Time,
    is_finished: bool,
    /// Whether another peer serves now or will after a short backoff.
    others_serve: bool,
}

impl Retries {
    fn of(swarm: &Swarm, now: Time) -> Self {
        Self {
            now,
            is_finished: swarm.is_finished(),
            others_serve: swarm.is_served(),
        }
    }

    fn seconds_until(&self, at: Time) -> u64 {
        at.saturating_sub(self.now).as_secs()
    }

    /// The violation of a banned peer, and the time of the next attempt.
    fn of_banned(&self, what: &str, state: Option<PeerPhase>) -> String {
        let until = match state {
            Some(PeerPhase::Banned { until, .. }) if !self.is_finished => until,
            _ => return what.to_owned(),
        };
        match (self.others_serve, self.seconds_until(until)) {
            (true, _) => format!("{what}; not asked while others can serve"),
            (false, 0) => format!("{what}; tried again now because no other peer serves it"),
            (false, seconds) => {
                format!("{what}; tried again in {seconds} s because no other peer serves it")
            }
        }
    }

    /// The last error of a refusing peer, and the time of the next attempt.
    fn of_refusing(&self, peer: &PeerEntry, until: Time) -> String {
        let said = peer.last_error.as_deref().filter(|said| !said.is_empty());
        let said = said.unwrap_or_else(|| failure_text(Failure::NotAvailable));
        match self.seconds_until(until) {
            0 => format!("{said}; asked again now"),
            seconds => format!("{said}; asked again in {seconds} s"),
        }
    }
}

/// The problem to report if the disk hangs.
fn hung_disk_problem(disk: &DiskPool) -> Option<Problem> {
    let (target, idle) = disk.hung_for(HUNG_AFTER)?;
    Some(Problem::new(
        Reason::TargetNotWritable,
        format!(
            "the disk hangs or is very slow: nothing was written for {} s, and {} is next; the transfer goes on when it answers",
            idle.as_secs(),
            target.display()
        ),
    ))
}

/// Consecutive refusals by all providers after which they are reported. A provider that hashes a
/// file again answers before that.
const REFUSALS_SHOWN: u32 = 4;

/// The problem if no request is possible and only other peers can change that: who has the missing
/// units, what keeps each peer from serving, and when it is asked again.
fn stuck_problem((swarm, now): (&Swarm, Time), peers: &PeerSet, sources: &PeerCandidates) -> Option<Problem> {
    let untried = |peer: &PeerEntry| {
        matches!(
            peer.connection,
            ConnectionState::Waiting | ConnectionState::Dialing
        ) && peer.last_error.is_none()
    };
    let nobody = |message: String| {
        let troubles = troubles((swarm, now), peers);
        let troubles = no_provider_serves(troubles.iter().map(|(address, problem)| (*address, problem)));
        let message = match troubles {
            Some(troubles) => format!("{message}: {}", troubles.message),
            None => message,
        };
        Some(Problem::new(Reason::NoProviders, message))
    };
    match swarm.stuck_reason()? {
        // Some peers may still answer, so it is too early to report a problem.
        StuckReason::NoPeers | StuckReason::AllBanned { .. }
            if peers.iter().any(|(_, peer)| untried(peer)) =>
        {
            None
        }
        StuckReason::NoPeers => bootstrap::no_provider(sources)
            .or_else(|| nobody("none of its providers can be reached now".into())),
        StuckReason::AllBanned { .. } if peers.iter().all(|(_, peer)| peer.ban.is_some()) => {
            nobody("every provider that is known sent bytes that failed verification".into())
        }
        StuckReason::AllBanned { .. } => {
            nobody("no provider that can be reached now sent what passed verification".into())
        }
        StuckReason::NoProvider { units } => {
            let missing = match units {
                1 => "the unit that is missing".to_owned(),
                units => format!("any of the {units} units that are missing"),
            };
            nobody(format!("no provider that is connected has {missing}"))
        }
        StuckReason::Refused { tries, .. } if tries < REFUSALS_SHOWN => None,
        StuckReason::Refused { .. } => {
            nobody("the providers that have what is missing do not send it now".into())
        }
        StuckReason::NoAvailability | StuckReason::BackedOff { .. } => None,
    }
}

/// What keeps each peer from serving: lost, banned, or refusing units that it has.
fn troubles<'a>((swarm, now): (&Swarm, Time), peers: &'a PeerSet) -> Vec<(&'a Address, Problem)> {
    let states: HashMap<_, _> = swarm.peers().map(|status| (status.key, status.phase)).collect();
    let retries = Retries::of(swarm, now);
    let trouble = |(key, peer): (PeerKey, &'a PeerEntry)| {
        let problem = match (&peer.connection, states.get(&key)) {
            (ConnectionState::Lost(problem), _) => problem.clone(),
            (ConnectionState::Banned(what), state) => {
                let what = retries.of_banned(what, state.copied());
                Problem::new(Reason::VerificationFailed, format!("banned: {what}"))
            }
            (ConnectionState::Connected, Some(PeerPhase::Refusing { until })) => {
                Problem::new(Reason::PieceNotAvailable, retries.of_refusing(peer, *until))
            }
            _ => return None,
        };
        Some((&peer.candidate.address, problem))
    };
    peers.iter().filter_map(trouble).collect()
}

fn missing_units(swarm: &Swarm) -> Vec<MissingUnits> {
    let mut runs: Vec<MissingUnits> = swarm
        .missing()
        .into_iter()
        .map(|run| MissingUnits {
            first: run.units.start,
            count: run.units.end - run.units.start,
            providers: run.providers,
            in_flight: run.in_flight,
        })
        .collect();
    runs.sort_by_key(|run| (run.providers, run.first));
    runs.truncate(MAX_RUNS);
    runs
}

fn findings(rows: &[PeerStatus], sources: &PeerCandidates) -> Vec<String> {
    let count = |standing| rows.iter().filter(|row| row.state == standing).count();
    let mut findings = Vec::new();
    if let Some(problem) = &sources.index_error {
        findings.push(format!("new providers are not heard of: {}", problem.message));
    }
    let banned = rows.iter().filter(|row| row.state == PeerState::Banned);
    for row in banned.take(10) {
        findings.push(format!("{} is banned: {}", row.address, row.reason));
    }
    match count(PeerState::Unreachable) {
        0 => {}
        lost => findings.push(format!(
            "{lost} of {} providers out of reach; tried again",
            rows.len()
        )),
    }
    match count(PeerState::BackingOff) {
        0 => {}
        resting => findings.push(format!(
            "{resting} of {} providers are busy, silent or refuse; asked again later",
            rows.len()
        )),
    }
    findings
}
