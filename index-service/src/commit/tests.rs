//! Tests the committer with a store that waits and fails on command.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use potluck_core::{
    FileId, PeerId,
    model::{Address, Registration},
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

#[tokio::test]
async fn changes_share_a_flush_and_are_visible_only_after_it() {
    let setup = setup();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100 {
        let committer = setup.committer.clone();
        tasks.spawn(async move { committer.commit(open(n), 1).await });
    }
    // Wait until all changes are queued; the first batch is still waiting for its command.
    while MAX_QUEUED_BYTES - setup.committer.queue_bytes.available_permits() < 100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        setup.registry.catalog().peer_count(),
        0,
        "nothing is shown before it is durable"
    );
    drop(setup.commands);
    while let Some(done) = tasks.join_next().await {
        assert_eq!(done.unwrap(), Ok(0));
    }
    assert_eq!(setup.registry.catalog().peer_count(), 100);
    let batches: Vec<usize> = setup.batches.try_iter().map(|batch| batch.len()).collect();
    assert_eq!(batches.iter().sum::<usize>(), 100);
    assert!(batches.len() < 50, "{batches:?}");
    setup.committer.stop();
    setup.thread.join().unwrap();
    assert_eq!(setup.committer.commit(open(1), 1).await, Err(CommitError::Closed));
}

#[tokio::test]
async fn durable_registrations_are_not_written_again() {
    let setup = setup();
    drop(setup.commands);
    let register = async |files: &[Registration], replace: bool, port: u16| {
        let CommitRequest::Register { mut peer, .. } = open(1) else {
            unreachable!()
        };
        peer.address.port = port;
        let request = CommitRequest::Register {
            peer,
            files: files.to_vec(),
            replace,
            cost: 0,
            instance: Vec::new(),
        };
        let count = setup.committer.commit(request, 1).await.unwrap();
        let written: Vec<Change> = setup.batches.try_iter().flatten().collect();
        match &written[..] {
            [] => (count, None),
            [Change::Register { files, new, .. }] => (count, Some((files.clone(), *new))),
            other => panic!("{other:?}"),
        }
    };
    let (a, b) = (registration(1, "a"), registration(2, "b"));
    let both = [a.clone(), b.clone()];
    assert_eq!(register(&both, false, 1).await, (2, Some((both.to_vec(), 2))));
    for replace in [false, true] {
        assert_eq!(register(&both, replace, 1).await, (2, None), "replace: {replace}");
    }
    let partial = Registration {
        is_complete: false,
        ..b.clone()
    };
    let renamed = registration(1, "another");
    for changed in [partial, b.clone(), renamed, a.clone()] {
        let other = if changed.file.id == a.file.id { &b } else { &a };
        let files = [other.clone(), changed.clone()];
        let written = register(&files, false, 1).await;
        assert_eq!(written, (2, Some((vec![changed], 0))), "only the changed file");
    }
    assert_eq!(
        register(&both, false, 2).await,
        (2, Some((Vec::new(), 0))),
        "another address"
    );
    let repeated = [registration(2, "c"), b.clone()];
    assert_eq!(
        register(&repeated, false, 2).await,
        (2, Some((repeated.to_vec(), 0))),
        "the last registration of a file counts"
    );
    assert_eq!(register(&both, false, 2).await, (2, None));
    let one = [a.clone()];
    assert_eq!(
        register(&one, true, 2).await,
        (1, Some((one.to_vec(), 1))),
        "the other file is removed"
    );
}

