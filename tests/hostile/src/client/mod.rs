//! Attacks of a client, and the measurement of one attack.
//!
//! An attack is what one connection does until the server closes it. [`run`] repeats it in a number
//! of lanes for a given time, while an honest client asks questions ([`crate::bystander`]), and
//! reports what the program under attack needed.

mod calls;
mod connections;
mod framing;
mod lane;

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use potluck_core::{
    FileId, Root,
    model::{FileKind, FileRecord, Registration},
};
use tokio::{task::JoinSet, time::Instant};

pub use self::lane::Effort;
use self::lane::Lane;
use crate::{
    bystander::{self, Served},
    process::{MemoryWatch, open_files, resident_memory, until_closed},
    target::{Service, Target},
};

/// Time within which the program must have closed all connections of an attack that ended.
const CLEANUP: Duration = Duration::from_secs(15);

/// Which targets an attack is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Every target.
    Any,
    /// An index.
    Index,
    /// An index with TLS.
    PrivateIndex,
    /// Every target with TLS.
    Tls,
}

type Running = Pin<Box<dyn Future<Output = Option<()>> + Send>>;

/// An attack of a client.
pub struct ClientAttack {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub description: &'static str,
    scope: Scope,
    /// Number of connections at once.
    lanes: usize,
    run: fn(Lane) -> Running,
}

impl fmt::Debug for ClientAttack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAttack")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl ClientAttack {
    /// Whether the attack makes sense for this target.
    pub fn fits(&self, target: &Target) -> bool {
        match self.scope {
            Scope::Any => true,
            Scope::Index => target.service == Service::Index,
            Scope::PrivateIndex => target.service == Service::Index && target.tls.is_some(),
            Scope::Tls => target.tls.is_some(),
        }
    }
}

/// All attacks.
pub fn attacks() -> impl Iterator<Item = &'static ClientAttack> {
    let groups = [connections::ATTACKS, framing::ATTACKS, calls::ATTACKS];
    groups.into_iter().flatten()
}

/// What an attack did, and what the program under attack needed meanwhile.
#[derive(Debug)]
pub struct Report {
    /// The name of the attack.
    pub attack: &'static str,
    /// Connections that the attacker opened.
    pub connections: u64,
    /// Frames or calls that it sent.
    pub sent: u64,
    /// Growth of the program's memory at most, since the start of the attack, in KiB.
    pub growth: u64,
    /// How an honest client was served meanwhile.
    pub served: Served,
    /// How long the program took to close the attacker's connections afterwards; `None` if it did
    /// not.
    pub cleanup: Option<Duration>,
}

/// The figures that a program under attack must keep.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum growth of its memory during one attack, in MiB.
    pub growth_mib: u64,
    /// Maximum time until a question of an honest client is answered.
    pub answer: Duration,
}

impl Default for Limits {
    /// The budgets for requests and unread answers are 112 MiB together; the rest is for
    /// connections.
    fn default() -> Self {
        Self {
            growth_mib: 200,
            answer: Duration::from_secs(10),
        }
    }
}

impl Report {
    /// What the program under attack failed to keep.
    pub fn violations(&self, limits: &Limits) -> Vec<String> {
        let mut violations = Vec::new();
        if self.growth > limits.growth_mib * 1024 {
            violations.push(format!("grew by {} MiB", self.growth / 1024));
        }
        if self.served.answers == 0 || self.served.slowest > limits.answer {
            violations.push(format!("an honest client was not served: {:?}", self.served));
        }
        if self.cleanup.is_none() {
            violations.push("connections of the attacker stayed open".to_owned());
        }
        if self.connections == 0 {
            violations.push("the attacker could not connect".to_owned());
        }
        violations
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<24} {:>6} connections {:>8} sent  +{:>3} MiB  slowest {:>5} ms of {:>3}, {} failed  \
             closed after {} ms",
            self.attack,
            self.connections,
            self.sent,
            self.growth / 1024,
            self.served.slowest.as_millis(),
            self.served.answers,
            self.served.failures,
            self.cleanup
                .map_or_else(|| "NEVER".to_owned(), |time| time.as_millis().to_string()),
        )
    }
}

/// Runs one attack on the process `pid` for this time.
///
/// # Errors
/// The target's address cannot be used.
pub async fn run(
    attack: &'static ClientAttack,
    target: &Target,
    pid: u32,
    time: Duration,
    limits: &Limits,
) -> anyhow::Result<Report> {
    let (before, files) = (resident_memory(pid).unwrap_or(0), open_files(pid));
    let memory = MemoryWatch::start(pid);
    let effort = Arc::new(Effort::default());
    let until = Instant::now() + time;
    let mut lanes = JoinSet::new();
    for _ in 0..attack.lanes {
        let lane = Lane::new(target, &effort);
        lanes.spawn(async move {
            // At the end, everything that a lane has open is dropped.
            let _ = tokio::time::timeout_at(until, async {
                loop {
                    (attack.run)(lane.clone()).await;
                    lane.rest().await;
                }
            })
            .await;
        });
    }
    let served = bystander::ask(target, until, limits.answer).await?;
    while lanes.join_next().await.is_some() {}
    let cleanup = until_closed(target.address, pid, files, CLEANUP).await;
    Ok(Report {
        attack: attack.name,
        connections: effort.connections.load(Ordering::Relaxed),
        sent: effort.sent.load(Ordering::Relaxed),
        growth: memory.peak().saturating_sub(before),
        served,
        cleanup,
    })
}

/// Connections that an attacker holds open.
#[derive(Debug)]
pub struct Held {
    _connections: JoinSet<()>,
}

/// Opens `count` connections and makes one call on each, as many peers do that are idle.
pub async fn hold(target: &Target, count: usize) -> Held {
    /// Connections that are opened at once: a listener queues few.
    const AT_ONCE: usize = 64;
    let effort = Arc::new(Effort::default());
    let mut held = JoinSet::new();
    for _ in 0..count.div_ceil(AT_ONCE) {
        let lanes = (0..AT_ONCE).map(|_| {
            let lane = Lane::new(target, &effort);
            async move {
                let connection = calls::open_and_call(&lane).await;
                connection.map(|connection| async move { calls::until_closed(&connection).await })
            }
        });
        for waiting in futures_util::future::join_all(lanes).await.into_iter().flatten() {
            held.spawn(waiting);
        }
    }
    Held { _connections: held }
}

/// Files with long names, for an index: answers that list them are large.
pub fn bait() -> Vec<Registration> {
    const FILES: u64 = 400;
    let file = |number: u64| {
        let mut root = [0xba; 32];
        root[..8].copy_from_slice(&number.to_le_bytes());
        let root = Root(root);
        let names = (0..16).map(|name| format!("bait {name:x} {}", "x".repeat(240)));
        Registration {
            file: FileRecord {
                id: FileId::derive(number + 1, &root),
                size: number + 1,
                root,
                sha256: None,
                kind: FileKind::File,
            },
            names: names.collect(),
            is_complete: true,
        }
    };
    (0..FILES).map(file).collect()
}
