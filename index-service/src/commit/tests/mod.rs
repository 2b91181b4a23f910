//! Tests the committer with a store that waits and fails on command.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use potluck_core::{
    FileId, PeerId,
    model::{Address, ClusterId, Registration},
};
use potluck_testkit::records::registration;
use rand::{RngExt as _, SeedableRng as _};

use crate::{
    catalog::cost,
    commit::{
        CommitError, CommitRequest, Committer, committer::MAX_QUEUED_BYTES, worker::MAX_EXPIRED,
    },
    leases::LeaseHolder,
    limits::Limits,
    registry::{Registry, RestoredPeers},
    store::{Change, IndexStore, MemoryStore, PeerRecord, StoreError, StoredPeer},
};

mod batches;
mod failures;
mod limits;

/// An in-memory store. Each batch waits for a command.
struct ScriptedStore {
    commands: mpsc::Receiver<Command>,
    batches: mpsc::Sender<Vec<Change>>,
    stored: Stored,
}

/// The store's reaction to a batch.
#[derive(Debug, Clone, Copy)]
enum Command {
    Write,
    Fail,
    Panic,
}

/// The content of a store, shared with the test.
type Stored = Arc<parking_lot::Mutex<MemoryStore>>;

fn stored_peers(stored: &Stored) -> Vec<StoredPeer> {
    let mut peers = Vec::new();
    stored.lock().load(&mut |peer| peers.push(peer)).unwrap();
    peers
}

impl IndexStore for ScriptedStore {
    fn kind(&self) -> &'static str {
        "scripted"
    }

    fn cluster_id(&self) -> ClusterId {
        ClusterId::generate()
    }

    fn load(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        self.stored.lock().load(each)
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let command = self.commands.recv().unwrap_or(Command::Write);
        self.batches.send(changes.to_vec()).unwrap();
        match command {
            Command::Write => self.stored.lock().apply(changes),
            Command::Fail => Err(StoreError::Damaged("on command".to_owned())),
            Command::Panic => panic!("on command"),
        }
    }

    fn reopen(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        self.load(each)
    }
}

struct Setup {
    committer: Committer,
    registry: Arc<Registry>,
    commands: mpsc::Sender<Command>,
    batches: mpsc::Receiver<Vec<Change>>,
    stored: Stored,
    thread: JoinHandle<()>,
}

impl Setup {
    /// Waits until the store is open again.
    async fn recovered(&self) {
        let mut working = self.committer.store_works();
        working.wait_for(|working| *working).await.unwrap();
    }
}

fn setup() -> Setup {
    setup_with(RestoredPeers::default(), Limits::default())
}

fn setup_with(restored: RestoredPeers, limits: Limits) -> Setup {
    let (commands, receive_command) = mpsc::channel();
    let (send_batch, batches) = mpsc::channel();
    let registry = Arc::new(Registry::new(restored, 10, Instant::now()));
    let stored = Stored::default();
    let store = Box::new(ScriptedStore {
        commands: receive_command,
        batches: send_batch,
        stored: Arc::clone(&stored),
    });
    let (committer, thread) = Committer::start(store, Arc::clone(&registry), limits).unwrap();
    Setup {
        committer,
        registry,
        commands,
        batches,
        stored,
        thread,
    }
}

fn open(n: u8) -> CommitRequest {
    let address = Address {
        host: "192.0.2.1".to_owned(),
        port: 1,
    };
    let peer = PeerRecord {
        id: PeerId([n; 32]),
        address,
        ttl: Duration::from_secs(60),
    };
    CommitRequest::Register {
        peer,
        files: Vec::new(),
        replace: false,
        cost: 0,
        instance: Vec::new(),
    }
}
