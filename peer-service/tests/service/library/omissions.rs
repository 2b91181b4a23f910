//! What is left out of a shared folder: links, special files, names that a collection cannot hold,
//! and what patterns exclude.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::symlink, net::UnixListener},
    path::Path,
    time::Duration,
};

use potluck_core::Reason;
use potluck_peer::{
    content::ContentSource as _,
    library::{Item, LinkPolicy, OmissionKind, ShareOptions, stored_manifest},
};
use potluck_testkit::{
    content::{id_of, write_file},
    services::LibraryPeer,
    wait::wait_until,
};

/// A peer and a folder to share.
struct OmissionsFixture {
    dir: tempfile::TempDir,
    peer: LibraryPeer,
}

type Counts = Vec<(OmissionKind, u64)>;

impl OmissionsFixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        let peer = LibraryPeer::open(&dir.path().join("home")).await;
        Self { dir, peer }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().canonicalize().unwrap().join("folder")
    }

    fn file(&self, path: &str, text: &str) {
        write_file(&self.root(), path, text.as_bytes());
    }

    fn link(&self, target: impl AsRef<Path>, path: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// Shares the folder; returns the item and the omissions.
    async fn share(&self, options: ShareOptions) -> (Item, Counts) {
        let (mut results, counts) = self.peer.share_with(&[&self.root()], options).await;
        (results.remove(0).unwrap(), counts.into_iter().collect())
    }

    /// Shares the folder; returns its paths and the omissions.
    async fn share_paths(&self, options: ShareOptions) -> (Vec<String>, Counts) {
        let (item, counts) = self.share(options).await;
        (self.paths(&item), counts)
    }

    fn paths(&self, item: &Item) -> Vec<String> {
        let manifest = stored_manifest(self.peer.home.path(), item.record.id).unwrap();
        let paths = manifest.entries().map(|entry| entry.path.as_str().to_owned());
        paths.collect()
    }
}

fn links(links: LinkPolicy) -> ShareOptions {
    ShareOptions {
        links,
        ..ShareOptions::default()
    }
}

fn exclude(patterns: &[&str]) -> ShareOptions {
    ShareOptions {
        exclude: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
        ..ShareOptions::default()
    }
}

#[tokio::test]
async fn what_cannot_be_shared_is_skipped_and_counted_by_kind() {
    let fixture = OmissionsFixture::new().await;
    let root = fixture.root();
    fixture.file("a/kept", "kept");
    fixture.link("../kept", "a/b/inside");
    fixture.link("/etc/passwd", "absolute");
    fixture.link("../../outside", "a/leads out");
    fixture.file("a\nb/below", "not reached");
    fs::write(root.join(OsStr::from_bytes(b"not \xff utf-8")), "").unwrap();
    fs::create_dir(root.join("only a socket")).unwrap();
    let _socket = UnixListener::bind(root.join("only a socket/socket")).unwrap();
    let (item, counts) = fixture.share(ShareOptions::default()).await;
    let expected = [
        (OmissionKind::Link, 2),
        (OmissionKind::Special, 1),
        (OmissionKind::InvalidName, 2),
    ];
    assert_eq!(counts, expected);
    assert_eq!(fixture.paths(&item), ["a/b/inside", "a/kept", "only a socket"]);

    // Nothing changed, so the same item is used again, with the same omissions.
    let (again, counts) = fixture.share(ShareOptions::default()).await;
    assert_eq!((again, counts), (item, expected.into()));
    fixture.peer.close().await;
}

#[tokio::test]
async fn no_links_are_shared_if_links_are_skipped() {
    let fixture = OmissionsFixture::new().await;
    fixture.file("kept", "kept");
    fixture.link("kept", "inside");
    let strict = ShareOptions {
        is_strict: true,
        ..links(LinkPolicy::Skip)
    };
    for options in [links(LinkPolicy::Skip), strict] {
        let (paths, counts) = fixture.share_paths(options).await;
        assert_eq!(paths, ["kept"]);
        assert_eq!(counts, [(OmissionKind::Link, 1)]);
    }
    fixture.peer.close().await;
}

