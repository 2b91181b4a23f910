//! The library as a whole: races between a check and the action that follows from it, items that
//! are offline, damage, and the order of a change.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use potluck_testkit::wait::wait_until;

use super::*;
use crate::{
    catalog::change::CatalogChange,
    library::{
        check::MAX_REPORT_BYTES,
        hash::observer::HashObserver,
        reconcile::{RETRY_FAILED, RefreshOutcome, files_folder_scan::FolderScanner},
    },
};

struct LibraryFixture {
    library: Library,
    announce_set: AnnounceSet,
    stop: CancellationToken,
    tracker: TaskTracker,
    dir: tempfile::TempDir,
}

const OBSERVER: HashObserver<'_> = HashObserver::silent(&|| false);

impl LibraryFixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        Self::at(dir)
    }

    fn at(dir: tempfile::TempDir) -> Self {
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let (state, files) = (dir.path().join("state"), dir.path().join("files"));
        let (store, announce_set) = (Store::open_in(&state).unwrap(), AnnounceSet::new());
        let library =
            Library::open(store, announce_set.clone(), files, 2, stop.clone(), &tracker).unwrap();
        Self {
            library,
            announce_set,
            stop,
            tracker,
            dir,
        }
    }

    fn share(&self, path: &Path) -> Item {
        self.library
            .builder
            .build_and_put(
                path,
                Some(&ShareOptions::default()),
                PutCause::Requested,
                &OBSERVER,
            )
            .unwrap()
            .0
    }

    fn build(&self, path: &Path) -> NewItem {
        let options = ShareOptions::default();
        let built = self.library.builder.build(path, &options, &OBSERVER).unwrap();
        built.item
    }

    fn put(&self, item: NewItem, cause: PutCause) -> Result<Item, Problem> {
        self.library.catalog.put_items(vec![item], cause).remove(0)
    }

    fn unshare(&self, path: &Path) {
        let target = UnshareTarget::Path(path.to_owned());
        let folder = &self.library.files_folder;
        self.library.catalog.unshare(&target, folder).unwrap();
    }

    fn is_shared(&self, id: &FileId) -> bool {
        self.library.catalog.read().record(id).is_some()
    }

    fn number(&self, path: &Path) -> u64 {
        self.library.catalog.read().item_at(path).unwrap()
    }

    async fn end(self) -> tempfile::TempDir {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        self.dir
    }
}

#[tokio::test]
async fn an_item_unshared_while_it_is_hashed_again_stays_unshared() {
    let fixture = LibraryFixture::new();
    let path = fixture.dir.path().canonicalize().unwrap().join("file");
    fs::write(&path, "before").unwrap();
    fixture.share(&path);
    let number = fixture.number(&path);
    fs::write(&path, "after").unwrap();
    let unshared = AtomicBool::new(false);
    let observer = HashObserver {
        on_progress: &|_, _| {
            if !unshared.swap(true, Ordering::Relaxed) {
                fixture.unshare(&path);
            }
        },
        ..OBSERVER
    };
    let again =
        fixture
            .library
            .builder
            .build_and_put(&path, None, PutCause::Changed(number), &observer);
    assert_eq!(again.unwrap_err()[0].1.reason, Reason::Cancelled);
    assert!(unshared.into_inner() && fixture.library.catalog.read().item_at(&path).is_none());
    fixture.share(&path);
    fixture.end().await;
}

#[tokio::test]
async fn a_file_unshared_while_the_files_folder_is_scanned_stays_unshared() {
    let fixture = LibraryFixture::new();
    let path = fixture.library.files_folder.path().join("file");
    fs::write(&path, "content").unwrap();
    let item = fixture.build(&path);
    let put = |cause| fixture.put(item.clone(), cause);
    put(PutCause::InFilesFolder).unwrap();
    fixture.unshare(&path);
    assert_eq!(
        put(PutCause::InFilesFolder).unwrap_err().reason,
        Reason::Cancelled
    );
    assert!(fixture.library.catalog.read().is_tombstoned(&path));
    put(PutCause::Requested).unwrap();
    fixture.end().await;
}

