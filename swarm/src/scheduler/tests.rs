//! Unit tests of the state machine, one behaviour each. `tests/simulator` runs whole swarms.

use std::{collections::VecDeque, time::Duration};

use super::*;
use crate::{config::*, types::*};
use potluck_core::availability::Availability;

pub(crate) const LEN: u64 = 256 * 1024;
pub(crate) const A: PeerKey = PeerKey(1);
pub(crate) const B: PeerKey = PeerKey(2);
const C: PeerKey = PeerKey(3);

pub(crate) const fn ms(ms: u64) -> Time {
    Duration::from_millis(ms)
}

pub(crate) fn swarm(units: u32) -> Swarm {
    Swarm::new(
        SwarmConfig::default(),
        vec![LEN; units as usize],
        Bitfield::new(units),
        7,
    )
}

fn units(swarm: &Swarm, have: &[u32]) -> Availability {
    let mut units = Availability {
        have: Bitfield::new(swarm.have().len()),
        fetching: Bitfield::new(swarm.have().len()),
    };
    have.iter().for_each(|&unit| _ = units.have.set(unit, true));
    units
}

/// A peer with these units joins; an empty list means all units.
pub(crate) fn join(swarm: &mut Swarm, peer: PeerKey, have: &[u32], now: Time) {
    swarm.peer_joined(peer, now);
    let all: Vec<u32> = (0..swarm.have().len()).collect();
    let units = units(swarm, if have.is_empty() { &all } else { have });
    swarm.availability(peer, &units, now);
}

pub(crate) fn actions(swarm: &mut Swarm, now: Time) -> Vec<Action> {
    let actions = std::iter::from_fn(|| swarm.poll_action(now)).collect();
    swarm.check();
    actions
}

/// The requests made now, as (id, peer, unit).
fn requests(swarm: &mut Swarm, now: Time) -> Vec<(RequestId, PeerKey, u32)> {
    let request = |action| match action {
        Action::Request { id, peer, unit } => Some((id, peer, unit)),
        _ => None,
    };
    actions(swarm, now).into_iter().filter_map(request).collect()
}

/// Delivers a request's bytes evenly over `took` and verifies the unit.
fn deliver(swarm: &mut Swarm, id: RequestId, from: Time, took: Duration) {
    for chunk in 1..=4 {
        swarm.progressed(id, LEN / 4, from + took * chunk / 4);
    }
    assert!(swarm.verified(id, from + took));
}

/// Calls the swarm at its own deadlines up to `until`. Returns its actions and their times.
fn run_until(swarm: &mut Swarm, until: Time) -> Vec<(Time, Action)> {
    let mut done = Vec::new();
    while let Some(at) = swarm.poll_timeout().filter(|&at| at <= until) {
        swarm.handle_timeout(at);
        done.extend(actions(swarm, at).into_iter().map(|action| (at, action)));
    }
    done
}

#[test]
fn an_empty_download_is_finished_at_once() {
    let mut swarm = swarm(0);
    assert_eq!(actions(&mut swarm, ms(0)), [Action::Finished]);
    assert_eq!((swarm.poll_timeout(), swarm.stuck_reason()), (None, None));
}

#[test]
fn one_unit_from_one_peer() {
    let mut swarm = swarm(1);
    assert_eq!(swarm.stuck_reason(), Some(StuckReason::NoPeers));
    swarm.peer_joined(A, ms(0));
    assert_eq!(actions(&mut swarm, ms(0)), []);
    assert_eq!(swarm.stuck_reason(), Some(StuckReason::NoAvailability));
    join(&mut swarm, A, &[], ms(0));
    let (id, peer, unit) = requests(&mut swarm, ms(0))[0];
    assert_eq!((peer, unit), (A, 0));
    assert!(swarm.fetching().get(0) && !swarm.have().get(0));
    deliver(&mut swarm, id, ms(0), ms(10));
    assert_eq!(actions(&mut swarm, ms(10)), [Action::Finished]);
    assert!(swarm.have().get(0) && !swarm.fetching().get(0));
    // Late events about a finished request change nothing.
    swarm.corrupt(id, ms(11));
    swarm.failed(id, Failure::TimedOut, ms(11));
    assert!(!swarm.verified(id, ms(11)));
    assert_eq!(actions(&mut swarm, ms(11)), []);
}

