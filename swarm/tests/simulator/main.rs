//! The swarm's state machine in a simulated network.
//!
//! Every failure names the seed of its world. `SWARM_SEEDS=17..18` replays it,
//! `SWARM_SEEDS=0..5000` searches for new failures. `cargo test --release -- --ignored` runs the
//! large crowds.

mod checks;
mod crowds;
mod failures;
mod links;
mod node;
mod origins;
mod readers;
mod setup;
mod world;
mod zones;

/// 100 Mbit/s, in bytes per second.
const LINK: f64 = 12_500_000.0;

/// Bytes in a mebibyte.
const MIB: f64 = 1_048_576.0;

/// The seeds of random worlds: the range in the environment, or the first `count`.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let Ok(named) = std::env::var("SWARM_SEEDS") else {
        return 0..count;
    };
    let (first, end) = named.split_once("..").expect("SWARM_SEEDS is FIRST..END");
    first.parse().expect("FIRST is a number")..end.parse().expect("END is a number")
}
