//! A full disk: the transfer reports it immediately, waits, and resumes automatically.
//!
//! Uses a small file system of its own, which needs the right to mount one. Without it the tests
//! print a note and pass.

use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, Instant},
};

use potluck_core::{Problem, Reason, proto::v1};
use potluck_testkit::{
    content::{MIB, bytes, write_file},
    services::{PeerPair, TestPeer},
    system::disk::{SmallDisk, ThinDisk, names_in},
    transfer::{
        TransferEvents, assert_done, failure_reason, is_done, is_waiting, next_state,
        transfer_request_from, until, until_units_done, waits_for_room,
    },
    wait::{DEADLINE, wait_until},
};
use rustix::fs::FallocateFlags;

async fn until_waits_for_room(events: &mut TransferEvents) -> v1::Transfer {
    until("it waits for room", events, waits_for_room).await
}

async fn until_done(events: &mut TransferEvents) -> v1::Transfer {
    until("it resumes by itself and ends", events, is_done).await
}

async fn until_failed(events: &mut TransferEvents) -> v1::Transfer {
    let has_failed = |transfer: &v1::Transfer| transfer.state() == v1::TransferState::Failed;
    until("it fails", events, has_failed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_before_it_begins_if_the_file_does_not_fit() {
    let Some(disk) = SmallDisk::mount(64 * MIB) else {
        return;
    };
    let peers = PeerPair::new().await;
    let data = bytes(40 * MIB, 1);
    let id = peers.share("data.bin", &data).await;
    let ballast = disk.occupy(20 * MIB);
    let target = disk.path("out");
    let mut events = peers.start_transfer(id, &target).await;
    let waiting = until_waits_for_room(&mut events).await;
    let message = waiting.error.unwrap().message;
    assert!(
        message.contains(target.to_str().unwrap()) && message.contains("make room"),
        "{message}"
    );
    // Long enough for at least one retry before there is room.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(names_in(disk.root()), ["ballast"], "no part file while it waits");
    fs::remove_file(ballast).unwrap();
    until_done(&mut events).await;
    assert_eq!(fs::read(&target).unwrap(), data);
    peers.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_if_the_disk_fills_up_during_a_collection() {
    let Some(disk) = SmallDisk::mount(64 * MIB) else {
        return;
    };
    let peers = PeerPair::new().await;
    let folder = peers.dir.path().join("folder");
    let large = bytes(9 * MIB, 2);
    write_file(&folder, "large", &large);
    for n in 0..40 {
        write_file(&folder, &format!("small/{n}"), &bytes(200_000, 100 + n));
    }
    let id = peers.seed.share(&folder).await;
    let target = disk.path("out");
    let mut events = peers.start_limited_transfer(id, &target, 4_000_000).await;
    until_units_done(&mut events, 2).await;
    let filler = disk.fill();
    let waiting = until_waits_for_room(&mut events).await;
    assert!(waiting.bytes_done < waiting.bytes_total);
    fs::remove_file(filler).unwrap();
    until_done(&mut events).await;
    assert_eq!(fs::read(target.join("large")).unwrap(), large);
    for n in 0..40 {
        let there = fs::read(target.join(format!("small/{n}"))).unwrap();
        assert_eq!(there, bytes(200_000, 100 + n), "small/{n}");
    }
    peers.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_the_resume_state_later_although_no_more_data_arrives() {
    let Some(disk) = SmallDisk::mount(64 * MIB) else {
        return;
    };
    let peers = PeerPair::new().await;
    let data = bytes(20 * MIB, 3);
    let id = peers.share("data.bin", &data).await;
    let target = disk.path("out");
    let mut events = peers.start_limited_transfer(id, &target, 2_000_000).await;
    until_units_done(&mut events, 2).await;
    // On a real disk the peer does this itself, on tmpfs it does not.
    let part = File::options().write(true).open(disk.path("out.part")).unwrap();
    rustix::fs::fallocate(&part, FallocateFlags::empty(), 0, data.len() as u64).unwrap();
    let filler = disk.fill();
    let state = disk.path("out.part.state");
    let state_before = fs::read(&state).unwrap();
    let units_done = next_state(&mut events).await.units_done;
    // The data has room; only the resume state has none.
    until_units_done(&mut events, units_done + 9).await;
    peers.seed.stop().await;
    let waiting = until("no provider is left", &mut events, is_waiting).await;
    assert_eq!(waiting.error.unwrap().reason, "NO_PROVIDERS");
    assert_eq!(
        fs::read(&state).unwrap(),
        state_before,
        "there was no room for a new state"
    );
    fs::remove_file(filler).unwrap();
    wait_until("the state is written", async || {
        fs::read(&state).unwrap() != state_before
    })
    .await;
    peers.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_before_it_begins_if_the_copies_of_a_file_do_not_fit() {
    // Room for the content once and the reserve, but not for the content three times.
    let Some(disk) = SmallDisk::mount(27 * MIB) else {
        return;
    };
    let peers = PeerPair::new().await;
    let folder = peers.dir.path().join("folder");
    let data = bytes(10 * MIB, 4);
    for name in ["a", "b", "c"] {
        write_file(&folder, name, &data);
    }
    let id = peers.seed.share(&folder).await;
    let target = disk.path("out");
    let mut events = peers.start_transfer(id, &target).await;
    let waiting = until_waits_for_room(&mut events).await;
    assert_eq!((waiting.bytes_done, waiting.bytes_total), (0, 30 * MIB as u64));
    assert_eq!(fs::read_dir(disk.root()).unwrap().count(), 0);
    disk.remount("size=64m");
    let done = until_done(&mut events).await;
    assert_eq!(
        (done.bytes_done, done.copied_bytes),
        (30 * MIB as u64, 20 * MIB as u64)
    );
    for name in ["a", "b", "c"] {
        assert_eq!(fs::read(target.join(name)).unwrap(), data, "{name}");
    }
    peers.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_a_target_that_cannot_be_written_at_once() {
    let Some(disk) = SmallDisk::mount(64 * MIB) else {
        return;
    };
    let peers = PeerPair::new().await;
    let id = peers.share("data.bin", &bytes(MIB, 5)).await;
    disk.remount("ro");
    let mut events = peers.start_transfer(id, &disk.path("out")).await;
    let failed = until_failed(&mut events).await;
    let error = failed.error.unwrap();
    assert_eq!(error.reason, "TARGET_NOT_WRITABLE");
    assert!(
        error.message.contains("choose another target"),
        "{}",
        error.message
    );
    // A folder with the name of the file, inside the target folder.
    disk.remount("rw");
    fs::create_dir_all(disk.path("shelf/data.bin")).unwrap();
    let mut events = peers.start_transfer(id, &disk.path("shelf")).await;
    let failed = until_failed(&mut events).await;
    assert_eq!(failure_reason(&failed), "TARGET_EXISTS");
    peers.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_works_again_once_it_has_room() {
    let Some(disk) = SmallDisk::mount(16 * MIB) else {
        return;
    };
    potluck_testkit::log();
    let dir = tempfile::tempdir().unwrap();
    let home = disk.path("home");
    let peer = TestPeer::start(&home, None).await;
    let share = async |peer: &TestPeer, n: u64| {
        let path = write_file(dir.path(), &format!("{n}"), &bytes(3 * MIB, n));
        let shared = peer.control.try_share(&path).await;
        shared.err().map(|failure| failure.reason)
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
    assert_eq!(refused, 2, "both refusals report the full disk");
    fs::remove_file(filler).unwrap();
    assert_eq!(share(&peer, 2).await, None);
    peer.stop().await;
    let peer = TestPeer::start(&home, None).await;
    let items = peer.control.library().await;
    for name in ["1", "2"] {
        assert!(items.iter().any(|item| item.name == name), "{name} of {items:?}");
    }
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unshare_without_room_can_be_repeated() {
    let Some(disk) = SmallDisk::mount(16 * MIB) else {
        return;
    };
    potluck_testkit::log();
    let dir = tempfile::tempdir().unwrap();
    let home = disk.path("home");
    let peer = TestPeer::start(&home, None).await;
    let path = write_file(dir.path(), "unwanted", &bytes(MIB, 7));
    peer.share(&path).await;
    let filler = disk.fill();
    let share = async |path: &Path| peer.control.try_share(path).await.is_ok();
    let unshare = async || {
        let target = v1::unshare_request::Target::Path(path.to_str().unwrap().to_owned());
        peer.control.try_unshare(target).await
    };
    let assert_tells_what_to_do = |problem: &Problem| {
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
        assert!(n < 200, "the disk is full");
        if share(&write_file(dir.path(), &n.to_string(), &bytes(3 * MIB, n))).await {
            continue;
        }
        match unshare().await {
            Ok(_) => _ = share(&path).await,
            Err(problem) => break assert_tells_what_to_do(&problem),
        }
    }
    // A second call fails the same way, or succeeds because the change was stored now or with a
    // later one.
    let is_done = |answer: &Result<usize, Problem>| match answer {
        Ok(removed) => *removed == 1,
        Err(problem) => problem.reason == Reason::NotFound,
    };
    match unshare().await {
        Err(problem) if problem.reason != Reason::NotFound => assert_tells_what_to_do(&problem),
        answer => assert!(is_done(&answer), "{answer:?}"),
    }
    fs::remove_file(filler).unwrap();
    let answer = unshare().await;
    assert!(is_done(&answer), "{answer:?}");
    assert_eq!(unshare().await.unwrap_err().reason, Reason::NotFound);
    peer.stop().await;
    let peer = TestPeer::start(&home, None).await;
    let items = peer.control.library().await;
    assert!(items.iter().all(|item| item.name != "unwanted"), "{items:?}");
    assert!(items.iter().any(|item| item.name == format!("{n}")), "{items:?}");
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delay_between_attempts_grows_if_the_disk_only_seems_to_have_room() {
    let Some(disk) = SmallDisk::mount(256 * MIB) else {
        return;
    };
    // Too few inodes for all files, which the free space does not show.
    disk.remount("nr_inodes=60");
    let peers = PeerPair::new().await;
    let folder = peers.dir.path().join("folder");
    for n in 0..160 {
        write_file(&folder, &format!("{n}"), &bytes(128 * 1024, 200 + n));
    }
    let id = peers.seed.share(&folder).await;
    let target = disk.path("out");
    let mut events = peers.start_transfer(id, &target).await;
    until_waits_for_room(&mut events).await;
    // Each attempt downloads some files in vain. The delay before the next attempt is 3 s, then 6
    // s, then 12 s.
    let start = Instant::now();
    let (mut uploaded, mut changed_at) = (0, start);
    while changed_at.elapsed() < Duration::from_secs(5) {
        assert!(
            start.elapsed() < DEADLINE,
            "the delay between attempts does not grow"
        );
        let now = peers.seed.control.status().await.uploaded_bytes;
        if now != uploaded {
            (uploaded, changed_at) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    disk.remount("nr_inodes=1000");
    until_done(&mut events).await;
    for n in 0..160 {
        let there = fs::read(target.join(format!("{n}"))).unwrap();
        assert_eq!(there, bytes(128 * 1024, 200 + n), "{n}");
    }
    peers.peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_home_a_download_is_shared_only_until_the_peer_stops() {
    let Some(disk) = SmallDisk::mount(16 * MIB) else {
        return;
    };
    potluck_testkit::log();
    let dir = tempfile::tempdir().unwrap();
    let seed = TestPeer::start(&dir.path().join("seed"), None).await;
    let peer = TestPeer::start(&disk.path("home"), None).await;
    disk.fill();
    let share = async |n: u64| {
        let path = write_file(dir.path(), &format!("shared {n}"), &bytes(3 * MIB, n));
        peer.control.try_share(&path).await.is_ok()
    };
    // The database first uses up its own free space, and frees a little from time to time.
    let mut n = 0;
    let problem = loop {
        n += 1;
        assert!(n < 200, "the disk is full");
        if share(n).await {
            continue;
        }
        let source = write_file(dir.path(), &format!("src/{n}"), &bytes(3 * MIB, 1000 + n));
        let target = dir.path().join(format!("out {n}"));
        let id = seed.share(&source).await;
        let request = transfer_request_from(id, &target, [&seed.address]);
        let done = peer.download(request).await;
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

/// A disk that accepts writes but has no room when they are flushed.
#[tokio::test(flavor = "multi_thread")]
async fn downloads_data_again_that_was_lost_at_the_flush() {
    let Some(disk) = ThinDisk::mount(12 * MIB, 96 * MIB) else {
        return;
    };
    let peers = PeerPair::new().await;
    let data = bytes(24 * MIB, 6);
    let id = peers.share("data.bin", &data).await;
    let target = disk.path("out");
    let mut events = peers.start_transfer(id, &target).await;
    let waiting = until_waits_for_room(&mut events).await;
    let message = waiting.error.unwrap().message;
    assert!(message.contains("make room"), "{message}");
    assert!(
        !target.exists(),
        "a file gets its name only once it is on the disk"
    );
    disk.grow(96 * MIB);
    let done = until_done(&mut events).await;
    assert!(done.resumed_bytes < data.len() as u64, "the lost data came again");
    assert_eq!(fs::read(&target).unwrap(), data);
    peers.stop().await;
}