#[test]
fn the_rarest_unit_goes_first() {
    let mut swarm = swarm(4);
    join(&mut swarm, A, &[0, 1, 2], ms(0));
    join(&mut swarm, B, &[0, 1], ms(0));
    // Fetching peers count too: unit 1 is more common than unit 0.
    swarm.availability_changed(B, &[], &[2, 3], &[2], ms(0));
    swarm.availability_changed(A, &[], &[3], &[], ms(0));
    swarm.peer_joined(C, ms(0));
    assert_eq!(
        requests(&mut swarm, ms(0))
            .first()
            .map(|&(_, peer, unit)| (peer, unit)),
        Some((A, 2))
    );
}

#[test]
fn a_crowd_gets_one_request_per_peer_and_a_single_provider_several() {
    let mut alone = swarm(100);
    join(&mut alone, A, &[], ms(0));
    let requested: Vec<u32> = requests(&mut alone, ms(0))
        .into_iter()
        .map(|(_, _, unit)| unit)
        .collect();
    assert_eq!(requested.len(), 2);
    assert!(
        requested[1] == requested[0] + 1 || requested[0] == 99,
        "neighbours: {requested:?}"
    );
    let mut crowd = swarm(100);
    join(&mut crowd, A, &[], ms(0));
    join(&mut crowd, B, &[5], ms(0));
    assert_eq!(requests(&mut crowd, ms(0)).len(), 2, "one per peer");
}

#[test]
fn pipeline_depth_follows_bandwidth_times_delay() {
    let mut swarm = swarm(1000);
    join(&mut swarm, A, &[], ms(0));
    // A unit every 10 ms, the first byte after 50 ms.
    let mut queue = VecDeque::from(requests(&mut swarm, ms(0)));
    let mut now = ms(50);
    for _ in 0..100 {
        let (id, ..) = queue.pop_front().unwrap();
        deliver(&mut swarm, id, now, ms(10));
        now += ms(10);
        queue.extend(requests(&mut swarm, now));
    }
    // 26 MB/s over twice 50 ms plus the slack: 3.4 MB.
    assert!(
        (12..=16).contains(&queue.len()),
        "{} requests in flight",
        queue.len()
    );
}

#[test]
fn units_that_wait_for_verification_fill_the_pipeline() {
    let mut swarm = swarm(100);
    join(&mut swarm, A, &[], ms(0));
    let made = requests(&mut swarm, ms(0));
    swarm.progressed(made[0].0, LEN, ms(1));
    assert_eq!(
        requests(&mut swarm, ms(1)),
        [],
        "its other request is outstanding"
    );
    assert!(swarm.verified(made[0].0, ms(2)));
    assert!(!requests(&mut swarm, ms(2)).is_empty());
}

#[test]
fn bad_bytes_ban_only_their_sender() {
    let mut swarm = swarm(8);
    join(&mut swarm, A, &[], ms(0));
    join(&mut swarm, B, &[], ms(0));
    let made = requests(&mut swarm, ms(0));
    let (bad, _, unit) = *made.iter().find(|(_, peer, _)| *peer == A).unwrap();
    swarm.corrupt(bad, ms(5));
    let done = actions(&mut swarm, ms(5));
    assert_eq!(done[0], Action::Ban { peer: A, unit });
    assert!(
        done.iter().any(|action| matches!(action, Action::Cancel { .. })),
        "its other request is cancelled"
    );
    // Rejoining does not end the ban.
    swarm.peer_left(A, ms(6));
    join(&mut swarm, A, &[], ms(7));
    assert!(requests(&mut swarm, ms(7)).iter().all(|(_, peer, _)| *peer == B));
    let state = swarm.peers().next().unwrap().phase;
    let PeerPhase::Banned {
        unit: banned_for,
        until,
    } = state
    else {
        panic!("{state:?}")
    };
    assert_eq!(banned_for, Some(unit));
    assert!(until > BAN / 2 && until < BAN * 2, "{until:?}");
    swarm.peer_left(B, ms(8));
    assert_eq!(actions(&mut swarm, ms(8)).len(), 2);
    assert_eq!(
        (swarm.stuck_reason(), swarm.poll_timeout()),
        (Some(StuckReason::AllBanned { until }), Some(until))
    );
}

