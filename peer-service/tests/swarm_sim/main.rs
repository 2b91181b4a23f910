//! The swarm's state machine in a simulated world.
//!
//! Every failure names the seed of its world, which replays it. `cargo test --release -- --ignored` runs the large crowds.

mod crowds;
mod node;
mod trouble;
mod world;

/// 100 Mbit/s, in bytes a second.
const LINK: f64 = 12_500_000.0;

/// Bytes in a mebibyte.
const MIB: f64 = 1_048_576.0;
