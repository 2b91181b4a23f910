//! Crowds without a seed, whose bytes come from an origin.

use potluck_core::identity::layout::MIN_PIECE_SIZE;

use crate::{
    LINK,
    node::Spec,
    setup::Setup,
    world::{World, seconds},
};

/// An origin and peers that begin together and have nothing.
fn setup(origin: Spec, peers: usize, units: usize) -> Setup {
    let mut nodes = vec![origin];
    let peer = Spec {
        is_provisional: true,
        ..Spec::peer(LINK)
    };
    nodes.extend(vec![peer; peers]);
    Setup {
        units: vec![MIN_PIECE_SIZE; units],
        announce_interval: 0.01,
        ..Setup::new(nodes, units)
    }
}

/// Copies that the origin sent, and when the slowest was done in times of one copy over one link.
fn run(setup: Setup, seed: u64) -> (f64, f64) {
    let total = setup.total() as f64;
    let mut world = World::new(setup, seed);
    world.run();
    world.assert_sound(seed);
    let ends = world.nodes.iter().filter_map(|node| node.finished);
    let slowest = ends.map(seconds).fold(0.0, f64::max) * LINK / total;
    let copies = world.nodes[0].sent_bytes as f64 / total;
    println!("seed {seed}: the origin sent {copies:.3} copies, slowest {slowest:.3}");
    (copies, slowest)
}

#[test]
fn eight_peers_cost_the_origin_about_one_copy() {
    for seed in 0..2 {
        let (copies, slowest) = run(setup(Spec::origin(LINK), 8, 1024), seed);
        assert!(copies < 1.05 && slowest < 1.15, "seed {seed}");
    }
}

#[test]
fn an_origin_that_is_busy_costs_little_time() {
    let origin = Spec {
        slots: 12,
        refuses: Some((1.0, 0.5)),
        ..Spec::origin(LINK)
    };
    let (copies, slowest) = run(setup(origin, 8, 512), 3);
    assert!(copies < 1.1 && slowest < 2.0);
}

#[test]
fn a_slow_origin_is_the_only_limit() {
    let (copies, slowest) = run(setup(Spec::origin(LINK / 10.0), 8, 256), 6);
    assert!(copies < 1.05 && slowest < 10.0 * 1.1);
}

/// One peer and crowds of all sizes use all of its link.
#[test]
fn an_origin_that_limits_each_connection_gets_several() {
    let origin = Spec {
        request_rate: LINK / 5.0,
        ..Spec::origin(LINK)
    };
    for peers in [1, 2, 3, 8] {
        let (copies, slowest) = run(setup(origin.clone(), peers, 512), 7);
        assert!(copies < 1.1 && slowest < 1.25, "{peers} peers");
    }
}

/// 429: it takes few requests, and says when to come again.
#[test]
fn an_origin_that_takes_few_requests_is_asked_again() {
    let origin = Spec {
        slots: 4,
        ..Spec::origin(LINK)
    };
    let mut setup = setup(origin, 8, 256);
    setup.retry_after = Some(std::time::Duration::from_millis(200));
    let (copies, slowest) = run(setup, 8);
    assert!(copies < 1.1 && slowest < 2.0);
}

/// 5xx, for a while and for every request.
#[test]
fn an_origin_that_fails_for_a_while_costs_that_while() {
    let origin = Spec {
        refuses: Some((0.5, 2.0)),
        ..Spec::origin(LINK)
    };
    let setup = setup(origin, 8, 512);
    let one_copy = setup.total() as f64 / LINK;
    let (copies, slowest) = run(setup, 9);
    assert!(copies < 1.1 && slowest < 1.3 + 4.0 / one_copy);
}

#[test]
fn requests_that_break_off_are_repeated() {
    let origin = Spec {
        cuts: 0.1,
        ..Spec::origin(LINK)
    };
    let (copies, slowest) = run(setup(origin, 8, 512), 10);
    assert!(copies < 1.3 && slowest < 2.0);
}

#[test]
fn peers_that_die_leave_their_units_to_the_origin() {
    let mut setup = setup(Spec::origin(LINK), 6, 256);
    setup.nodes[1].dies = Some(1.5);
    setup.nodes[2].dies = Some(2.0);
    let (copies, _) = run(setup, 4);
    assert!(copies < 1.6);
}

/// A peer that claims to have everything and sends nothing must not keep the origin waiting.
#[test]
fn false_claims_do_not_stop_a_download() {
    let mut setup = setup(Spec::origin(LINK), 3, 64);
    setup.nodes.push(Spec {
        downloads: false,
        false_claims: 1.0,
        start: crate::node::Start::Nothing,
        ..Spec::peer(LINK)
    });
    run(setup, 5);
}

/// Readers begin together at the first unit. What one fetches, the others learn only later.
#[test]
fn readers_that_begin_together_divide_the_work() {
    for (peers, seed) in [(2, 6), (2, 7), (8, 8)] {
        let mut setup = setup(Spec::origin(LINK), peers, 1024);
        for node in &mut setup.nodes[1..] {
            node.reads = Some((2048, 0.0));
        }
        setup.announce_interval = 0.03;
        let (copies, slowest) = run(setup, seed);
        assert!(copies < 1.15 && slowest < 1.3, "{peers} readers, seed {seed}");
    }
}
