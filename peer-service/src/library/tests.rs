//! Races: an item is unshared, replaced or added between a check of it and the action that follows
//! from the check.

use std::{
    collections::HashSet,
    fs,
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use super::*;
use crate::library::share::build::{ShareCause, ShareObserver};

struct LibraryRig {
    inner: Arc<LibraryShared>,
    stop: CancellationToken,
    tracker: TaskTracker,
    dir: tempfile::TempDir,
}

const WATCH: ShareObserver<'_> = ShareObserver {
    on_size: &|_| {},
    on_progress: &|_, _| {},
    is_cancelled: &|| false,
};

impl LibraryRig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        Self::at(dir)
    }

    fn at(dir: tempfile::TempDir) -> Self {
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let (state, files) = (dir.path().join("state"), dir.path().join("files"));
        let store = Store::open_in(&state).unwrap();
        let library = Library::open(store, AnnounceSet::new(), files, 2, stop.clone(), &tracker).unwrap();
        Self {
            inner: library.shared,
            stop,
            tracker,
            dir,
        }
    }

    fn share(&self, path: &Path) -> Item {
        self.inner
            .share_path(path, ShareCause::Requested, &WATCH)
            .unwrap()
    }

    fn is_shared(&self, id: &FileId) -> bool {
        self.inner.catalog().record(id).is_some()
    }

    fn number(&self, path: &Path) -> u64 {
        self.inner.catalog().item_at(path).unwrap()
    }

    async fn end(self) -> tempfile::TempDir {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        self.dir
    }
}

#[tokio::test]
async fn what_is_unshared_while_it_is_hashed_again_stays_unshared() {
    let fixture = LibraryRig::new();
    let path = fixture.dir.path().canonicalize().unwrap().join("file");
    fs::write(&path, "before").unwrap();
    fixture.share(&path);
    let number = fixture.number(&path);
    fs::write(&path, "after").unwrap();
    let asked = AtomicBool::new(false);
    let watch = ShareObserver {
        on_progress: &|_, _| {
            if !asked.swap(true, Ordering::Relaxed) {
                fixture.inner.unshare(&UnshareTarget::Path(path.clone())).unwrap();
            }
        },
        ..WATCH
    };
    let again = fixture
        .inner
        .share_path(&path, ShareCause::Changed(number), &watch);
    assert_eq!(again.unwrap_err()[0].1.reason, Reason::Cancelled);
    assert!(asked.into_inner() && fixture.inner.catalog().item_at(&path).is_none());
    fixture.share(&path);
    fixture.end().await;
}

#[tokio::test]
async fn what_is_unshared_while_it_is_hashed_in_the_files_folder_stays_unshared() {
    let fixture = LibraryRig::new();
    let path = fixture.inner.files_folder.join("file");
    fs::write(&path, "content").unwrap();
    let item = fixture.inner.build_item(&path, &WATCH).unwrap();
    let put = |cause| {
        let item = item.clone();
        fixture.inner.put_items(vec![item], cause).remove(0)
    };
    put(ShareCause::DroppedIn).unwrap();
    fixture.inner.unshare(&UnshareTarget::Path(path.clone())).unwrap();
    assert_eq!(put(ShareCause::DroppedIn).unwrap_err().reason, Reason::Cancelled);
    assert!(fixture.inner.catalog().is_tombstoned(&path));
    put(ShareCause::Requested).unwrap();
    fixture.end().await;
}

#[tokio::test]
async fn what_was_shared_anew_is_not_withdrawn_for_what_it_was_before() {
    let fixture = LibraryRig::new();
    let path = fixture.dir.path().canonicalize().unwrap().join("file");
    fs::write(&path, "content").unwrap();
    let id = fixture.share(&path).record.id;
    let look = || {
        let catalog = fixture.inner.catalog();
        let location = catalog.locations(&id)[0];
        (location, catalog.item(location.item).unwrap().body.clone())
    };
    let (location, before) = look();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60))
        .unwrap();
    assert_eq!(fixture.share(&path).record.id, id);
    fixture.inner.withdraw(location, &before);
    assert!(fixture.is_shared(&id));
    let (location, now) = look();
    fixture.inner.withdraw(location, &now);
    assert!(!fixture.is_shared(&id));
    fixture.end().await;
}

