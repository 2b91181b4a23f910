//! What is broken in a round.

use std::{fmt, time::Duration};

use potluck_testkit::system::redis_cluster::RedisCluster;
use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::index_program::IndexProgram;

/// How long a hanging node hangs: longer than the cluster waits before a failover.
const HANGS: Duration = Duration::from_secs(4);

/// A fault.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// An index is killed.
    Index(usize),
    /// A primary is killed; its replica takes over.
    Primary(usize),
    /// A primary is killed while its replica is behind, so that acknowledged writes are lost.
    PrimaryWithLoss(usize),
    /// A primary stops to answer, as if it was cut off, and comes back.
    Hang(usize),
    /// A primary answers in bursts.
    Slow(usize),
    /// A primary and its replica are killed: a part of the store is gone until they return.
    Shard(usize),
}

/// A fault that is to be repaired.
#[derive(Debug)]
pub(crate) struct Broken(Fault);

impl Fault {
    /// A fault of a cluster that is whole.
    pub(crate) fn random(rng: &mut StdRng, cluster: &RedisCluster) -> Self {
        let primaries: Vec<usize> = (0..cluster.len())
            .filter(|&node| cluster.is_primary(node))
            .collect();
        let primary = *primaries.choose(rng).expect("a whole cluster has primaries");
        match rng.random_range(0..6) {
            0 => Self::Index(rng.random_range(0..2)),
            1 => Self::Primary(primary),
            2 => Self::PrimaryWithLoss(primary),
            3 => Self::Hang(primary),
            4 => Self::Slow(primary),
            _ => Self::Shard(primary),
        }
    }

    /// Its name in the summary.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Index(_) => "index killed",
            Self::Primary(_) => "primary killed",
            Self::PrimaryWithLoss(_) => "primary killed with loss",
            Self::Hang(_) => "primary hangs",
            Self::Slow(_) => "primary slow",
            Self::Shard(_) => "shard killed",
        }
    }

    /// Breaks something. Returns while it is broken.
    pub(crate) async fn inject(
        self,
        cluster: &mut RedisCluster,
        indexes: &mut [IndexProgram],
    ) -> anyhow::Result<Broken> {
        match self {
            Self::Index(index) => indexes[index].kill()?,
            Self::Primary(node) => cluster.kill(node),
            Self::PrimaryWithLoss(node) => {
                let replica = cluster.partner(node);
                cluster.pause(replica);
                // Acknowledged meanwhile, and lost.
                tokio::time::sleep(Duration::from_millis(300)).await;
                cluster.kill(node);
                cluster.resume(replica);
            }
            Self::Hang(node) => {
                cluster.pause(node);
                tokio::time::sleep(HANGS).await;
            }
            Self::Slow(node) => {
                for _ in 0..10 {
                    cluster.pause(node);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    cluster.resume(node);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Self::Shard(node) => {
                cluster.kill(cluster.partner(node));
                cluster.kill(node);
            }
        }
        Ok(Broken(self))
    }
}

impl Broken {
    /// Repairs it, and waits until the cluster is whole.
    pub(crate) async fn repair(
        self,
        cluster: &mut RedisCluster,
        indexes: &mut [IndexProgram],
    ) -> anyhow::Result<()> {
        match self.0 {
            Fault::Index(index) => indexes[index].restart()?,
            Fault::Primary(node) | Fault::PrimaryWithLoss(node) => {
                // Not before its replica has taken over: a primary that returns first has everything.
                let replica = cluster.partner(node);
                while !cluster.is_primary(replica) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                cluster.restart(node);
            }
            Fault::Hang(node) => cluster.resume(node),
            Fault::Slow(_) => {}
            Fault::Shard(node) => {
                cluster.restart(node);
                cluster.restart(cluster.partner(node));
            }
        }
        tokio::task::block_in_place(|| cluster.wait_until_whole());
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Index(place)
        | Self::Primary(place)
        | Self::PrimaryWithLoss(place)
        | Self::Hang(place)
        | Self::Slow(place)
        | Self::Shard(place)) = self;
        write!(f, "{} ({place})", self.name())
    }
}
