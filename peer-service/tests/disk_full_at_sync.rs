//! A disk that accepts writes but has no room when they are flushed: the lost data is downloaded
//! again once there is room.
//!
//! Needs the right to mount a file system. Without it the test prints a note and passes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod small_disk;

use common::*;
use potluck_core::proto::v1;
use small_disk::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_flushed_is_fetched_again_once_there_is_room() {
    let Some(disk) = Thin::mount(12 * MIB, 96 * MIB) else {
        return;
    };
    log();
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(24 * MIB, 6);
    let seed = Peer::start(&dir.path().join("seed"), None).await;
    let id = seed.share(&file(dir.path(), "data.bin", &data)).await;
    let peer = Peer::start(&dir.path().join("peer"), None).await;
    let target = disk.path("out");
    let request = v1::StartTransferRequest {
        providers: vec![(&seed.address).into()],
        ..wish(id, &target)
    };
    let fetch = peer.control.clone().start_transfer(request).await;
    let mut events = fetch.unwrap().into_inner();
    let waiting = until("it waits", &mut events, waits_for_room).await;
    let message = waiting.error.unwrap().message;
    assert!(message.contains("make room"), "{message}");
    assert!(
        !target.exists(),
        "nothing is shown under its name that is not on the disk"
    );
    disk.grow(96 * MIB);
    let done = until("it goes on by itself", &mut events, done).await;
    assert!(done.resumed_bytes < data.len() as u64, "what was lost came again");
    assert_eq!(std::fs::read(&target).unwrap(), data);
    peer.stop().await;
    seed.stop().await;
}
