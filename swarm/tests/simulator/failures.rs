//! Providers that are slow, silent, dishonest, dying, flapping or busy, and random worlds with all
//! of them.

use potluck_core::model::{Labels, MachineLabel};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::{
    LINK, MIB,
    node::{Spec, Start},
    seeds,
    setup::Setup,
    world::World,
};

/// One downloader with a fast downlink and these providers. Returns the world after the download,
/// and its duration in seconds.
fn fetch(providers: Vec<Spec>, units: usize, seed: u64) -> (World, f64) {
    let mut nodes = vec![Spec::peer(10.0 * LINK)];
    nodes.extend(providers);
    let mut world = World::new(Setup::new(nodes, units), seed);
    let took = world.run();
    world.assert_sound(seed);
    (world, took)
}

#[test]
fn a_provider_a_hundred_times_slower_costs_little() {
    for seed in 0..5 {
        let (_, without) = fetch(vec![Spec::seed(LINK); 3], 256, seed);
        let mut providers = vec![Spec::seed(LINK); 3];
        providers.push(Spec::seed(LINK / 100.0));
        let (world, with) = fetch(providers, 256, seed);
        println!("seed {seed}: {without:.3} s without, {with:.3} s with");
        assert!(with < without * 1.05, "seed {seed}: {with} against {without}");
        assert!(
            world.duplicates(0) < 4.0 * 0.25 * MIB,
            "seed {seed}: {} duplicates",
            world.duplicates(0)
        );
    }
}

#[test]
fn a_provider_that_stalls_costs_less_than_two_seconds() {
    for seed in 0..5 {
        let mut providers = vec![Spec::seed(LINK); 4];
        providers[0].stall = Some((0.5, 1e6));
        let (_, took) = fetch(providers, 512, seed);
        // Four providers for half a second, then three.
        let bound = (512.0 * 0.25 * MIB - 0.5 * 4.0 * LINK) / (3.0 * LINK) + 0.5;
        println!("seed {seed}: {took:.3} s, bound {bound:.3} s");
        assert!(took < bound + 0.6, "seed {seed}: {took} against {bound}");
    }
}

#[test]
fn misbehaving_peers_are_banned_and_cost_little() {
    for seed in 0..5 {
        let (_, honest) = fetch(vec![Spec::seed(LINK); 4], 512, seed);
        let mut providers = vec![Spec::seed(LINK); 8];
        providers[4..]
            .iter_mut()
            .for_each(|provider| provider.corrupt = 0.05);
        let (world, took) = fetch(providers, 512, seed);
        println!(
            "seed {seed}: {took:.3} s, {} banned, {honest:.3} s with the honest alone",
            world.nodes[0].banned.len()
        );
        assert!(took < honest * 1.1, "seed {seed}: {took} against {honest}");
    }
}

/// A provider that hashes its file again refuses for a moment and announces nothing, although its
/// earlier announcements hold again.
#[test]
fn the_only_provider_refuses_for_a_moment() {
    for seed in 0..20 {
        for lasts in [0.001, 0.05, 0.5, 5.0, 60.0] {
            let mut provider = Spec::seed(LINK);
            provider.refuses = Some((0.01, lasts));
            let (world, took) = fetch(vec![provider], 64, seed);
            let bound = 64.0 * 0.25 * MIB / LINK + lasts;
            // The last delay may have been as long as all earlier ones together, and a little more.
            assert!(
                took < bound + 0.5 + 1.5 * lasts,
                "seed {seed}: {took} s after {lasts} s"
            );
            let requests = world.nodes[0].requests_made;
            assert!(
                requests < 64 * 12,
                "seed {seed}: {requests} requests in {lasts} s"
            );
        }
    }
}

/// The link of the only provider damages all bytes for a while.
#[test]
fn the_only_provider_is_readmitted_after_its_link_corrupted() {
    for seed in 0..20 {
        for (providers, lasts) in [(1, 12.0), (3, 12.0), (1, 100.0)] {
            let mut provider = Spec::seed(LINK);
            (provider.corrupt, provider.corrupts_until) = (1.0, lasts);
            let (world, took) = fetch(vec![provider; providers], 64, seed);
            // Delays of 30, 60 and 120 s, each up to a quarter longer.
            let max = if lasts < 20.0 { 40.0 } else { 265.0 };
            assert!(took < max, "seed {seed}: {took} s");
            let swarm = world.nodes[0].swarm.as_ref().unwrap();
            let corrupt = swarm.counters().corrupt_bytes as f64;
            assert!(
                corrupt <= 8.0 * 0.25 * MIB,
                "seed {seed}: {corrupt} corrupt bytes"
            );
        }
    }
}