/// The only provider sends bad bytes twice, then good ones.
#[test]
fn a_banned_peer_is_readmitted_if_nobody_else_can_serve_and_gets_one_request_at_a_time() {
    let count = PROBATION_UNITS + 5;
    let mut swarm = swarm(count);
    join(&mut swarm, A, &[], ms(0));
    let mut now = ms(0);
    let mut delays = Vec::new();
    for _ in 0..2 {
        let (bad, ..) = requests(&mut swarm, now)[0];
        swarm.corrupt(bad, now);
        swarm.peer_left(A, now);
        let banned = now;
        now = loop {
            let at = swarm.poll_timeout().expect("a banned peer has a timer");
            swarm.handle_timeout(at);
            if actions(&mut swarm, at).contains(&Action::Readmit { peer: A }) {
                break at;
            }
            assert!(at < banned + MAX_BAN, "{at:?}");
        };
        delays.push(now - banned);
        join(&mut swarm, A, &[], now);
    }
    assert!(
        delays[0] >= BAN.mul_f64(0.75) && delays[1] > delays[0].mul_f64(1.1),
        "{delays:?}"
    );
    for verified in 0..count {
        let made = requests(&mut swarm, now);
        if verified < PROBATION_UNITS {
            assert_eq!(made.len(), 1, "after {verified} units");
        }
        let Some(&(id, ..)) = made.first() else { break };
        deliver(&mut swarm, id, now, ms(10));
        now += ms(10);
    }
    assert!(swarm.have().count() > PROBATION_UNITS, "its probation is over");
}

#[test]
fn a_banned_peer_gets_no_request_while_another_can_serve() {
    let mut swarm = swarm(3);
    join(&mut swarm, A, &[], ms(0));
    let (bad, ..) = requests(&mut swarm, ms(0))[0];
    swarm.corrupt(bad, ms(1));
    swarm.peer_left(A, ms(1));
    join(&mut swarm, B, &[], ms(2));
    // B is slow: each unit takes longer than the ban lasts.
    let mut in_flight: VecDeque<_> = requests(&mut swarm, ms(2)).into();
    let mut now = ms(2);
    while let Some((id, peer, _)) = in_flight.pop_front() {
        assert_eq!(peer, B);
        for _ in 0..32 {
            now += ms(4000);
            for (_, action) in run_until(&mut swarm, now) {
                let Action::Request { id, peer, unit } = action else {
                    panic!("{action:?}")
                };
                in_flight.push_back((id, peer, unit));
            }
            swarm.progressed(id, LEN / 32, now);
        }
        assert!(swarm.verified(id, now));
        in_flight.extend(requests(&mut swarm, now));
    }
    assert!(swarm.is_finished());
}

/// A peer that violated the protocol before it joined is banned like any other.
#[test]
fn a_peer_that_violates_the_protocol_is_banned_and_readmitted() {
    let mut swarm = swarm(1);
    swarm.misbehaved(A, ms(0));
    join(&mut swarm, A, &[], ms(1));
    assert_eq!(actions(&mut swarm, ms(1)), []);
    let done = run_until(&mut swarm, BAN * 2);
    assert!(matches!(done[..], [(_, Action::Readmit { peer: A })]), "{done:?}");
    join(&mut swarm, A, &[], BAN * 2);
    assert_eq!(requests(&mut swarm, BAN * 2).len(), 1);
}

