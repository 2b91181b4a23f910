//! Targets on file systems that cannot store everything in a collection: no modes, links or colons,
//! and case is folded.
//!
//! Uses an exFAT disk of its own, which needs root and the Debian packages exfatprogs and
//! exfat-fuse. Without them the tests print a note and pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod small_disk;

use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use common::*;
use potluck_core::{
    FileId,
    collection::{
        manifest::{EntryContent, Manifest, ManifestEntry},
        path::RelPath,
    },
    proto::v1,
};
use potluck_peer::library::{identify, stored_manifest};
use small_disk::*;

struct World {
    dir: tempfile::TempDir,
    seed: Peer,
    peer: Peer,
}

impl World {
    async fn new() -> Self {
        log();
        let dir = tempfile::tempdir().unwrap();
        let seed = Peer::start(&dir.path().join("seed"), None).await;
        let peer = Peer::start(&dir.path().join("peer"), None).await;
        Self { dir, seed, peer }
    }

    /// Shares a folder with these files; the content of each is its path.
    async fn share(&self, name: &str, paths: &[&str]) -> FileId {
        let folder = self.dir.path().join(name);
        for path in paths {
            file(&folder, path, path.as_bytes());
        }
        self.seed.share(&folder).await
    }

    async fn fetch(&self, id: FileId, target: &Path) -> v1::Transfer {
        let request = v1::StartTransferRequest {
            providers: vec![(&self.seed.address).into()],
            ..wish(id, target)
        };
        self.peer.fetch(request).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_names_that_are_one_at_the_target_are_refused_before_anything_is_written() {
    let Some(disk) = ExFat::mount() else { return };
    let world = World::new().await;
    let folders: [(&[&str], &str, &str); 3] = [
        (&["README", "Readme", "other"], "README", "Readme"),
        (&["Src/a", "src/b"], "Src", "src"),
        (&["deep/er/É", "deep/er/é"], "deep/er/É", "deep/er/é"),
    ];
    for (n, (paths, first, second)) in folders.into_iter().enumerate() {
        let id = world.share(&format!("folder-{n}"), paths).await;
        let failed = world.fetch(id, &disk.path("out")).await;
        assert_eq!(failure(&failed), "TARGET_UNSUITABLE");
        let message = failed.error.unwrap().message;
        for path in [first, second] {
            assert!(message.contains(&format!("`{path}`")), "{message}");
        }
        assert_eq!(disk.names(), [""; 0], "nothing is left");
        let elsewhere = world.dir.path().join(format!("out-{n}"));
        assert_done(&world.fetch(id, &elsewhere).await);
        for path in paths {
            assert_eq!(std::fs::read(elsewhere.join(path)).unwrap(), path.as_bytes());
        }
    }
    world.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_look_alike_and_are_kept_apart_do_no_harm() {
    let Some(disk) = ExFat::mount() else { return };
    let world = World::new().await;
    // exFAT keeps Unicode forms distinct and keeps trailing dots.
    let paths = ["e\u{301}", "\u{e9}", "a", "a.", "b"];
    let id = world.share("folder", &paths).await;
    let target = disk.path("out");
    assert_done(&world.fetch(id, &target).await);
    for path in paths {
        assert_eq!(std::fs::read(target.join(path)).unwrap(), path.as_bytes());
    }
    world.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_the_target_does_not_take_is_refused_by_name() {
    let Some(disk) = ExFat::mount() else { return };
    let world = World::new().await;
    let id = world.share("folder", &["a", "sub/what: now"]).await;
    let failed = world.fetch(id, &disk.path("out")).await;
    assert_eq!(failure(&failed), "TARGET_UNSUITABLE");
    let message = failed.error.unwrap().message;
    assert!(message.contains("sub/what: now"), "{message}");
    let single = world
        .seed
        .share(&world.dir.path().join("folder/sub/what: now"))
        .await;
    let failed = world.fetch(single, disk.root()).await;
    assert_eq!(failure(&failed), "TARGET_UNSUITABLE");
    assert_eq!(disk.names(), [""; 0]);
    world.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_cannot_keep_is_told_and_counts_against_nothing() {
    let Some(disk) = ExFat::mount() else { return };
    let world = World::new().await;
    let folder = world.dir.path().join("folder");
    let tool = file(&folder, "tool", b"#!");
    std::fs::set_permissions(tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink("plain", folder.join("link")).unwrap();
    let id = world.share("folder", &["plain", "sub/plain"]).await;
    let target = disk.path("out");
    let done = world.fetch(id, &target).await;
    assert_done(&done);
    let told = done.not_kept.join("; ");
    assert!(
        told.contains("`link`") && told.contains("1 file is executable"),
        "{told}"
    );
    assert_eq!(done.not_kept.len(), 2);
    let there = || identify(&target, 1, &|_| {}, &|_| {}, &|| false).unwrap();
    assert_ne!(there().record.id, id);
    let home = world.dir.path().join("peer");
    wait_until("the library has it", || async {
        stored_manifest(&home, id).is_some()
    })
    .await;
    let manifest = stored_manifest(&home, id).unwrap();
    assert!(there().holds_all_of(&manifest));
    let again = world.fetch(id, &target).await;
    assert_done(&again);
    assert_eq!(again.resumed_bytes, again.bytes_total, "it is there already");
    assert!(!target.join("folder").exists() && disk.names() == ["out"]);
    std::fs::write(target.join("sub/plain"), "SUB/PLAIN").unwrap();
    assert!(!there().holds_all_of(&manifest), "its content counts");
    world.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_without_executables_has_its_id_there_as_well() {
    let Some(disk) = ExFat::mount() else { return };
    let world = World::new().await;
    let id = world.share("folder", &["plain", "sub/plain"]).await;
    let target = disk.path("out");
    let done = world.fetch(id, &target).await;
    assert_done(&done);
    assert_eq!(done.not_kept, [""; 0]);
    let there = identify(&target, 1, &|_| {}, &|_| {}, &|| false).unwrap();
    assert_eq!(there.record.id, id);
    world.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_names_one_file_many_times_is_asked_about_before_it_is_fetched() {
    let world = World::new().await;
    let data = bytes(8 * MIB, 1);
    let content = world.seed.share(&file(world.dir.path(), "data", &data)).await;
    let paths: Vec<String> = (0..1000).map(|n| format!("{n:03}")).collect();
    let entries = paths.iter().map(|path| ManifestEntry {
        path: RelPath::parse(path).unwrap(),
        content: EntryContent::File {
            id: content,
            size: data.len() as u64,
            executable: false,
        },
    });
    let manifest = Manifest::new(entries).unwrap();
    let list = file(world.dir.path(), "list", manifest.bytes());
    let id = world.seed.share(&list).await;
    let target = world.dir.path().join("out");
    let failed = world.fetch(id, &target).await;
    assert_eq!(failure(&failed), "EXPANSION_REFUSED");
    assert_eq!(failed.bytes_total, 8000 * MIB as u64, "what would be written");
    let message = failed.error.unwrap().message;
    for part in ["8 MiB", "8000 MiB", "--allow-expansion"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!target.exists());
    world.peer.stop().await;
}