/// A dishonest peer gets no request while another provider serves, however slow and however long.
#[test]
fn a_banned_peer_gets_no_request_while_another_serves() {
    let mut misbehaving = Spec::seed(LINK);
    misbehaving.corrupt = 1.0;
    let (world, took) = fetch(vec![misbehaving, Spec::seed(LINK / 500.0)], 32, 1);
    assert!(took > 100.0, "{took} s");
    let swarm = world.nodes[0].swarm.as_ref().unwrap();
    let corrupt = swarm.counters().corrupt_bytes as f64;
    assert!(corrupt <= 0.25 * MIB, "{corrupt} corrupt bytes");
}

/// A partial peer that makes no progress is not a crowd: deeper pipelines at others take nothing
/// from it.
#[test]
fn an_idle_partial_peer_costs_at_most_a_second() {
    for (seed, delay) in [(0, 0.0005), (1, 0.005), (2, 0.02)] {
        let took = |idle: bool| {
            let mut nodes = vec![Spec::peer(100.0 * LINK)];
            nodes.extend(vec![Spec::seed(10.0 * LINK); 4]);
            let mut stuck = Spec::seed(LINK);
            stuck.start = Start::Share(0.0);
            nodes.extend(idle.then_some(stuck));
            let mut setup = Setup::new(nodes, 16_384);
            setup.delay = delay;
            let mut world = World::new(setup, seed);
            let took = world.run();
            world.assert_sound(seed);
            took
        };
        let (without, with) = (took(false), took(true));
        println!("delay {delay}: {without:.3} s without, {with:.3} s with");
        // It may count as a crowd until it was silent for a second.
        assert!(with < without + 1.05, "delay {delay}: {with} against {without}");
    }
}

#[test]
fn one_slow_provider_is_enough() {
    let (_, took) = fetch(vec![Spec::seed(LINK / 1000.0)], 4, 1);
    assert!(took < 1.05 * MIB / (LINK / 1000.0) + 0.1, "{took}");
}

#[test]
fn one_unit_is_not_fetched_twice() {
    for seed in 0..20 {
        let (world, took) = fetch(vec![Spec::seed(LINK); 8], 1, seed);
        assert!(took < 0.03 && world.duplicates(0) == 0.0, "seed {seed}: {took} s");
    }
}

#[test]
fn one_unit_does_not_wait_for_a_stalled_provider() {
    for seed in 0..20 {
        let mut providers = vec![Spec::seed(LINK); 4];
        providers[..3]
            .iter_mut()
            .for_each(|provider| provider.stall = Some((0.0, 1e6)));
        let (_, took) = fetch(providers, 1, seed);
        assert!(took < 5.0, "seed {seed}: {took} s");
    }
}

/// A provider with a random fault.
fn random_peer(rng: &mut Xoshiro256PlusPlus) -> Spec {
    let downloads = rng.random_bool(0.4);
    let rate = LINK * rng.random_range(0.02..2.0);
    let mut spec = if downloads {
        Spec::peer(rate)
    } else {
        Spec::seed(rate)
    };
    if !spec.downloads && rng.random_bool(0.5) {
        spec.start = Start::Share(rng.random_range(0.1..0.9));
    }
    spec.joins = if rng.random_bool(0.3) {
        rng.random_range(0.0..3.0)
    } else {
        0.0
    };
    match rng.random_range(0..8) {
        0 => spec.corrupt = rng.random_range(0.01..1.0),
        1 => spec.false_claims = rng.random_range(0.1..1.0),
        2 => spec.stall = Some((rng.random_range(0.0..2.0), rng.random_range(0.1..60.0))),
        3 => spec.dies = Some(spec.joins + rng.random_range(0.1..3.0)),
        // Fast enough that a unit fits in a visit.
        4 => (spec.flaps, spec.up, spec.down) = (Some(rng.random_range(0.5..3.0)), LINK, LINK),
        5 => spec.slots = rng.random_range(0..3),
        6 => (spec.up, spec.down) = (LINK / 200.0, LINK),
        _ => {}
    }
    spec
}

