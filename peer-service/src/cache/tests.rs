//! The cache over a real store, library and folder.

use std::fs;

use potluck_core::model::FileKind;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use crate::{announce::set::AnnounceSet, home::Home, library::ShareOptions};

/// A peer's parts in one folder.
struct World {
    cache: Cache,
    library: Library,
    dir: TempDir,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl World {
    async fn new(max_bytes: u64) -> Self {
        Self::open(tempfile::tempdir().unwrap(), max_bytes).await
    }

    async fn open(dir: TempDir, max_bytes: u64) -> Self {
        let home = Home::open(&dir.path().join("home")).unwrap();
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let store = Store::open(&home).unwrap();
        let library = Library::open(
            store.clone(),
            AnnounceSet::new(),
            home.files(),
            1,
            stop.clone(),
            &tracker,
        );
        let library = library.unwrap();
        let settings = CacheSettings {
            max_bytes,
            max_idle: Duration::ZERO,
        };
        let cache = Cache::open(&home, store, library.clone(), settings).unwrap();
        Self {
            cache,
            library,
            dir,
            stop,
            tracker,
        }
    }

    /// Starts again, as after a crash: nothing is stored before.
    async fn restart(self) -> Self {
        let max_bytes = self.cache.settings().max_bytes;
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        let dir = self.dir;
        drop((self.cache, self.library));
        Self::open(dir, max_bytes).await
    }

    async fn put(&self, name: &str, bytes: usize) {
        self.cache
            .put_small(new(name, bytes), vec![1; bytes])
            .await
            .unwrap();
    }

    /// Pretends that an entry was last used at this time.
    fn used(&self, name: &str, time: u64) {
        let mut state = self.cache.shared.state.lock();
        state.slots.get_mut(name).unwrap().entry.last_used = time;
    }

    fn names(&self) -> Vec<String> {
        let listed = self.cache.list();
        for entry in listed.iter().filter(|entry| entry.is_complete) {
            assert!(self.cache.path(&entry.name).exists(), "{}", entry.name);
        }
        listed.into_iter().map(|entry| entry.name).collect()
    }

    /// The names in the folder.
    fn files(&self) -> Vec<String> {
        let listed = fs::read_dir(self.cache.folder()).unwrap();
        let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    async fn share(&self, path: &Path) {
        let (sender, mut events) = mpsc::channel(8);
        let paths = vec![path.to_owned()];
        let sharing = self.library.share(paths, ShareOptions::default(), sender);
        let drain = async { while events.recv().await.is_some() {} };
        tokio::join!(sharing, drain);
    }
}

fn new(name: &str, bytes: usize) -> NewEntry {
    NewEntry {
        name: name.into(),
        label: format!("the file {name}"),
        bytes: bytes as u64,
        sha256: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_go_first() {
    let world = World::new(100).await;
    for (name, time) in [("a", 30), ("b", 10), ("c", 20)] {
        world.put(name, 30).await;
        world.used(name, time);
    }
    world.put("d", 30).await;
    assert_eq!(world.names(), ["a", "c", "d"]);
    let opened = world.cache.open_file("c", 30).await;
    assert!(opened.is_some(), "a read counts as a use");
    drop(opened);
    world.put("e", 30).await;
    assert_eq!(world.names(), ["c", "d", "e"]);
    assert_eq!(world.files(), ["c", "d", "e"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pinned_or_in_use_stays() {
    let world = World::new(100).await;
    for name in ["pinned", "used", "free"] {
        world.put(name, 30).await;
        world.used(name, 1);
    }
    let pin = vec!["pinned".to_owned()];
    world.cache.set_pinned(pin.clone(), true).await.unwrap();
    let using = world.cache.open_file("used", 30).await.unwrap();
    world.put("next", 30).await;
    assert_eq!(world.names(), ["next", "pinned", "used"]);
    world.used("next", 1);
    let busy = world.cache.reserve(new("large", 60)).await.unwrap_err();
    assert_eq!(busy.reason, Reason::Busy, "{busy}");
    let full = world.cache.reserve(new("large", 80)).await.unwrap_err();
    assert_eq!(full.reason, Reason::DiskFull, "{full}");
    assert_eq!(world.names(), ["next", "pinned", "used"], "nothing goes in vain");
    drop(using);
    drop(world.cache.reserve(new("large", 60)).await.unwrap());
    assert_eq!(world.names(), ["large", "pinned"]);
    let world = world.restart().await;
    assert_eq!(world.names(), ["pinned"], "nothing of the large file has arrived");
    assert!(world.cache.list()[0].is_pinned);
    world.cache.set_pinned(pin, false).await.unwrap();
    assert_eq!(world.cache.collect(Some(0)).await.unwrap().len(), 1);
    assert!(world.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_entries_go_and_never_what_the_owner_shares() {
    let world = World::new(0).await;
    for name in ["shared", "free"] {
        world.put(name, 30).await;
    }
    // Put there by the owner: it has no row.
    fs::write(world.cache.path("foreign"), "precious").unwrap();
    fs::write(world.dir.path().join("outside"), "precious").unwrap();
    world.share(&world.cache.path("shared")).await;
    world.cache.collect(Some(0)).await.unwrap();
    assert_eq!(world.files(), ["foreign", "shared"]);
    assert!(world.dir.path().join("outside").exists());
    let world = world.restart().await;
    world.cache.collect(Some(0)).await.unwrap();
    assert_eq!(world.files(), ["foreign", "shared"]);
    let path = world.cache.path("shared");
    world
        .library
        .unshare(crate::library::UnshareTarget::Path(path))
        .await
        .unwrap();
    world.share(world.cache.folder()).await;
    world.cache.collect(Some(0)).await.unwrap();
    assert_eq!(world.files(), ["foreign", "shared"], "shared as part of a folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_any_step_of_a_removal_leaves_an_entry_whole_or_gone() {
    let world = World::new(0).await;
    for name in ["renamed", "shared", "partly", "whole", "gone"] {
        world.put(name, 30).await;
    }
    world.share(&world.cache.path("shared")).await;
    let folder = world.cache.folder().to_owned();
    for name in ["renamed", "shared"] {
        let leaving = files::leaving_path(&folder.join(name));
        fs::rename(folder.join(name), leaving).unwrap();
    }
    // A collection of which some files are deleted already.
    fs::remove_file(folder.join("partly")).unwrap();
    fs::create_dir(folder.join("partly.leaving")).unwrap();
    fs::write(folder.join("partly.leaving/one"), "1").unwrap();
    fs::remove_file(folder.join("gone")).unwrap();
    // Without a row, this is not ours.
    fs::write(folder.join("other.leaving"), "precious").unwrap();
    let world = world.restart().await;
    assert_eq!(world.names(), ["shared", "whole"]);
    assert_eq!(world.files(), ["other.leaving", "shared", "whole"]);
    assert_eq!(world.cache.totals().bytes, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_survives_a_stop_and_roughly_a_crash() {
    let world = World::new(0).await;
    for (name, time) in [("a", 3), ("b", 1), ("c", 2)] {
        world.put(name, 10).await;
        world.used(name, time);
        let mut state = world.cache.shared.state.lock();
        state.slots.get_mut(name).unwrap().is_stale = true;
    }
    world.cache.store_uses();
    let world = world.restart().await;
    let gone = world.cache.collect(Some(10)).await.unwrap();
    let gone: Vec<_> = gone.iter().map(|evicted| &*evicted.entry.name).collect();
    assert_eq!(gone, ["b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_arrives_counts_and_is_kept_until_it_ends() {
    let world = World::new(0).await;
    let using = world.cache.reserve(new("a", 50)).await.unwrap();
    let path = world.cache.path("a");
    fs::write(files::part_of(&path), [1; 20]).unwrap();
    assert_eq!(world.cache.totals().bytes, 50);
    assert!(world.cache.open_file("a", 50).await.is_none(), "not whole");
    assert!(world.cache.collect(Some(0)).await.unwrap().is_empty());
    drop(using);
    let world = world.restart().await;
    assert!(!world.cache.list()[0].is_complete);
    let using = world.cache.use_path(&path).unwrap();
    fs::rename(files::part_of(&path), &path).unwrap();
    world
        .cache
        .complete_path(&path, FileId([7; 32]), FileKind::File)
        .await;
    drop(using);
    let world = world.restart().await;
    let entry = &world.cache.list()[0];
    assert_eq!((entry.is_complete, entry.id), (true, Some(FileId([7; 32]))));
    // A failed download whose part is left.
    drop(world.cache.reserve(new("b", 50)).await.unwrap());
    fs::write(files::part_of(&world.cache.path("b")), [1; 20]).unwrap();
    world.cache.collect(Some(0)).await.unwrap();
    assert!(world.files().is_empty(), "{:?}", world.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_are_not_used_for_long_go() {
    let world = World::new(0).await;
    world.put("old", 10).await;
    world.put("new", 10).await;
    world.used("old", now() - 100);
    world.cache.set_settings(CacheSettings {
        max_bytes: 0,
        max_idle: Duration::from_secs(90),
    });
    let gone = world.cache.collect(None).await.unwrap();
    assert_eq!(gone[0].cause, EvictionCause::Idle);
    assert_eq!(world.names(), ["new"]);
}
