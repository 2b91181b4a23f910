//! The swarm's state machine in a simulated world: see [`world`].

mod node;
mod world;

use node::Spec;
use world::{Setup, World, seconds};

const LINK: f64 = 12_500_000.0;

struct Crowd {
    slowest: f64,
    median: f64,
    seed_sent: f64,
    duplicates: f64,
    events: u64,
}

fn crowd(setup: Setup, seed: u64) -> Crowd {
    let total = setup.total() as f64;
    let bound = total / LINK;
    let mut world = World::new(setup, seed);
    world.run();
    assert!(world.is_done(), "seed {seed}: not finished");
    let mut ends: Vec<f64> = world
        .nodes
        .iter()
        .filter_map(|node| node.finished)
        .map(seconds)
        .collect();
    ends.sort_by(f64::total_cmp);
    let duplicates: u64 = world
        .nodes
        .iter()
        .filter_map(|node| node.swarm.as_ref())
        .map(|swarm| swarm.counters().duplicate_bytes)
        .sum();
    Crowd {
        slowest: ends[ends.len() - 1] / bound,
        median: ends[ends.len() / 2] / bound,
        seed_sent: world.nodes[0].sent_bytes as f64 / total,
        duplicates: duplicates as f64 / total / ends.len() as f64,
        events: world.event_count,
    }
}

fn flash(peers: usize, units: u32) -> Setup {
    let mut nodes = vec![Spec::seed(LINK)];
    nodes.extend(vec![Spec::peer(LINK); peers]);
    Setup::new(nodes, units)
}

#[test]
fn flash_crowd() {
    for peers in [8, 16] {
        for seed in 0..2 {
            let start = std::time::Instant::now();
            let Crowd {
                slowest,
                median,
                seed_sent,
                duplicates,
                events,
            } = crowd(flash(peers, 256), seed);
            println!(
                "{peers} peers seed {seed}: slowest {slowest:.3} median {median:.3} seed sent {seed_sent:.3} dup {duplicates:.4} events {events} took {:?}",
                start.elapsed()
            );
        }
    }
}
