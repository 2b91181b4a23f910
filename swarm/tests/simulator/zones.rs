//! Crowds in several zones: bytes between zones cost money.

use potluck_core::model::{Labels, MachineLabel};

use crate::{
    LINK,
    node::{Spec, Start},
    setup::Setup,
    world::{World, seconds},
};

/// The result of a crowd, in times or bytes of one copy over one link.
struct Outcome {
    slowest: f64,
    /// Copies that went between zones, and between racks of any zone.
    between_zones: f64,
    between_racks: f64,
}

fn in_zone(zone: &str, rack: Option<&str>, spec: Spec) -> Spec {
    let rack = rack.map(|rack| format!("rack={rack}"));
    let words = [Some(format!("zone={zone}")), rack].into_iter().flatten();
    let list: Vec<MachineLabel> = words.map(|word| word.parse().expect("it is a label")).collect();
    let labels = Labels::of(&list).expect("each key once");
    Spec { labels, ..spec }
}

/// A seed in zone a, and four peers in each of two zones that begin together.
fn two_zones(units: usize) -> Setup {
    let mut nodes = vec![in_zone("a", None, Spec::seed(LINK))];
    for zone in ["a", "b"] {
        nodes.extend(vec![in_zone(zone, None, Spec::peer(LINK)); 4]);
    }
    Setup::new(nodes, units)
}

fn run(setup: Setup, seed: u64) -> Outcome {
    let total = setup.total() as f64;
    let uses_labels = setup.uses_labels;
    let mut world = World::new(setup, seed);
    world.run();
    world.assert_sound(seed);
    let ends = world.nodes.iter().filter_map(|node| node.finished);
    let slowest = ends.map(seconds).fold(0.0, f64::max);
    let between_zones = world.nodes.iter().map(|node| node.sent_to_zones).sum::<u64>() as f64;
    let between_racks = world.nodes.iter().map(|node| node.sent_to_racks).sum::<u64>() as f64;
    let outcome = Outcome {
        slowest: slowest * LINK / total,
        between_zones: between_zones / total,
        between_racks: between_racks / total,
    };
    println!(
        "seed {seed}, labels {uses_labels}: slowest {:.3} ({slowest:.2} s), between zones {:.3}, \
         racks {:.3} copies",
        outcome.slowest, outcome.between_zones, outcome.between_racks
    );
    outcome
}

/// The same world without labels and with them.
fn compare(setup: &Setup, seed: u64) -> (Outcome, Outcome) {
    let without = Setup {
        uses_labels: false,
        ..setup.clone()
    };
    (run(without, seed), run(setup.clone(), seed))
}

#[test]
fn two_zones_exchange_about_two_copies_and_are_as_fast() {
    for (units, seed) in [(64, 0), (64, 1), (256, 2)] {
        check_two_zones(units, seed);
    }
}

#[test]
#[ignore = "large"]
fn two_zones_exchange_a_large_file() {
    check_two_zones(2048, 3);
}

fn check_two_zones(units: usize, seed: u64) {
    let (without, with) = compare(&two_zones(units), seed);
    assert!(without.between_zones > 4.0, "half of eight copies without labels");
    assert!(with.between_zones < 2.3, "{units} units, seed {seed}");
    assert!(with.slowest < 1.1 * without.slowest, "{units} units, seed {seed}");
}

/// Racks of one zone are like zones of one region.
#[test]
fn racks_of_a_zone_exchange_little_more_than_a_copy_each() {
    let mut nodes = vec![in_zone("a", Some("1"), Spec::seed(LINK))];
    for rack in ["1", "2"] {
        nodes.extend(vec![in_zone("a", Some(rack), Spec::peer(LINK)); 4]);
    }
    let (without, with) = compare(&Setup::new(nodes, 128), 4);
    assert!(without.between_racks > 4.0 && with.between_racks < 2.3);
    assert!(with.slowest < 1.1 * without.slowest && with.between_zones == 0.0);
}

