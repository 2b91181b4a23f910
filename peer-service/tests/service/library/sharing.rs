//! The library on real folders: what it shares, what it refuses, what survives a restart, and which
//! changes it notices.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    sync::Arc,
    time::Duration,
};

use potluck_core::{
    Reason,
    collection::{
        manifest::{EntryContent, Manifest},
        plan::Plan,
    },
    identity::hash::hash_bytes,
    model::FileKind,
};
use potluck_peer::{
    content::ContentSource as _,
    library::{EntryHashes, ShareOptions, UnshareTarget, stamp_of, stamps_at},
};
use potluck_testkit::{
    content::{bytes, id_of, sparse_file},
    services::{LibraryPeer, TestPeer},
    wait::wait_until,
};

fn make_folder(root: &Path) {
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::write(root.join("a/one"), "one").unwrap();
    fs::write(root.join("a/b/same"), "same").unwrap();
    fs::write(root.join("same too"), "same").unwrap();
    fs::write(root.join("large"), bytes(1_000_000, 1)).unwrap();
    fs::write(root.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("a/one", root.join("link")).unwrap();
}

#[tokio::test]
async fn shares_a_file_in_place_and_keeps_it_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.bin");
    let content = bytes(600_000, 3);
    fs::write(&path, &content).unwrap();
    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    let item = peer.share_one(&path).await;
    assert_eq!(
        (item.record.id, item.name.as_str(), item.file_count),
        (id_of(&content), "data.bin", 1)
    );
    assert_eq!(
        peer.announced_names(&item.record.id),
        Some(vec!["data.bin".to_owned()])
    );
    assert_eq!(peer.library.locate(&item.record.id), Some(path.clone()));
    wait_until("its SHA-256 is registered", async || {
        let all = peer.announce_set.snapshot();
        all.iter().all(|one| {
            one.file
                .sha256
                .is_some_and(|sum| sum.to_string() == sha256(&content))
        })
    })
    .await;
    peer.close().await;

    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    // Nothing is hashed again: the file is there immediately, with its SHA-256 and piece hashes.
    let offer = peer.library.find(&item.record.id).unwrap();
    assert_eq!(
        offer.piece_hashes().unwrap().to_vec(),
        hash_bytes(&content).piece_hashes
    );
    assert!(offer.record().unwrap().sha256.is_some());
    assert_eq!(peer.library.list(10, "").unwrap().0[0].path, path);
    assert_eq!(
        fs::read_dir(peer.home.files()).unwrap().count(),
        0,
        "nothing is copied"
    );
    drop(offer);
    peer.close().await;
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

#[tokio::test]
async fn shares_a_folder_as_a_collection_and_its_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("folder");
    make_folder(&root);
    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    let item = peer.share_one(&root).await;
    assert_eq!((item.record.kind, item.file_count), (FileKind::Collection, 5));
    assert_eq!(item.content_size, 3 + 4 + 4 + 1_000_000 + 10);
    assert_eq!(
        peer.announced_names(&item.record.id),
        Some(vec!["folder".to_owned()])
    );
    assert_eq!(peer.announced_names(&id_of(b"one")), Some(vec!["one".to_owned()]));
    let offer = peer.library.find(&item.record.id).unwrap();
    let file = offer.open(0..offer.size()).unwrap();
    let mut manifest = Vec::new();
    std::io::Read::read_to_end(&mut &*file, &mut manifest).unwrap();
    assert_eq!(id_of(&manifest), item.record.id);
    let manifest = Arc::new(Manifest::decode(manifest).unwrap());
    let of = |path: &str| manifest.get(manifest.find(path).unwrap()).unwrap().content;
    assert_eq!(of("empty"), EntryContent::EmptyDirectory);
    assert_eq!(of("link"), EntryContent::Link { target: "a/one" });
    assert!(matches!(of("run"), EntryContent::File { executable: true, .. }));
    assert!(matches!(
        of("a/b/same"),
        EntryContent::File {
            executable: false,
            size: 4,
            ..
        }
    ));
    assert_eq!(
        offer.availability().have.count(),
        Plan::of_collection(&manifest).unit_count()
    );
    assert_eq!(peer.library.locate(&item.record.id), Some(root.clone()));
    drop((offer, file));
    let before = peer.library.totals();
    assert_eq!(
        (before.items, before.files),
        (1, 4),
        "one of two files of one content, and not the manifest"
    );
    peer.close().await;

    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    assert_eq!(peer.library.totals(), before);
    assert!(peer.library.find(&item.record.id).is_some());
    let removed = peer
        .library
        .unshare(UnshareTarget::Path(root.clone()))
        .await
        .unwrap();
    assert_eq!(removed.len(), 1);
    assert!(peer.announce_set.is_empty());
    assert_eq!(
        fs::read_dir(peer.home.state().join("manifests")).unwrap().count(),
        0
    );
    assert!(root.join("a/one").exists(), "no file is deleted");
    peer.close().await;
}