#[tokio::test]
async fn followed_links_give_their_content_and_never_loop() {
    let fixture = OmissionsFixture::new().await;
    let outside = fixture.dir.path().join("outside");
    write_file(&outside, "sub/file", b"from outside");
    fixture.file("own", "own");
    fixture.link(outside.join("sub/file"), "file");
    fixture.link(&outside, "tree");
    fixture.link("own", "inside");
    fixture.link(".", "a/self");
    fixture.link("..", "a/up");
    // Leads to the folder above the shared one, which holds the shared one.
    fixture.link("../../..", "a/b/far");
    fixture.link("itself", "itself");
    fixture.link("nothing", "dangling");
    fixture.link("/dev/null", "device");
    fixture.link(fixture.peer.home.state(), "secrets");
    fixture.link(fixture.peer.home.path(), "around the secrets");
    fs::remove_file(fixture.root().join("a/b/far")).unwrap();
    fixture.link(fixture.dir.path().join("around"), "a/b/far");
    symlink(fixture.root(), fixture.dir.path().join("around")).unwrap();
    let (paths, counts) = fixture.share_paths(links(LinkPolicy::Follow)).await;
    let listed: Vec<_> = paths.iter().filter(|path| !path.starts_with("around")).collect();
    assert_eq!(listed, ["a/b", "file", "inside", "own", "tree/sub/file"]);
    assert!(paths.iter().all(|path| !path.contains("state/")), "{paths:?}");
    let counts: BTreeMap<_, _> = counts.into_iter().collect();
    assert_eq!(counts[&OmissionKind::LinkLoop], 4);
    assert_eq!(counts[&OmissionKind::DanglingLink], 1);
    assert_eq!(counts[&OmissionKind::PeerState], 2);
    assert!(counts[&OmissionKind::Special] >= 1);
    fixture.peer.close().await;
}

#[tokio::test]
async fn a_file_behind_a_link_is_served_and_its_changes_are_noticed() {
    let fixture = OmissionsFixture::new().await;
    let outside = write_file(fixture.dir.path(), "outside", b"before");
    fixture.link(&outside, "link");
    let (item, counts) = fixture.share(links(LinkPolicy::Follow)).await;
    assert_eq!(counts, []);
    assert_eq!(fixture.peer.library.locate(&item.record.id), Some(fixture.root()));
    assert!(fixture.peer.library.find(&id_of(b"before")).is_some());
    let home = fixture.peer.home.path().to_owned();
    fixture.peer.close().await;

    let peer = LibraryPeer::open(&home).await;
    assert!(
        peer.library.find(&item.record.id).is_some(),
        "unchanged after a restart"
    );
    peer.close().await;
    fs::write(&outside, "changed").unwrap();
    let peer = LibraryPeer::open(&home).await;
    wait_until("it is hashed again, with links followed", async || {
        peer.announced_names(&id_of(b"changed")).is_some()
    })
    .await;
    peer.close().await;
}

#[tokio::test]
async fn patterns_leave_entries_out_and_are_kept_for_the_next_scan() {
    let fixture = OmissionsFixture::new().await;
    for path in [
        "a.o",
        "src/b.o",
        "src/keep.o",
        "src/c",
        "target/x",
        "src/target/y",
        "top",
        "src/top",
    ] {
        fixture.file(path, path);
    }
    let patterns = exclude(&["*.o", "!keep.o", "target/", "/top"]);
    let (paths, counts) = fixture.share_paths(patterns.clone()).await;
    assert_eq!(paths, ["src/c", "src/keep.o", "src/top"]);
    assert_eq!(counts, [(OmissionKind::Excluded, 5)]);
    let home = fixture.peer.home.path().to_owned();
    let root = fixture.root();
    fixture.peer.close().await;

    fs::write(root.join("src/c"), "changed").unwrap();
    let peer = LibraryPeer::open(&home).await;
    wait_until("it is hashed again", async || {
        peer.announced_names(&id_of(b"changed")).is_some()
    })
    .await;
    let item = peer.library.list(10, "").unwrap().0.remove(0);
    assert_eq!(item.file_count, 3);
    assert!(peer.announced_names(&id_of(b"a.o")).is_none());
    // Sharing it again replaces the options.
    assert_eq!(peer.share_one(&root).await.file_count, 8);
    peer.close().await;
}