#[tokio::test]
async fn a_full_index_accepts_only_changes_that_need_no_memory() {
    let CommitRequest::Register { peer: record, .. } = open(1) else {
        unreachable!()
    };
    let other = PeerRecord {
        id: PeerId([2; 32]),
        ..record.clone()
    };
    let partial = |file: Registration| Registration {
        is_complete: false,
        ..file
    };
    let mut restored = RestoredPeers::default();
    for (record, files) in [
        (
            record.clone(),
            vec![partial(registration(1, "a")), registration(2, "b")],
        ),
        (other, vec![registration(1, "c")]),
    ] {
        restored.add(StoredPeer { record, files });
    }
    let limits = Limits {
        max_memory_mib: 0,
        ..Limits::default()
    };
    let setup = setup_with(restored, limits);
    drop(setup.commands);
    let mut claimed = registration(1, "a");
    claimed.file.sha256 = Some(potluck_core::Sha256([1; 32]));
    let longer = Registration {
        names: vec!["a".to_owned(), "c".to_owned()],
        ..registration(1, "")
    };
    let both = [registration(1, "a"), registration(2, "b")];
    for (n, files, replace, outcome) in [
        (1, vec![registration(3, "a")], false, Err(CommitError::Full)),
        (1, vec![registration(1, "new")], false, Err(CommitError::Full)),
        (1, vec![registration(1, "b")], false, Err(CommitError::Full)),
        (1, vec![longer], false, Err(CommitError::Full)),
        (1, vec![claimed], false, Err(CommitError::Full)),
        (
            1,
            vec![registration(2, "b"), registration(1, "b")],
            true,
            Err(CommitError::Full),
        ),
        (3, vec![], false, Err(CommitError::Full)),
        (1, both.to_vec(), false, Ok(2)),
        (1, both.to_vec(), true, Ok(2)),
        (1, vec![registration(1, "c")], false, Ok(2)),
        (1, vec![registration(1, "c")], true, Ok(1)),
        (1, vec![registration(2, "b")], false, Err(CommitError::Full)),
    ] {
        let CommitRequest::Register { peer, .. } = open(n) else {
            unreachable!()
        };
        let case = format!("{n}: {files:?}, replace: {replace}");
        let cost = files.iter().map(cost::max_cost).sum();
        let request = CommitRequest::Register {
            peer,
            files,
            replace,
            cost,
            instance: Vec::new(),
        };
        assert_eq!(setup.committer.commit(request, 1).await, outcome, "{case}");
    }
}

#[tokio::test]
async fn a_store_that_fails_is_reported_and_reopened() {
    let setup = setup();
    let working = setup.committer.store_works();
    for command in [Command::Fail, Command::Panic] {
        assert!(*working.borrow());
        setup.commands.send(command).unwrap();
        assert_eq!(setup.committer.commit(open(1), 1).await, Err(CommitError::Store));
        assert_eq!(setup.registry.catalog().peer_count(), 0);
        setup.recovered().await;
    }
    setup.commands.send(Command::Write).unwrap();
    assert_eq!(setup.committer.commit(open(1), 1).await, Ok(0));
    assert_eq!(setup.registry.catalog().peer_count(), 1);
}

#[tokio::test]
async fn peers_that_expire_while_the_store_fails_are_removed_once_it_is_reopened() {
    let setup = setup();
    setup.commands.send(Command::Write).unwrap();
    let CommitRequest::Register {
        mut peer,
        files,
        replace,
        cost,
        instance,
    } = open(1)
    else {
        unreachable!()
    };
    peer.ttl = Duration::from_millis(1);
    let short_lease = CommitRequest::Register {
        peer,
        files,
        replace,
        cost,
        instance,
    };
    setup.committer.commit(short_lease, 1).await.unwrap();
    setup.batches.recv().unwrap();
    // The lease expires without a call.
    setup.commands.send(Command::Fail).unwrap();
    let forget = Change::Forget {
        peer: PeerId([1; 32]),
    };
    assert_eq!(setup.batches.recv().unwrap(), std::slice::from_ref(&forget));
    assert_eq!(setup.registry.catalog().peer_count(), 0, "hidden immediately");
    assert_eq!(stored_peers(&setup.stored).len(), 1);
    setup.commands.send(Command::Write).unwrap();
    assert_eq!(setup.batches.recv().unwrap(), [forget]);
    setup.recovered().await;
    assert_eq!(stored_peers(&setup.stored), []);
    setup.commands.send(Command::Write).unwrap();
    setup.committer.commit(open(1), 1).await.unwrap();
    assert_eq!(setup.registry.catalog().peer_count(), 1);
}

/// A store that fails at random in all possible ways: before, during or after a write, by a panic,
/// or by losing all of its data.
struct FaultyStore {
    stored: Stored,
    rng: rand::rngs::StdRng,
    is_open: bool,
    is_lost: bool,
}

