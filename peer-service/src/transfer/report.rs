//! What a transfer shows of itself while it runs: the one place that writes its view.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use potluck_core::{Problem, Reason, index_client::Kind, plan::Plan};
use tokio::{sync::watch, time::Instant};

use super::{
    dialer,
    peers::{Contact, Peer, Peers},
    rate::Rate,
    sources::Sources,
    unserved::unserved,
    verifying::Disk,
    view::{Missing, PeerRow, PeerStanding, State, View},
};
use crate::swarm::{Failure, PeerKey, PeerState, PeerView, StuckReason, Swarm};

/// Most peers shown, as the contract has it.
const MAX_PEERS: usize = 1_000;

/// Most runs of missing units shown, as the contract has it.
const MAX_RUNS: usize = 1_000;

/// How long nothing may get verified and written before that is told: longer than a slow disk that is busy with others takes for a unit.
const HUNG: Duration = Duration::from_secs(5);

/// How often the missing units are gone through.
const MISSING_EVERY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Reporter {
    view: watch::Sender<View>,
    start: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Bytes that were there before the swarm began.
    base: u64,
    rate: Rate,
    peer_rates: HashMap<PeerKey, Rate>,
    missing_at: Option<Instant>,
}

impl Reporter {
    /// Writes to this view.
    pub(crate) fn new(view: watch::Sender<View>) -> Self {
        view.send_modify(|view| {
            view.state = State::Preparing;
            view.error = None;
            view.resumed_bytes = 0;
            view.unverified_bytes = 0;
            view.bytes_per_second = 0;
            view.elapsed = Duration::ZERO;
            view.peers.clear();
            view.missing.clear();
            view.findings.clear();
        });
        Self {
            view,
            start: Instant::now(),
            inner: Mutex::default(),
        }
    }

    fn write(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(|view| {
            change(view);
            view.elapsed = self.start.elapsed();
        });
    }

    /// Where it stands, and what is wrong.
    pub(crate) fn state(&self, state: State, error: Option<Problem>) {
        self.write(|view| {
            view.state = state;
            view.error = error;
            // Until the swarm says more, nothing comes.
            view.unverified_bytes = 0;
            view.bytes_per_second = 0;
            view.peers.iter_mut().for_each(|row| row.bytes_per_second = 0);
        });
    }

    /// Where it will be.
    pub(crate) fn path(&self, path: &Path) {
        self.write(|view| view.path = path.to_owned());
    }

    /// What it is called and how large it is.
    pub(crate) fn identified(&self, name: &str, size: u64) {
        self.write(|view| {
            view.state = State::Preparing;
            view.error = None;
            view.name = name.to_owned();
            view.bytes_total = size;
        });
    }

    /// What it is and how it is cut.
    pub(crate) fn planned(&self, kind: Kind, plan: &Plan) {
        self.write(|view| {
            view.kind = Some(kind);
            view.bytes_total = plan.total();
            view.units_total = plan.unit_count();
        });
    }

    /// It is all there already.
    pub(crate) fn found(&self, kind: Kind, size: u64) {
        self.write(|view| {
            view.kind = Some(kind);
            view.bytes_total = size;
            view.bytes_done = size;
            view.resumed_bytes = size;
            if view.name.is_empty() {
                view.name = view
                    .path
                    .file_name()
                    .map_or_else(String::new, |name| name.to_string_lossy().into());
            }
        });
    }

    /// Bytes that are there before the swarm begins.
    pub(crate) fn bytes(&self, bytes: u64) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).base = bytes;
        self.write(|view| view.bytes_done = bytes);
    }

    /// Bytes of an earlier run.
    pub(crate) fn resumed(&self, bytes: u64) {
        self.write(|view| view.resumed_bytes = bytes);
    }

    /// How the swarm stands, and the disk that is written to.
    pub(crate) fn swarm(
        &self,
        plan: &Arc<Plan>,
        swarm: &Swarm,
        peers: &Peers,
        sources: &Sources,
        wrong: Option<Problem>,
        disk: &Disk,
    ) {
        let now = Instant::now();
        let (done, rate, rows, missing_due) = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let done = (inner.base + swarm.counters().verified_bytes).min(plan.total());
            // A unit may take minutes: what comes meanwhile is the rate.
            let rate = inner.rate.at(now, swarm.counters().received_bytes);
            let rows = rows(swarm, peers, &mut inner.peer_rates, now);
            let due = inner.missing_at.is_none_or(|at| now - at >= MISSING_EVERY);
            if due {
                inner.missing_at = Some(now);
            }
            (done, rate, rows, due)
        };
        let stuck = wrong
            .or_else(|| stuck(swarm, peers, sources))
            .or_else(|| hung(disk));
        self.write(|view| {
            view.state = if stuck.is_some() {
                State::Waiting
            } else {
                State::Running
            };
            view.findings = findings(&rows, sources);
            view.error = stuck;
            view.bytes_done = done;
            view.unverified_bytes = swarm.unverified_bytes().min(plan.total() - done);
            view.bytes_per_second = rate;
            view.units_total = plan.unit_count();
            view.units_done = swarm.have().count();
            view.peers = rows;
            if missing_due {
                view.missing = missing(swarm);
            }
        });
    }
}

fn rows(swarm: &Swarm, peers: &Peers, rates: &mut HashMap<PeerKey, Rate>, now: Instant) -> Vec<PeerRow> {
    let views: HashMap<_, PeerView> = swarm.peers().map(|view| (view.key, view)).collect();
    rates.retain(|key, _| views.contains_key(key));
    let mut rows: Vec<PeerRow> = peers
        .iter()
        .map(|(key, peer)| {
            let view = views.get(&key);
            let rate = view.map_or(0, |view| rates.entry(key).or_default().at(now, view.bytes));
            row(peer, view, rate)
        })
        .collect();
    rows.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.address.cmp(&b.address)));
    rows.truncate(MAX_PEERS);
    rows
}

