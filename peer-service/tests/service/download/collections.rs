//! Collections: the downloaded folder equals the shared one.

use std::{
    collections::BTreeMap,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use potluck_core::{FileId, proto::v1};
use potluck_testkit::{
    content::{bytes, id_of, write_file},
    services::TestPeer,
    transfer::{assert_done, transfer_request_from},
};

/// Everything in a folder: each path with its kind and content as a line of text.
fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut entries = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let description = if metadata.is_dir() {
                folders.push(path.clone());
                "folder".to_owned()
            } else if metadata.is_symlink() {
                format!("link to {}", path.read_link().unwrap().display())
            } else {
                let executable = metadata.permissions().mode() & 0o100 != 0;
                let id = id_of(&std::fs::read(&path).unwrap());
                format!("file {id} executable {executable}")
            };
            entries.insert(
                path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(),
                description,
            );
        }
    }
    entries
}

fn write_cookbook(root: &Path) {
    for n in 0..300 {
        write_file(
            root,
            &format!("small/{}/{n}.txt", n % 7),
            &bytes(n * 13, n as u64),
        );
    }
    write_file(root, "large.bin", &bytes(9_000_000, 1000));
    write_file(root, "copy of large.bin", &bytes(9_000_000, 1000));
    write_file(root, "middle.bin", &bytes(3_000_000, 1001));
    write_file(root, "nothing", b"");
    write_file(root, "nothing either", b"");
    let tool = write_file(root, "bin/tool", b"#!/bin/sh\necho hi\n");
    std::fs::set_permissions(tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = write_file(root, "bin/tool.txt", b"#!/bin/sh\necho hi\n");
    std::fs::set_permissions(copy, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::create_dir_all(root.join("empty/inside")).unwrap();
    symlink("../bin/tool", root.join("small/link")).unwrap();
    symlink("small", root.join("folder-link")).unwrap();
}

async fn seeds(dir: &Path, source: &Path, count: usize) -> (Vec<TestPeer>, FileId) {
    let mut peers = Vec::new();
    let mut id = None;
    for n in 0..count {
        let peer = TestPeer::start(&dir.join(format!("seed{n}")), None).await;
        id = Some(peer.share(source).await);
        peers.push(peer);
    }
    (peers, id.unwrap())
}

fn collection(id: FileId, target: &Path, seeds: &[TestPeer]) -> v1::StartTransferRequest {
    transfer_request_from(id, target, seeds.iter().map(|seed| &seed.address))
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_a_folder_as_it_was_shared() {
    potluck_testkit::log();
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("cookbook");
    write_cookbook(&source);
    let (seeds, id) = seeds(dir.path(), &source, 2).await;
    let peer = TestPeer::start(&dir.path().join("peer"), None).await;
    let target = dir.path().join("out");
    let done = peer.download(collection(id, &target, &seeds)).await;
    assert_done(&done);
    assert_eq!(done.kind(), v1::FileKind::Collection);
    assert_eq!(listing(&target), listing(&source));
    assert_eq!(
        done.peers.iter().filter(|peer| peer.bytes > 0).count(),
        2,
        "{done:#?}"
    );
    assert!(!dir.path().join("out.part").exists() && !dir.path().join("out.part.state").exists());

    // A second fetch: the folder exists and verifies, so nothing is downloaded.
    let again = peer.download(collection(id, &target, &seeds)).await;
    assert_done(&again);
    assert_eq!(again.resumed_bytes, again.bytes_total, "{again:#?}");
    assert!(again.peers.is_empty());

    // A third peer downloads the folder from this peer alone.
    let third = TestPeer::start(&dir.path().join("third"), None).await;
    for seed in seeds {
        seed.stop().await;
    }
    let copy = dir.path().join("third-out");
    let from = std::slice::from_ref(&peer);
    assert_done(&third.download(collection(id, &copy, from)).await);
    assert_eq!(listing(&copy), listing(&source));
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_a_folder_with_other_content_alone() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("cookbook");
    write_cookbook(&source);
    let (seeds, id) = seeds(dir.path(), &source, 1).await;
    let peer = TestPeer::start(&dir.path().join("peer"), None).await;
    let target = dir.path().join("out");
    assert_done(&peer.download(collection(id, &target, &seeds)).await);
    std::fs::write(target.join("nothing"), "mine").unwrap();
    // The folder now holds a file of another owner: the collection goes inside.
    let done = peer.download(collection(id, &target, &seeds)).await;
    assert_done(&done);
    assert_eq!(Path::new(&done.path).parent(), Some(target.as_path()));
    assert_eq!(std::fs::read(target.join("nothing")).unwrap(), b"mine");
    assert_eq!(listing(Path::new(&done.path)), listing(&source));
}