impl IndexStore for FaultyStore {
    fn kind(&self) -> &'static str {
        "faulty"
    }

    fn load(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        self.stored.lock().load(each)
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        assert!(self.is_open, "a failed store is reopened before it is used");
        let mut stored = self.stored.lock();
        let written = match self.rng.random_range(0..10) {
            0 => 0,
            1 => changes.len() / 2,
            2 => {
                *stored = MemoryStore::default();
                self.is_lost = true;
                0
            }
            _ => changes.len(),
        };
        stored.apply(&changes[..written]).unwrap();
        drop(stored);
        let fault = if written < changes.len() {
            1
        } else {
            self.rng.random_range(0..10)
        };
        self.is_open = fault > 2;
        match fault {
            0 => panic!("on command"),
            1 | 2 => Err(StoreError::Io(std::io::Error::other("on command"))),
            _ => Ok(()),
        }
    }

    fn reopen(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        if std::mem::take(&mut self.is_lost) {
            // The store reports some peers before it detects the damage; the caller must discard
            // them.
            let mut loaded = Vec::new();
            self.stored.lock().load(&mut |peer| loaded.push(peer))?;
            loaded.truncate(1);
            loaded.into_iter().for_each(each);
            *self.stored.lock() = MemoryStore::default();
            return Err(StoreError::Damaged("on command".to_owned()));
        }
        if self.rng.random_range(0..4) == 0 {
            return Err(StoreError::Io(std::io::Error::other("on command")));
        }
        self.is_open = true;
        self.load(each)
    }
}

#[tokio::test]
async fn no_acknowledged_change_is_lost_when_the_store_fails_at_random() {
    use std::collections::BTreeMap;
    for seed in 0..6 {
        let stored = Stored::default();
        let registry = Arc::new(Registry::new(RestoredPeers::default(), 10, Instant::now()));
        let store = Box::new(FaultyStore {
            stored: Arc::clone(&stored),
            rng: rand::rngs::StdRng::seed_from_u64(seed),
            is_open: true,
            is_lost: false,
        });
        let (committer, thread) =
            Committer::start(store, Arc::clone(&registry), Limits::default()).unwrap();
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed + 1000);
        let mut model = BTreeMap::<PeerId, BTreeMap<FileId, Registration>>::new();
        let mut failures = 0;
        for step in 0..40 {
            let CommitRequest::Register { peer, .. } = open(rng.random_range(1..5)) else {
                unreachable!()
            };
            let files: Vec<_> = (0..rng.random_range(0..20))
                .map(|_| registration(rng.random_range(0..30), &format!("name {step}")))
                .collect();
            let ids: Vec<FileId> = files.iter().map(|file| file.file.id).collect();
            let id = peer.id;
            let replace = rng.random_range(0..5) == 0;
            let request = match rng.random_range(0..6) {
                0 => CommitRequest::Forget { peer: id },
                1 => CommitRequest::Unregister {
                    peer: id,
                    files: ids.clone(),
                },
                _ => CommitRequest::Register {
                    peer,
                    files: files.clone(),
                    replace,
                    cost: 0,
                    instance: Vec::new(),
                },
            };
            let kind = std::mem::discriminant(&request);
            match committer.commit(request, 1).await {
                Ok(_) if kind == std::mem::discriminant(&CommitRequest::Forget { peer: id }) => {
                    model.remove(&id);
                }
                Ok(_) if kind == std::mem::discriminant(&open(1)) => {
                    let registered = model.entry(id).or_default();
                    if replace {
                        registered.clear();
                    }
                    registered.extend(files.into_iter().map(|file| (file.file.id, file)));
                }
                Ok(_) => {
                    let registered = model.entry(id).or_default();
                    registered.retain(|id, _| !ids.contains(id));
                }
                Err(error) => {
                    assert_eq!(error, CommitError::Store);
                    failures += 1;
                    let mut working = committer.store_works();
                    working.wait_for(|working| *working).await.unwrap();
                }
            }
        }
        assert!(failures > 0, "seed {seed} causes failures");
        model.retain(|peer, _| registry.catalog().address_of(peer).is_some());
        committer.stop();
        thread.join().unwrap();
        let found: BTreeMap<_, _> = stored_peers(&stored)
            .into_iter()
            .map(|StoredPeer { record, files }| {
                let files = files.into_iter().map(|file| (file.file.id, file));
                (record.id, files.collect::<BTreeMap<_, _>>())
            })
            .collect();
        assert_eq!(found, model, "seed {seed}");
        for (peer, files) in &model {
            let shown: BTreeMap<_, _> = files
                .keys()
                .map(|file| (*file, registry.catalog().registration(peer, file).unwrap()))
                .collect();
            assert_eq!(&shown, files, "seed {seed}");
            assert_eq!(registry.catalog().file_count_of(peer), files.len() as u64);
        }
    }
}

