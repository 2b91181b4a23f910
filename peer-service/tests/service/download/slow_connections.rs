//! Downloads over a slow, honest link: they take long and complete.

use std::{path::Path, time::Duration};

use potluck_core::{FileId, model::Address, proto::v1};
use potluck_peer::{Config, LimitSettings};
use potluck_testkit::{
    content::{bytes, sparse_file, write_file},
    network::proxy::slow_link,
    services::{SeededFile, TestPeer, peer_client, span},
    transfer::{assert_done, is_done, transfer_request_from},
    wait::in_time,
};
use tokio::time::Instant;

/// A seed of a file, and the near end of a slow link to it.
async fn seed_behind_link(
    len: usize,
    bytes_per_second: u64,
    limits: LimitSettings,
) -> (SeededFile, Address) {
    let file = SeededFile::with_config(len, 3, |config| Config { limits, ..config }).await;
    let near_end = slow_link(&file.seed.address, bytes_per_second).await;
    (file, near_end)
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_a_file_at_16_kib_per_second() {
    let (file, near_end) = seed_behind_link(384 * 1024, 16 * 1024, LimitSettings::default()).await;
    let peer = file.peer("peer").await;
    let target = file.path("out.bin");
    let request = transfer_request_from(file.id, &target, [&near_end]);
    assert_done(&peer.download(request).await);
    file.assert_arrived_at(&target);
    peer.stop().await;
    file.seed.stop().await;
}

/// A slow reader holds the only slot while another peer keeps asking for one.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_keeps_its_slot_while_others_ask_for_it() {
    const LEN: usize = 512 * 1024;
    let slots = LimitSettings {
        upload_slots: 1,
        ..LimitSettings::default()
    };
    let (file, near_end) = seed_behind_link(LEN, 30 * 1024, slots).await;
    let request = |len| v1::DownloadRequest {
        spans: vec![span(file.id, 0, len)],
        ..Default::default()
    };
    let mut slow = peer_client(&near_end).await;
    let answer = slow.download(request(LEN as u64)).await;
    let mut answer = answer.unwrap().into_inner();
    let read_slowly = async {
        let mut read = Vec::new();
        while let Some(chunk) = answer.message().await.unwrap() {
            read.extend_from_slice(&chunk.data);
        }
        read
    };
    let mut other = peer_client(&file.seed.address).await;
    let mut refused = 0;
    let keep_asking = async {
        loop {
            refused += usize::from(other.download(request(1)).await.is_err());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        read = read_slowly => assert!(read == file.data, "other bytes"),
        () = keep_asking => {}
    }
    assert!(refused > 50, "the other peer was refused only {refused} times");
    file.seed.stop().await;
}

/// Fetches from these seeds with a rate limit; returns the first transfer state that fits. No peer
/// may be reported as at fault meanwhile.
async fn fetch_slowly_until(
    seeds: &[TestPeer],
    id: FileId,
    dir: &Path,
    bytes_per_second: u64,
    mut fits: impl AsyncFnMut(&v1::Transfer) -> bool,
) -> v1::Transfer {
    let peer = TestPeer::start(&dir.join("peer"), None).await;
    let providers = seeds.iter().map(|seed| &seed.address);
    let request = v1::StartTransferRequest {
        max_bytes_per_second: Some(bytes_per_second),
        ..transfer_request_from(id, &dir.join("out.bin"), providers)
    };
    let mut events = peer.control.start_transfer(request).await;
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        let transfer = event.transfer.unwrap();
        let blamed = transfer.peers.iter().find(|peer| !peer.reason.is_empty());
        assert!(blamed.is_none(), "{blamed:?}");
        if fits(&transfer).await {
            last = Some(transfer);
            break;
        }
    }
    drop(events);
    peer.stop().await;
    last.expect("the transfer reaches that state")
}

async fn uploaded(seeds: &[TestPeer]) -> u64 {
    let mut bytes = 0;
    for seed in seeds {
        bytes += seed.control.status().await.uploaded_bytes;
    }
    bytes
}

async fn stop(seeds: impl IntoIterator<Item = TestPeer>) {
    for seed in seeds {
        seed.stop().await;
    }
}

