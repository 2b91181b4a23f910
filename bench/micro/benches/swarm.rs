//! Cost of scheduling per unit, for growing files and crowds: a whole download without any bytes.

use std::{collections::VecDeque, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use potluck_core::{availability::Availability, bitfield::Bitfield};
use potluck_swarm::{Action, PeerKey, Swarm, SwarmConfig};

const UNIT: u64 = 256 * 1024;

/// A swarm in which complete peers have joined.
fn swarm(units: u32, peers: u64) -> Swarm {
    let mut swarm = Swarm::new(
        SwarmConfig::default(),
        vec![UNIT; units as usize],
        Bitfield::new(units),
        7,
    );
    let all = Availability {
        have: Bitfield::full(units),
        fetching: Bitfield::new(units),
    };
    for peer in (0..peers).map(PeerKey) {
        swarm.peer_joined(peer, Duration::ZERO);
        swarm.availability(peer, &all, Duration::ZERO);
    }
    swarm
}

/// Downloads everything; a unit completes every 100 microseconds.
fn download(swarm: &mut Swarm) {
    let mut now = Duration::ZERO;
    let mut open = VecDeque::new();
    loop {
        while let Some(action) = swarm.poll_action(now) {
            match action {
                Action::Request { id, .. } => open.push_back(id),
                Action::Cancel { id } => open.retain(|open| *open != id),
                Action::Finished => return,
                Action::Ban { .. } | Action::Forget { .. } | Action::Readmit { .. } => {}
            }
        }
        now += Duration::from_micros(100);
        match open.pop_front() {
            Some(id) => {
                swarm.progressed(id, UNIT, now);
                swarm.verified(id, now);
            }
            None => swarm.handle_timeout(now),
        }
    }
}

fn growth(c: &mut Criterion) {
    let mut group = c.benchmark_group("a unit");
    group.sample_size(10);
    for (units, peers) in [
        (1_000, 16),
        (4_000, 16),
        (16_000, 16),
        (64_000, 16),
        (4_000, 1),
        (4_000, 4),
        (4_000, 64),
        (4_000, 256),
    ] {
        group.throughput(Throughput::Elements(units.into()));
        group.bench_function(
            BenchmarkId::new(format!("{units} units"), format!("{peers} peers")),
            |b| {
                b.iter_batched_ref(|| swarm(units, peers), download, BatchSize::LargeInput);
            },
        );
    }
    group.finish();
}

criterion_group!(benches, growth);
criterion_main!(benches);