#[tokio::test]
async fn counts_references_of_nested_and_repeated_shares() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("folder");
    make_folder(&root);
    let copy = dir.path().join("copy of one");
    fs::write(&copy, "one").unwrap();
    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    let one = id_of(b"one");
    let all = peer
        .share(&[&root, &root.join("a"), &root.join("a/one"), &copy, &copy])
        .await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(peer.library.totals().items, 4, "the same path twice is one item");
    assert_eq!(
        peer.announced_names(&one),
        Some(vec!["copy of one".to_owned(), "one".to_owned()])
    );
    // By id: both files with that content, not the collections.
    let removed = peer.library.unshare(UnshareTarget::Id(one)).await.unwrap();
    assert_eq!(removed.len(), 2);
    assert_eq!(peer.announced_names(&one), Some(vec!["one".to_owned()]));
    let problem = peer.library.unshare(UnshareTarget::Id(one)).await.unwrap_err();
    assert!(
        problem.reason == Reason::NotFound && problem.message.contains("collection"),
        "{problem}"
    );
    peer.library
        .unshare(UnshareTarget::Path(root.clone()))
        .await
        .unwrap();
    assert!(
        peer.announced_names(&one).is_some(),
        "the inner folder still has it"
    );
    assert!(peer.announced_names(&id_of(b"#!/bin/sh\n")).is_none());
    peer.library
        .unshare(UnshareTarget::Path(root.join("a")))
        .await
        .unwrap();
    assert!(peer.announce_set.is_empty());
    assert_eq!(peer.library.totals(), potluck_peer::library::Totals::default());
    let problem = peer.library.unshare(UnshareTarget::Path(root)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::NotFound);
    peer.close().await;
}

#[tokio::test]
async fn names_every_path_that_cannot_be_shared() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("folder");
    make_folder(&root);
    symlink("../../outside", root.join("a/leads out")).unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not \xff utf-8")), "").unwrap();
    fs::write(root.join("a\nb"), "").unwrap();
    let status = std::process::Command::new("mkfifo")
        .arg(root.join("pipe"))
        .status()
        .unwrap();
    assert!(status.success());
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    let missing = dir.path().join("missing");
    let strict = ShareOptions {
        is_strict: true,
        ..ShareOptions::default()
    };
    let paths: [&Path; 5] = [
        &root,
        &missing,
        &root.join("pipe"),
        peer.home.path(),
        &root.join("a/one"),
    ];
    let (results, _) = peer.share_with(&paths, strict).await;
    let failures: Vec<_> = results
        .iter()
        .filter_map(|result| result.as_ref().err())
        .collect();
    let named = |name: &str| {
        let mut found = failures
            .iter()
            .filter(|(path, _)| path.to_string_lossy().ends_with(name));
        found
            .next()
            .unwrap_or_else(|| panic!("{name} is named in {failures:?}"))
            .1
            .reason
    };
    assert_eq!(named("leads out"), Reason::UnsafePath);
    assert_eq!(named("absolute"), Reason::UnsafePath);
    assert_eq!(named("utf-8"), Reason::InvalidName);
    assert_eq!(named("a\nb"), Reason::InvalidName);
    assert_eq!(named("socket"), Reason::UnsafePath);
    assert_eq!(named("missing"), Reason::NotFound);
    assert_eq!(named("home"), Reason::UnsafePath);
    assert_eq!(
        failures.iter().filter(|(path, _)| path.ends_with("pipe")).count(),
        2
    );
    assert_eq!(failures.len(), 9);
    assert!(results.last().unwrap().is_ok(), "the others are shared");
    assert_eq!(
        peer.library.totals().items,
        1,
        "an incomplete folder is not shared"
    );
    peer.close().await;
}

