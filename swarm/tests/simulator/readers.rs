//! Downloads that are read in order while they arrive.

use crate::{
    LINK,
    node::Spec,
    setup::Setup,
    world::{World, seconds},
};

/// Units that a reader may be ahead.
const WINDOW: u32 = 32;

fn reader(seconds_a_unit: f64) -> Spec {
    Spec {
        reads: Some((WINDOW, seconds_a_unit)),
        ..Spec::peer(LINK)
    }
}

/// Runs the world and returns the seconds until node 0 had everything.
fn run(setup: Setup, seed: u64) -> (World, f64) {
    let mut world = World::new(setup, seed);
    world.run();
    world.assert_sound(seed);
    let end = seconds(world.nodes[0].finished.expect("it finished"));
    (world, end)
}

#[test]
fn a_reader_that_keeps_up_is_about_as_fast_as_a_download() {
    for seed in 0..10 {
        let nodes = vec![
            reader(0.0),
            Spec::seed(LINK / 4.0),
            Spec::seed(LINK / 4.0),
            Spec::seed(LINK / 2.0),
        ];
        let setup = Setup::new(nodes, 400);
        let bound = setup.total() as f64 / LINK;
        let (_, end) = run(setup, seed);
        assert!(end < 1.2 * bound, "seed {seed}: {end} s, bound {bound} s");
    }
}

#[test]
fn a_slow_reader_bounds_what_is_downloaded() {
    for seed in 0..10 {
        let nodes = vec![reader(0.05), Spec::seed(LINK), Spec::seed(LINK)];
        // `World` asserts that no request is beyond the window.
        let (_, end) = run(Setup::new(nodes, 200), seed);
        let reading = 0.05 * f64::from(200 - WINDOW);
        assert!(end >= reading * 0.99, "seed {seed}: {end} s, reading {reading} s");
    }
}

#[test]
fn a_reader_finishes_although_peers_stall_flap_lie_or_refuse() {
    for seed in 0..30 {
        let nodes = vec![
            reader(0.001),
            Spec::seed(LINK / 4.0),
            Spec {
                stall: Some((0.1, 30.0)),
                ..Spec::seed(LINK)
            },
            Spec {
                flaps: Some(0.5),
                ..Spec::seed(LINK)
            },
            Spec {
                corrupt: 0.2,
                ..Spec::seed(LINK)
            },
            Spec {
                refuses: Some((0.05, 3.0)),
                ..Spec::seed(LINK)
            },
            Spec::peer(LINK),
        ];
        run(Setup::new(nodes, 200), seed);
    }
}

#[test]
fn a_stalled_peer_delays_a_reader_by_no_more_than_a_download() {
    for seed in 0..10 {
        let stalls = Spec {
            stall: Some((0.2, 60.0)),
            ..Spec::seed(LINK)
        };
        let nodes = vec![reader(0.0), Spec::seed(LINK), stalls];
        let setup = Setup::new(nodes, 400);
        let bound = setup.total() as f64 / LINK;
        let (_, end) = run(setup, seed);
        assert!(end < bound + 2.0, "seed {seed}: {end} s, bound {bound} s");
    }
}

#[test]
fn a_window_may_be_longer_than_the_file() {
    let (world, _) = run(Setup::new(vec![reader(0.001), Spec::seed(LINK)], 5), 1);
    let swarm = world.nodes[0].swarm.as_ref().expect("it downloads");
    assert!(swarm.missing().is_empty());
    let config = potluck_swarm::SwarmConfig::default();
    let have = potluck_core::bitfield::Bitfield::new(5);
    let swarm = potluck_swarm::Swarm::new(config, vec![1; 5], have, 1).in_order(WINDOW);
    assert_eq!(swarm.missing().len(), 1, "one run of units");
}