#[tokio::test]
async fn an_item_that_was_replaced_is_not_withdrawn() {
    let fixture = LibraryFixture::new();
    let path = fixture.dir.path().canonicalize().unwrap().join("file");
    fs::write(&path, "content").unwrap();
    let id = fixture.share(&path).record.id;
    let check = || {
        let catalog = fixture.library.catalog.read();
        let location = catalog.locations(&id)[0];
        (location, catalog.item(location.item).unwrap().body.clone())
    };
    let (location, before) = check();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60))
        .unwrap();
    assert_eq!(fixture.share(&path).record.id, id);
    fixture.library.reconciler.withdraw(location, &before);
    assert!(fixture.is_shared(&id));
    let (location, now) = check();
    fixture.library.reconciler.withdraw(location, &now);
    assert!(!fixture.is_shared(&id));
    fixture.end().await;
}

#[tokio::test]
async fn a_path_created_after_the_listing_is_not_removed() {
    let fixture = LibraryFixture::new();
    let (path, unshared) = (
        fixture.library.files_folder.path().join("file"),
        fixture.library.files_folder.path().join("hidden"),
    );
    let listing = HashSet::new();
    for (path, content) in [(&path, "shared"), (&unshared, "unshared")] {
        fs::write(path, content).unwrap();
        fixture.share(path);
    }
    fixture.unshare(&unshared);
    let number = fixture.number(&path);
    let check = || {
        fixture.library.reconciler.remove_gone(vec![number]);
        fixture.library.reconciler.remove_gone_tombstones(&listing);
        let catalog = fixture.library.catalog.read();
        (catalog.item_at(&path).is_some(), catalog.is_tombstoned(&unshared))
    };
    assert_eq!(check(), (true, true));
    fs::remove_file(&path).unwrap();
    fs::remove_file(&unshared).unwrap();
    assert_eq!(check(), (false, false));
    fixture.end().await;
}

/// A file of two pieces and a folder, on a folder that can be moved away like a disk.
fn fill(disk: &Path) -> [PathBuf; 2] {
    let [file, folder] = ["file", "folder"].map(|name| disk.join(name));
    fs::create_dir_all(&folder).unwrap();
    fs::write(&file, vec![3; 600_000]).unwrap();
    fs::write(folder.join("large"), vec![4; 700_000]).unwrap();
    fs::write(folder.join("small"), "small").unwrap();
    [file, folder]
}

#[tokio::test]
async fn offline_items_are_not_served_and_come_back_without_hashing() {
    let fixture = LibraryFixture::new();
    let dir = fixture.dir.path().canonicalize().unwrap();
    let (disk, elsewhere) = (dir.join("disk"), dir.join("elsewhere"));
    let paths = fill(&disk);
    let ids = paths.each_ref().map(|path| fixture.share(path).record.id);
    let numbers = paths.each_ref().map(|path| fixture.number(path));
    let file = fixture
        .library
        .catalog
        .read()
        .known_file(&paths[1].join("large"), &{
            let metadata = paths[1].join("large").metadata().unwrap();
            stamp_of(&metadata)
        });
    let large = file.unwrap().id;
    // The second time a file is in place of the disk: its paths are just as unreachable.
    for is_file in [false, true] {
        fs::rename(&disk, &elsewhere).unwrap();
        if is_file {
            fs::write(&disk, "").unwrap();
        }
        for id in &ids {
            assert_eq!(fixture.library.locate(id), None);
        }
        for (number, id) in numbers.into_iter().zip(&ids) {
            fixture.library.reconciler.refresh_item(number);
            assert!(fixture.library.catalog.read().is_offline(number) && !fixture.is_shared(id));
        }
        assert!(!fixture.is_shared(&large));
        let totals = fixture.library.catalog.read().totals();
        assert_eq!((totals.items, totals.files), (2, 0));
        for id in [&ids[0], &large] {
            assert!(
                fixture.library.catalog.layer(id).unwrap().is_some(),
                "its piece hashes are kept"
            );
        }
        assert!(fixture.library.catalog.manifests().path(&ids[1]).is_file());
        if is_file {
            fs::remove_file(&disk).unwrap();
        }
        fs::rename(&elsewhere, &disk).unwrap();
        let again = fixture.build(&paths[0]);
        assert!(again.layers.is_empty(), "it was hashed again");
        let again = fixture.build(&paths[1]);
        assert!(!again.layers.contains_key(&large), "it was hashed again");
        for number in numbers {
            wait_until("the item is current", async || {
                fixture.library.reconciler.refresh_item(number);
                !fixture.library.catalog.read().is_stale(number)
            })
            .await;
        }
        for (path, id) in paths.iter().zip(&ids) {
            assert_eq!(fixture.library.locate(id).as_ref(), Some(path));
        }
        assert!(fixture.library.catalog.layer(&large).unwrap().is_some());
    }
    // Offline, then unshared.
    fs::rename(&disk, &elsewhere).unwrap();
    fixture.library.reconciler.refresh_item(numbers[0]);
    fixture.unshare(&paths[0]);
    assert!(fixture.library.catalog.layer(&ids[0]).unwrap().is_none());
    let fixture = LibraryFixture::at(fixture.end().await);
    assert_eq!(fixture.library.catalog.read().totals().items, 1);
    fixture.end().await;
}