#[tokio::test]
async fn leases_are_renewed_while_the_store_fails() {
    let setup = setup();
    setup.commands.send(Command::Write).unwrap();
    setup.committer.commit(open(1), 1).await.unwrap();
    setup.commands.send(Command::Fail).unwrap();
    assert_eq!(setup.committer.commit(open(2), 1).await, Err(CommitError::Store));
    let CommitRequest::Register { peer, .. } = open(1) else {
        unreachable!()
    };
    let holder = LeaseHolder {
        address: peer.address,
        instance: Vec::new(),
    };
    assert!(setup.registry.renew(&peer.id, &holder, Instant::now()).is_some());
    // A registration that is durable already needs no disk.
    assert_eq!(setup.committer.commit(open(1), 1).await, Ok(0));
}

#[tokio::test]
async fn a_large_peer_is_hidden_immediately_and_cleared_in_steps() {
    let record = |n: u8| {
        let CommitRequest::Register { peer, .. } = open(n) else {
            unreachable!()
        };
        peer
    };
    let many = |n: u32| {
        let mut one = registration(1, "many");
        one.file.root.0[..4].copy_from_slice(&n.to_le_bytes());
        one.file.id = FileId::derive(1, &one.file.root);
        one
    };
    let files: Vec<_> = (0..20_000).map(many).collect();
    let mut restored = RestoredPeers::default();
    restored.add(StoredPeer {
        record: record(1),
        files: files.clone(),
    });
    restored.add(StoredPeer {
        record: record(2),
        files: files[..1].to_vec(),
    });
    let setup = setup_with(restored, Limits::default());
    drop(setup.commands);
    let mut watcher = setup
        .registry
        .watch(files[9].file.id, std::net::IpAddr::from([192, 0, 2, 7]), 9)
        .unwrap()
        .0;
    let forget = CommitRequest::Forget { peer: record(1).id };
    assert_eq!(setup.committer.commit(forget, 1).await, Ok(20_000));
    let found = |n: usize| {
        let catalog = setup.registry.catalog();
        catalog.sample_providers(&files[n].file.id, 9, &mut rand::rng()).1
    };
    assert_eq!(found(9), 0);
    assert_eq!(found(0), 1);
    assert_eq!(
        *watcher.next().await.unwrap(),
        potluck_core::model::ProviderEvent::Left(record(1).id)
    );
    // The peer registers again while its old entry is cleared, and stays.
    let back = CommitRequest::Register {
        peer: record(1),
        files: files[..3].to_vec(),
        replace: true,
        cost: 0,
        instance: Vec::new(),
    };
    assert_eq!(setup.committer.commit(back, 1).await, Ok(3));
    while setup.registry.catalog().file_count() > 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(found(0), 2);
    assert_eq!(setup.registry.catalog().registration_count(), 4);
    assert_eq!(found(9), 0);
    // A replacement of many files becomes visible as a whole.
    let all = CommitRequest::Register {
        peer: record(1),
        files: files[..10_000].to_vec(),
        replace: false,
        cost: 0,
        instance: Vec::new(),
    };
    assert_eq!(setup.committer.commit(all, 1).await, Ok(10_000));
    let other = CommitRequest::Register {
        peer: record(1),
        files: files[9_999..10_001].to_vec(),
        replace: true,
        cost: 0,
        instance: Vec::new(),
    };
    assert_eq!(setup.committer.commit(other, 1).await, Ok(2));
    assert_eq!(setup.registry.catalog().registration_count(), 3);
    assert_eq!(
        setup.registry.summary_of(&record(1).id, Instant::now()).digest,
        potluck_core::SetDigest::from_iter(&files[9_999..10_001])
    );
}