fn row(peer: &Peer, view: Option<&PeerView>, rate: u64) -> PeerRow {
    let last = peer.last_error.clone().unwrap_or_default();
    let (standing, reason) = match (&peer.contact, view.map(|view| view.state)) {
        (Contact::Banned(what), _) => (PeerStanding::Banned, what.clone()),
        (Contact::Lost(what), _) => (PeerStanding::Unreachable, what.message.clone()),
        (Contact::Waiting | Contact::Dialling, _) => (PeerStanding::Connecting, last),
        (Contact::Connected, Some(PeerState::Banned { unit })) => {
            (PeerStanding::Banned, format!("unit {unit} failed verification"))
        }
        (Contact::Connected, Some(PeerState::Active)) => (PeerStanding::Active, String::new()),
        (Contact::Connected, Some(PeerState::Stalled)) => (
            PeerStanding::Active,
            "sends nothing: others are asked as well".into(),
        ),
        (Contact::Connected, Some(PeerState::BackedOff { .. })) if last.is_empty() => {
            let failure = view.and_then(|view| view.last_failure);
            (PeerStanding::BackingOff, failure.map_or("", explained).into())
        }
        (Contact::Connected, Some(PeerState::BackedOff { .. })) => (PeerStanding::BackingOff, last),
        (Contact::Connected, Some(PeerState::Joining | PeerState::Idle) | None) => {
            (PeerStanding::Idle, String::new())
        }
    };
    PeerRow {
        peer: peer.source.peer,
        address: peer.source.address.clone(),
        standing,
        reason,
        bytes: peer.bytes,
        bytes_per_second: rate,
        requests: view.map_or(0, |view| view.requests),
        units: view.map_or(0, |view| view.units),
    }
}

const fn explained(failure: Failure) -> &'static str {
    match failure {
        Failure::Busy { .. } => "had no free upload slot",
        Failure::TimedOut => "was silent for too long",
        Failure::Disconnected => "the connection broke",
        Failure::NotAvailable => "had not what it was asked for",
        Failure::Refused => "refused to send",
    }
}

/// What keeps everything that comes from being verified and written.
fn hung(disk: &Disk) -> Option<Problem> {
    let (target, idle) = disk.hung(HUNG)?;
    Some(Problem::new(
        Reason::TargetNotWritable,
        format!(
            "the disk hangs or is very slow: nothing was written for {} s, and {} is next; the transfer goes on when it answers",
            idle.as_secs(),
            target.display()
        ),
    ))
}

/// Why nothing can be asked for, where that is for others to change.
fn stuck(swarm: &Swarm, peers: &Peers, sources: &Sources) -> Option<Problem> {
    let untried = |peer: &Peer| {
        matches!(peer.contact, Contact::Waiting | Contact::Dialling) && peer.last_error.is_none()
    };
    // What is known of those who are not there, and what would help.
    let problem = |message: String| {
        let message = match absent(peers) {
            Some(absent) => format!("{message}: {}", absent.message),
            None => message,
        };
        Some(Problem::new(Reason::NoProviders, message))
    };
    match swarm.stuck_reason()? {
        // Some may still answer: too early to complain.
        StuckReason::NoPeers if peers.iter().any(|(_, peer)| untried(peer)) => None,
        StuckReason::NoPeers => dialer::no_provider(sources).or_else(|| {
            problem("none of its providers can be reached now; it goes on as soon as one can".into())
        }),
        StuckReason::AllBanned => problem(
            "every provider sent bytes that failed verification; it goes on as soon as an honest one appears"
                .into(),
        ),
        StuckReason::NoProvider { units } => problem(format!(
            "no provider has {units} of the units that are missing; it goes on as soon as one does"
        )),
        StuckReason::NoAvailability | StuckReason::BackedOff { .. } => None,
    }
}

/// What keeps those away who are lost or banned.
fn absent(peers: &Peers) -> Option<Problem> {
    let absent: Vec<_> = peers
        .iter()
        .filter_map(|(_, peer)| match &peer.contact {
            Contact::Lost(problem) => Some((&peer.source.address, problem.clone())),
            Contact::Banned(what) => {
                let problem = Problem::new(Reason::VerificationFailed, what);
                Some((&peer.source.address, problem))
            }
            Contact::Waiting | Contact::Dialling | Contact::Connected => None,
        })
        .collect();
    unserved(absent.iter().map(|(address, problem)| (*address, problem)))
}

fn missing(swarm: &Swarm) -> Vec<Missing> {
    let mut runs: Vec<Missing> = swarm
        .missing()
        .into_iter()
        .map(|run| Missing {
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

fn findings(rows: &[PeerRow], sources: &Sources) -> Vec<String> {
    let count = |standing| rows.iter().filter(|row| row.standing == standing).count();
    let mut findings = Vec::new();
    if let Some(problem) = &sources.index_error {
        findings.push(format!("new providers are not heard of: {}", problem.message));
    }
    let banned = rows.iter().filter(|row| row.standing == PeerStanding::Banned);
    for row in banned.take(10) {
        findings.push(format!("{} is not asked any more: {}", row.address, row.reason));
    }
    match count(PeerStanding::Unreachable) {
        0 => {}
        lost => findings.push(format!(
            "{lost} of {} providers out of reach; tried again",
            rows.len()
        )),
    }
    match count(PeerStanding::BackingOff) {
        0 => {}
        resting => findings.push(format!(
            "{resting} of {} providers busy or silent; asked again soon",
            rows.len()
        )),
    }
    findings
}