/// Gives the nodes of every second world zones and racks, which some do not name.
fn label(nodes: &mut [Spec], seed: u64) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x20_e5);
    for node in nodes.iter_mut().filter(|_| seed % 2 == 1) {
        let mut name = |key: &str| {
            let name = rng.random_range(0..3);
            let label = format!("{key}={name}").parse::<MachineLabel>();
            label.ok().filter(|_| name > 0)
        };
        let list: Vec<MachineLabel> = [name("zone"), name("rack")].into_iter().flatten().collect();
        node.labels = Labels::of(&list).expect("each key once");
    }
}

/// One honest complete provider is enough for every downloader to verify every unit in bounded
/// time, whatever the others do.
#[test]
fn every_world_with_an_honest_provider_finishes() {
    for seed in seeds(80) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut nodes = vec![Spec::peer(LINK), Spec::seed(LINK)];
        let others = rng.random_range(0..10);
        nodes.extend((0..others).map(|_| random_peer(&mut rng)));
        label(&mut nodes, seed);
        let mut setup = Setup::new(nodes, rng.random_range(1..64));
        setup.delay = rng.random_range(0.0001..0.05);
        setup.limit = 600.0;
        if rng.random_bool(0.3) {
            setup.config.max_in_flight_bytes = 4 * setup.longest_unit();
        } else if rng.random_bool(0.3) {
            setup.budgets = Some((4, 32));
        }
        let downloaders = setup.nodes.iter().filter(|node| node.downloads).count() as f64;
        let bound = setup.total() as f64 / LINK;
        let mut world = World::new(setup, seed);
        world.run();
        world.assert_sound(seed);
        // The honest pair: at worst the seed serves every peer alone, and silence, back-off and
        // joining cost a few seconds.
        let took = world.nodes[0].finished.map(crate::world::seconds).unwrap();
        assert!(
            took < bound * downloaders * 1.5 + 6.0,
            "seed {seed}: {took} s, alone {bound} s"
        );
    }
}

/// Every fault, also at the only complete provider, but for a limited time: no download may wait
/// forever for bytes that are available, nor send requests without pause.
#[test]
fn every_world_whose_provider_recovers_finishes() {
    for seed in seeds(300) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x5eed);
        let mut provider = Spec::seed(LINK);
        let period = |rng: &mut Xoshiro256PlusPlus| {
            let start = rng.random_range(0.0..0.5);
            (start, rng.random_range(0.001..20.0))
        };
        if rng.random_bool(0.5) {
            provider.refuses = Some(period(&mut rng));
        }
        if rng.random_bool(0.5) {
            (provider.corrupt, provider.corrupts_until) =
                (rng.random_range(0.1..1.0), rng.random_range(0.1..12.0));
        }
        if rng.random_bool(0.3) {
            provider.stall = Some(period(&mut rng));
        }
        match rng.random_range(0..4) {
            0 => provider.flaps = Some(rng.random_range(1.0..3.0)),
            1 => provider.slots = 1,
            _ => {}
        }
        let mut nodes = vec![Spec::peer(LINK), provider];
        let others = rng.random_range(0..4);
        nodes.extend((0..others).map(|_| random_peer(&mut rng)));
        label(&mut nodes, seed);
        let mut setup = Setup::new(nodes, rng.random_range(1..32));
        setup.delay = rng.random_range(0.0001..0.05);
        setup.limit = 1800.0;
        let units = u64::from(setup.unit_count());
        let mut world = World::new(setup, seed);
        let took = world.run();
        world.assert_sound(seed);
        for (index, node) in world
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.swarm.is_some())
        {
            // Each unit of each peer once or twice, plus retries after growing delays.
            let max = 8 * units * world.nodes.len() as u64 + (20.0 * took) as u64;
            assert!(
                node.requests_made <= max,
                "seed {seed}: node {index} made {} requests",
                node.requests_made
            );
        }
    }
}

/// A download whose peers all leave waits without running timers continuously, and continues when
/// one returns.
#[test]
fn a_download_continues_when_a_provider_returns() {
    let mut late = Spec::seed(LINK);
    late.joins = 30.0;
    let mut early = Spec::seed(LINK);
    early.dies = Some(0.2);
    let (world, took) = fetch(vec![early, late], 64, 1);
    assert!(took < 32.0, "{took}");
    assert!(world.event_count < 5_000, "{} events", world.event_count);
}
