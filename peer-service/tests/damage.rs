//! Silent corruption, as on a failing disk: the bytes of a file change and its stamp does not.
//! Which part notices it, and what follows.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod served_library;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use potluck_core::{
    FileId, Reason,
    collection::{
        manifest::{EntryContent, Manifest, ManifestEntry},
        path::RelPath,
    },
    identity::hash::hash_bytes,
    proto::v1,
};
use potluck_peer::{
    content::ContentSource as _,
    library::{CheckEvent, CheckTarget, EntryHashes, Item, stamp_of, stamps_at},
};
use tokio::sync::mpsc;

use served_library::{Peer, bytes, wait_until};

fn id_of(bytes: &[u8]) -> FileId {
    hash_bytes(bytes).id()
}

/// Shares a file under the hash that it had before its bytes were damaged.
async fn share_damaged(peer: &Peer, path: &Path, before: &[u8], now: &[u8]) -> Item {
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

fn listed(peer: &Peer) -> Vec<Item> {
    peer.library.list(100, "").unwrap().0
}

/// Runs a check; returns its events, except for progress.
async fn check(peer: &Peer, target: CheckTarget) -> Vec<CheckEvent> {
    let (tell, mut events) = mpsc::channel(16);
    let mut told = Vec::new();
    let collect = async {
        while let Some(event) = events.recv().await {
            match event {
                CheckEvent::Progress { done, total, .. } => assert!(done <= total),
                event => told.push(event),
            }
        }
    };
    tokio::join!(peer.library.check(vec![target], 0, tell), collect);
    told
}

fn bad(events: &[CheckEvent]) -> Vec<(PathBuf, Reason)> {
    let bad = events.iter().filter_map(|event| match event {
        CheckEvent::Bad { path, problem, .. } => Some((path.clone(), problem.reason)),
        _ => None,
    });
    bad.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_withdrawn_once_a_receiver_tells_of_it() {
    common::log();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("data.bin");
    let before = bytes(1, 700_000);
    let now = flipped(&before, 400_000);
    let peer = Peer::open(&dir.path().join("home")).await;
    let id = share_damaged(&peer, &path, &before, &now).await.record.id;
    assert_eq!(id, id_of(&before));
    assert!(peer.registered(&id).is_some());

    let (address, _) = peer.serve_at().await;
    let receiver = common::Peer::start(&dir.path().join("receiver"), None).await;
    let request = v1::StartTransferRequest {
        providers: vec![v1::Address {
            host: address.ip().to_string(),
            port: address.port().into(),
        }],
        ..common::wish(id, &dir.path().join("out"))
    };
    let fetching = receiver.control.clone().start_transfer(request).await.unwrap();
    wait_until("the damage is seen", || peer.library.totals().damaged == 1).await;
    drop(fetching);
    receiver.stop().await;
    assert!(peer.library.find(&id).is_none(), "not offered");
    assert_eq!(peer.registered(&id), None);
    assert_eq!(listed(&peer)[0].damaged, std::slice::from_ref(&path));
    peer.close().await;

    // The damage is still known after a restart, and the damaged file is not shared automatically.
    let peer = Peer::open(&dir.path().join("home")).await;
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
async fn a_check_names_what_is_damaged_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let peer = Peer::open(&root.join("home")).await;
    let content = bytes(2, 300_000);
    let good = root.join("good");
    fs::write(&good, &content).unwrap();
    let good_id = peer.share_one(&good).await.record.id;
    let damaged = root.join("damaged");
    share_damaged(&peer, &damaged, &bytes(3, 100), &bytes(4, 100)).await;

    // A folder with two files, one of them damaged.
    let folder = root.join("folder");
    fs::create_dir(&folder).unwrap();
    let (one, two) = (bytes(5, 200_000), bytes(6, 200_000));
    fs::write(folder.join("one"), &one).unwrap();
    fs::write(folder.join("two"), flipped(&two, 199_999)).unwrap();
    let entry = |path, bytes: &[u8]| ManifestEntry {
        path: RelPath::parse(path).unwrap(),
        content: EntryContent::File {
            id: id_of(bytes),
            size: bytes.len() as u64,
            executable: false,
        },
    };
    let manifest = Arc::new(Manifest::new([entry("one", &one), entry("two", &two)]).unwrap());
    let mut hashes = EntryHashes::new(2);
    hashes.set(0, hash_bytes(&one));
    hashes.set(1, hash_bytes(&two));
    let stamps = stamps_at(&folder, &manifest).unwrap();
    let adopted = peer
        .library
        .adopt_collection(folder.clone(), manifest, stamps, hashes, None);
    let collection = adopted.await.unwrap().record.id;

    let told = check(&peer, CheckTarget::Path(good.clone())).await;
    let done = CheckEvent::Done {
        files: 1,
        bytes: 300_000,
        bad: 0,
    };
    assert_eq!(told, [done]);
    let told = check(&peer, CheckTarget::Path(folder.join("one"))).await;
    assert_eq!(bad(&told), []);
    for round in 0..2 {
        let told = check(&peer, CheckTarget::All).await;
        let wrong = Reason::VerificationFailed;
        let expected = [(damaged.clone(), wrong), (folder.join("two"), wrong)];
        assert_eq!(bad(&told), expected, "round {round}");
        assert_eq!(peer.library.totals().damaged, 2);
    }
    assert!(peer.library.find(&good_id).is_some());
    assert!(
        peer.library.find(&id_of(&one)).is_some(),
        "the others of the folder stay"
    );
    for gone in [collection, id_of(&two), id_of(&bytes(3, 100))] {
        assert!(peer.library.find(&gone).is_none() && peer.registered(&gone).is_none());
    }
    let told = check(&peer, CheckTarget::Path(root.join("not shared"))).await;
    assert!(matches!(&told[0], CheckEvent::Failed { problem, .. } if problem.reason == Reason::NotFound));
    peer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap().join("folder");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), "content").unwrap();
    let mut peer = Peer::open(&dir.path().join("home")).await;
    let id = peer.share_one(&root).await.record.id;
    let kept = peer.home.state().join("manifests").join(id.to_string());
    let good = fs::read(&kept).unwrap();
    let served = |peer: &Peer| {
        let offer = peer.library.find(&id)?;
        let file = offer.open(0..offer.size()).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut &*file, &mut bytes).unwrap();
        Some(bytes)
    };
    let damage: [&dyn Fn(); 3] = [
        &|| fs::write(&kept, flipped(&good, good.len() / 2)).unwrap(),
        &|| fs::write(&kept, &good[1..]).unwrap(),
        &|| fs::remove_file(&kept).unwrap(),
    ];
    for damage in damage {
        damage();
        assert_eq!(served(&peer).as_ref(), Some(&good), "when it is opened");
        assert_eq!(fs::read(&kept).unwrap(), good);
        damage();
        assert_eq!(peer.share_one(&root).await.record.id, id);
        assert_eq!(fs::read(&kept).unwrap(), good, "when it is shared again");
        damage();
        peer.close().await;
        peer = Peer::open(&dir.path().join("home")).await;
        wait_until("it is shared again after a restart", || {
            peer.library.find(&id).is_some()
        })
        .await;
        assert_eq!(served(&peer).as_ref(), Some(&good));
    }
    peer.close().await;
}
