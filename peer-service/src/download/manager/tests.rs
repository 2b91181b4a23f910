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
use potluck_testkit::wait::{DEADLINE, wait_until};
use tokio_util::task::TaskTracker;

use super::{
    table::{DownloadEntry, RestartPolicy},
    *,
};
use crate::{
    announce::set::AnnounceSet,
    cache::{Cache, CacheSettings},
    download::{
        context::{LocalPeer, SharedResources},
        engine::disk_pool::DiskPools,
        status::{LimitsUpdate, PeerState},
        storage::target::DownloadTarget,
    },
    home::Home,
    library::{Library, ShareEvent, ShareOptions},
    limits::{Limits, budget::InFlightBudget},
    store::Store,
};

/// Time limit of every wait.
/// How long a call that must wait is observed.
const OBSERVATION: Duration = Duration::from_millis(200);

/// A manager whose downloads find no provider.
struct ManagerFixture {
    manager: DownloadManager,
    stop: CancellationToken,
    tracker: TaskTracker,
    dir: tempfile::TempDir,
}

impl ManagerFixture {
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
        let library = library.unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        let settings = CacheSettings::default();
        let cache = Cache::open(&home, store.clone(), library.clone(), settings);
        let context = DownloadContext {
            library,
            announce_set,
            index: None,
            cache: cache.unwrap(),
            store,
            files_folder: files,
            local: LocalPeer {
                id: PeerId([1; 32]),
                address: Some(std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 1)).into()),
                outgoing: crate::download::outgoing::Outgoing::default(),
            },
            resources: SharedResources {
                limits: Limits::new(0, 0, 1),
                budget: InFlightBudget::default(),
                hash_threads: 1,
                disk_pools: DiskPools::new(1),
            },
            downloaded_bytes: Default::default(),
            counters: Default::default(),
            origins: Default::default(),
            aliases: Default::default(),
            tracker: tracker.clone(),
        };
        Self {
            manager: DownloadManager::new(Arc::new(context), stop.clone()),
            stop,
            tracker,
            dir,
        }
    }

    /// Starts a download that no peer can serve; returns its number.
    async fn start_unreachable(&self) -> u64 {
        let started = self.manager.start_download(unreachable_spec()).await;
        started.unwrap().number
    }

    /// Waits until the condition holds for a download.
    async fn until(&self, number: u64, mut holds: impl FnMut(&DownloadEntry) -> bool) {
        wait_until("the download reaches the state", async || {
            let table = self.manager.table();
            table.downloads.get(&number).is_some_and(&mut holds)
        })
        .await;
    }

    /// Blocks all writes to the store until the returned sender is dropped.
    fn block_store(&self) -> mpsc::Sender<()> {
        let (locked, is_locked) = mpsc::channel::<()>();
        let (release, released) = mpsc::channel::<()>();
        let state = Arc::clone(&self.manager.shared);
        std::thread::spawn(move || {
            let _storing = state.persisting.lock();
            drop(locked);
            released.recv().unwrap_err();
        });
        is_locked.recv().unwrap_err();
        release
    }

    /// The result of a command, which must not complete before the store can be written.
    async fn once_stored<T>(&self, command: impl Future<Output = T>) -> T {
        let blocked = self.block_store();
        let mut command = std::pin::pin!(command);
        let early = tokio::time::timeout(OBSERVATION, &mut command).await;
        assert!(early.is_err(), "it was answered before it was stored");
        drop(blocked);
        command.await
    }

    /// A download in its stored form.
    fn row(&self, number: u64) -> Option<PersistedDownload> {
        let rows = self.manager.shared.context.store.downloads().unwrap();
        let row = rows.into_iter().find(|(row, _)| *row == number);
        row.map(|(_, bytes)| PersistedDownload::decode(&bytes).unwrap())
    }

    /// Makes all writes to the store fail until [`ManagerFixture::repair_store`].
    fn break_store(&self) {
        self.manager.shared.context.store.close();
        std::fs::rename(self.dir.path().join("state"), self.dir.path().join("away")).unwrap();
    }

    fn repair_store(&self) {
        std::fs::rename(self.dir.path().join("away"), self.dir.path().join("state")).unwrap();
    }

    fn stored_count(&self) -> usize {
        self.manager.shared.context.store.downloads().unwrap().len()
    }

    fn state(&self, number: u64) -> DownloadState {
        self.manager.get(number).unwrap().state
    }

    async fn shut_down(self) {
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
async fn concurrent_requests_for_the_same_file_share_a_download() {
    let fixture = ManagerFixture::new();
    for round in 0..100 {
        let (manager, both) = (&fixture.manager, Barrier::new(2));
        let name = Some(round.to_string());
        let request = || {
            let name = name.clone();
            both.wait();
            manager
                .find_or_insert(DownloadSpec {
                    name,
                    ..unreachable_spec()
                })
                .0
                .number
        };
        let (one, other) = std::thread::scope(|scope| {
            let other = scope.spawn(request);
            (request(), other.join().unwrap())
        });
        assert_eq!(one, other);
    }
    fixture.shut_down().await;
}

#[tokio::test]
async fn pages_list_each_download_once_and_the_newest_first() {
    let fixture = ManagerFixture::new();
    let manager = &fixture.manager;
    assert_eq!(manager.list(5, "").unwrap().1, None);
    for n in 0..7 {
        // Only listed, not started.
        drop(manager.find_or_insert(DownloadSpec {
            name: Some(n.to_string()),
            ..unreachable_spec()
        }));
    }
    for page_size in [1, 2, 6, 7, 8] {
        let (mut numbers, mut token) = (Vec::new(), String::new());
        loop {
            let (page, next) = manager.list(page_size, &token).unwrap();
            assert!((1..=page_size).contains(&page.len()));
            numbers.extend(page.iter().map(|status| status.number));
            match next {
                Some(next) => token = next,
                None => break,
            }
        }
        assert_eq!(numbers, [7, 6, 5, 4, 3, 2, 1], "{page_size}");
    }
    let problem = manager.list(1, "x").unwrap_err();
    assert_eq!(problem.reason, Reason::InvalidPageToken);
    assert_eq!(problem.field.as_deref(), Some("page_token"));
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_is_answered_after_it_is_stored() {
    let fixture = ManagerFixture::new();
    let manager = &fixture.manager;
    let started = fixture
        .once_stored(manager.start_download(unreachable_spec()))
        .await
        .unwrap();
    let number = started.number;
    assert!(fixture.row(number).unwrap().running);
    fixture.once_stored(manager.pause(number)).await.unwrap();
    assert!(!fixture.row(number).unwrap().running);
    let update = LimitsUpdate {
        max_bytes_per_second: Some(5),
        priority: crate::limits::Priority::new(3),
    };
    fixture.once_stored(manager.adjust(number, update)).await.unwrap();
    assert_eq!(fixture.row(number).unwrap().spec.limits, update);
    fixture.once_stored(manager.resume(number)).await.unwrap();
    let row = fixture.row(number).unwrap();
    assert!(row.running && row.spec.limits == update);
    // A caller that joins must also wait for the store.
    let named = DownloadSpec {
        providers: vec![std::net::SocketAddr::from(([192, 0, 2, 1], 9)).into()],
        ..unreachable_spec()
    };
    fixture.once_stored(manager.start_download(named)).await.unwrap();
    assert_eq!(fixture.row(number).unwrap().spec.providers.len(), 1);
    fixture.once_stored(manager.cancel(number)).await.unwrap();
    assert!(fixture.row(number).is_none());
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_to_the_store_is_reported_and_retried() {
    let fixture = ManagerFixture::new();
    let manager = &fixture.manager;
    let number = fixture.start_unreachable().await;
    fixture.break_store();
    let reason = |problem: Problem| problem.reason;
    let named = |name: &str, detach| DownloadSpec {
        name: Some(name.into()),
        detach,
        ..unreachable_spec()
    };
    let refused = manager.start_download(named("detached", true)).await.unwrap_err();
    assert_eq!(reason(refused), Reason::StoreUnavailable);
    let failed = &manager.list(1, "").unwrap().0[0];
    assert_eq!((failed.state, &*failed.name), (DownloadState::Failed, "detached"));
    // The caller of a download that is not detached only sees it end with the peer.
    let watched = manager.start_download(named("watched", false)).await.unwrap();
    fixture
        .until(watched.number, |entry| entry.status.borrow().state.is_active())
        .await;
    assert_eq!(
        manager.pause(number).await.map_err(reason).unwrap_err(),
        Reason::StoreUnavailable
    );
    assert_eq!(fixture.state(number), DownloadState::Paused);
    fixture.repair_store();
    fixture
        .until(number, |_| fixture.row(number).is_some_and(|row| !row.running))
        .await;
    fixture
        .until(number, |_| {
            fixture.row(watched.number).is_some_and(|row| row.running)
        })
        .await;
    drop(watched);
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_visible_immediately() {
    let fixture = ManagerFixture::new();
    let number = fixture.start_unreachable().await;
    let blocked = fixture.block_store();
    let manager = fixture.manager.clone();
    let pausing = tokio::spawn(async move { manager.pause(number).await });
    fixture
        .until(number, |entry| {
            entry.status.borrow().state == DownloadState::Paused
        })
        .await;
    assert!(!pausing.is_finished(), "it is not stored yet");
    drop(blocked);
    assert_eq!(pausing.await.unwrap().unwrap().state, DownloadState::Paused);
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_has_ended_cannot_be_paused_resumed_or_cancelled() {
    let fixture = ManagerFixture::new();
    let manager = &fixture.manager;
    let path = fixture.dir.path().join("there");
    std::fs::write(&path, [7; 1000]).unwrap();
    let spec = DownloadSpec {
        target: Some(path.clone()),
        detach: true,
        ..DownloadSpec::new(potluck_core::identity::hash::hash_bytes(&[7; 1000]).id())
    };
    let done = manager.start_download(spec).await.unwrap().number;
    fixture
        .until(done, |entry| entry.status.borrow().state == DownloadState::Done)
        .await;
    let cancelled = fixture.start_unreachable().await;
    assert_eq!(
        manager.cancel(cancelled).await.unwrap().state,
        DownloadState::Cancelled
    );
    for (number, state) in [(done, DownloadState::Done), (cancelled, DownloadState::Cancelled)] {
        let answers = [manager.pause(number).await, manager.resume(number).await];
        for answer in answers {
            assert_eq!(answer.unwrap_err().reason, Reason::AlreadyEnded);
        }
        assert_eq!(fixture.state(number), state);
    }
    let problem = manager.cancel(done).await.unwrap_err();
    assert_eq!(problem.reason, Reason::AlreadyEnded);
    assert!(problem.message.contains(path.to_str().unwrap()), "{problem}");
    assert_eq!(
        manager.cancel(cancelled).await.unwrap().state,
        DownloadState::Cancelled
    );
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_while_a_pause_is_being_stored_takes_effect() {
    let fixture = ManagerFixture::new();
    let number = fixture.start_unreachable().await;
    fixture.until(number, |_| fixture.stored_count() == 1).await;
    let blocked = fixture.block_store();
    let manager = fixture.manager.clone();
    let pausing = tokio::spawn(async move { manager.pause(number).await.unwrap() });
    fixture
        .until(number, |entry| entry.persisted == Some(false))
        .await;
    let manager = fixture.manager.clone();
    let cancelling = tokio::spawn(async move { manager.cancel(number).await.unwrap() });
    fixture.until(number, |entry| entry.is_cancelled).await;
    drop(blocked);
    pausing.await.unwrap();
    assert_eq!(cancelling.await.unwrap().state, DownloadState::Cancelled);
    assert_eq!(fixture.state(number), DownloadState::Cancelled);
    assert_eq!(fixture.stored_count(), 0);
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_starts_while_the_data_of_a_cancelled_download_is_deleted() {
    for restart in [RestartPolicy::UnlessEnded, RestartPolicy::Always] {
        let fixture = ManagerFixture::new();
        let number = fixture.start_unreachable().await;
        fixture.manager.pause(number).await.unwrap();
        let blocked = fixture.block_store();
        let manager = fixture.manager.clone();
        let cancelling = tokio::spawn(async move { manager.cancel(number).await.unwrap() });
        fixture.until(number, |entry| entry.persisted.is_none()).await;
        let mut starting = Box::pin(fixture.manager.start_task(number, restart));
        assert!(futures_util::poll!(&mut starting).is_pending());
        assert_eq!(fixture.state(number), DownloadState::Paused, "no task runs");
        drop(blocked);
        starting.await.unwrap();
        cancelling.await.unwrap();
        let is_running = fixture.manager.table().downloads[&number].task.is_some();
        assert_eq!(is_running, restart == RestartPolicy::Always);
        fixture.shut_down().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_while_the_folder_is_created_leaves_nothing_behind() {
    let fixture = ManagerFixture::new();
    let (path, target) = (fixture.dir.path().join("here"), fixture.dir.path().join("there"));
    // Preparing this many folders takes much longer than observing it.
    for n in 0..4_000 {
        std::fs::create_dir_all(path.join(n.to_string())).unwrap();
    }
    let (sender, mut events) = tokio::sync::mpsc::channel(8);
    fixture
        .manager
        .shared
        .context
        .library
        .share(vec![path], ShareOptions::default(), sender)
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
    let watching = fixture.manager.start_download(spec).await.unwrap();
    let number = watching.number;
    fixture.until(number, |_| target.part().exists()).await;
    let cancelled = fixture.manager.cancel(number).await.unwrap();
    assert_eq!(cancelled.state, DownloadState::Cancelled);
    assert!(!target.part().exists() && !target.state().exists() && !target.path.exists());
    drop(watching);
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_disk_is_reported_and_no_peer_is_blamed() {
    let fixture = ManagerFixture::new();
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
    let disk = fixture.manager.shared.context.resources.disk_pools.pool(device);
    let (release, released) = std::sync::mpsc::channel::<()>();
    let space = disk.acquire(1).await.unwrap();
    disk.submit(space, Path::new("/slow"), move || _ = released.recv());
    let until_reported = async || {
        let spec = DownloadSpec {
            providers: source.local_addr.into_iter().map(Into::into).collect(),
            detach: true,
            ..DownloadSpec::new(potluck_core::identity::hash::hash_bytes(&bytes).id())
        };
        let number = fixture.manager.start_download(spec).await.unwrap().number;
        fixture
            .until(number, |entry| {
                let status = entry.status.borrow();
                assert!(status.peers.iter().all(|row| row.state != PeerState::BackingOff));
                let is_reported = status.error.as_ref().is_some_and(|problem| {
                    problem.reason == Reason::TargetNotWritable && problem.message.contains("/slow")
                });
                is_reported && status.state == DownloadState::Waiting
            })
            .await;
        assert!(fixture.manager.get(number).unwrap().bytes_done == 0);
        number
    };
    // Work that is blocked on the disk must not delay a cancel.
    let cancelled = fixture.manager.cancel(until_reported().await);
    tokio::time::timeout(DEADLINE, cancelled).await.unwrap().unwrap();
    let number = until_reported().await;
    drop(release);
    fixture
        .until(number, |entry| entry.status.borrow().state == DownloadState::Done)
        .await;
    stop.cancel();
    source.join().await;
    fixture.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_named_by_a_joining_request_are_asked() {
    let fixture = ManagerFixture::new();
    let (path, bytes) = (fixture.dir.path().join("shared"), vec![7; 100_000]);
    std::fs::write(&path, &bytes).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = crate::Config {
        share: vec![path],
        ..crate::Config::new(fixture.dir.path().join("source"))
    };
    let stop = CancellationToken::new();
    let source = crate::start(listener, config, stop.clone()).await.unwrap();
    let without_peers = DownloadSpec {
        detach: true,
        ..DownloadSpec::new(potluck_core::identity::hash::hash_bytes(&bytes).id())
    };
    let number = fixture
        .manager
        .start_download(without_peers.clone())
        .await
        .unwrap()
        .number;
    fixture
        .until(number, |entry| {
            entry.status.borrow().state == DownloadState::Waiting
        })
        .await;
    let with_peer = DownloadSpec {
        providers: source.local_addr.into_iter().map(Into::into).collect(),
        ..without_peers
    };
    assert_eq!(
        fixture.manager.start_download(with_peer).await.unwrap().number,
        number
    );
    fixture
        .until(number, |entry| entry.status.borrow().state == DownloadState::Done)
        .await;
    stop.cancel();
    source.join().await;
    fixture.shut_down().await;
}

#[tokio::test]
async fn the_number_of_an_ended_download_is_not_used_again_after_a_restart() {
    let fixture = ManagerFixture::new();
    let first = fixture.start_unreachable().await;
    fixture.manager.cancel(first).await.unwrap();
    let context = Arc::clone(&fixture.manager.shared.context);
    let restarted = DownloadManager::new(context, fixture.stop.clone());
    restarted.restore().await.unwrap();
    let second = restarted.start_download(unreachable_spec()).await.unwrap();
    assert!(second.number > first, "{} after {first}", second.number);
}