/// A machine whose zone has what it needs hardly costs the other zone anything.
#[test]
fn a_zone_with_fast_seeds_leaves_the_other_alone() {
    let peer = |zone| in_zone(zone, None, Spec::seed(LINK));
    let nodes = vec![
        in_zone("b", None, Spec::peer(2.0 * LINK)),
        peer("b"),
        peer("b"),
        peer("a"),
        peer("a"),
    ];
    let (without, with) = compare(&Setup::new(nodes, 2048), 5);
    // What crosses is that of the trials, 2 and 6 seconds after the start.
    assert!(without.between_zones > 0.4 && with.between_zones < 0.06);
    assert!(with.slowest < 1.02 * without.slowest);
}

/// A download in zone b, whose only holder `near` is, with a seed in zone a.
fn with_near(near: Spec, units: usize) -> Setup {
    let nodes = vec![
        in_zone("b", None, Spec::peer(LINK)),
        in_zone("b", None, near),
        in_zone("a", None, Spec::seed(LINK)),
    ];
    Setup::new(nodes, units)
}

#[test]
fn a_zone_whose_only_holder_is_slow_gets_the_rest_from_elsewhere() {
    for (seed, slower) in [(0, 2.0), (1, 20.0), (2, 1000.0)] {
        let setup = with_near(Spec::seed(LINK / slower), 1024);
        let total = setup.total() as f64 / LINK;
        let (without, with) = compare(&setup, seed);
        // The time to notice it, and to check it again now and then.
        let allowed = without.slowest * 1.1 + 3.5 / total;
        assert!(with.slowest < allowed, "{slower} times slower: {allowed}");
    }
}

/// The near peer claims to have everything, and is silent, refuses, or sends wrong bytes.
#[test]
fn a_zone_whose_only_holder_lies_does_not_wait_for_it() {
    let silent = Spec {
        stall: Some((0.0, 1e6)),
        ..Spec::seed(LINK)
    };
    let refusing = Spec {
        refuses: Some((0.0, 1e6)),
        ..Spec::seed(LINK)
    };
    let wrong = Spec {
        corrupt: 1.0,
        ..Spec::seed(LINK)
    };
    let some = Spec {
        false_claims: 1.0,
        start: Start::Share(0.3),
        ..Spec::seed(LINK)
    };
    for (seed, near) in [(0, silent), (1, refusing), (2, wrong), (3, some)] {
        let setup = with_near(near, 256);
        let total = setup.total() as f64 / LINK;
        let (without, with) = compare(&setup, seed);
        let allowed = without.slowest * 1.1 + 2.0 / total;
        assert!(with.slowest < allowed, "seed {seed}: {allowed}");
    }
}

/// A holder of some units is enough for these, and the others come from elsewhere at once.
#[test]
fn what_a_zone_lacks_comes_from_elsewhere_at_once() {
    let near = Spec {
        start: Start::Share(0.5),
        ..Spec::seed(LINK)
    };
    let (without, with) = compare(&with_near(near, 512), 6);
    assert!(with.slowest < 1.05 * without.slowest);
    assert!(with.between_zones < 0.6);
}

/// Peers of the zone that fetch everything and never send any of it.
#[test]
fn a_zone_of_peers_that_only_promise_does_not_wait() {
    let promise = Spec {
        up: 1.0,
        down: LINK / 1000.0,
        ..Spec::peer(LINK)
    };
    let mut setup = with_near(promise.clone(), 256);
    setup.nodes.insert(2, in_zone("b", None, promise));
    // Only the first is waited for.
    setup.nodes[1].dies = Some(1e6);
    setup.nodes[2].dies = Some(1e6);
    let total = setup.total() as f64 / LINK;
    let (without, with) = compare(&setup, 7);
    let allowed = without.slowest * 1.1 + 2.0 / total;
    assert!(with.slowest < allowed, "{allowed}");
}