#[tokio::test]
async fn what_came_after_the_files_folder_was_listed_is_not_taken_for_gone() {
    let fixture = LibraryRig::new();
    let (path, tombstones) = (
        fixture.inner.files_folder.join("file"),
        fixture.inner.files_folder.join("hidden"),
    );
    let listing = HashSet::new();
    for (path, content) in [(&path, "arrived"), (&tombstones, "not wanted")] {
        fs::write(path, content).unwrap();
        fixture.share(path);
    }
    fixture
        .inner
        .unshare(&UnshareTarget::Path(tombstones.clone()))
        .unwrap();
    let number = fixture.number(&path);
    let look = || {
        fixture.inner.drop_gone(vec![number]);
        fixture.inner.remove_gone_tombstones(&listing);
        let catalog = fixture.inner.catalog();
        (
            catalog.item_at(&path).is_some(),
            catalog.is_tombstoned(&tombstones),
        )
    };
    assert_eq!(look(), (true, true));
    fs::remove_file(&path).unwrap();
    fs::remove_file(&tombstones).unwrap();
    assert_eq!(look(), (false, false));
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
async fn what_is_on_a_disk_that_is_away_is_not_served_and_is_back_without_hashing() {
    let fixture = LibraryRig::new();
    let dir = fixture.dir.path().canonicalize().unwrap();
    let (disk, elsewhere) = (dir.join("disk"), dir.join("elsewhere"));
    let paths = fill(&disk);
    let ids = paths.each_ref().map(|path| fixture.share(path).record.id);
    let numbers = paths.each_ref().map(|path| fixture.number(path));
    let file = fixture.inner.catalog().known_file(&paths[1].join("large"), &{
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
            assert_eq!(fixture.inner.locate(id), None);
        }
        for (number, id) in numbers.into_iter().zip(&ids) {
            fixture.inner.refresh_one(number);
            assert!(fixture.inner.catalog().is_offline(number) && !fixture.is_shared(id));
        }
        assert!(!fixture.is_shared(&large));
        let totals = fixture.inner.catalog().totals();
        assert_eq!((totals.items, totals.files), (2, 0));
        for id in [&ids[0], &large] {
            assert!(fixture.inner.layer(id).unwrap().is_some(), "what hashing it gave");
        }
        assert!(fixture.inner.manifest_path(&ids[1]).is_file());
        if is_file {
            fs::remove_file(&disk).unwrap();
        }
        fs::rename(&elsewhere, &disk).unwrap();
        let again = fixture.inner.build_item(&paths[0], &WATCH).unwrap();
        assert!(again.layers.is_empty(), "hashed anew");
        let again = fixture.inner.build_item(&paths[1], &WATCH).unwrap();
        assert!(!again.layers.contains_key(&large), "hashed anew");
        for number in numbers {
            wait_until(|| {
                fixture.inner.refresh_one(number);
                !fixture.inner.catalog().is_stale(number)
            })
            .await;
        }
        for (path, id) in paths.iter().zip(&ids) {
            assert_eq!(fixture.inner.locate(id).as_ref(), Some(path));
        }
        assert!(fixture.inner.layer(&large).unwrap().is_some());
    }
    // Offline, then unshared.
    fs::rename(&disk, &elsewhere).unwrap();
    fixture.inner.refresh_one(numbers[0]);
    fixture
        .inner
        .unshare(&UnshareTarget::Path(paths[0].clone()))
        .unwrap();
    assert!(fixture.inner.layer(&ids[0]).unwrap().is_none());
    let fixture = LibraryRig::at(fixture.end().await);
    assert_eq!(fixture.inner.catalog().totals().items, 1);
    fixture.end().await;
}

async fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "it hangs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_is_away_at_start_stays_shared_but_in_the_files_folder() {
    let fixture = LibraryRig::new();
    let dir = fixture.dir.path().canonicalize().unwrap();
    let (disk, elsewhere) = (dir.join("disk"), dir.join("elsewhere"));
    let dropped = fixture.inner.files_folder.join("dropped");
    let paths = fill(&disk);
    fs::write(&dropped, "dropped").unwrap();
    fixture.share(&dropped);
    let ids = paths.each_ref().map(|path| fixture.share(path).record.id);
    let dir = fixture.end().await;
    fs::rename(&disk, &elsewhere).unwrap();
    fs::remove_file(&dropped).unwrap();
    // Twice: an offline item is still offline after another start.
    let fixture = LibraryRig::at(LibraryRig::at(dir).end().await);
    assert!(ids.iter().all(|id| !fixture.is_shared(id)));
    assert_eq!(fixture.inner.holdings.snapshot().len(), 0);
    let items: Vec<_> = fixture
        .inner
        .catalog()
        .offline_items()
        .map(|item| item.path.clone())
        .collect();
    assert_eq!(items, paths.each_ref().map(|path| Arc::from(path.as_path())));
    assert_eq!(fixture.inner.catalog().totals().items, 2);
    let dir = fixture.end().await;
    fs::rename(&elsewhere, &disk).unwrap();
    let fixture = LibraryRig::at(dir);
    // Immediately, without hashing in the background.
    for (path, id) in paths.iter().zip(&ids) {
        assert_eq!(fixture.inner.locate(id).as_ref(), Some(path));
    }
    assert!(fixture.inner.layer(&ids[0]).unwrap().is_some());
    fixture.end().await;
}

