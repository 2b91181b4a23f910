//! The committer over a store that waits and fails as it is told.

use std::sync::mpsc;

use potluck_core::{
    Root,
    index_client::{Address, FileRecord, Kind},
};

use super::*;
use crate::{
    registry::Restored,
    store::{StoreError, StoredPeer},
};

/// A store that waits for leave before it does anything, then does as it is told: write, fail or panic.
struct Told {
    leave: mpsc::Receiver<&'static str>,
    seen: mpsc::Sender<Vec<Change>>,
}

impl IndexStore for Told {
    fn kind(&self) -> &'static str {
        "told"
    }

    fn load(&mut self, _: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        Ok(())
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let leave = self.leave.recv().unwrap_or("write");
        self.seen.send(changes.to_vec()).unwrap();
        match leave {
            "write" => Ok(()),
            "fail" => Err(StoreError::Damaged("told to".to_owned())),
            _ => panic!("told to"),
        }
    }
}

struct Setup {
    committer: Committer,
    registry: Arc<Registry>,
    leave: mpsc::Sender<&'static str>,
    seen: mpsc::Receiver<Vec<Change>>,
    thread: JoinHandle<()>,
}

fn setup() -> Setup {
    setup_with(Restored::default(), Limits::default())
}

fn setup_with(restored: Restored, limits: Limits) -> Setup {
    let (leave, receive_leave) = mpsc::channel();
    let (send_seen, seen) = mpsc::channel();
    let registry = Arc::new(Registry::new(restored, 10, Instant::now()));
    let store = Box::new(Told {
        leave: receive_leave,
        seen: send_seen,
    });
    let (committer, thread) = Committer::start(store, Arc::clone(&registry), limits).unwrap();
    Setup {
        committer,
        registry,
        leave,
        seen,
        thread,
    }
}

fn open(n: u8) -> Request {
    let address = Address {
        host: "192.0.2.1".to_owned(),
        port: 1,
    };
    let peer = PeerRecord {
        id: PeerId([n; 32]),
        address,
        ttl: Duration::from_secs(60),
    };
    Request::Register {
        peer,
        files: Vec::new(),
        replace: false,
        cost: 0,
    }
}

#[tokio::test]
async fn many_share_one_flush_and_none_is_shown_before_it() {
    let setup = setup();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100 {
        let committer = setup.committer.clone();
        tasks.spawn(async move { committer.commit(open(n), 1).await });
    }
    // All are queued before any is written: the first batch waits for leave.
    while QUEUE_BYTES - setup.committer.bytes.available_permits() < 100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        setup.registry.catalog().peer_count(),
        0,
        "nothing is shown before it is durable"
    );
    drop(setup.leave);
    while let Some(done) = tasks.join_next().await {
        assert_eq!(done.unwrap(), Ok(0));
    }
    assert_eq!(setup.registry.catalog().peer_count(), 100);
    let batches: Vec<usize> = setup.seen.try_iter().map(|batch| batch.len()).collect();
    assert_eq!(batches.iter().sum::<usize>(), 100);
    assert!(batches.len() < 50, "{batches:?}");
    setup.committer.stop();
    setup.thread.join().unwrap();
    assert_eq!(setup.committer.commit(open(1), 1).await, Err(CommitError::Closed));
}

fn file(n: u8, name: &str) -> Registration {
    let root = Root([n; 32]);
    let file = FileRecord {
        id: FileId::derive(1, &root),
        size: 1,
        root,
        sha256: None,
        kind: Kind::File,
    };
    Registration {
        file,
        names: vec![name.to_owned()],
        partial: false,
    }
}

#[tokio::test]
async fn what_is_durable_is_not_written_again() {
    let setup = setup();
    drop(setup.leave);
    let register = async |files: &[Registration], replace: bool, port: u16| {
        let Request::Register { mut peer, .. } = open(1) else {
            unreachable!()
        };
        peer.address.port = port;
        let request = Request::Register {
            peer,
            files: files.to_vec(),
            replace,
            cost: 0,
        };
        let count = setup.committer.commit(request, 1).await.unwrap();
        let written: Vec<Change> = setup.seen.try_iter().flatten().collect();
        match &written[..] {
            [] => (count, None),
            [Change::Register { files, new, .. }] => (count, Some((files.clone(), *new))),
            other => panic!("{other:?}"),
        }
    };
    let (a, b) = (file(1, "a"), file(2, "b"));
    let both = [a.clone(), b.clone()];
    assert_eq!(register(&both, false, 1).await, (2, Some((both.to_vec(), 2))));
    for replace in [false, true] {
        assert_eq!(register(&both, replace, 1).await, (2, None), "replace: {replace}");
    }
    let partial = Registration {
        partial: true,
        ..b.clone()
    };
    let renamed = file(1, "another");
    for changed in [partial, b.clone(), renamed, a.clone()] {
        let other = if changed.file.id == a.file.id { &b } else { &a };
        let told = [other.clone(), changed.clone()];
        let written = register(&told, false, 1).await;
        assert_eq!(written, (2, Some((vec![changed], 0))), "only what differs");
    }
    assert_eq!(
        register(&both, false, 2).await,
        (2, Some((Vec::new(), 0))),
        "another address"
    );
    let twice = [file(2, "c"), b.clone()];
    assert_eq!(
        register(&twice, false, 2).await,
        (2, Some((twice.to_vec(), 0))),
        "the last word counts"
    );
    assert_eq!(register(&both, false, 2).await, (2, None));
    let one = [a.clone()];
    assert_eq!(
        register(&one, true, 2).await,
        (1, Some((one.to_vec(), 1))),
        "the other one is gone"
    );
}

