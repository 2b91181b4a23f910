//! Explains why a download does not progress, and when peers are asked again.

use std::{collections::HashMap, time::Duration};

use potluck_core::{Problem, Reason, model::Address};
use potluck_swarm::{Failure, PeerKey, PeerPhase, StuckReason, Swarm, Time};

use crate::download::{
    engine::{disk_pool::DiskPool, driver::DriverView},
    peers::{
        diagnostics::no_provider_serves,
        discovery::PeerCandidates,
        peer_set::{ConnectionState, PeerEntry},
    },
};

/// Time without a finished unit after which the disk counts as hung: longer than a slow, busy disk
/// takes for a unit.
const HUNG_AFTER: Duration = Duration::from_secs(5);

/// Consecutive refusals by all providers after which they are reported. A provider that hashes a
/// file again answers before that.
const MIN_REPORTED_REFUSALS: u32 = 4;

/// The problem if no request is possible and only other peers can change that: the peers that have
/// the missing units, the obstacle at each, and the time at which it is asked again.
pub(super) fn stuck_problem(view: &DriverView<'_>, candidates: &PeerCandidates) -> Option<Problem> {
    let peers = view.peers;
    let is_untried = |peer: &PeerEntry| {
        matches!(
            peer.connection,
            ConnectionState::Waiting | ConnectionState::Connecting
        ) && peer.last_error.is_none()
    };
    let no_providers = |message: String| {
        let problems = peer_problems(view);
        let details =
            no_provider_serves(problems.iter().map(|(address, problem)| (*address, problem)));
        let message = match details {
            Some(details) => format!("{message}: {}", details.message),
            None => message,
        };
        Some(Problem::new(Reason::NoProviders, message))
    };
    match view.swarm.stuck_reason()? {
        // Some peers may still answer, so it is too early to report a problem.
        StuckReason::NoPeers | StuckReason::AllBanned { .. }
            if peers.iter().any(|(_, peer)| is_untried(peer)) =>
        {
            None
        }
        StuckReason::NoPeers => candidates
            .no_provider()
            .or_else(|| no_providers("none of its providers can be reached now".into())),
        StuckReason::AllBanned { .. }
            if peers.iter().all(|(_, peer)| peer.last_violation.is_some()) =>
        {
            no_providers("every known provider sent bytes that failed verification".into())
        }
        StuckReason::AllBanned { .. } => {
            no_providers("no reachable provider sent bytes that passed verification".into())
        }
        StuckReason::NoProvider { units } => {
            let missing = match units {
                1 => "the missing unit".to_owned(),
                units => format!("any of the {units} missing units"),
            };
            no_providers(format!("no connected provider has {missing}"))
        }
        StuckReason::Refused { tries, .. } if tries < MIN_REPORTED_REFUSALS => None,
        StuckReason::Refused { .. } => {
            no_providers("the providers of the missing units do not send them now".into())
        }
        StuckReason::NoAvailability | StuckReason::BackedOff { .. } => None,
    }
}

/// The obstacle at each peer: it is lost, banned, or refuses units that it has.
fn peer_problems<'a>(view: &DriverView<'a>) -> Vec<(&'a Address, Problem)> {
    let phases: HashMap<_, _> = view.swarm.peers().map(|peer| (peer.key, peer.phase)).collect();
    let retries = Retries::new(view.swarm, view.now);
    let problem_of = |(key, peer): (PeerKey, &'a PeerEntry)| {
        let problem = match (&peer.connection, phases.get(&key)) {
            (ConnectionState::Lost(problem), _) => problem.clone(),
            (ConnectionState::Banned(violation), phase) => {
                let violation = retries.of_banned(violation, phase.copied());
                Problem::new(Reason::VerificationFailed, format!("banned: {violation}"))
            }
            (ConnectionState::Connected, Some(PeerPhase::Refusing { until })) => {
                Problem::new(Reason::PieceNotAvailable, retries.of_refusing(peer, *until))
            }
            _ => return None,
        };
        Some((&peer.candidate.address, problem))
    };
    view.peers.iter().filter_map(problem_of).collect()
}

/// The problem to report if the disk hangs.
pub(super) fn hung_disk_problem(disk: &DiskPool) -> Option<Problem> {
    let (target, idle) = disk.hung_for(HUNG_AFTER)?;
    Some(Problem::new(
        Reason::TargetNotWritable,
        format!(
            "the disk hangs or is very slow: nothing was written for {} s, and {} is next; the \
             download continues once the disk responds",
            idle.as_secs(),
            target.display()
        ),
    ))
}

/// Explains when banned or refusing peers are asked again.
pub(super) struct Retries {
    now: Time,
    is_finished: bool,
    /// Whether another peer serves now or will after a short backoff.
    others_serve: bool,
}

impl Retries {
    pub(super) fn new(swarm: &Swarm, now: Time) -> Self {
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
    pub(super) fn of_banned(&self, violation: &str, phase: Option<PeerPhase>) -> String {
        let until = match phase {
            Some(PeerPhase::Banned { until, .. }) if !self.is_finished => until,
            _ => return violation.to_owned(),
        };
        match (self.others_serve, self.seconds_until(until)) {
            (true, _) => format!("{violation}; not asked while others can serve"),
            (false, 0) => format!("{violation}; tried again now because no other peer serves it"),
            (false, seconds) => {
                format!("{violation}; tried again in {seconds} s because no other peer serves it")
            }
        }
    }

    /// The last error of a refusing peer, and the time of the next attempt.
    pub(super) fn of_refusing(&self, peer: &PeerEntry, until: Time) -> String {
        let error = peer.last_error.as_deref().filter(|error| !error.is_empty());
        let error = error.unwrap_or_else(|| failure_text(Failure::NotAvailable));
        match self.seconds_until(until) {
            0 => format!("{error}; asked again now"),
            seconds => format!("{error}; asked again in {seconds} s"),
        }
    }
}

/// A description of this failure.
pub(super) const fn failure_text(failure: Failure) -> &'static str {
    match failure {
        Failure::Busy { .. } => "had no free upload slot",
        Failure::TimedOut => "was silent for too long",
        Failure::Disconnected => "the connection broke",
        Failure::NotAvailable => "did not have the requested unit",
        Failure::Refused => "refused to send",
    }
}