/// Data that waits for the local rate limit has arrived: its sender is not stalled and is not asked
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_1_kib_per_second_is_held_and_no_peer_is_blamed() {
    potluck_testkit::log();
    const LEN: usize = 20 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let seeds = [TestPeer::start(&dir.path().join("seed"), None).await];
    let id = seeds[0]
        .share(&write_file(dir.path(), "data.bin", &bytes(LEN, 4)))
        .await;
    let start = Instant::now();
    let fetched =
        fetch_slowly_until(&seeds, id, dir.path(), 1024, async |transfer| is_done(transfer));
    in_time("the transfer ends", fetched).await;
    let took = start.elapsed().as_secs();
    assert!((18..30).contains(&took), "{took} s");
    assert_eq!(std::fs::read(dir.path().join("out.bin")).unwrap(), bytes(LEN, 4));
    assert_eq!(uploaded(&seeds).await, LEN as u64, "nothing is sent twice");
    stop(seeds).await;
}

/// Several peers send as fast as they may. The limit goes to the unit that was requested first and
/// is not divided over all units in flight; its progress is visible before it is complete. At the
/// end, when a peer has nothing left to send, no request is hedged.
#[tokio::test(flavor = "multi_thread")]
async fn under_a_limit_units_arrive_in_order_and_only_once() {
    potluck_testkit::log();
    const UNIT: u64 = 128 * 1024;
    const LEN: u64 = 4 * UNIT;
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(LEN as usize, 5);
    let path = write_file(dir.path(), "data.bin", &data);
    let mut seeds = Vec::new();
    for name in ["one", "two", "three"] {
        seeds.push(TestPeer::start(&dir.path().join(name), None).await);
    }
    let mut id = None;
    for seed in &seeds {
        id = Some(seed.share(&path).await);
    }
    let (mut unverified, mut rate, mut sent) = (0, 0, None);
    let watched =
        fetch_slowly_until(&seeds, id.unwrap(), dir.path(), 32 * 1024, async |transfer| {
            assert!(
                transfer.bytes_done + transfer.unverified_bytes <= LEN,
                "{transfer:?}"
            );
            if transfer.units_done == 0 {
                unverified = unverified.max(transfer.unverified_bytes);
                rate = rate.max(transfer.bytes_per_second);
            } else if sent.is_none() {
                sent = Some(uploaded(&seeds).await);
            }
            is_done(transfer)
        });
    let done = in_time("the transfer ends", watched).await;
    assert_eq!(done.unverified_bytes, 0);
    assert!(unverified > UNIT / 2, "{unverified} bytes seen of the first unit");
    assert!(rate > 0, "none seen before the first unit");
    let sent = sent.unwrap();
    assert!(sent < 2 * UNIT, "{sent} bytes sent for one unit");
    assert!(std::fs::read(dir.path().join("out.bin")).unwrap() == data);
    assert_eq!(uploaded(&seeds).await, LEN, "nothing is sent twice");
    stop(seeds).await;
}

/// A unit that takes longer than a message may stay unread.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes three minutes, and 9 GiB of room"]
async fn downloads_a_large_unit_under_a_low_limit() {
    potluck_testkit::log();
    const UNIT: u64 = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let seeds = [TestPeer::start(&dir.path().join("seed"), None).await];
    let path = dir.path().join("data.bin");
    sparse_file(&path, 9 << 30);
    let id = seeds[0].share(&path).await;
    let within = Duration::from_secs(250);
    let fetched = fetch_slowly_until(&seeds, id, dir.path(), 24 * 1024, async |transfer| {
        transfer.units_done > 0
    });
    let transfer = tokio::time::timeout(within, fetched)
        .await
        .expect("a unit is verified");
    println!("{} bytes in {} ms", transfer.bytes_done, transfer.elapsed_ms);
    assert_eq!(transfer.bytes_done, UNIT);
    let sent = uploaded(&seeds).await;
    assert!(sent < UNIT + 128 * 1024, "{sent} bytes sent for one unit");
    stop(seeds).await;
}