#[tokio::test]
async fn notices_at_start_changes_made_while_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("folder");
    make_folder(&root);
    let (stays, changes, goes) = (
        dir.path().join("stays"),
        dir.path().join("changes"),
        dir.path().join("goes"),
    );
    for path in [&stays, &changes, &goes] {
        fs::write(path, path.to_string_lossy().as_bytes()).unwrap();
    }
    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    let items = peer.share(&[&stays, &changes, &goes, &root]).await;
    let ids: Vec<_> = items.into_iter().map(|item| item.unwrap().record.id).collect();
    peer.close().await;
    fs::write(&changes, "changed").unwrap();
    fs::write(root.join("a/one"), "two").unwrap();
    fs::remove_file(&goes).unwrap();

    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    assert!(peer.library.find(&ids[0]).is_some());
    for id in [ids[1], ids[2], ids[3], id_of(b"one")] {
        assert!(peer.library.find(&id).is_none(), "never under its old id");
        assert!(peer.announced_names(&id).is_none());
    }
    assert!(
        peer.library.find(&id_of(b"same")).is_some(),
        "unchanged files of the folder are shared at once"
    );
    assert_eq!(
        peer.library.list(10, "").unwrap().0.len(),
        4,
        "changed and offline items stay in the list"
    );
    wait_until("the changed files are hashed again", async || {
        peer.announced_names(&id_of(b"changed")).is_some()
            && peer.announced_names(&id_of(b"two")).is_some()
    })
    .await;
    let items = peer.library.list(10, "").unwrap().0;
    let collection = items.iter().find(|item| item.path == root).unwrap();
    assert!(collection.record.id != ids[3] && peer.library.find(&collection.record.id).is_some());
    peer.close().await;
}

#[tokio::test]
async fn shares_the_files_folder_and_follows_its_changes() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let peer = LibraryPeer::open(&home).await;
    let files = peer.home.files();
    fs::write(files.join("file"), "first").unwrap();
    fs::write(files.join(".hidden"), "hidden").unwrap();
    fs::write(files.join("x.part"), "part").unwrap();
    fs::write(files.join("x.part.state"), "state").unwrap();
    fs::write(files.join("x.tmp"), "tmp").unwrap();
    make_folder(&files.join("folder"));
    wait_until("the file is shared", async || {
        peer.announced_names(&id_of(b"first")).is_some()
    })
    .await;
    wait_until("the folder is shared", async || {
        peer.announced_names(&id_of(b"one")).is_some()
    })
    .await;
    for skipped in ["hidden", "part", "state", "tmp"] {
        assert!(peer.announced_names(&id_of(skipped.as_bytes())).is_none());
    }
    fs::write(files.join("file"), "second").unwrap();
    fs::write(files.join("folder/a/new"), "new").unwrap();
    fs::rename(files.join("x.part"), files.join("x")).unwrap();
    wait_until("the change is noticed", async || {
        peer.announced_names(&id_of(b"second")).is_some()
    })
    .await;
    assert!(peer.announced_names(&id_of(b"first")).is_none());
    wait_until("a new file in the folder is noticed", async || {
        peer.announced_names(&id_of(b"new")).is_some()
    })
    .await;
    wait_until("a finished file is shared", async || {
        peer.announced_names(&id_of(b"part")).is_some()
    })
    .await;
    fs::remove_file(files.join("file")).unwrap();
    fs::remove_dir_all(files.join("folder")).unwrap();
    wait_until("the removed files are not shared", async || {
        peer.announce_set.len() == 1
    })
    .await;
    // An unshared path stays unshared, also after a restart, until it is shared explicitly.
    peer.library
        .unshare(UnshareTarget::Path(files.join("x")))
        .await
        .unwrap();
    peer.close().await;
    let peer = LibraryPeer::open(&home).await;
    fs::write(files.join("marker"), "marker").unwrap();
    wait_until("the folder was scanned", async || {
        peer.announced_names(&id_of(b"marker")).is_some()
    })
    .await;
    assert!(peer.announced_names(&id_of(b"part")).is_none());
    peer.share_one(&files.join("x")).await;
    assert!(peer.announced_names(&id_of(b"part")).is_some());
    peer.close().await;
}

