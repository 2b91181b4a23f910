//! Races between commands: concurrent requests for the same file, and a cancel while a download is
//! stored or resumed.

use std::{
    net::Ipv4Addr,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Barrier, mpsc},
    time::Duration,
};

use potluck_core::PeerId;
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    announce::set::AnnounceSet,
    download::{
        engine::disk_pool::DiskPools,
        status::{LimitsUpdate, PeerState},
        storage::target::DownloadTarget,
    },
    library::{Library, ShareEvent},
    limits::{Limits, budget::InFlightBudget},
    store::Store,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// How long a call that must wait is observed.
const EARLY: Duration = Duration::from_millis(200);

/// A manager whose downloads find no provider.
struct ManagerRig {
    transfers: DownloadManager,
    stop: CancellationToken,
    tracker: TaskTracker,
    dir: tempfile::TempDir,
}

impl ManagerRig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let (state, files) = (dir.path().join("state"), dir.path().join("files"));
        std::fs::create_dir(&state).unwrap();
        let store = Store::open_in(&state).unwrap();
        let announce_set = AnnounceSet::new();
        let library = Library::open(
            store.clone(),
            announce_set.clone(),
            files.clone(),
            1,
            stop.clone(),
            &tracker,
        );
        let context = DownloadContext {
            library: library.unwrap(),
            announce_set,
            limits: Limits::new(0, 0, 1),
            budget: InFlightBudget::default(),
            index: None,
            store,
            files_folder: files,
            peer_id: PeerId([1; 32]),
            local_addr: std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 1)).into(),
            leave_from: None,
            hash_threads: 1,
            disk_pools: DiskPools::new(1),
            downloaded_bytes: Default::default(),
            tracker: tracker.clone(),
        };
        Self {
            transfers: DownloadManager::new(Arc::new(context), stop.clone()),
            stop,
            tracker,
            dir,
        }
    }

    /// Waits until the condition holds for a download.
    async fn until(&self, number: u64, mut holds: impl FnMut(&DownloadEntry) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !self
            .transfers
            .table()
            .downloads
            .get(&number)
            .is_some_and(&mut holds)
        {
            assert!(tokio::time::Instant::now() < deadline, "waited in vain");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Blocks all writes to the store until the returned sender is dropped.
    fn hold_up(&self) -> mpsc::Sender<()> {
        let (begun, begins) = mpsc::channel::<()>();
        let (held, holds) = mpsc::channel::<()>();
        let state = Arc::clone(&self.transfers.shared);
        std::thread::spawn(move || {
            let _storing = state.persisting.lock();
            drop(begun);
            holds.recv().unwrap_err();
        });
        begins.recv().unwrap_err();
        held
    }

    /// The result of a command, which must not complete before the store can be written.
    async fn once_stored<T>(&self, command: impl Future<Output = T>) -> T {
        let disk = self.hold_up();
        let mut command = std::pin::pin!(command);
        let early = tokio::time::timeout(EARLY, &mut command).await;
        assert!(early.is_err(), "it is answered before it is stored");
        drop(disk);
        command.await
    }

    /// A download as the store has it.
    fn row(&self, number: u64) -> Option<PersistedDownload> {
        let rows = self.transfers.shared.context.store.transfers().unwrap();
        let row = rows.into_iter().find(|(row, _)| *row == number);
        row.map(|(_, bytes)| PersistedDownload::decode(&bytes).unwrap())
    }

    /// Makes all writes to the store fail until [`ManagerRig::mend_store`].
    fn break_store(&self) {
        self.transfers.shared.context.store.close();
        std::fs::rename(self.dir.path().join("state"), self.dir.path().join("away")).unwrap();
    }

    fn mend_store(&self) {
        std::fs::rename(self.dir.path().join("away"), self.dir.path().join("state")).unwrap();
    }

    fn stored(&self) -> usize {
        self.transfers.shared.context.store.transfers().unwrap().len()
    }

    fn state(&self, number: u64) -> DownloadState {
        self.transfers.get(number).unwrap().state
    }

    async fn end(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

fn unreachable_spec() -> DownloadSpec {
    DownloadSpec {
        target: Some(Path::new("/nowhere/at/all").to_owned()),
        detach: true,
        limits: LimitsUpdate::default(),
        ..DownloadSpec::new(FileId([7; 32]))
    }
}

#[tokio::test]
async fn two_who_ask_for_the_same_at_once_have_one_transfer() {
    let fixture = ManagerRig::new();
    for round in 0..100 {
        let (transfers, both) = (&fixture.transfers, Barrier::new(2));
        let name = Some(round.to_string());
        let ask = || {
            let name = name.clone();
            both.wait();
            transfers
                .find_or_insert(DownloadSpec {
                    name,
                    ..unreachable_spec()
                })
                .0
                .transfer
        };
        let (one, other) = std::thread::scope(|scope| {
            let other = scope.spawn(ask);
            (ask(), other.join().unwrap())
        });
        assert_eq!(one, other);
    }
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_is_answered_once_the_store_has_it() {
    let fixture = ManagerRig::new();
    let transfers = &fixture.transfers;
    let fetched = fixture
        .once_stored(transfers.start_download(unreachable_spec()))
        .await
        .unwrap();
    let number = fetched.transfer;
    assert!(fixture.row(number).unwrap().running);
    fixture.once_stored(transfers.pause(number)).await.unwrap();
    assert!(!fixture.row(number).unwrap().running);
    let update = LimitsUpdate {
        max_bytes_per_second: Some(5),
        priority: crate::limits::Priority::new(3),
    };
    fixture
        .once_stored(transfers.adjust(number, update))
        .await
        .unwrap();
    assert_eq!(fixture.row(number).unwrap().spec.limits, update);
    fixture.once_stored(transfers.resume(number)).await.unwrap();
    let row = fixture.row(number).unwrap();
    assert!(row.running && row.spec.limits == update);
    // A caller that joins must also wait for the store.
    let named = DownloadSpec {
        providers: vec![std::net::SocketAddr::from(([192, 0, 2, 1], 9)).into()],
        ..unreachable_spec()
    };
    fixture
        .once_stored(transfers.start_download(named))
        .await
        .unwrap();
    assert_eq!(fixture.row(number).unwrap().spec.providers.len(), 1);
    fixture.once_stored(transfers.cancel(number)).await.unwrap();
    assert!(fixture.row(number).is_none());
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_told_and_stored_as_soon_as_it_can_be() {
    let fixture = ManagerRig::new();
    let transfers = &fixture.transfers;
    let number = transfers
        .start_download(unreachable_spec())
        .await
        .unwrap()
        .transfer;
    fixture.break_store();
    let reason = |problem: Problem| problem.reason;
    let named = |name: &str, detach| DownloadSpec {
        name: Some(name.into()),
        detach,
        ..unreachable_spec()
    };
    let refused = transfers
        .start_download(named("detached", true))
        .await
        .unwrap_err();
    assert_eq!(reason(refused), Reason::StoreUnavailable);
    let failed = &transfers.list()[0];
    assert_eq!((failed.state, &*failed.name), (DownloadState::Failed, "detached"));
    // The caller of a download that is not detached only sees it end with the peer.
    let watched = transfers.start_download(named("watched", false)).await.unwrap();
    fixture
        .until(watched.transfer, |entry| entry.status.borrow().state.is_active())
        .await;
    assert_eq!(
        transfers.pause(number).await.map_err(reason).unwrap_err(),
        Reason::StoreUnavailable
    );
    assert_eq!(fixture.state(number), DownloadState::Paused);
    fixture.mend_store();
    fixture
        .until(number, |_| fixture.row(number).is_some_and(|row| !row.running))
        .await;
    fixture
        .until(number, |_| {
            fixture.row(watched.transfer).is_some_and(|row| row.running)
        })
        .await;
    drop(watched);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_seen_at_once() {
    let fixture = ManagerRig::new();
    let number = fixture
        .transfers
        .start_download(unreachable_spec())
        .await
        .unwrap()
        .transfer;
    let disk = fixture.hold_up();
    let transfers = fixture.transfers.clone();
    let pausing = tokio::spawn(async move { transfers.pause(number).await });
    fixture
        .until(number, |entry| {
            entry.status.borrow().state == DownloadState::Paused
        })
        .await;
    assert!(!pausing.is_finished(), "it is not stored yet");
    drop(disk);
    assert_eq!(pausing.await.unwrap().unwrap().state, DownloadState::Paused);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_is_not_said_to_be_paused_resumed_or_cancelled() {
    let fixture = ManagerRig::new();
    let transfers = &fixture.transfers;
    let path = fixture.dir.path().join("there");
    std::fs::write(&path, [7; 1000]).unwrap();
    let spec = DownloadSpec {
        target: Some(path.clone()),
        detach: true,
        ..DownloadSpec::new(potluck_core::identity::hash::hash_bytes(&[7; 1000]).id())
    };
    let done = transfers.start_download(spec).await.unwrap().transfer;
    fixture
        .until(done, |entry| entry.status.borrow().state == DownloadState::Done)
        .await;
    let cancelled = transfers
        .start_download(unreachable_spec())
        .await
        .unwrap()
        .transfer;
    assert_eq!(
        transfers.cancel(cancelled).await.unwrap().state,
        DownloadState::Cancelled
    );
    for (number, state) in [(done, DownloadState::Done), (cancelled, DownloadState::Cancelled)] {
        let answers = [transfers.pause(number).await, transfers.resume(number).await];
        for answer in answers {
            assert_eq!(answer.unwrap_err().reason, Reason::AlreadyEnded);
        }
        assert_eq!(fixture.state(number), state);
    }
    let problem = transfers.cancel(done).await.unwrap_err();
    assert_eq!(problem.reason, Reason::AlreadyEnded);
    assert!(problem.message.contains(path.to_str().unwrap()), "{problem}");
    assert_eq!(
        transfers.cancel(cancelled).await.unwrap().state,
        DownloadState::Cancelled
    );
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_comes_while_a_pause_is_stored_is_done() {
    let fixture = ManagerRig::new();
    let number = fixture
        .transfers
        .start_download(unreachable_spec())
        .await
        .unwrap()
        .transfer;
    fixture.until(number, |_| fixture.stored() == 1).await;
    let disk = fixture.hold_up();
    let transfers = fixture.transfers.clone();
    let pausing = tokio::spawn(async move { transfers.pause(number).await.unwrap() });
    fixture
        .until(number, |entry| entry.persisted == Some(false))
        .await;
    let transfers = fixture.transfers.clone();
    let cancelling = tokio::spawn(async move { transfers.cancel(number).await.unwrap() });
    fixture.until(number, |entry| entry.cancel).await;
    drop(disk);
    pausing.await.unwrap();
    assert_eq!(cancelling.await.unwrap().state, DownloadState::Cancelled);
    assert_eq!(fixture.state(number), DownloadState::Cancelled);
    assert_eq!(fixture.stored(), 0);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_begins_while_what_was_fetched_is_removed() {
    for again in [RestartPolicy::UnlessEnded, RestartPolicy::Always] {
        let fixture = ManagerRig::new();
        let number = fixture
            .transfers
            .start_download(unreachable_spec())
            .await
            .unwrap()
            .transfer;
        fixture.transfers.pause(number).await.unwrap();
        let disk = fixture.hold_up();
        let transfers = fixture.transfers.clone();
        let cancelling = tokio::spawn(async move { transfers.cancel(number).await.unwrap() });
        fixture.until(number, |entry| entry.persisted.is_none()).await;
        let mut beginning = Box::pin(fixture.transfers.start_task(number, again));
        assert!(futures_util::poll!(&mut beginning).is_pending());
        assert_eq!(
            fixture.state(number),
            DownloadState::Paused,
            "nothing is at work on it"
        );
        drop(disk);
        beginning.await.unwrap();
        cancelling.await.unwrap();
        let is_at_work = fixture.transfers.table().downloads[&number].task.is_some();
        assert_eq!(is_at_work, again == RestartPolicy::Always);
        fixture.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_folder_that_was_cancelled_while_it_was_made() {
    let fixture = ManagerRig::new();
    let (path, target) = (fixture.dir.path().join("here"), fixture.dir.path().join("there"));
    // Preparing this many folders takes much longer than observing it.
    for n in 0..4_000 {
        std::fs::create_dir_all(path.join(n.to_string())).unwrap();
    }
    let (tell, mut events) = tokio::sync::mpsc::channel(8);
    fixture
        .transfers
        .shared
        .context
        .library
        .share(vec![path], tell)
        .await;
    let mut shared = None;
    while let Some(event) = events.recv().await {
        if let ShareEvent::Shared(item) = event {
            shared = Some(item.record.id);
        }
    }
    let target = DownloadTarget { path: target };
    let spec = DownloadSpec {
        target: Some(target.path.clone()),
        ..DownloadSpec::new(shared.unwrap())
    };
    let watching = fixture.transfers.start_download(spec).await.unwrap();
    let number = watching.transfer;
    fixture.until(number, |_| target.part().exists()).await;
    let cancelled = fixture.transfers.cancel(number).await.unwrap();
    assert_eq!(cancelled.state, DownloadState::Cancelled);
    assert!(!target.part().exists() && !target.state().exists() && !target.path.exists());
    drop(watching);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_is_named_and_nobody_is_blamed_for_it() {
    let fixture = ManagerRig::new();
    let (path, bytes) = (fixture.dir.path().join("large"), vec![7; 4 << 20]);
    std::fs::write(&path, &bytes).unwrap();
    let device = std::fs::metadata(&path).unwrap().dev();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = crate::Config {
        share: vec![path],
        ..crate::Config::new(fixture.dir.path().join("source"))
    };
    let stop = CancellationToken::new();
    let source = crate::start(listener, config, stop.clone()).await.unwrap();
    let disk = fixture.transfers.shared.context.disk_pools.pool(device);
    let (hangs, held) = std::sync::mpsc::channel::<()>();
    let space = disk.acquire(1).await.unwrap();
    disk.submit(space, Path::new("/slow"), move || _ = held.recv());
    let until_named = async || {
        let spec = DownloadSpec {
            providers: vec![source.local_addr.into()],
            detach: true,
            ..DownloadSpec::new(potluck_core::identity::hash::hash_bytes(&bytes).id())
        };
        let number = fixture.transfers.start_download(spec).await.unwrap().transfer;
        fixture
            .until(number, |entry| {
                let status = entry.status.borrow();
                assert!(status.peers.iter().all(|row| row.state != PeerState::BackingOff));
                let named = status.error.as_ref().is_some_and(|problem| {
                    problem.reason == Reason::TargetNotWritable && problem.message.contains("/slow")
                });
                named && status.state == DownloadState::Waiting
            })
            .await;
        assert!(fixture.transfers.get(number).unwrap().bytes_done == 0);
        number
    };
    // Work that is blocked on the disk must not delay a cancel.
    let cancelled = fixture.transfers.cancel(until_named().await);
    tokio::time::timeout(PATIENCE, cancelled).await.unwrap().unwrap();
    let number = until_named().await;
    drop(hangs);
    fixture
        .until(number, |entry| entry.status.borrow().state == DownloadState::Done)
        .await;
    stop.cancel();
    source.join().await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_are_named_by_who_joins_are_asked() {
    let fixture = ManagerRig::new();
    let (path, bytes) = (fixture.dir.path().join("shared"), vec![7; 100_000]);
    std::fs::write(&path, &bytes).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = crate::Config {
        share: vec![path],
        ..crate::Config::new(fixture.dir.path().join("source"))
    };
    let stop = CancellationToken::new();
    let source = crate::start(listener, config, stop.clone()).await.unwrap();
    let nobody = DownloadSpec {
        detach: true,
        ..DownloadSpec::new(potluck_core::identity::hash::hash_bytes(&bytes).id())
    };
    let number = fixture
        .transfers
        .start_download(nobody.clone())
        .await
        .unwrap()
        .transfer;
    fixture
        .until(number, |entry| {
            entry.status.borrow().state == DownloadState::Waiting
        })
        .await;
    let somebody = DownloadSpec {
        providers: vec![source.local_addr.into()],
        ..nobody
    };
    assert_eq!(
        fixture.transfers.start_download(somebody).await.unwrap().transfer,
        number
    );
    fixture
        .until(number, |entry| entry.status.borrow().state == DownloadState::Done)
        .await;
    stop.cancel();
    source.join().await;
    fixture.end().await;
}
