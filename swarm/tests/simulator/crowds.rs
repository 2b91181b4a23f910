//! Crowds that start together from one seed, compared with the bound: no peer can finish before the
//! seed has sent the file once.

use std::{sync::Arc, time::Duration};

use potluck_core::{
    FileId,
    collection::{
        manifest::{EntryContent, Manifest, ManifestEntry},
        path::RelPath,
        plan::Plan,
    },
};

use crate::{
    LINK,
    node::Spec,
    setup::Setup,
    world::{World, seconds},
};

const KIB: u64 = 1024;

/// The result of a crowd, relative to the time and bytes of one copy of the file over one link.
struct Crowd {
    slowest: f64,
    median: f64,
    seed_sent: f64,
    duplicates: f64,
}

fn run(setup: Setup, seed: u64) -> Crowd {
    let total = setup.total() as f64;
    let peers = setup.nodes.len() - 1;
    let mut world = World::new(setup, seed);
    world.run();
    world.assert_sound(seed);
    let mut ends: Vec<f64> = world
        .nodes
        .iter()
        .filter_map(|node| node.finished)
        .map(seconds)
        .collect();
    ends.sort_by(f64::total_cmp);
    let swarms = world.nodes.iter().filter_map(|node| node.swarm.as_ref());
    let duplicates: u64 = swarms.map(|swarm| swarm.counters().duplicate_bytes).sum();
    let crowd = Crowd {
        slowest: ends[ends.len() - 1] * LINK / total,
        median: ends[ends.len() / 2] * LINK / total,
        seed_sent: world.nodes[0].sent_bytes as f64 / total,
        duplicates: duplicates as f64 / total / ends.len() as f64,
    };
    let Crowd {
        slowest,
        median,
        seed_sent,
        duplicates,
    } = crowd;
    println!(
        "{peers} peers, seed {seed}: slowest {slowest:.3}, median {median:.3}, \
         sent {seed_sent:.3}, duplicates {duplicates:.4}, {} events",
        world.event_count
    );
    crowd
}

fn flash(peers: usize, units: usize) -> Setup {
    let mut nodes = vec![Spec::seed(LINK)];
    nodes.extend(vec![Spec::peer(LINK); peers]);
    Setup::new(nodes, units)
}

/// A crowd too large for every peer to know every other, with the limits of a real peer: four
/// parallel uploads, few waiting requests, the delay of announcements that a real peer has with
/// this many watchers, and a seed that announces the units that it sends.
fn large(peers: usize) -> Setup {
    let mut setup = Setup {
        units: vec![128 * KIB; 512],
        delay: 0.002,
        streams: 4,
        announce_interval: 0.1,
        seed_announce_interval: 0.25,
        neighbours: Some(50),
        max_large: 3,
        ..flash(peers, 512)
    };
    setup.nodes.iter_mut().for_each(|node| node.max_waiting = 12);
    setup.nodes[0].announces_uploads = true;
    setup
}

#[test]
fn eight_peers_take_little_longer_than_one() {
    for seed in 0..2 {
        let crowd = run(flash(8, 256), seed);
        assert!(crowd.slowest < 1.08 && crowd.seed_sent < 1.08, "seed {seed}");
        assert!(crowd.duplicates < 0.01, "seed {seed}");
    }
}

#[test]
fn sixteen_peers_take_little_longer_than_one() {
    let crowd = run(flash(16, 256), 1);
    assert!(crowd.slowest < 1.14 && crowd.median < 1.13 && crowd.seed_sent < 1.12);
}

/// At the end each peer still needs its part of the last units: smaller units take less time.
#[test]
fn smaller_units_spread_faster() {
    let setup = Setup {
        units: vec![128 * KIB; 512],
        ..flash(16, 512)
    };
    let crowd = run(setup, 1);
    assert!(crowd.slowest < 1.08 && crowd.seed_sent < 1.06);
}

/// An uplink that sends a few units at a time, first come, first served, completes the first copies
/// sooner.
#[test]
fn uplinks_that_serve_in_order_spread_faster() {
    let setup = Setup {
        streams: 4,
        ..flash(16, 256)
    };
    let crowd = run(setup, 1);
    assert!(crowd.slowest < 1.11 && crowd.median < 1.09 && crowd.seed_sent < 1.09);
}

#[test]
fn a_link_with_delay_is_still_filled() {
    let crowd = run(
        Setup {
            delay: 0.02,
            ..flash(8, 256)
        },
        1,
    );
    assert!(crowd.slowest < 1.15);
}

