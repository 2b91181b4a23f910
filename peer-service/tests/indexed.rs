//! With a real index: providers are found, partial ones too, and losing the index costs a running download nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::*;
use potluck_core::proto::v1;

#[tokio::test(flavor = "multi_thread")]
async fn providers_are_found_and_the_finished_file_is_registered() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let index = Index::start().await;
    let data = bytes(6_000_000, 11);
    let path = file(dir.path(), "src/data.bin", &data);
    let mut seeds = Vec::new();
    for n in 0..3 {
        let seed = Peer::start(&dir.path().join(format!("seed{n}")), Some(&index.endpoint)).await;
        seed.share(&path).await;
        seeds.push(seed);
    }
    let id = potluck_core::hash::hash_bytes(&data).id();
    wait_for_providers(&index, id, 3).await;
    let peer = Peer::start(&dir.path().join("peer"), Some(&index.endpoint)).await;
    let target = dir.path().join("out");
    let done = peer.fetch(wish(id, &target)).await;
    assert_done(&done);
    assert_eq!(std::fs::read(&target).unwrap(), data);
    assert!(
        done.peers.iter().all(|peer| peer.peer_id.len() == 32),
        "{done:#?}"
    );
    wait_for_providers(&index, id, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_lost_does_not_stop_a_download() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let index = Index::start().await;
    let data = bytes(6_000_000, 12);
    let path = file(dir.path(), "src/data.bin", &data);
    let seed = Peer::start(&dir.path().join("seed"), Some(&index.endpoint)).await;
    let id = seed.share(&path).await;
    wait_for_providers(&index, id, 1).await;
    let peer = Peer::start(&dir.path().join("peer"), Some(&index.endpoint)).await;
    let target = dir.path().join("out");
    let request = v1::FetchRequest {
        max_bytes_per_second: 2_000_000,
        ..wish(id, &target)
    };
    let mut events = peer.control.clone().fetch(request).await.unwrap().into_inner();
    while events
        .message()
        .await
        .unwrap()
        .unwrap()
        .transfer
        .unwrap()
        .units_done
        < 2
    {}
    // The one that fetches is a provider already.
    wait_for_providers(&index, id, 2).await;
    index.stop().await;
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.transfer;
    }
    assert_done(&last.unwrap());
    assert_eq!(std::fs::read(&target).unwrap(), data);
}
