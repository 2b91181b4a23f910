//! No room for temporary files: nothing else waits for that room, so the transfer starts again
//! until there is some.
//!
//! Uses a small file system of its own, which needs the right to mount one. Without it the test
//! prints a note and passes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod small_disk;

use common::*;
use potluck_core::proto::v1;
use small_disk::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_cannot_go_on_without_room_begins_anew_until_there_is_some() {
    let Some(disk) = Disk::mount(MIB) else { return };
    log();
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(300_000, 4);
    let path = file(dir.path(), "shared/in/data.bin", &data);
    let seed = Peer::start(&dir.path().join("seed"), None).await;
    let id = seed.share(&dir.path().join("shared")).await;
    let peer = Peer::start(&dir.path().join("peer"), None).await;
    tempfile::env::override_temp_dir(disk.root()).unwrap();
    let filler = disk.fill();
    let request = v1::StartTransferRequest {
        providers: vec![(&seed.address).into()],
        ..wish(id, &dir.path().join("out"))
    };
    let fetch = peer.control.clone().start_transfer(request).await;
    let mut events = fetch.unwrap().into_inner();
    until("it waits", &mut events, waits_for_room).await;
    std::fs::remove_file(filler).unwrap();
    until("it goes on by itself", &mut events, done).await;
    let there = dir.path().join("out").join("in/data.bin");
    assert_eq!(std::fs::read(there).unwrap(), std::fs::read(path).unwrap());
    peer.stop().await;
    seed.stop().await;
}