#[tokio::test]
async fn a_full_index_takes_what_needs_no_memory_and_nothing_else() {
    let Request::Register { peer: record, .. } = open(1) else {
        unreachable!()
    };
    let other = PeerRecord {
        id: PeerId([2; 32]),
        ..record.clone()
    };
    let partial = |file: Registration| Registration {
        partial: true,
        ..file
    };
    let mut restored = Restored::default();
    for (record, files) in [
        (record.clone(), vec![partial(file(1, "a")), file(2, "b")]),
        (other, vec![file(1, "c")]),
    ] {
        restored.add(StoredPeer { record, files });
    }
    let limits = Limits {
        max_memory_mib: 0,
        ..Limits::default()
    };
    let setup = setup_with(restored, limits);
    drop(setup.leave);
    let mut claimed = file(1, "a");
    claimed.file.sha256 = Some(potluck_core::Sha256([1; 32]));
    let longer = Registration {
        names: vec!["a".to_owned(), "c".to_owned()],
        ..file(1, "")
    };
    let both = [file(1, "a"), file(2, "b")];
    for (n, files, replace, outcome) in [
        (1, vec![file(3, "a")], false, Err(CommitError::Full)),
        (1, vec![file(1, "new")], false, Err(CommitError::Full)),
        (1, vec![file(1, "b")], false, Err(CommitError::Full)),
        (1, vec![longer], false, Err(CommitError::Full)),
        (1, vec![claimed], false, Err(CommitError::Full)),
        (1, vec![file(2, "b"), file(1, "b")], true, Err(CommitError::Full)),
        (3, vec![], false, Err(CommitError::Full)),
        (1, both.to_vec(), false, Ok(2)),
        (1, both.to_vec(), true, Ok(2)),
        (1, vec![file(1, "c")], false, Ok(2)),
        (1, vec![file(1, "c")], true, Ok(1)),
        (1, vec![file(2, "b")], false, Err(CommitError::Full)),
    ] {
        let Request::Register { peer, .. } = open(n) else {
            unreachable!()
        };
        let what = format!("{n}: {files:?}, replace: {replace}");
        let cost = files.iter().map(cost::most).sum();
        let request = Request::Register {
            peer,
            files,
            replace,
            cost,
        };
        assert_eq!(setup.committer.commit(request, 1).await, outcome, "{what}");
    }
}

#[tokio::test]
async fn a_store_that_fails_is_told_and_may_recover() {
    let setup = setup();
    for how in ["fail", "panic"] {
        setup.leave.send(how).unwrap();
        assert_eq!(setup.committer.commit(open(1), 1).await, Err(CommitError::Store));
        assert_eq!(setup.registry.catalog().peer_count(), 0);
    }
    setup.leave.send("write").unwrap();
    assert_eq!(setup.committer.commit(open(1), 1).await, Ok(0));
    assert_eq!(setup.registry.catalog().peer_count(), 1);
}

#[tokio::test]
async fn what_could_not_be_forgotten_is_forgotten_with_the_next() {
    let setup = setup();
    setup.leave.send("write").unwrap();
    let Request::Register {
        mut peer,
        files,
        replace,
        cost,
    } = open(1)
    else {
        unreachable!()
    };
    peer.ttl = Duration::from_millis(1);
    let brief = Request::Register {
        peer,
        files,
        replace,
        cost,
    };
    setup.committer.commit(brief, 1).await.unwrap();
    setup.seen.recv().unwrap();
    // Its lease runs out by itself.
    setup.leave.send("fail").unwrap();
    let forget = Change::Forget {
        peer: PeerId([1; 32]),
    };
    assert_eq!(setup.seen.recv().unwrap(), std::slice::from_ref(&forget));
    assert_eq!(setup.registry.catalog().peer_count(), 0, "hidden at once");
    setup.leave.send("write").unwrap();
    setup.committer.commit(open(1), 1).await.unwrap();
    let next = setup.seen.recv().unwrap();
    assert_eq!(next[0], forget, "before the peer comes back");
    assert_eq!(next.len(), 2);
    assert_eq!(setup.registry.catalog().peer_count(), 1);
}

#[tokio::test]
async fn what_waits_is_bounded() {
    let setup = setup();
    let waiting = setup.committer.clone();
    let first = tokio::spawn(async move { waiting.commit(open(1), QUEUE_BYTES).await });
    while setup.committer.bytes.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(setup.committer.commit(open(2), 1).await, Err(CommitError::Busy));
    setup.leave.send("write").unwrap();
    assert_eq!(first.await.unwrap(), Ok(0));
    setup.leave.send("write").unwrap();
    assert_eq!(setup.committer.commit(open(2), 1).await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_is_told() {
    let setup = setup();
    assert_eq!(setup.committer.commit(open(1), 1).await, Err(CommitError::Slow));
}