#[test]
fn late_peers_are_served_by_earlier_ones() {
    let mut setup = flash(8, 128);
    setup
        .nodes
        .iter_mut()
        .enumerate()
        .skip(1)
        .for_each(|(index, node)| node.joins = index as f64 * 0.3);
    // The bound of the last peer to join: its join time plus one file.
    let crowd = run(setup, 1);
    assert!(crowd.slowest < 2.4 * LINK / (128.0 * 262_144.0) + 1.15);
}

#[test]
#[ignore = "large"]
fn a_hundred_peers() {
    let crowd = run(large(100), 1);
    assert!(crowd.slowest < 1.2 && crowd.seed_sent < 1.18);
}

/// If every request may wait and the seed announces nothing, peers that do not know each other
/// request the same units and wait long for them.
#[test]
fn hints_and_few_waiting_requests_spread_faster() {
    let few = run(large(64), 1);
    let mut setup = large(64);
    setup
        .nodes
        .iter_mut()
        .for_each(|node| node.max_waiting = usize::MAX);
    let all = run(setup.clone(), 1);
    setup.nodes[0].announces_uploads = false;
    let without_hints = run(setup, 1);
    assert!(few.slowest < 1.17 && few.slowest < all.slowest && all.median < without_hints.median);
}

/// Large units, as of a file of 16 GiB: sent in parallel all of them complete late, and no peer can
/// pass on an incomplete unit.
#[test]
fn large_units_are_sent_a_few_at_a_time() {
    let few = Setup {
        units: vec![4096 * KIB; 16],
        streams: usize::MAX,
        announce_interval: 0.03,
        seed_announce_interval: 0.03,
        ..large(16)
    };
    let many = Setup {
        max_large: usize::MAX,
        ..few.clone()
    };
    let (few, many) = (run(few, 1), run(many, 1));
    assert!(few.slowest < 2.1 && few.slowest < 0.8 * many.slowest);
    assert!(few.seed_sent < many.seed_sent);
}

/// The units of a folder with files of these sizes.
fn units_of(files: &[u64]) -> Vec<u64> {
    let paths: Vec<String> = (0..files.len()).map(|file| format!("{file:06}")).collect();
    let entries = paths.iter().zip(files).enumerate().map(|(file, (path, &size))| {
        let mut id = FileId([1; 32]);
        id.0[..8].copy_from_slice(&file.to_le_bytes());
        ManifestEntry {
            path: RelPath::parse(path).expect("digits"),
            content: EntryContent::File {
                id,
                size,
                executable: false,
            },
        }
    });
    let plan = Plan::of_collection(&Arc::new(Manifest::new(entries).expect("sorted files")));
    (0..plan.unit_count()).map(|unit| plan.unit_len(unit)).collect()
}

/// The folders of `bench/swarm`, with the limits of a real peer. Bundles of 4 MiB took 1.3 to
/// 1.5 times the bound, and a file of the same size 1.03.
#[test]
fn folders_spread_as_fast_as_a_file() {
    let (kib, mib) = (|n: u64| n << 10, |n: u64| n << 20);
    let small = (1..=2000_u64).map(|n| (mib(1) * n.pow(3) / (8 * 1988_u64.pow(3))).max(1));
    let mixed = [
        vec![mib(16); 2],
        vec![mib(4); 4],
        vec![kib(192); 64],
        vec![kib(16); 256],
    ];
    let model = [vec![mib(15); 4], vec![mib(2), mib(1)], vec![kib(50); 20]];
    for (name, files) in [
        ("mixed", mixed.concat()),
        ("model", model.concat()),
        ("small", small.collect()),
    ] {
        let mut setup = Setup {
            units: units_of(&files),
            delay: 0.001,
            streams: 4,
            announce_interval: 0.016,
            seed_announce_interval: 0.016,
            max_large: 3,
            retry_after: Some(Duration::from_millis(250)),
            ..flash(8, 0)
        };
        setup.nodes.iter_mut().for_each(|node| node.max_waiting = 12);
        setup.nodes[0].announces_uploads = true;
        let crowd = run(setup, 1);
        assert!(crowd.slowest < 1.05 && crowd.seed_sent < 1.05, "{name}");
    }
}

#[test]
#[ignore = "large"]
fn a_thousand_peers() {
    let crowd = run(large(1000), 1);
    assert!(crowd.slowest < 1.3);
}

/// Each peer chooses 24 others. More neighbours cause more announcements and no faster spread.
#[test]
fn a_few_neighbours_are_enough() {
    let setup = |neighbours| Setup {
        units: vec![128 * KIB; 512],
        streams: 4,
        announce_interval: 0.1,
        neighbours,
        ..flash(64, 512)
    };
    let (few, all) = (run(setup(Some(48)), 1), run(setup(None), 1));
    assert!(few.slowest < 1.4 && few.slowest < all.slowest && few.seed_sent < all.seed_sent);
}
