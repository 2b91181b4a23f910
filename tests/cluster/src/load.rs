//! Peers that register files all the time, and keep the promises of a peer: they renew their lease,
//! and register everything again if the index has lost it or has something else.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use potluck_core::{
    FileId, PeerId, Problem, Reason, SetDigest, Token,
    index_client::{IndexClient, IndexList},
    model::{Address, Registration},
};
use potluck_testkit::records;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::index_program::IndexProgram;

/// Peers that register.
const PEERS: u64 = 24;

/// Pause between two registrations of a peer.
const PAUSE: Duration = Duration::from_millis(20);

/// The registrations that an index has acknowledged.
type Acknowledged = Arc<Mutex<BTreeMap<PeerId, Vec<FileId>>>>;

/// The running peers.
pub(crate) struct Load {
    acknowledged: Acknowledged,
    failures: Arc<AtomicU64>,
    stop_registering: CancellationToken,
    stop: CancellationToken,
    peers: Mutex<JoinSet<()>>,
}

/// One peer.
struct LoadPeer {
    client: IndexClient,
    token: Token,
    address: Address,
    lease: Duration,
    /// Everything that it wants to be registered.
    files: Vec<Registration>,
    acknowledged: Acknowledged,
    failures: Arc<AtomicU64>,
}

impl Load {
    /// Starts the peers of a round, each with the indexes in its own order.
    pub(crate) fn start(indexes: &[IndexProgram], seed: u64, lease: Duration) -> Self {
        let load = Self {
            acknowledged: Acknowledged::default(),
            failures: Arc::default(),
            stop_registering: CancellationToken::new(),
            stop: CancellationToken::new(),
            peers: Mutex::default(),
        };
        for n in 0..PEERS {
            let mut urls: Vec<String> =
                indexes.iter().map(|index| index.endpoint().to_string()).collect();
            urls.rotate_left(n as usize % indexes.len());
            let list = IndexList::parse(&urls.join(","), str::parse).expect("addresses are valid");
            let peer = LoadPeer {
                client: IndexClient::new(list).with_instance([n as u8; 16]),
                token: Token::generate(),
                address: Address {
                    host: String::new(),
                    port: 10_000 + n as u16,
                },
                lease,
                files: Vec::new(),
                acknowledged: Arc::clone(&load.acknowledged),
                failures: Arc::clone(&load.failures),
            };
            let first = (seed * PEERS + n) * 1_000_000;
            let (registering, stop) = (load.stop_registering.clone(), load.stop.clone());
            load.spawn(async move { peer.run(first, registering, stop).await });
        }
        load
    }

    fn spawn(&self, peer: impl Future<Output = ()> + Send + 'static) {
        self.peers.lock().expect("no peer panics").spawn(peer);
    }

    /// Waits until every peer has registered something.
    pub(crate) async fn wait_for_some(&self) {
        while self.acknowledged.lock().expect("no peer panics").len() < PEERS as usize {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Lets the peers work for a while.
    pub(crate) async fn run_for(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Number of failed calls.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Lets the peers only keep what they have. Returns what was acknowledged.
    pub(crate) async fn stop_registering(&self) -> BTreeMap<PeerId, Vec<FileId>> {
        self.stop_registering.cancel();
        self.acknowledged.lock().expect("no peer panics").clone()
    }

    /// Ends the peers, which unregister.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        let mut peers = std::mem::take(&mut *self.peers.lock().expect("no peer panics"));
        while peers.join_next().await.is_some() {}
    }
}

impl LoadPeer {
    async fn run(mut self, first: u64, registering: CancellationToken, stop: CancellationToken) {
        let mut next = first;
        let mut renew_at = Instant::now();
        while !stop.is_cancelled() {
            let done = if Instant::now() >= renew_at {
                renew_at = Instant::now() + self.lease / 3;
                self.renew().await
            } else if registering.is_cancelled() {
                Ok(())
            } else {
                let count = 1 + next % 4;
                let new: Vec<_> = (next..next + count)
                    .map(|n| records::registration(n, "load.bin"))
                    .collect();
                next += count;
                self.files.extend(new.iter().cloned());
                self.register(&new, false).await
            };
            if done.is_err() {
                self.failures.fetch_add(1, Ordering::Relaxed);
                // As a peer does after a failure: renews first, which finds what is missing.
                renew_at = Instant::now();
                tokio::time::sleep(PAUSE * 10).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
        // The lease ends by itself if this fails.
        let _ = self.client.unregister(&self.token, None).await;
    }

    async fn register(&self, files: &[Registration], replace: bool) -> Result<(), Problem> {
        let lease = Some(self.lease);
        self.client
            .register(&self.token, &self.address, files, lease, replace)
            .await?;
        let ids = files.iter().map(|file| file.file.id);
        let mut acknowledged = self.acknowledged.lock().expect("no peer panics");
        let known = acknowledged.entry(self.token.peer_id()).or_default();
        match replace {
            true => *known = ids.collect(),
            false => known.extend(ids),
        }
        Ok(())
    }

    /// Renews, and registers everything again if the index has something else.
    async fn renew(&self) -> Result<(), Problem> {
        let is_complete = match self.client.renew(&self.token, &self.address).await {
            Ok(lease) => lease.digest == Some(SetDigest::from_iter(&self.files)),
            Err(problem) if problem.reason == Reason::LeaseUnknown => false,
            Err(problem) => return Err(problem),
        };
        match is_complete {
            true => Ok(()),
            false => self.register(&self.files, true).await,
        }
    }
}
