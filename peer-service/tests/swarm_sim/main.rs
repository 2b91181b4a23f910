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
    if !world.is_done() {
        for (i, n) in world
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, n)| n.swarm.is_some() && n.finished.is_none())
            .take(2)
        {
            let s = n.swarm.as_ref().unwrap();
            println!(
                "node {i} have {} of {} stuck {:?} timeout {:?} at {:?}",
                s.have().count(),
                s.have().len(),
                s.stuck_reason(),
                s.poll_timeout(),
                world.event_count
            );
            println!("{:?}", s.missing());
            for v in s.peers().filter(|v| v.requests > 0 || v.useful > 0).take(6) {
                println!("   {v:?}");
            }
        }
    }
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

#[test]
#[ignore = "experiment"]
fn experiment() {
    let args: Vec<f64> = std::env::var("EXP")
        .unwrap()
        .split(',')
        .map(|x| x.parse().unwrap())
        .collect();
    let (peers, units, neigh, slots, tells, crowd_peers, tell_every, delay, seeds) = (
        args[0] as usize,
        args[1] as u32,
        args[2] as usize,
        args[3] as usize,
        args[4] > 0.0,
        args[5] as u32,
        args[6],
        args[7],
        args[8] as u64,
    );
    for seed in 0..seeds {
        let start = std::time::Instant::now();
        let mut s = flash(peers, units);
        if neigh > 0 {
            s.neighbours = Some(neigh);
        }
        for n in &mut s.nodes {
            if slots > 0 {
                n.slots = slots;
            }
            n.tells_uploads = tells && n.start == node::Start::All;
        }
        s.config.crowd_peers = crowd_peers;
        s.tell_every = tell_every;
        s.delay = delay;
        let Crowd {
            slowest,
            median,
            seed_sent,
            duplicates,
            events,
        } = crowd(s, seed);
        println!(
            "peers {peers} units {units} neigh {neigh} slots {slots} tells {tells} cp {crowd_peers} te {tell_every} delay {delay} seed {seed}: slowest {slowest:.3} median {median:.3} seed sent {seed_sent:.3} dup {duplicates:.4} events {events} took {:?}",
            start.elapsed()
        );
    }
}