#[tokio::test]
async fn adopts_finished_downloads_without_hashing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("folder");
    make_folder(&root);
    let giver = LibraryPeer::open(&dir.path().join("giver")).await;
    let shared = giver.share_one(&root).await;
    let offer = giver.library.find(&shared.record.id).unwrap();
    let mut encoded = Vec::new();
    std::io::Read::read_to_end(&mut &*offer.open(0..1).unwrap(), &mut encoded).unwrap();
    let manifest = Arc::new(Manifest::decode(encoded).unwrap());
    drop(offer);

    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    let mut trees = EntryHashes::new(manifest.len());
    for (index, entry) in (0..).zip(manifest.entries()) {
        if entry.content.id().is_some() {
            let content = fs::read(root.join(entry.path.as_str())).unwrap();
            trees.set(index, hash_bytes(&content));
        }
    }
    let stamps = stamps_at(&root, &manifest).unwrap();
    let item = peer
        .library
        .adopt_collection(root.clone(), manifest.clone(), stamps, trees, None)
        .await
        .unwrap();
    assert_eq!(item, shared);
    let content = bytes(300_000, 9);
    let path = dir.path().join("single");
    fs::write(&path, &content).unwrap();
    let tree = hash_bytes(&content);
    let stamp = stamp_of(&path.metadata().unwrap());
    let adopt = || {
        peer.library
            .adopt_file(path.clone(), tree.clone(), stamp, None, None)
    };
    assert_eq!(adopt().await.unwrap().record.id, tree.id());
    assert!(peer.library.find(&tree.id()).is_some());
    // Longer than a tick of the clock for file times.
    tokio::time::sleep(Duration::from_millis(20)).await;
    fs::write(&path, bytes(content.len(), 8)).unwrap();
    let problem = adopt().await.unwrap_err();
    assert_eq!(problem.reason, Reason::FileChanged, "only its bytes changed");
    fs::remove_file(root.join("a/one")).unwrap();
    let problem = stamps_at(&root, &manifest).unwrap_err();
    assert_eq!(problem.reason, Reason::FileChanged);
    assert!(problem.message.contains("a/one"), "{problem}");
    peer.close().await;
    giver.close().await;
}

#[tokio::test]
async fn pages_list_every_item_once() {
    let dir = tempfile::tempdir().unwrap();
    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    let paths: Vec<_> = (0..25).map(|n| dir.path().join(format!("f{n:02}"))).collect();
    for path in &paths {
        fs::write(path, path.to_string_lossy().as_bytes()).unwrap();
    }
    let refs: Vec<_> = paths.iter().map(|path| path.as_path()).collect();
    peer.share(&refs).await;
    let (mut listed, mut token) = (Vec::new(), String::new());
    loop {
        let (page, next) = peer.library.list(10, &token).unwrap();
        assert!(page.len() <= 10);
        listed.extend(page.into_iter().map(|item| item.path));
        match next {
            Some(next) => token = next,
            None => break,
        }
    }
    assert_eq!(listed, paths, "oldest first");
    assert_eq!(
        peer.library.list(10, "nonsense").unwrap_err().reason,
        Reason::InvalidPageToken
    );
    peer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_hashing_when_the_caller_of_a_share_disconnects() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    sparse_file(&large, 100 << 30);
    let peer = TestPeer::start(&dir.path().join("peer"), None).await;
    let mut events = peer.control.begin_share(&large).await;
    events.message().await.unwrap().unwrap();
    drop(events);
    // The runtime ends only after the hashing has ended: otherwise this test would hang.
}

/// Measures a start with 100,000 unchanged files: half of them are items, half are in one
/// collection.
#[tokio::test]
#[ignore = "a measurement: run it with --release and --nocapture"]
async fn start_with_many_shares() {
    let dir = tempfile::tempdir().unwrap();
    let (single, folder) = (dir.path().join("single"), dir.path().join("folder"));
    let mut paths = vec![folder.clone()];
    for root in [&single, &folder] {
        fs::create_dir(root).unwrap();
        for n in 0..50_000 {
            let path = root.join(format!("file number {n}"));
            fs::write(&path, path.to_string_lossy().as_bytes()).unwrap();
            if root == &single {
                paths.push(path);
            }
        }
    }
    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    let start = std::time::Instant::now();
    let refs: Vec<_> = paths.iter().map(std::path::PathBuf::as_path).collect();
    assert!(peer.share(&refs).await.iter().all(Result::is_ok));
    eprintln!("shared in {:?}", start.elapsed());
    peer.close().await;
    let start = std::time::Instant::now();
    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    eprintln!("started in {:?}", start.elapsed());
    assert_eq!(peer.library.totals().files, 100_000);
    peer.close().await;
}
