//! Targets on file systems that cannot store everything in a collection: no modes, links or colons,
//! and case is folded.
//!
//! Uses an exFAT disk of its own, which needs root and the Debian packages exfatprogs and
//! exfat-fuse. Without them the tests print a note and pass.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use potluck_core::FileId;
use potluck_peer::library::{ShareOptions, identify, stored_manifest};
use potluck_testkit::{
    content::{MIB, bytes, manifest, write_file},
    services::PeerPair,
    system::disk::ExFatDisk,
    transfer::{assert_done, failure_reason},
    wait::wait_until,
};

/// Shares a folder with these files; the content of each is its path.
async fn share_folder(peers: &PeerPair, name: &str, paths: &[&str]) -> FileId {
    let folder = peers.dir.path().join(name);
    for path in paths {
        write_file(&folder, path, path.as_bytes());
    }
    peers.seed.share(&folder).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_names_that_are_one_file_at_the_target() {
    let Some(disk) = ExFatDisk::mount() else {
        return;
    };
    let peers = PeerPair::new().await;
    let folders: [(&[&str], &str, &str); 3] = [
        (&["README", "Readme", "other"], "README", "Readme"),
        (&["Src/a", "src/b"], "Src", "src"),
        (&["deep/er/É", "deep/er/é"], "deep/er/É", "deep/er/é"),
    ];
    for (n, (paths, first, second)) in folders.into_iter().enumerate() {
        let id = share_folder(&peers, &format!("folder-{n}"), paths).await;
        let failed = peers.download(id, &disk.path("out")).await;
        assert_eq!(failure_reason(&failed), "TARGET_UNSUITABLE");
        let message = failed.error.unwrap().message;
        for path in [first, second] {
            assert!(message.contains(&format!("`{path}`")), "{message}");
        }
        assert_eq!(disk.names(), [""; 0], "nothing is left");
        let elsewhere = peers.dir.path().join(format!("out-{n}"));
        assert_done(&peers.download(id, &elsewhere).await);
        for path in paths {
            assert_eq!(std::fs::read(elsewhere.join(path)).unwrap(), path.as_bytes());
        }
    }
    peers.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accepts_similar_names_that_the_target_keeps_apart() {
    let Some(disk) = ExFatDisk::mount() else {
        return;
    };
    let peers = PeerPair::new().await;
    // exFAT keeps Unicode forms distinct and keeps trailing dots.
    let paths = ["e\u{301}", "\u{e9}", "a", "a.", "b"];
    let id = share_folder(&peers, "folder", &paths).await;
    let target = disk.path("out");
    assert_done(&peers.download(id, &target).await);
    for path in paths {
        assert_eq!(std::fs::read(target.join(path)).unwrap(), path.as_bytes());
    }
    peers.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_a_name_that_the_target_does_not_support() {
    let Some(disk) = ExFatDisk::mount() else {
        return;
    };
    let peers = PeerPair::new().await;
    let id = share_folder(&peers, "folder", &["a", "sub/what: now"]).await;
    let failed = peers.download(id, &disk.path("out")).await;
    assert_eq!(failure_reason(&failed), "TARGET_UNSUITABLE");
    let message = failed.error.unwrap().message;
    assert!(message.contains("sub/what: now"), "{message}");
    let single = peers
        .seed
        .share(&peers.dir.path().join("folder/sub/what: now"))
        .await;
    let failed = peers.download(single, disk.root()).await;
    assert_eq!(failure_reason(&failed), "TARGET_UNSUITABLE");
    assert_eq!(disk.names(), [""; 0]);
    peers.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_entries_that_the_target_cannot_store() {
    let Some(disk) = ExFatDisk::mount() else {
        return;
    };
    let peers = PeerPair::new().await;
    let folder = peers.dir.path().join("folder");
    let tool = write_file(&folder, "tool", b"#!");
    std::fs::set_permissions(tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink("plain", folder.join("link")).unwrap();
    let id = share_folder(&peers, "folder", &["plain", "sub/plain"]).await;
    let target = disk.path("out");
    let done = peers.download(id, &target).await;
    assert_done(&done);
    let not_kept = done.not_kept.join("; ");
    assert!(
        not_kept.contains("`link`") && not_kept.contains("1 file is executable"),
        "{not_kept}"
    );
    assert_eq!(done.not_kept.len(), 2);
    let there =
        || identify(&target, &ShareOptions::default(), 1, &|_| {}, &|_| {}, &|| false).unwrap();
    assert_ne!(there().record.id, id);
    let home = peers.dir.path().join("peer");
    wait_until("the library has it", async || {
        stored_manifest(&home, id).is_some()
    })
    .await;
    let manifest = stored_manifest(&home, id).unwrap();
    assert!(there().holds_all_of(&manifest));
    let again = peers.download(id, &target).await;
    assert_done(&again);
    assert_eq!(again.resumed_bytes, again.bytes_total, "it is there already");
    assert!(!target.join("folder").exists() && disk.names() == ["out"]);
    std::fs::write(target.join("sub/plain"), "SUB/PLAIN").unwrap();
    assert!(!there().holds_all_of(&manifest), "its content counts");
    peers.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_plain_files_keeps_its_id() {
    let Some(disk) = ExFatDisk::mount() else {
        return;
    };
    let peers = PeerPair::new().await;
    let id = share_folder(&peers, "folder", &["plain", "sub/plain"]).await;
    let target = disk.path("out");
    let done = peers.download(id, &target).await;
    assert_done(&done);
    assert_eq!(done.not_kept, [""; 0]);
    let there =
        identify(&target, &ShareOptions::default(), 1, &|_| {}, &|_| {}, &|| false).unwrap();
    assert_eq!(there.record.id, id);
    peers.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_a_manifest_that_expands_too_much() {
    let peers = PeerPair::new().await;
    let data = bytes(8 * MIB, 1);
    let id = peers.share("data", &data).await;
    let paths: Vec<String> = (0..1000).map(|n| format!("{n:03}")).collect();
    let entries = paths.iter().map(|path| (path.as_str(), id, data.len() as u64));
    let id = peers.share("list", manifest(entries).bytes()).await;
    let target = peers.dir.path().join("out");
    let failed = peers.download(id, &target).await;
    assert_eq!(failure_reason(&failed), "EXPANSION_REFUSED");
    assert_eq!(failed.bytes_total, 8000 * MIB as u64, "what would be written");
    let message = failed.error.unwrap().message;
    for part in ["8 MiB", "8000 MiB", "--allow-expansion"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!target.exists());
    peers.peer.stop().await;
}