#[tokio::test]
async fn another_file_where_one_was_away_is_hashed_anew() {
    let fixture = LibraryRig::new();
    let path = fixture.dir.path().canonicalize().unwrap().join("file");
    fs::write(&path, vec![3; 600_000]).unwrap();
    let id = fixture.share(&path).record.id;
    let number = fixture.number(&path);
    fs::remove_file(&path).unwrap();
    assert_eq!(fixture.inner.locate(&id), None);
    assert!(fixture.inner.catalog().is_offline(number));
    fs::write(&path, "another").unwrap();
    // Offline items are not checked at every change.
    let next = reconcile::refresh(&fixture.inner, false);
    assert_eq!(next, reconcile::RETRY_FAILED);
    assert!(fixture.inner.catalog().is_offline(number));
    wait_until(|| {
        fixture.inner.refresh_one(number);
        !fixture.inner.catalog().is_stale(number)
    })
    .await;
    let now = fixture.inner.catalog().item(number).unwrap().record.id;
    assert_eq!(now, potluck_core::identity::hash::hash_bytes(b"another").id());
    assert!(!fixture.is_shared(&id) && fixture.inner.layer(&id).unwrap().is_none());
    fixture.end().await;
}

#[tokio::test]
async fn a_download_that_is_gone_is_forgotten_unless_its_owner_shared_it() {
    let fixture = LibraryRig::new();
    let dir = fixture.dir.path().canonicalize().unwrap();
    let paths = ["fetched", "shared"].map(|name| dir.join(name));
    for path in &paths {
        fs::write(path, path.as_os_str().as_encoded_bytes()).unwrap();
        let mut item = fixture.inner.build_item(path, &WATCH).unwrap();
        item.downloaded = true;
        fixture
            .inner
            .put_items(vec![item], ShareCause::Requested)
            .pop()
            .unwrap()
            .unwrap();
    }
    fixture.share(&paths[1]);
    let numbers = paths.each_ref().map(|path| fixture.number(path));
    // Hashing it again after a change does not turn a download into a shared item.
    fixture
        .inner
        .share_path(&paths[0], ShareCause::Changed(numbers[0]), &WATCH)
        .unwrap();
    let fixture = LibraryRig::at(fixture.end().await);
    for path in &paths {
        fs::remove_file(dir.join(path)).unwrap();
    }
    numbers
        .into_iter()
        .for_each(|number| _ = fixture.inner.refresh_one(number));
    let at = |path: &Path| fixture.inner.catalog().item_at(path);
    assert_eq!((at(&paths[0]), at(&paths[1])), (None, Some(numbers[1])));
    assert!(fixture.inner.catalog().is_offline(numbers[1]));
    fixture.end().await;
}

#[tokio::test]
async fn a_collection_is_put_although_the_last_that_had_its_manifest_went() {
    let fixture = LibraryRig::new();
    let dir = fixture.dir.path().canonicalize().unwrap();
    let (one, other) = (dir.join("one"), dir.join("other"));
    for folder in [&one, &other] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("file"), "content").unwrap();
    }
    let id = fixture.share(&one).record.id;
    let item = fixture.inner.build_item(&other, &WATCH).unwrap();
    fixture.inner.unshare(&UnshareTarget::Path(one)).unwrap();
    assert!(!fixture.inner.manifest_path(&id).exists());
    fixture
        .inner
        .put_items(vec![item], ShareCause::Requested)
        .remove(0)
        .unwrap();
    assert!(fixture.is_shared(&id) && fixture.inner.manifest_path(&id).is_file());
    fixture.end().await;
}

