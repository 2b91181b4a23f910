//! Silent corruption, as on a failing disk: the bytes of a file change and its stamp does not.
//! Which part notices it, and what follows.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{Reason, identity::hash::hash_bytes};
use potluck_peer::{
    content::ContentSource as _,
    library::{CheckEvent, CheckTarget, EntryHashes, Item, stamp_of, stamps_at},
};
use potluck_testkit::{
    content::{bytes, id_of, manifest},
    services::{LibraryPeer, TestPeer},
    transfer::transfer_request_from,
    wait::wait_until,
};
use tokio::sync::mpsc;

/// Shares a file under the hash that it had before its bytes were damaged.
async fn share_damaged(peer: &LibraryPeer, path: &Path, before: &[u8], now: &[u8]) -> Item {
    assert_eq!(before.len(), now.len());
    fs::write(path, now).unwrap();
    let stamp = stamp_of(&path.metadata().unwrap());
    let tree = hash_bytes(before);
    let adopted = peer.library.adopt_file(path.to_owned(), tree, stamp, None, None);
    adopted.await.unwrap()
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

fn listed(peer: &LibraryPeer) -> Vec<Item> {
    peer.library.list(100, "").unwrap().0
}

/// Runs a check; returns its events, except for progress.
async fn check(peer: &LibraryPeer, target: CheckTarget) -> Vec<CheckEvent> {
    let (sender, mut events) = mpsc::channel(16);
    let mut found = Vec::new();
    let collect = async {
        while let Some(event) = events.recv().await {
            match event {
                CheckEvent::Progress { done, total, .. } => assert!(done <= total),
                event => found.push(event),
            }
        }
    };
    tokio::join!(peer.library.check(vec![target], 0, sender), collect);
    found
}

fn bad(events: &[CheckEvent]) -> Vec<(PathBuf, Reason)> {
    let bad = events.iter().filter_map(|event| match event {
        CheckEvent::Bad { path, problem, .. } => Some((path.clone(), problem.reason)),
        _ => None,
    });
    bad.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn withdraws_a_damaged_file_when_a_receiver_reports_it() {
    potluck_testkit::log();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("data.bin");
    let before = bytes(700_000, 1);
    let now = flipped(&before, 400_000);
    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    let id = share_damaged(&peer, &path, &before, &now).await.record.id;
    assert_eq!(id, id_of(&before));
    assert!(peer.announced_names(&id).is_some());

    let (address, _) = peer.serve().await;
    let receiver = TestPeer::start(&dir.path().join("receiver"), None).await;
    let request = transfer_request_from(id, &dir.path().join("out"), [&address.into()]);
    let transfer = receiver.control.start_transfer(request).await;
    wait_until("the damage is reported", async || {
        peer.library.totals().damaged == 1
    })
    .await;
    drop(transfer);
    receiver.stop().await;
    assert!(peer.library.find(&id).is_none(), "the library does not serve it");
    assert_eq!(peer.announced_names(&id), None);
    assert_eq!(listed(&peer)[0].damaged, std::slice::from_ref(&path));
    peer.close().await;

    // The damage is still known after a restart, and the damaged file is not shared automatically.
    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    assert_eq!(peer.library.totals().damaged, 1);
    assert!(peer.library.find(&id).is_none());
    // The owner shares it as it is.
    let item = peer.share_one(&path).await;
    assert_eq!((item.record.id, item.damaged), (id_of(&now), vec![]));
    assert_eq!(peer.library.totals().damaged, 0);
    assert!(peer.library.find(&id_of(&now)).is_some());
    peer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_names_only_damaged_files() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let peer = LibraryPeer::open(&root.join("home")).await;
    let content = bytes(300_000, 2);
    let good = root.join("good");
    fs::write(&good, &content).unwrap();
    let good_id = peer.share_one(&good).await.record.id;
    let damaged = root.join("damaged");
    share_damaged(&peer, &damaged, &bytes(100, 3), &bytes(100, 4)).await;

    // A folder with two files, one of them damaged.
    let folder = root.join("folder");
    fs::create_dir(&folder).unwrap();
    let (one, two) = (bytes(200_000, 5), bytes(200_000, 6));
    fs::write(folder.join("one"), &one).unwrap();
    fs::write(folder.join("two"), flipped(&two, 199_999)).unwrap();
    let entry = |path, bytes: &[u8]| (path, id_of(bytes), bytes.len() as u64);
    let manifest = Arc::new(manifest([entry("one", &one), entry("two", &two)]));
    let mut hashes = EntryHashes::new(2);
    hashes.set(0, hash_bytes(&one));
    hashes.set(1, hash_bytes(&two));
    let stamps = stamps_at(&folder, &manifest).unwrap();
    let adopted = peer
        .library
        .adopt_collection(folder.clone(), manifest, stamps, hashes, None);
    let collection = adopted.await.unwrap().record.id;

    let found = check(&peer, CheckTarget::Path(good.clone())).await;
    let done = CheckEvent::Done {
        files: 1,
        bytes: 300_000,
        bad: 0,
    };
    assert_eq!(found, [done]);
    let found = check(&peer, CheckTarget::Path(folder.join("one"))).await;
    assert_eq!(bad(&found), []);
    for round in 0..2 {
        let found = check(&peer, CheckTarget::All).await;
        let reason = Reason::VerificationFailed;
        let expected = [(damaged.clone(), reason), (folder.join("two"), reason)];
        assert_eq!(bad(&found), expected, "round {round}");
        assert_eq!(peer.library.totals().damaged, 2);
    }
    assert!(peer.library.find(&good_id).is_some());
    assert!(
        peer.library.find(&id_of(&one)).is_some(),
        "the folder's other file is still shared"
    );
    for gone in [collection, id_of(&two), id_of(&bytes(100, 3))] {
        assert!(peer.library.find(&gone).is_none() && peer.announced_names(&gone).is_none());
    }
    let found = check(&peer, CheckTarget::Path(root.join("not shared"))).await;
    assert!(
        matches!(&found[0], CheckEvent::Failed { problem, .. } if problem.reason == Reason::NotFound)
    );
    peer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repairs_a_damaged_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap().join("folder");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), "content").unwrap();
    let mut peer = LibraryPeer::open(&dir.path().join("home")).await;
    let id = peer.share_one(&root).await.record.id;
    let stored = peer.home.state().join("manifests").join(id.to_string());
    let good = fs::read(&stored).unwrap();
    let served = |peer: &LibraryPeer| {
        let offer = peer.library.find(&id)?;
        let file = offer.open(0..offer.size()).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut &*file, &mut bytes).unwrap();
        Some(bytes)
    };
    let damage: [&dyn Fn(); 3] = [
        &|| fs::write(&stored, flipped(&good, good.len() / 2)).unwrap(),
        &|| fs::write(&stored, &good[1..]).unwrap(),
        &|| fs::remove_file(&stored).unwrap(),
    ];
    for damage in damage {
        damage();
        assert_eq!(served(&peer).as_ref(), Some(&good), "repaired when it is opened");
        assert_eq!(fs::read(&stored).unwrap(), good);
        damage();
        assert_eq!(peer.share_one(&root).await.record.id, id);
        assert_eq!(
            fs::read(&stored).unwrap(),
            good,
            "repaired when it is shared again"
        );
        damage();
        peer.close().await;
        peer = LibraryPeer::open(&dir.path().join("home")).await;
        wait_until("it is shared again after a restart", async || {
            peer.library.find(&id).is_some()
        })
        .await;
        assert_eq!(served(&peer).as_ref(), Some(&good));
    }
    peer.close().await;
}
