//! The lists in the status of a download: peers, missing units and findings.

use std::collections::HashMap;

use potluck_core::model::Labels;
use potluck_swarm::{MissingRun, PeerKey, PeerPhase, PeerView};
use tokio::time::Instant;

use crate::download::{
    engine::driver::{DriverView, OriginView},
    origin::source::ORIGIN,
    peers::{
        discovery::PeerCandidates,
        peer_set::{ConnectionState, PeerEntry},
    },
    status::{
        MissingUnits, PeerState, PeerStatus,
        explanation::{Retries, failure_text},
        rate::RateWindow,
    },
};

/// Maximum peers in the status, as the API specifies.
const MAX_PEERS: usize = 1_000;

/// Maximum ranges of missing units in the status, as the API specifies.
const MAX_RUNS: usize = 1_000;

/// Maximum banned peers that are listed as findings.
const MAX_BANNED_FINDINGS: usize = 10;

/// The status of each peer, ordered by bytes received, descending.
pub(super) fn peer_statuses(
    view: &DriverView<'_>,
    rates: &mut HashMap<PeerKey, RateWindow>,
    now: Instant,
) -> Vec<PeerStatus> {
    let retries = Retries::new(view.swarm, view.now);
    let views: HashMap<_, PeerView> = view.swarm.peers().map(|peer| (peer.key, peer)).collect();
    rates.retain(|key, _| views.contains_key(key));
    let mut rows: Vec<PeerStatus> = view
        .peers
        .iter()
        .map(|(key, peer)| {
            let swarm_view = views.get(&key);
            let rate = swarm_view.map_or(0, |swarm_view| {
                rates.entry(key).or_default().sample(now, swarm_view.bytes)
            });
            peer_status(peer, swarm_view, &retries, rate)
        })
        .collect();
    rows.extend(view.origin.as_ref().map(|origin| {
        let rate = views.get(&ORIGIN).map_or(0, |swarm_view| {
            rates.entry(ORIGIN).or_default().sample(now, swarm_view.bytes)
        });
        origin_status(origin, views.get(&ORIGIN), rate)
    }));
    rows.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.address.cmp(&b.address)));
    rows.truncate(MAX_PEERS);
    rows
}

fn origin_status(
    origin: &OriginView<'_>,
    swarm_view: Option<&PeerView>,
    bytes_per_second: u64,
) -> PeerStatus {
    let state = match swarm_view.map(|view| view.phase) {
        _ if origin.is_lost => PeerState::Unreachable,
        None => PeerState::Unreachable,
        Some(PeerPhase::Banned { .. }) => PeerState::Banned,
        Some(PeerPhase::Active | PeerPhase::Stalled) => PeerState::Active,
        Some(PeerPhase::BackedOff { .. } | PeerPhase::Refusing { .. }) => PeerState::BackingOff,
        Some(PeerPhase::Joining | PeerPhase::Idle) => PeerState::Idle,
    };
    PeerStatus {
        peer: None,
        address: origin.address.clone(),
        origin: Some(origin.shown.to_owned()),
        labels: Labels::default(),
        state,
        reason: origin.last_error.unwrap_or_default().to_owned(),
        bytes: origin.bytes,
        bytes_per_second,
        requests: swarm_view.map_or(0, |view| view.requests),
        units: swarm_view.map_or(0, |view| view.units),
    }
}

fn peer_status(
    peer: &PeerEntry,
    swarm_view: Option<&PeerView>,
    retries: &Retries,
    bytes_per_second: u64,
) -> PeerStatus {
    let last_error = peer.last_error.clone().unwrap_or_default();
    let phase = swarm_view.map(|view| view.phase);
    let (state, reason) = match (&peer.connection, phase) {
        (ConnectionState::Banned(violation), _) => {
            (PeerState::Banned, retries.of_banned(violation, phase))
        }
        (ConnectionState::Lost(problem), _) => (PeerState::Unreachable, problem.message.clone()),
        (ConnectionState::Waiting | ConnectionState::Connecting, _) => {
            (PeerState::Connecting, last_error)
        }
        (ConnectionState::Connected, Some(PeerPhase::Banned { .. })) => {
            (PeerState::Banned, peer.last_violation.clone().unwrap_or_default())
        }
        (ConnectionState::Connected, Some(PeerPhase::Active)) => (PeerState::Active, String::new()),
        (ConnectionState::Connected, Some(PeerPhase::Stalled)) => (
            PeerState::Active,
            "sends nothing: its units are also requested from other peers".into(),
        ),
        (ConnectionState::Connected, Some(PeerPhase::BackedOff { .. }))
            if last_error.is_empty() =>
        {
            let failure = swarm_view.and_then(|view| view.last_failure);
            (PeerState::BackingOff, failure.map_or("", failure_text).into())
        }
        (ConnectionState::Connected, Some(PeerPhase::BackedOff { .. })) => {
            (PeerState::BackingOff, last_error)
        }
        (ConnectionState::Connected, Some(PeerPhase::Refusing { until })) => {
            (PeerState::BackingOff, retries.of_refusing(peer, until))
        }
        (ConnectionState::Connected, Some(PeerPhase::Joining | PeerPhase::Idle) | None) => {
            (PeerState::Idle, String::new())
        }
    };
    let reason = match (&peer.last_violation, swarm_view) {
        (Some(violation), Some(view)) if view.on_probation && reason.is_empty() => {
            format!(
                "was banned: {violation}; asked for one unit at a time while no other peer can serve"
            )
        }
        _ => reason,
    };
    PeerStatus {
        peer: peer.candidate.peer,
        address: peer.candidate.address.clone(),
        origin: None,
        labels: peer.labels.clone(),
        state,
        reason,
        bytes: peer.bytes,
        bytes_per_second,
        requests: swarm_view.map_or(0, |view| view.requests),
        units: swarm_view.map_or(0, |view| view.units),
    }
}

/// The ranges of missing units, the rarest first.
pub(super) fn missing_units(runs: Vec<MissingRun>) -> Vec<MissingUnits> {
    let mut runs: Vec<MissingUnits> = runs
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

/// Readable notes on problems that do not stop the download.
pub(super) fn findings(rows: &[PeerStatus], candidates: &PeerCandidates) -> Vec<String> {
    let count = |state| rows.iter().filter(|row| row.state == state).count();
    let mut findings = Vec::new();
    if let Some(problem) = &candidates.index_error {
        findings.push(format!("cannot find new providers: {}", problem.message));
    }
    let banned = rows.iter().filter(|row| row.state == PeerState::Banned);
    for row in banned.take(MAX_BANNED_FINDINGS) {
        findings.push(format!("{} is banned: {}", row.address, row.reason));
    }
    match count(PeerState::Unreachable) {
        0 => {}
        unreachable => findings.push(format!(
            "{unreachable} of {} providers cannot be reached; tried again",
            rows.len()
        )),
    }
    match count(PeerState::BackingOff) {
        0 => {}
        backing_off => findings.push(format!(
            "{backing_off} of {} providers are busy, silent or refuse; asked again later",
            rows.len()
        )),
    }
    findings
}