#[test]
fn units_of_a_stalled_peer_are_hedged_and_the_loser_cancelled() {
    let mut swarm = swarm(3);
    join(&mut swarm, A, &[0], ms(0));
    let (silent, ..) = requests(&mut swarm, ms(0))[0];
    join(&mut swarm, B, &[0, 1, 2], ms(0));
    for _ in 0..2 {
        let (id, peer, _) = requests(&mut swarm, ms(0))[0];
        assert_eq!(peer, B);
        deliver(&mut swarm, id, ms(0), ms(20));
    }
    // Only the unit requested from A is left, and A is silent.
    let (id, mut seen, now) = loop {
        let now = swarm.poll_timeout().unwrap();
        swarm.handle_timeout(now);
        let done = actions(&mut swarm, now);
        if let Some(&Action::Request { id, peer: B, unit: 0 }) = done.last() {
            break (id, done, now);
        }
        assert_eq!(done, []);
    };
    assert!(now <= ms(1500), "{now:?}");
    deliver(&mut swarm, id, now, ms(20));
    seen.extend(actions(&mut swarm, now + ms(20)));
    assert!(
        seen.contains(&Action::Cancel { id: silent }) && seen.contains(&Action::Finished),
        "{seen:?}"
    );
}

#[test]
fn a_stalled_peer_is_backed_off_after_others_delivered_its_units() {
    let mut swarm = swarm(40);
    join(&mut swarm, A, &[], ms(0));
    join(&mut swarm, B, &[], ms(0));
    // Both are known to be fast. From then on A is silent, and B takes 200 ms for each unit, eight
    // seconds for all.
    let (mut in_flight, mut requests_to_a) = (VecDeque::new(), 0);
    for (id, peer, _) in requests(&mut swarm, ms(0)) {
        match peer {
            B => in_flight.push_back(id),
            _ => deliver(&mut swarm, id, ms(0), ms(20)),
        }
    }
    let (mut now, mut due, mut was_backed_off) = (ms(20), ms(220), false);
    while !swarm.is_finished() {
        for (id, peer, _) in requests(&mut swarm, now) {
            match peer {
                B => in_flight.push_back(id),
                _ => requests_to_a += 1,
            }
        }
        now = swarm.poll_timeout().map_or(due, |at| at.clamp(now, due));
        swarm.handle_timeout(now);
        if now == due {
            if let Some(id) = in_flight.pop_front() {
                swarm.progressed(id, LEN, due);
                // Returns false if the request was cancelled in the endgame.
                swarm.verified(id, due);
            }
            due += ms(200);
        }
        let is_backed_off =
            |peer: &PeerView| peer.key == A && matches!(peer.phase, PeerPhase::BackedOff { .. });
        was_backed_off |= swarm.peers().any(|peer| is_backed_off(&peer));
        assert!(now < ms(12_000), "it finishes in time");
    }
    assert!(
        was_backed_off && requests_to_a > 0,
        "{requests_to_a} requests to the stalled peer, backed off: {was_backed_off}"
    );
}

#[test]
fn a_single_slow_provider_may_finish() {
    let mut swarm = swarm(1);
    join(&mut swarm, A, &[], ms(0));
    let (id, ..) = requests(&mut swarm, ms(0))[0];
    for second in 1..=64 {
        assert_eq!(run_until(&mut swarm, ms(4000 * second)), []);
        swarm.progressed(id, LEN / 64, ms(4000 * second));
    }
    assert!(swarm.verified(id, ms(256_000)));
    assert_eq!(actions(&mut swarm, ms(256_000)), [Action::Finished]);
}