#[tokio::test]
async fn paths_offline_at_start_stay_shared_except_in_the_files_folder() {
    let fixture = LibraryFixture::new();
    let dir = fixture.dir.path().canonicalize().unwrap();
    let (disk, elsewhere) = (dir.join("disk"), dir.join("elsewhere"));
    let dropped = fixture.library.files_folder.path().join("dropped");
    let paths = fill(&disk);
    fs::write(&dropped, "dropped").unwrap();
    fixture.share(&dropped);
    let ids = paths.each_ref().map(|path| fixture.share(path).record.id);
    let dir = fixture.end().await;
    fs::rename(&disk, &elsewhere).unwrap();
    fs::remove_file(&dropped).unwrap();
    // Twice: an offline item is still offline after another start.
    let fixture = LibraryFixture::at(LibraryFixture::at(dir).end().await);
    assert!(ids.iter().all(|id| !fixture.is_shared(id)));
    assert_eq!(fixture.announce_set.snapshot().len(), 0);
    let items: Vec<_> = fixture
        .library
        .catalog
        .read()
        .offline_items()
        .map(|item| item.path.clone())
        .collect();
    assert_eq!(items, paths.each_ref().map(|path| Arc::from(path.as_path())));
    assert_eq!(fixture.library.catalog.read().totals().items, 2);
    let dir = fixture.end().await;
    fs::rename(&elsewhere, &disk).unwrap();
    let fixture = LibraryFixture::at(dir);
    // Immediately, without hashing in the background.
    for (path, id) in paths.iter().zip(&ids) {
        assert_eq!(fixture.library.locate(id).as_ref(), Some(path));
    }
    assert!(fixture.library.catalog.layer(&ids[0]).unwrap().is_some());
    fixture.end().await;
}

#[tokio::test]
async fn another_file_at_an_offline_path_is_hashed() {
    let fixture = LibraryFixture::new();
    let path = fixture.dir.path().canonicalize().unwrap().join("file");
    fs::write(&path, vec![3; 600_000]).unwrap();
    let id = fixture.share(&path).record.id;
    let number = fixture.number(&path);
    fs::remove_file(&path).unwrap();
    assert_eq!(fixture.library.locate(&id), None);
    assert!(fixture.library.catalog.read().is_offline(number));
    fs::write(&path, "another").unwrap();
    // Offline items are not checked at every change.
    let next = fixture.library.reconciler.refresh(false);
    assert_eq!(next, RETRY_FAILED);
    assert!(fixture.library.catalog.read().is_offline(number));
    wait_until("the item is current", async || {
        fixture.library.reconciler.refresh_item(number);
        !fixture.library.catalog.read().is_stale(number)
    })
    .await;
    let now = fixture.library.catalog.read().item(number).unwrap().record.id;
    assert_eq!(now, potluck_core::identity::hash::hash_bytes(b"another").id());
    assert!(!fixture.is_shared(&id) && fixture.library.catalog.layer(&id).unwrap().is_none());
    fixture.end().await;
}

#[tokio::test]
async fn a_removed_download_is_forgotten_unless_its_owner_shared_it() {
    let fixture = LibraryFixture::new();
    let dir = fixture.dir.path().canonicalize().unwrap();
    let paths = ["fetched", "shared"].map(|name| dir.join(name));
    for path in &paths {
        fs::write(path, path.as_os_str().as_encoded_bytes()).unwrap();
        let mut item = fixture.build(path);
        item.is_unrequested = true;
        fixture.put(item, PutCause::Requested).unwrap();
    }
    fixture.share(&paths[1]);
    let numbers = paths.each_ref().map(|path| fixture.number(path));
    // Hashing it again after a change does not turn a download into a shared item.
    fixture
        .library
        .builder
        .build_and_put(&paths[0], None, PutCause::Changed(numbers[0]), &OBSERVER)
        .unwrap();
    let fixture = LibraryFixture::at(fixture.end().await);
    for path in &paths {
        fs::remove_file(dir.join(path)).unwrap();
    }
    numbers
        .into_iter()
        .for_each(|number| _ = fixture.library.reconciler.refresh_item(number));
    let at = |path: &Path| fixture.library.catalog.read().item_at(path);
    assert_eq!((at(&paths[0]), at(&paths[1])), (None, Some(numbers[1])));
    assert!(fixture.library.catalog.read().is_offline(numbers[1]));
    fixture.end().await;
}

