//! A store that fails, and what is not lost by that.

use super::*;

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

    fn cluster_id(&self) -> ClusterId {
        ClusterId::generate()
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