#[test]
fn each_failure_backs_off_longer_and_the_last_forgets_the_peer() {
    let mut swarm = swarm(1);
    join(&mut swarm, A, &[], ms(0));
    let mut now = ms(0);
    let mut waits = Vec::new();
    loop {
        let made = requests(&mut swarm, now);
        let Some(&(id, ..)) = made.first() else { break };
        swarm.failed(id, Failure::Disconnected, now);
        match swarm.poll_action(now) {
            Some(Action::Forget { peer }) => break assert_eq!(peer, A),
            other => assert_eq!(other, None),
        }
        let Some(StuckReason::BackedOff { until }) = swarm.stuck_reason() else {
            panic!("not backed off")
        };
        assert!(swarm.poll_timeout().is_some_and(|at| at <= until));
        waits.push(until - now);
        now = until;
        swarm.handle_timeout(now);
    }
    assert_eq!(waits.len() as u32, MAX_FAILURES - 1);
    assert!(
        waits[0] < ms(700) && waits[4] > ms(5000) && waits[8] <= MAX_BACK_OFF.mul_f64(1.25),
        "{waits:?}"
    );
    assert_eq!(swarm.stuck_reason(), Some(StuckReason::NoPeers));
    join(&mut swarm, A, &[], now);
    assert_eq!(requests(&mut swarm, now).len(), 1, "it is known again");
}

#[test]
fn a_busy_peer_is_requested_from_again_after_its_delay() {
    let mut swarm = swarm(1);
    join(&mut swarm, A, &[], ms(0));
    let (id, ..) = requests(&mut swarm, ms(0))[0];
    swarm.failed(
        id,
        Failure::Busy {
            retry_after: Some(ms(400)),
        },
        ms(1),
    );
    let done = run_until(&mut swarm, ms(700));
    assert!(
        matches!(done[..], [(at, Action::Request { peer: A, .. })] if at >= ms(401)),
        "{done:?}"
    );
}

#[test]
fn a_refused_unit_is_requested_from_another_peer() {
    let mut swarm = swarm(2);
    join(&mut swarm, A, &[], ms(0));
    for (id, ..) in requests(&mut swarm, ms(0)) {
        swarm.failed(id, Failure::NotAvailable, ms(1));
        swarm.check();
    }
    assert_eq!(requests(&mut swarm, ms(1)), []);
    let stuck = swarm.stuck_reason();
    assert!(
        matches!(stuck, Some(StuckReason::Refused { until, tries: 0 }) if until > ms(1)),
        "{stuck:?}"
    );
    join(&mut swarm, B, &[1], ms(2));
    assert!(matches!(requests(&mut swarm, ms(2))[..], [(_, B, 1)]));
    // A change that announces a unit clears its refusal.
    swarm.availability_changed(A, &[0], &[], &[], ms(3));
    assert!(matches!(requests(&mut swarm, ms(3))[..], [(_, A, 0)]));
}

/// A provider that hashes a file again refuses it, and announces nothing once it serves again.
#[test]
fn refused_units_are_requested_again_after_a_growing_delay() {
    let mut swarm = swarm(4);
    join(&mut swarm, A, &[], ms(0));
    let (mut now, mut delays) = (ms(0), Vec::new());
    for _ in 0..12 {
        // Until every unit was refused.
        loop {
            let made = requests(&mut swarm, now);
            if made.is_empty() {
                break;
            }
            for (id, ..) in made {
                swarm.failed(id, Failure::NotAvailable, now);
            }
        }
        let Some(StuckReason::Refused { until, .. }) = swarm.stuck_reason() else {
            panic!("{:?}", swarm.stuck_reason())
        };
        assert!(swarm.poll_timeout().is_some_and(|at| at <= until));
        assert_eq!(swarm.peers().next().unwrap().phase, PeerPhase::Refusing { until });
        delays.push(until - now);
        now = until;
        swarm.handle_timeout(now);
    }
    assert!(delays[0] <= REFUSED_BACK_OFF.mul_f64(1.25), "{delays:?}");
    assert!(
        delays[11] > MAX_REFUSED_BACK_OFF / 2 && delays[11] <= MAX_REFUSED_BACK_OFF.mul_f64(1.25),
        "{delays:?}"
    );
    // The peer serves again and sends everything.
    let mut in_flight = VecDeque::from(requests(&mut swarm, now));
    while let Some((id, ..)) = in_flight.pop_front() {
        deliver(&mut swarm, id, now, ms(10));
        now += ms(10);
        in_flight.extend(requests(&mut swarm, now));
    }
    assert!(swarm.is_finished());
    assert_eq!(swarm.stuck_reason(), None);
}