#[tokio::test]
async fn one_collection_is_shared_from_two_places_at_once() {
    let fixture = LibraryRig::new();
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
async fn a_report_of_bad_pieces_is_believed_only_if_they_are_bad() {
    let fixture = LibraryRig::new();
    let path = fixture.dir.path().canonicalize().unwrap().join("file");
    let content = vec![7; 300_000];
    fs::write(&path, &content).unwrap();
    let id = fixture.share(&path).record.id;
    let report = |first, count| {
        let pieces = crate::content::BadPieces { id, first, count };
        fixture.inner.look_at_pieces(&pieces, check::LARGEST);
    };
    for (first, count) in [(0, 0), (2, 1), (0, u32::MAX), (u32::MAX, u32::MAX)] {
        report(first, count);
        assert!(fixture.is_shared(&id));
    }
    // Other bytes under the known stamp, as on a failing disk.
    let mut damaged = content;
    damaged[299_999] ^= 1;
    fs::write(&path, damaged).unwrap();
    let mut item = fixture.inner.build_item(&path, &WATCH).unwrap();
    let changed = item.record.id;
    item.record = fixture.inner.catalog().record(&id).unwrap();
    item.layers = HashMap::from([(id, fixture.inner.layer(&id).unwrap().unwrap())]);
    fixture
        .inner
        .put_items(vec![item], ShareCause::Requested)
        .remove(0)
        .unwrap();
    report(0, 2);
    assert!(fixture.is_shared(&id), "these pieces are good");
    report(0, 3);
    assert!(!fixture.is_shared(&id));
    let number = fixture.number(&path);
    assert_eq!(fixture.inner.refresh_one(number), reconcile::RefreshOutcome::Done);
    assert!(!fixture.is_shared(&changed), "not shared by itself");
    // A change that shows in the stamp is handled.
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60))
        .unwrap();
    fixture.inner.check_all();
    assert!(!fixture.inner.catalog().is_damaged(number));
    let deadline = Instant::now() + Duration::from_secs(60);
    while !fixture.is_shared(&changed) {
        assert!(Instant::now() < deadline, "it is not hashed again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_piece_hashes_are_never_given_and_made_again() {
    let fixture = LibraryRig::new();
    let path = fixture.dir.path().canonicalize().unwrap().join("file");
    fs::write(&path, vec![7; 300_000]).unwrap();
    let id = fixture.share(&path).record.id;
    let good = fixture.inner.layer(&id).unwrap().unwrap();
    let mut wrong = good.to_vec();
    wrong[1][0] ^= 1;
    let change = crate::store::StoreChange::PutLayer(id, wrong.into());
    fixture.inner.store.apply(&[change]).unwrap();
    let given = || content::LibraryContent::find(&fixture.inner, &id).map(|content| content.piece_hashes());
    let refused = given().unwrap().unwrap_err();
    assert_eq!(refused.reason, Reason::PieceNotAvailable);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match given() {
            Some(Ok(layer)) => break assert_eq!(layer, good),
            _ => assert!(Instant::now() < deadline, "they are not made again"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fixture.end().await;
}

#[tokio::test]
async fn what_could_not_be_kept_in_the_files_folder_is_tried_again() {
    let fixture = LibraryRig::new();
    let folder = fixture.inner.files_folder.join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "content").unwrap();
    // As on a full disk: nothing can be written there.
    let manifests = fixture.inner.manifests();
    fs::remove_dir(&manifests).unwrap();
    fs::write(&manifests, "").unwrap();
    let mut scanner = files_folder::Scanner::default();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !scanner.has_refused(&folder) {
        scanner.scan(&fixture.inner);
        assert!(Instant::now() < deadline, "it is not tried");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let again = scanner
        .scan(&fixture.inner)
        .expect("it is tried again by the clock");
    assert!(again <= Duration::from_secs(5), "{again:?}");
    fs::remove_file(&manifests).unwrap();
    fs::create_dir(&manifests).unwrap();
    while fixture.inner.catalog().item_at(&folder).is_none() {
        scanner.scan(&fixture.inner);
        assert!(Instant::now() < deadline, "it is not tried again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!scanner.has_refused(&folder));
    fixture.end().await;
}