#[tokio::test]
async fn potluckignore_files_apply_to_their_folder_and_are_shared() {
    let fixture = OmissionsFixture::new().await;
    for path in [
        "x.log",
        "a/x.log",
        "a/keep.log",
        "a/b/secret",
        "b/secret",
        "cache/x",
        "a/cache/y",
    ] {
        fixture.file(path, path);
    }
    fixture.file(".potluckignore", "# logs\n*.log\n/cache/\n");
    fixture.file("a/.potluckignore", "!keep.log\nb/secret\n");
    let (paths, counts) = fixture.share_paths(ShareOptions::default()).await;
    let shared = [
        ".potluckignore",
        "a/.potluckignore",
        "a/b",
        "a/cache/y",
        "a/keep.log",
        "b/secret",
    ];
    assert_eq!(paths, shared);
    assert_eq!(counts, [(OmissionKind::Excluded, 4)]);
    // `--exclude` comes first, and a pattern can exclude the file itself.
    let (paths, _) = fixture
        .share_paths(exclude(&[".potluckignore", "!x.log", "a/"]))
        .await;
    assert_eq!(paths, ["b/secret", "x.log"]);
    fixture.peer.close().await;
}

#[tokio::test]
async fn patterns_that_cannot_be_understood_refuse_the_share() {
    let fixture = OmissionsFixture::new().await;
    fixture.file("secret", "secret");
    let root = fixture.root();
    let (results, _) = fixture.peer.share_with(&[&root], exclude(&["a{b"])).await;
    let (_, problem) = results[0].as_ref().unwrap_err();
    assert_eq!(problem.reason, Reason::InvalidArgument);
    assert!(problem.message.contains("a{b"), "{problem}");
    fixture.file(".potluckignore", "ok\na{b\n");
    let (path, problem) = fixture.peer.share(&[&root]).await.remove(0).unwrap_err();
    assert!(
        path.ends_with(".potluckignore") && problem.message.contains("line 2"),
        "{problem}"
    );
    fs::remove_file(root.join(".potluckignore")).unwrap();
    fs::create_dir(root.join(".potluckignore")).unwrap();
    let (_, problem) = fixture.peer.share(&[&root]).await.remove(0).unwrap_err();
    assert_eq!(problem.reason, Reason::InvalidArgument);
    fixture.peer.close().await;
}

#[tokio::test]
async fn a_strict_share_names_some_entries_and_counts_all() {
    let fixture = OmissionsFixture::new().await;
    for number in 0..300 {
        fixture.link("/etc/passwd", &format!("link {number}"));
    }
    let strict = ShareOptions {
        is_strict: true,
        ..ShareOptions::default()
    };
    let (results, _) = fixture.peer.share_with(&[&fixture.root()], strict).await;
    assert_eq!(results.len(), 101);
    let (path, problem) = results[100].as_ref().unwrap_err();
    assert!(
        *path == fixture.root() && problem.message.starts_with("300 "),
        "{problem}"
    );
    assert_eq!(fixture.peer.library.totals().items, 0);
    fixture.peer.close().await;
}

#[tokio::test]
async fn files_that_vanish_while_the_folder_is_read_are_left_out() {
    let fixture = OmissionsFixture::new().await;
    let root = fixture.root();
    fixture.file("stays", "stays");
    let churn = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let churning = {
        let (churn, root) = (churn.clone(), root.clone());
        std::thread::spawn(move || {
            while churn.load(std::sync::atomic::Ordering::Relaxed) {
                for number in 0..50 {
                    fs::create_dir_all(root.join(format!("d{number}"))).unwrap();
                    fs::write(root.join(format!("d{number}/file")), "").unwrap();
                }
                for number in 0..50 {
                    fs::remove_dir_all(root.join(format!("d{number}"))).unwrap();
                }
            }
        })
    };
    for _ in 0..20 {
        let (results, _) = fixture.peer.share_with(&[&root], ShareOptions::default()).await;
        // A file that was just written may count as changing.
        for failed in results.into_iter().filter_map(Result::err) {
            assert_eq!(failed.1.reason, Reason::FileChanged, "{failed:?}");
        }
    }
    churn.store(false, std::sync::atomic::Ordering::Relaxed);
    churning.join().unwrap();
    tokio::time::timeout(Duration::from_secs(60), fixture.peer.close())
        .await
        .unwrap();
}