/// A new snapshot replaces the old availability, and refused units are requested immediately.
#[test]
fn a_new_availability_clears_refusals() {
    let mut swarm = swarm(2);
    join(&mut swarm, A, &[], ms(0));
    for (id, ..) in requests(&mut swarm, ms(0)) {
        swarm.failed(id, Failure::NotAvailable, ms(1));
    }
    assert_eq!(requests(&mut swarm, ms(1)), []);
    let all = units(&swarm, &[0, 1]);
    swarm.availability(A, &all, ms(20));
    assert!(!requests(&mut swarm, ms(20)).is_empty());
}

/// A peer that refuses thousands of units does not get a request for each of them after each delay.
#[test]
fn a_peer_that_refuses_everything_costs_few_requests() {
    let mut swarm = swarm(1000);
    join(&mut swarm, A, &[], ms(0));
    let (mut requested, mut now) = (0, ms(0));
    let end = Duration::from_secs(600);
    while now < end {
        loop {
            let made = requests(&mut swarm, now);
            requested += made.len();
            if made.is_empty() {
                break;
            }
            for (id, ..) in made {
                swarm.failed(id, Failure::NotAvailable, now);
            }
        }
        now = swarm.poll_timeout().unwrap();
        swarm.handle_timeout(now);
    }
    // One request per unit, then a few after each delay.
    assert!(requested > 1000 && requested < 1000 + 40 * 64, "{requested}");
}

#[test]
fn a_unit_whose_write_failed_is_fetched_again_and_the_download_finishes_again() {
    let mut swarm = swarm(1);
    join(&mut swarm, A, &[], ms(0));
    let (id, ..) = requests(&mut swarm, ms(0))[0];
    deliver(&mut swarm, id, ms(0), ms(10));
    assert_eq!(actions(&mut swarm, ms(10)), [Action::Finished]);
    assert_eq!(swarm.counters().verified_bytes, LEN);
    swarm.reset_unit(0, ms(11));
    assert_eq!(swarm.counters().verified_bytes, 0, "the unit is missing again");
    let (id, ..) = requests(&mut swarm, ms(11))[0];
    swarm.reset_unit(0, ms(12));
    let done = actions(&mut swarm, ms(12));
    assert!(
        matches!(done[..], [Action::Cancel { id: old }, Action::Request { .. }] if old == id),
        "{done:?}"
    );
    let Action::Request { id, .. } = done[1] else {
        unreachable!()
    };
    deliver(&mut swarm, id, ms(12), ms(10));
    assert_eq!(actions(&mut swarm, ms(22)), [Action::Finished]);
}

#[test]
fn bytes_in_flight_stay_within_the_budget() {
    let config = SwarmConfig {
        max_in_flight_bytes: 5 * LEN,
        ..SwarmConfig::default()
    };
    let mut swarm = Swarm::new(config, vec![LEN; 100], Bitfield::new(100), 1);
    (0..20).for_each(|peer| join(&mut swarm, PeerKey(peer), &[], ms(0)));
    let made = requests(&mut swarm, ms(0));
    assert_eq!(made.len(), 5);
    deliver(&mut swarm, made[0].0, ms(0), ms(10));
    assert_eq!(
        requests(&mut swarm, ms(10)).len(),
        1,
        "the next request takes its share of the budget"
    );
}

