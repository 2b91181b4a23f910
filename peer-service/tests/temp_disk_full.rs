//! No room for temporary files: nothing else waits for that room, so the transfer starts again
//! until there is some.
//!
//! Uses a small file system of its own, which needs the right to mount one. Without it the test
//! prints a note and passes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use potluck_testkit::{
    content::{MIB, bytes, write_file},
    services::PeerPair,
    system::disk::SmallDisk,
    transfer::{is_done, until, waits_for_room},
};

/// The folder for temporary files belongs to the whole process, so this test has one of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_without_temporary_room_starts_again_until_there_is_some() {
    let Some(disk) = SmallDisk::mount(MIB) else {
        return;
    };
    let peers = PeerPair::new().await;
    let data = bytes(300_000, 4);
    write_file(peers.dir.path(), "shared/in/data.bin", &data);
    let id = peers.seed.share(&peers.dir.path().join("shared")).await;
    tempfile::env::override_temp_dir(disk.root()).unwrap();
    let filler = disk.fill();
    let target = peers.dir.path().join("out");
    let mut events = peers.start_transfer(id, &target).await;
    until("it waits for room", &mut events, waits_for_room).await;
    std::fs::remove_file(filler).unwrap();
    until("it starts again by itself", &mut events, is_done).await;
    assert_eq!(std::fs::read(target.join("in/data.bin")).unwrap(), data);
    peers.stop().await;
}