#[tokio::test]
async fn many_expired_peers_do_not_delay_other_changes() {
    let mut restored = RestoredPeers::default();
    for n in 0..4 * MAX_EXPIRED {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_le_bytes());
        let CommitRequest::Register { mut peer, .. } = open(1) else {
            unreachable!()
        };
        (peer.id, peer.ttl) = (PeerId(id), Duration::ZERO);
        restored.add(StoredPeer {
            record: peer,
            files: Vec::new(),
        });
    }
    let registry = Arc::new(Registry::new(restored, 10, Instant::now()));
    let (committer, thread) = Committer::start(
        Box::new(MemoryStore::default()),
        Arc::clone(&registry),
        Limits::default(),
    )
    .unwrap();
    committer.commit(open(9), 1).await.unwrap();
    while registry.catalog().peer_count() > 1 {
        tokio::task::yield_now().await;
    }
    committer.stop();
    thread.join().unwrap();
}

#[tokio::test]
async fn one_peer_or_host_cannot_fill_the_index() {
    const MIB: u64 = 1024 * 1024;
    let limits = Limits {
        max_memory_mib: 4,
        ..Limits::default()
    };
    let setup = setup_with(RestoredPeers::default(), limits);
    drop(setup.commands);
    let register = async |n: u8, host: &str, from: u32| {
        let CommitRequest::Register { mut peer, .. } = open(n) else {
            unreachable!()
        };
        peer.address.host = host.to_owned();
        let files: Vec<_> = (from..from + 100)
            .map(|n| {
                let mut one = registration(1, &format!("a name of its own {n}"));
                one.file.root.0[..4].copy_from_slice(&n.to_le_bytes());
                one.file.id = FileId::derive(1, &one.file.root);
                one
            })
            .collect();
        let cost = files.iter().map(cost::max_cost).sum();
        let request = CommitRequest::Register {
            peer,
            files,
            replace: false,
            cost,
            instance: Vec::new(),
        };
        setup.committer.commit(request, 1).await
    };
    let fill = async |peers: &[u8], host: &str, from: u32| {
        for at in 0..1000 {
            let n = peers[at as usize % peers.len()];
            match register(n, host, from + at * 100).await {
                Ok(_) => {}
                Err(CommitError::TooMuchMemory { .. }) => break,
                Err(other) => panic!("{other}"),
            }
        }
        setup.registry.catalog().charge_of_host(host)
    };
    // The limit applies to one peer and to several peers at one address, but on the local machine
    // to each peer separately.
    let first = fill(&[1], "192.0.2.1", 0).await;
    assert!((MIB..=2 * MIB).contains(&first), "{first}");
    let second = fill(&[2, 3, 4, 5], "192.0.2.2", 100_000).await;
    assert!((MIB / 2..=MIB).contains(&second), "{second}");
    assert!(matches!(
        register(6, "192.0.2.2", 300_000).await,
        Err(CommitError::TooMuchMemory { .. })
    ));
    for n in 7..9 {
        assert_eq!(register(n, "127.0.0.1", u32::from(n) * 1_000_000).await, Ok(100));
    }
    // Memory that a peer frees is available to all.
    let forget = CommitRequest::Forget {
        peer: PeerId([1; 32]),
    };
    setup.committer.commit(forget, 1).await.unwrap();
    while setup.registry.catalog().charge_of_host("192.0.2.1") > 0 {
        tokio::task::yield_now().await;
    }
    assert!(register(2, "192.0.2.2", 400_000).await.is_ok());
}

#[tokio::test]
async fn the_queue_is_bounded_in_bytes() {
    let setup = setup();
    let waiting = setup.committer.clone();
    let first = tokio::spawn(async move { waiting.commit(open(1), MAX_QUEUED_BYTES).await });
    while setup.committer.queue_bytes.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(setup.committer.commit(open(2), 1).await, Err(CommitError::Busy));
    setup.commands.send(Command::Write).unwrap();
    assert_eq!(first.await.unwrap(), Ok(0));
    setup.commands.send(Command::Write).unwrap();
    assert_eq!(setup.committer.commit(open(2), 1).await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_is_reported() {
    let setup = setup();
    assert_eq!(setup.committer.commit(open(1), 1).await, Err(CommitError::Slow));
}