#[test]
fn after_the_budget_shrinks_no_request_is_made_until_the_bytes_fit() {
    let mut swarm = swarm(100);
    (0..20).for_each(|peer| join(&mut swarm, PeerKey(peer), &[], ms(0)));
    let made = requests(&mut swarm, ms(0));
    assert!(made.len() >= 20);
    swarm.set_max_in_flight_bytes(3 * LEN);
    assert_eq!(actions(&mut swarm, ms(0)), [], "no request is cancelled");
    let left = made.len() - 3;
    for (i, (id, ..)) in made.iter().take(left).enumerate() {
        deliver(&mut swarm, *id, ms(0), ms(10));
        assert_eq!(
            requests(&mut swarm, ms(10)),
            [],
            "{i} units verified, {} in flight",
            made.len() - i - 1
        );
    }
    deliver(&mut swarm, made[left].0, ms(0), ms(11));
    assert_eq!(requests(&mut swarm, ms(11)).len(), 1, "one more request fits");
    swarm.set_max_in_flight_bytes(0);
    deliver(&mut swarm, made[left + 1].0, ms(0), ms(12));
    assert_eq!(requests(&mut swarm, ms(12)), []);
    swarm.set_max_in_flight_bytes(8 * LEN);
    assert_eq!(
        requests(&mut swarm, ms(12)).len(),
        6,
        "the blocked peers get requests"
    );
}

#[test]
fn without_any_budget_units_are_requested_one_by_one() {
    let mut swarm = swarm(5);
    swarm.set_max_in_flight_bytes(0);
    (0..4).for_each(|peer| join(&mut swarm, PeerKey(peer), &[], ms(0)));
    for unit in 0..5 {
        let made = requests(&mut swarm, ms(unit * 10));
        assert_eq!(made.len(), 1);
        deliver(&mut swarm, made[0].0, ms(unit * 10), ms(10));
    }
    assert_eq!(actions(&mut swarm, ms(50)), [Action::Finished]);
}

#[test]
fn units_larger_than_the_budget_are_requested_one_by_one() {
    let config = SwarmConfig {
        max_in_flight_bytes: 5 * LEN,
        ..SwarmConfig::default()
    };
    let mut swarm = Swarm::new(config, vec![7 * LEN; 3], Bitfield::new(3), 1);
    (0..4).for_each(|peer| join(&mut swarm, PeerKey(peer), &[], ms(0)));
    assert_eq!(requests(&mut swarm, ms(0)).len(), 1);
}

#[test]
fn a_wait_in_a_queue_does_not_deepen_the_pipeline() {
    let mut swarm = Swarm::new(SwarmConfig::default(), vec![LEN; 100], Bitfield::new(100), 1);
    join(&mut swarm, A, &[], ms(0));
    swarm.round_trip(A, ms(1));
    let (id, ..) = requests(&mut swarm, ms(0))[0];
    // The first byte after two seconds, then fast.
    (0..4).for_each(|chunk| swarm.progressed(id, LEN / 4, ms(2000 + chunk * 5)));
    assert!(swarm.verified(id, ms(2015)));
    let view = swarm.peers().next().unwrap();
    assert!(
        view.latency.unwrap() >= ms(2000) && view.pipeline_depth <= 4,
        "{view:?}"
    );
}

#[test]
fn events_that_name_unknown_peers_and_units_are_ignored() {
    let mut swarm = swarm(3);
    swarm.peer_left(A, ms(0));
    swarm.availability(A, &units(&swarm, &[0]), ms(0));
    swarm.availability_changed(A, &[0, 99], &[1], &[2], ms(0));
    swarm.peer_joined(A, ms(0));
    swarm.availability(
        A,
        &Availability {
            have: Bitfield::full(99),
            fetching: Bitfield::full(99),
        },
        ms(0),
    );
    swarm.availability_changed(A, &[0], &[], &[], ms(0));
    assert_eq!(requests(&mut swarm, ms(0)), []);
    join(&mut swarm, A, &[1], ms(0));
    swarm.availability_changed(A, &[7, u32::MAX], &[u32::MAX], &[u32::MAX, 0], ms(0));
    let (id, ..) = requests(&mut swarm, ms(0))[0];
    swarm.progressed(id, u64::MAX / 2, ms(1));
    swarm.reset_unit(u32::MAX, ms(1));
    swarm.handle_timeout(ms(0));
    swarm.check();
}
