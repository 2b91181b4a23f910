//! Runs two indexes over a Redis Cluster of six nodes, registers files all the time, and breaks parts
//! of it at random, from a seed. After each round, every acknowledged registration must be found again
//! at both indexes within failover + one renewal + the time to announce.
//!
//! | module | purpose |
//! |---|---|
//! | `index_program` | a real `potluck-index` that can be killed and started again |
//! | `load` | peers that register files and renew their leases, as real ones do |
//! | `fault` | what is broken in a round, and how it is repaired |
//!
//! `cargo build -p potluck-index && cargo run -p potluck-cluster-faults -- --rounds 20 --seed 1`

mod fault;
mod index_program;
mod load;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Parser;
use futures_util::{StreamExt as _, stream};
use potluck_core::{FileId, PeerId, index_client::IndexClient, model::QueryKey};
use potluck_testkit::system::redis_cluster::RedisCluster;
use rand::{SeedableRng as _, rngs::StdRng};

use crate::{fault::Fault, index_program::IndexProgram, load::Load};

/// Lease of the peers: short, so that a renewal follows each fault soon.
const LEASE: Duration = Duration::from_secs(6);

/// Deadline for a failover: the cluster agrees after one second, and votes.
const FAILOVER: Duration = Duration::from_secs(6);

/// Deadline for the announcement of everything that was lost, on a busy machine.
const ANNOUNCE: Duration = Duration::from_secs(10);

/// Queries at once.
const QUERIES: usize = 32;

/// Breaks a cluster of indexes at random and checks that nothing acknowledged stays lost.
#[derive(Debug, Parser)]
struct Arguments {
    /// Number of rounds
    #[arg(long, default_value_t = 10)]
    rounds: u64,

    /// Seed of the first round; each round prints its own
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// The program of the index [default: potluck-index beside this program]
    #[arg(long)]
    index: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let program = match arguments.index {
        Some(program) => program,
        None => std::env::current_exe()?.with_file_name("potluck-index"),
    };
    let Some(mut cluster) = RedisCluster::start(3) else {
        return Ok(());
    };
    let url = cluster.url();
    let mut indexes = Vec::new();
    for _ in 0..2 {
        indexes.push(IndexProgram::start(&program, &url, LEASE).context("cannot start an index")?);
    }
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut slowest = Duration::ZERO;
    for seed in arguments.seed..arguments.seed + arguments.rounds {
        let mut rng = StdRng::seed_from_u64(seed);
        let fault = Fault::random(&mut rng, &cluster);
        let load = Load::start(&indexes, seed, LEASE);
        load.wait_for_some().await;
        let broken = fault.inject(&mut cluster, &mut indexes).await?;
        load.run_for(Duration::from_secs(2)).await;
        broken.repair(&mut cluster, &mut indexes).await?;
        let repaired = Instant::now();
        let acknowledged = load.stop_registering().await;
        let took = wait_until_found(&indexes, &acknowledged, repaired)
            .await
            .with_context(|| format!("seed {seed}: {fault}"))?;
        let registered: usize = acknowledged.values().map(Vec::len).sum();
        println!(
            "seed {seed}: {fault}; {registered} registrations acknowledged, {} calls failed, all found \
             after {} ms",
            load.failures(),
            took.as_millis()
        );
        load.end().await;
        *counts.entry(fault.name()).or_default() += 1;
        slowest = slowest.max(took);
    }
    println!("rounds: {counts:?}; slowest: {} ms", slowest.as_millis());
    Ok(())
}

/// Waits until both indexes return every peer as a provider of every file that it registered. Returns
/// the time since `from`.
async fn wait_until_found(
    indexes: &[IndexProgram],
    acknowledged: &BTreeMap<PeerId, Vec<FileId>>,
    from: Instant,
) -> anyhow::Result<Duration> {
    let deadline = from + FAILOVER + LEASE + ANNOUNCE;
    let all = acknowledged
        .iter()
        .flat_map(|(peer, files)| files.iter().map(move |file| (*peer, *file)));
    let all: Vec<(PeerId, FileId)> = all.collect();
    for (place, index) in indexes.iter().enumerate() {
        let client = &IndexClient::new(index.endpoint());
        let mut missing = all.clone();
        loop {
            let is_missing = async |(peer, file): (PeerId, FileId)| {
                let is_found = is_provider(client, &peer, &file).await;
                (!is_found).then_some((peer, file))
            };
            let began = Instant::now();
            let queries = stream::iter(missing).map(is_missing).buffer_unordered(QUERIES);
            missing = queries.filter_map(async |missing| missing).collect().await;
            let Some((peer, file)) = missing.first() else {
                break;
            };
            if began > deadline {
                let count = missing.len();
                bail!(
                    "index {place} does not return {count} registrations, such as that of {file} by \
                     peer {peer}"
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(from.elapsed())
}

async fn is_provider(client: &IndexClient, peer: &PeerId, file: &FileId) -> bool {
    let found = client.query(&QueryKey::Id(*file), 100, None).await;
    found.is_ok_and(|page| {
        let mut providers = page.files.iter().flat_map(|file| &file.providers);
        providers.any(|provider| provider.peer == *peer)
    })
}