#[tokio::test]
async fn a_manifest_is_written_again_if_its_last_collection_was_unshared() {
    let fixture = LibraryFixture::new();
    let dir = fixture.dir.path().canonicalize().unwrap();
    let (one, other) = (dir.join("one"), dir.join("other"));
    for folder in [&one, &other] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("file"), "content").unwrap();
    }
    let id = fixture.share(&one).record.id;
    let item = fixture.build(&other);
    fixture.unshare(&one);
    assert!(!fixture.library.catalog.manifests().path(&id).exists());
    fixture.put(item, PutCause::Requested).unwrap();
    assert!(fixture.is_shared(&id) && fixture.library.catalog.manifests().path(&id).is_file());
    fixture.end().await;
}

#[tokio::test]
async fn two_folders_with_the_same_content_are_shared_at_once() {
    let fixture = LibraryFixture::new();
    let dir = fixture.dir.path().canonicalize().unwrap();
    for round in 0..20 {
        let folders = [0, 1].map(|n| dir.join(format!("{round} {n}")));
        for folder in &folders {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("file"), format!("round {round}")).unwrap();
        }
        let both = Barrier::new(2);
        std::thread::scope(|scope| {
            for folder in &folders {
                scope.spawn(|| {
                    both.wait();
                    fixture.share(folder)
                });
            }
        });
    }
    fixture.end().await;
}

#[tokio::test]
async fn a_report_of_bad_pieces_counts_only_if_they_are_bad() {
    let fixture = LibraryFixture::new();
    let path = fixture.dir.path().canonicalize().unwrap().join("file");
    let content = vec![7; 300_000];
    fs::write(&path, &content).unwrap();
    let id = fixture.share(&path).record.id;
    let report = |first, count| {
        let pieces = BadPieces { id, first, count };
        fixture.library.checker.check_pieces(&pieces, MAX_REPORT_BYTES);
    };
    for (first, count) in [(0, 0), (2, 1), (0, u32::MAX), (u32::MAX, u32::MAX)] {
        report(first, count);
        assert!(fixture.is_shared(&id));
    }
    // Other bytes under the known stamp, as on a failing disk.
    let mut damaged = content;
    damaged[299_999] ^= 1;
    fs::write(&path, damaged).unwrap();
    let mut item = fixture.build(&path);
    let changed = item.record.id;
    item.record = fixture.library.catalog.read().record(&id).unwrap();
    item.layers = HashMap::from([(id, fixture.library.catalog.layer(&id).unwrap().unwrap())]);
    fixture.put(item, PutCause::Requested).unwrap();
    report(0, 2);
    assert!(fixture.is_shared(&id), "these pieces are good");
    report(0, 3);
    assert!(!fixture.is_shared(&id));
    let number = fixture.number(&path);
    assert_eq!(
        fixture.library.reconciler.refresh_item(number),
        RefreshOutcome::Done
    );
    assert!(!fixture.is_shared(&changed), "not shared automatically");
    // A change that shows in the stamp is handled.
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60))
        .unwrap();
    fixture.library.reconciler.check_all();
    assert!(!fixture.library.catalog.read().is_damaged(number));
    wait_until("it is hashed again", async || fixture.is_shared(&changed)).await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_piece_hashes_are_not_served_and_are_computed_again() {
    let fixture = LibraryFixture::new();
    let path = fixture.dir.path().canonicalize().unwrap().join("file");
    fs::write(&path, vec![7; 300_000]).unwrap();
    let id = fixture.share(&path).record.id;
    let good = fixture.library.catalog.layer(&id).unwrap().unwrap();
    let mut wrong = good.to_vec();
    wrong[1][0] ^= 1;
    let change = CatalogChange::PutLayer(id, wrong.into());
    fixture.library.catalog.store().apply(&[change]).unwrap();
    let served = || fixture.library.find(&id).map(|content| content.piece_hashes());
    let refused = served().unwrap().unwrap_err();
    assert_eq!(refused.reason, Reason::PieceNotAvailable);
    wait_until("they are computed again", async || {
        matches!(served(), Some(Ok(_)))
    })
    .await;
    assert_eq!(served().unwrap().unwrap(), good);
    fixture.end().await;
}

