//! A full disk: the transfer reports it immediately, waits, and resumes automatically.
//!
//! Uses a small file system of its own, which needs the right to mount one. Without it the tests
//! print a note and pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod small_disk;

use std::{fs::File, path::Path};

use common::*;
use potluck_core::{Problem, Reason, proto::v1};
use rustix::fs::FallocateFlags;
use small_disk::*;
use tonic::Streaming;

struct World {
    dir: tempfile::TempDir,
    seed: Peer,
    peer: Peer,
}

async fn world() -> World {
    log();
    let dir = tempfile::tempdir().unwrap();
    let seed = Peer::start(&dir.path().join("seed"), None).await;
    let peer = Peer::start(&dir.path().join("peer"), None).await;
    World { dir, seed, peer }
}

impl World {
    async fn share(&self, name: &str, data: &[u8]) -> potluck_core::FileId {
        self.seed.share(&file(self.dir.path(), name, data)).await
    }

    async fn begin(
        &self,
        id: potluck_core::FileId,
        target: &Path,
        rate: u64,
    ) -> Streaming<v1::StartTransferResponse> {
        let request = v1::StartTransferRequest {
            providers: vec![(&self.seed.address).into()],
            max_bytes_per_second: Some(rate),
            ..wish(id, target)
        };
        self.peer
            .control
            .clone()
            .start_transfer(request)
            .await
            .unwrap()
            .into_inner()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_waits_for_room_before_it_begins() {
    let Some(disk) = Disk::mount(64 * MIB) else { return };
    let world = world().await;
    let data = bytes(40 * MIB, 1);
    let id = world.share("data.bin", &data).await;
    let ballast = disk.ballast(20 * MIB);
    let target = disk.path("out");
    let mut events = world.begin(id, &target, 0).await;
    let waiting = until("it waits", &mut events, waits_for_room).await;
    let message = waiting.error.unwrap().message;
    assert!(
        message.contains(target.to_str().unwrap()) && message.contains("make room"),
        "{message}"
    );
    // Long enough for at least one retry before there is room.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    let mut held: Vec<_> = std::fs::read_dir(disk.root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    held.sort();
    assert_eq!(held, ["ballast"], "nothing is left lying about meanwhile");
    std::fs::remove_file(ballast).unwrap();
    until("it goes on by itself", &mut events, done).await;
    assert_eq!(std::fs::read(&target).unwrap(), data);
    world.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_under_a_collection_is_waited_for() {
    let Some(disk) = Disk::mount(64 * MIB) else { return };
    let world = world().await;
    let folder = world.dir.path().join("folder");
    let large = bytes(9 * MIB, 2);
    file(&folder, "large", &large);
    for n in 0..40 {
        file(&folder, &format!("small/{n}"), &bytes(200_000, 100 + n));
    }
    let id = world.seed.share(&folder).await;
    let target = disk.path("out");
    let mut events = world.begin(id, &target, 4_000_000).await;
    until("it begins", &mut events, |transfer| transfer.units_done > 1).await;
    let filler = disk.fill();
    let waiting = until("it waits", &mut events, waits_for_room).await;
    assert!(waiting.bytes_done < waiting.bytes_total);
    std::fs::remove_file(filler).unwrap();
    until("it goes on by itself", &mut events, done).await;
    assert_eq!(std::fs::read(target.join("large")).unwrap(), large);
    for n in 0..40 {
        let there = std::fs::read(target.join(format!("small/{n}"))).unwrap();
        assert_eq!(there, bytes(200_000, 100 + n), "small/{n}");
    }
    world.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_state_without_room_is_written_later_although_nothing_more_comes() {
    let Some(disk) = Disk::mount(64 * MIB) else { return };
    let World { dir, seed, peer } = world().await;
    let data = bytes(20 * MIB, 3);
    let id = seed.share(&file(dir.path(), "data.bin", &data)).await;
    let target = disk.path("out");
    let world = World { dir, seed, peer };
    let mut events = world.begin(id, &target, 2_000_000).await;
    until("it begins", &mut events, |transfer| transfer.units_done > 1).await;
    // On a real disk the peer does this itself, on tmpfs it does not.
    let part = File::options().write(true).open(disk.path("out.part")).unwrap();
    rustix::fs::fallocate(&part, FallocateFlags::empty(), 0, data.len() as u64).unwrap();
    let filler = disk.fill();
    let state = disk.path("out.part.state");
    let before = std::fs::read(&state).unwrap();
    let now = until("it is seen", &mut events, |_| true).await.units_done;
    // The data has room; only the resume state has none.
    until("it goes on", &mut events, |transfer| {
        transfer.units_done > now + 8
    })
    .await;
    world.seed.stop().await;
    let stuck = until("nobody is left", &mut events, |transfer| {
        transfer.state() == v1::TransferState::Waiting
    })
    .await;
    assert_eq!(stuck.error.unwrap().reason, "NO_PROVIDERS");
    assert_eq!(
        std::fs::read(&state).unwrap(),
        before,
        "there was no room for another"
    );
    std::fs::remove_file(filler).unwrap();
    wait_until("the state is written", || async {
        std::fs::read(&state).unwrap() != before
    })
    .await;
    world.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_whose_copies_do_not_fit_waits_before_anything_is_fetched() {
    // Room for the content once and the reserve, but not for the content three times.
    let Some(disk) = Disk::mount(27 * MIB) else { return };
    let world = world().await;
    let folder = world.dir.path().join("folder");
    let data = bytes(10 * MIB, 4);
    for name in ["a", "b", "c"] {
        file(&folder, name, &data);
    }
    let id = world.seed.share(&folder).await;
    let target = disk.path("out");
    let mut events = world.begin(id, &target, 0).await;
    let waiting = until("it waits", &mut events, waits_for_room).await;
    assert_eq!((waiting.bytes_done, waiting.bytes_total), (0, 30 * MIB as u64));
    assert_eq!(std::fs::read_dir(disk.root()).unwrap().count(), 0);
    disk.remount("size=64m");
    let done = until("it goes on by itself", &mut events, done).await;
    assert_eq!(
        (done.bytes_done, done.copied_bytes),
        (30 * MIB as u64, 20 * MIB as u64)
    );
    for name in ["a", "b", "c"] {
        assert_eq!(std::fs::read(target.join(name)).unwrap(), data, "{name}");
    }
    world.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_cannot_be_written_is_said_at_once() {
    let Some(disk) = Disk::mount(64 * MIB) else { return };
    let world = world().await;
    let id = world.share("data.bin", &bytes(MIB, 5)).await;
    disk.remount("ro");
    let mut events = world.begin(id, &disk.path("out"), 0).await;
    let failed = until("it fails", &mut events, |transfer| {
        transfer.state() == v1::TransferState::Failed
    })
    .await;
    let error = failed.error.unwrap();
    assert_eq!(error.reason, "TARGET_NOT_WRITABLE");
    assert!(
        error.message.contains("choose another target"),
        "{}",
        error.message
    );
    // A folder with the name of the file, inside the target folder.
    disk.remount("rw");
    std::fs::create_dir_all(disk.path("shelf/data.bin")).unwrap();
    let mut events = world.begin(id, &disk.path("shelf"), 0).await;
    let failed = until("it fails", &mut events, |transfer| {
        transfer.state() == v1::TransferState::Failed
    })
    .await;
    assert_eq!(failure(&failed), "TARGET_EXISTS");
    world.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_without_room_is_of_use_again_when_there_is_some() {
    let Some(disk) = Disk::mount(16 * MIB) else { return };
    log();
    let dir = tempfile::tempdir().unwrap();
    let home = disk.path("home");
    let peer = Peer::start(&home, None).await;
    let share = async |peer: &Peer, n: u64| {
        let path = file(dir.path(), &format!("{n}"), &bytes(3 * MIB, n));
        let request = v1::ShareRequest {
            paths: vec![path.to_str().unwrap().to_owned()],
        };
        let mut events = peer.control.clone().share(request).await.unwrap().into_inner();
        loop {
            match events.message().await.unwrap().unwrap().event.unwrap() {
                v1::share_response::Event::Shared(_) => return None,
                v1::share_response::Event::Failed(failed) => return Some(failed.failure.unwrap().reason),
                v1::share_response::Event::Progress(_) => {}
            }
        }
    };
    assert_eq!(share(&peer, 1).await, None);
    let filler = disk.fill();
    let mut refused = 0;
    // The database first uses up its own free space.
    for n in 10..200 {
        match share(&peer, n).await {
            None => {}
            Some(reason) => {
                assert_eq!(reason, "DISK_FULL");
                refused += 1;
                if refused == 2 {
                    break;
                }
            }
        }
    }
    assert_eq!(refused, 2, "it runs out of room, and says so each time");
    std::fs::remove_file(filler).unwrap();
    assert_eq!(share(&peer, 2).await, None);
    peer.stop().await;
    let peer = Peer::start(&home, None).await;
    let list = v1::ListLibraryRequest::default();
    let items = peer
        .control
        .clone()
        .list_library(list)
        .await
        .unwrap()
        .into_inner()
        .items;
    for name in ["1", "2"] {
        assert!(items.iter().any(|item| item.name == name), "{name} of {items:?}");
    }
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_unshared_without_room_is_remembered_when_it_is_asked_again() {
    let Some(disk) = Disk::mount(16 * MIB) else { return };
    log();
    let dir = tempfile::tempdir().unwrap();
    let home = disk.path("home");
    let peer = Peer::start(&home, None).await;
    let path = file(dir.path(), "unwanted", &bytes(MIB, 7));
    peer.share(&path).await;
    let filler = disk.fill();
    let share = async |path: &Path| {
        let request = v1::ShareRequest {
            paths: vec![path.to_str().unwrap().to_owned()],
        };
        let mut events = peer.control.clone().share(request).await.unwrap().into_inner();
        let mut is_remembered = true;
        while let Some(event) = events.message().await.unwrap() {
            is_remembered &= !matches!(event.event, Some(v1::share_response::Event::Failed(_)));
        }
        is_remembered
    };
    let unshare = async || {
        let target = v1::unshare_request::Target::Path(path.to_str().unwrap().to_owned());
        let request = v1::UnshareRequest { target: Some(target) };
        let answer = peer.control.clone().unshare(request).await;
        answer
            .map(|answer| answer.into_inner().removed.len())
            .map_err(Problem::from)
    };
    let assert_said = |problem: &Problem| {
        let message = &problem.message;
        assert_eq!(problem.reason, Reason::DiskFull);
        assert!(message.contains("no longer shared"), "{message}");
        assert!(message.contains("unshare it again"), "{message}");
    };
    // Until the database can store nothing more: its own free space is used up too. The space that
    // it frees may be enough for a small change.
    let mut n = 10;
    loop {
        n += 1;
        assert!(n < 200, "it runs out of room");
        if share(&file(dir.path(), &n.to_string(), &bytes(3 * MIB, n))).await {
            continue;
        }
        match unshare().await {
            Ok(_) => _ = share(&path).await,
            Err(problem) => break assert_said(&problem),
        }
    }
    // A second call fails the same way, or succeeds because the change was stored now or with a
    // later one.
    let is_done = |answer: &Result<usize, Problem>| match answer {
        Ok(removed) => *removed == 1,
        Err(problem) => problem.reason == Reason::NotFound,
    };
    match unshare().await {
        Err(problem) if problem.reason != Reason::NotFound => assert_said(&problem),
        answer => assert!(is_done(&answer), "{answer:?}"),
    }
    std::fs::remove_file(filler).unwrap();
    let answer = unshare().await;
    assert!(is_done(&answer), "{answer:?}");
    assert_eq!(unshare().await.unwrap_err().reason, Reason::NotFound);
    peer.stop().await;
    let peer = Peer::start(&home, None).await;
    let list = v1::ListLibraryRequest::default();
    let list = peer.control.clone().list_library(list).await.unwrap();
    let items = list.into_inner().items;
    assert!(items.iter().all(|item| item.name != "unwanted"), "{items:?}");
    assert!(items.iter().any(|item| item.name == format!("{n}")), "{items:?}");
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_seems_to_have_room_is_not_tried_without_end() {
    let Some(disk) = Disk::mount(256 * MIB) else {
        return;
    };
    // Too few inodes for all files, which the free space does not show.
    disk.remount("nr_inodes=60");
    let world = world().await;
    let folder = world.dir.path().join("folder");
    for n in 0..160 {
        file(&folder, &format!("{n}"), &bytes(128 * 1024, 200 + n));
    }
    let id = world.seed.share(&folder).await;
    let target = disk.path("out");
    let mut events = world.begin(id, &target, 0).await;
    until("it waits", &mut events, waits_for_room).await;
    // Each attempt downloads some files in vain. The delay before the next attempt is 3 s, then 6
    // s, then 12 s.
    let mut control = world.seed.control.clone();
    let mut last = (0, std::time::Instant::now());
    let begun = last.1;
    while last.1.elapsed() < std::time::Duration::from_secs(5) {
        assert!(begun.elapsed() < PATIENCE, "tried every few seconds");
        let status = control.get_status(v1::GetStatusRequest {}).await;
        let sent = status.unwrap().into_inner().uploaded_bytes;
        if sent != last.0 {
            last = (sent, std::time::Instant::now());
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    disk.remount("nr_inodes=1000");
    until("it goes on by itself", &mut events, done).await;
    for n in 0..160 {
        let there = std::fs::read(target.join(format!("{n}"))).unwrap();
        assert_eq!(there, bytes(128 * 1024, 200 + n), "{n}");
    }
    world.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_home_a_download_says_that_it_is_shared_only_until_the_peer_stops() {
    let Some(disk) = Disk::mount(16 * MIB) else { return };
    log();
    let dir = tempfile::tempdir().unwrap();
    let seed = Peer::start(&dir.path().join("seed"), None).await;
    let peer = Peer::start(&disk.path("home"), None).await;
    disk.fill();
    let share = async |n: u64| {
        let path = file(dir.path(), &format!("shared {n}"), &bytes(3 * MIB, n));
        let request = v1::ShareRequest {
            paths: vec![path.to_str().unwrap().to_owned()],
        };
        let mut events = peer.control.clone().share(request).await.unwrap().into_inner();
        let mut is_stored = true;
        while let Some(event) = events.message().await.unwrap() {
            is_stored &= !matches!(event.event, Some(v1::share_response::Event::Failed(_)));
        }
        is_stored
    };
    // The database first uses up its own free space, and frees a little from time to time.
    let mut n = 0;
    let problem = loop {
        n += 1;
        assert!(n < 200, "it runs out of room");
        if share(n).await {
            continue;
        }
        let source = file(dir.path(), &format!("src/{n}"), &bytes(3 * MIB, 1000 + n));
        let target = dir.path().join(format!("out {n}"));
        let request = v1::StartTransferRequest {
            providers: vec![(&seed.address).into()],
            ..wish(seed.share(&source).await, &target)
        };
        let done = peer.fetch(request).await;
        assert_done(&done);
        assert!(target.exists());
        if let Some(problem) = done.sharing_error {
            break problem;
        }
    };
    assert_eq!(problem.reason, "DISK_FULL");
    assert!(
        problem.message.contains("only until the peer stops"),
        "{problem:?}"
    );
    peer.stop().await;
    seed.stop().await;
}