#[tokio::test]
async fn a_folder_that_could_not_be_stored_is_tried_again() {
    let fixture = LibraryFixture::new();
    let folder = fixture.library.files_folder.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "content").unwrap();
    // As on a full disk: nothing can be written there.
    let manifests = fixture.library.catalog.manifests().folder().to_owned();
    fs::remove_dir(&manifests).unwrap();
    fs::write(&manifests, "").unwrap();
    let scan = fixture.library.files_folder_scan();
    let mut scanner = FolderScanner::default();
    wait_until("the folder is rejected", async || {
        scanner.scan(&scan);
        scanner.has_rejected(&folder)
    })
    .await;
    let again = scanner.scan(&scan).expect("a retry is scheduled");
    assert!(again <= Duration::from_secs(5), "{again:?}");
    fs::remove_file(&manifests).unwrap();
    fs::create_dir(&manifests).unwrap();
    wait_until("the folder is shared", async || {
        scanner.scan(&scan);
        fixture.library.catalog.read().item_at(&folder).is_some()
    })
    .await;
    assert!(!scanner.has_rejected(&folder));
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sha256s_are_computed_although_a_share_hashes_all_the_time() {
    let fixture = LibraryFixture::new();
    let path = fixture.dir.path().canonicalize().unwrap().join("file");
    fs::write(&path, vec![7; 20_000_000]).unwrap();
    let hashers = fixture.library.hashers.clone();
    let hashing = hashers.begin();
    let library = fixture.library.clone();
    let shared = tokio::task::spawn_blocking(move || {
        let result = library
            .builder
            .build_and_put(&path, None, PutCause::Requested, &OBSERVER);
        result.unwrap()
    });
    let id = shared.await.unwrap().0.record.id;
    wait_until("the SHA-256 is announced", async || {
        let registrations = fixture.announce_set.snapshot();
        registrations
            .iter()
            .any(|one| one.file.id == id && one.file.sha256.is_some())
    })
    .await;
    drop(hashing);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn piece_hashes_are_served_as_soon_as_the_file_is_found() {
    let fixture = LibraryFixture::new();
    let dir = fixture.dir.path().canonicalize().unwrap();
    for round in 0..10 {
        let path = dir.join(format!("file {round}"));
        fs::write(&path, vec![round; 300_000]).unwrap();
        let item = fixture.build(&path);
        let id = item.record.id;
        let (library, started) = (fixture.library.clone(), Instant::now());
        let reader = std::thread::spawn(move || {
            // From before its commit until after it.
            loop {
                if let Some(content) = library.find(&id) {
                    return content.piece_hashes();
                }
                assert!(
                    started.elapsed() < Duration::from_secs(30),
                    "the file is not found"
                );
            }
        });
        fixture.put(item, PutCause::Requested).unwrap();
        assert_eq!(reader.join().unwrap().unwrap().len(), 3);
        assert!(fixture.is_shared(&id), "it was withdrawn");
    }
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answered_change_is_stored_and_announced() {
    let fixture = LibraryFixture::new();
    let path = fixture.dir.path().canonicalize().unwrap().join("file");
    fs::write(&path, vec![7; 300_000]).unwrap();
    let is_stored = |id: FileId| {
        let store = fixture.library.catalog.store();
        let items = store.items(None, usize::MAX).unwrap();
        let is_row = |row: &crate::catalog::row::ItemRow| row.id == id && *row.path == *path;
        let layer = store.layer(&id).unwrap();
        (items.iter().any(|(_, row, _)| is_row(row)), layer.is_some())
    };
    let is_announced = |id| {
        let registrations = fixture.announce_set.snapshot();
        registrations.iter().any(|one| one.file.id == id)
    };
    let id = fixture.share(&path).record.id;
    assert_eq!((is_stored(id), is_announced(id)), ((true, true), true));
    let mut watcher = fixture.library.find(&id).unwrap().changes().unwrap();
    fixture.unshare(&path);
    assert_eq!((is_stored(id), is_announced(id)), ((false, false), false));
    assert!(watcher.changed().await.is_err(), "its watchers are notified");
    fixture.end().await;
}
