//! Downloads of one file from many peers in parallel, over real services.

use std::path::Path;

use potluck_core::{Problem, Reason, identity::hash, proto::v1};
use potluck_testkit::{
    content::{bytes, write_file},
    services::{SeededFile, TestPeer},
    transfer::{
        TransferEvents, assert_done, failure_reason, transfer_request, transfer_request_from,
        until_units_done,
    },
    wait::wait_until,
};

#[tokio::test(flavor = "multi_thread")]
async fn downloads_from_three_peers_at_once() {
    potluck_testkit::log();
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(20_000_000, 1);
    let mut seeds = Vec::new();
    let mut id = None;
    for n in 0..3 {
        let path = write_file(dir.path(), &format!("src{n}/data.bin"), &data);
        let seed = TestPeer::start(&dir.path().join(format!("seed{n}")), None).await;
        id = Some(seed.share(&path).await);
        seeds.push(seed);
    }
    let peer = TestPeer::start(&dir.path().join("peer"), None).await;
    let target = dir.path().join("out.bin");
    let providers = seeds.iter().map(|seed| &seed.address);
    let request = transfer_request_from(id.unwrap(), &target, providers);
    let done = peer.download(request).await;
    assert_done(&done);
    assert_eq!(std::fs::read(&target).unwrap(), data);
    assert_eq!(done.bytes_done, data.len() as u64);
    assert_eq!(
        done.peers.iter().filter(|peer| peer.bytes > 0).count(),
        3,
        "{done:#?}"
    );
    assert_eq!(
        done.peers.iter().map(|peer| peer.bytes).sum::<u64>(),
        data.len() as u64
    );
    assert!(!target.with_file_name("out.bin.part").exists());
    assert!(!target.with_file_name("out.bin.part.state").exists());
    for seed in seeds {
        seed.stop().await;
    }
    peer.stop().await;
}

/// A seed with a file of this length.
async fn seeded(len: usize) -> SeededFile {
    SeededFile::new(len, 7).await
}

/// Starts a slow transfer and waits until `units` are verified.
async fn begin_slowly(
    file: &SeededFile,
    peer: &TestPeer,
    target: &Path,
    units: u32,
) -> (v1::StartTransferRequest, TransferEvents, u64) {
    let request = v1::StartTransferRequest {
        max_bytes_per_second: Some(1_000_000),
        ..file.request(target)
    };
    let mut events = peer.control.start_transfer(request.clone()).await;
    let transfer = until_units_done(&mut events, units).await;
    (request, events, transfer.transfer_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_files_of_every_size() {
    for len in [0, 1, 16 * 1024, 128 * 1024, 128 * 1024 + 1, 1_000_003] {
        let file = seeded(len).await;
        let peer = file.peer("peer").await;
        let target = file.path("out");
        assert_done(&peer.download(file.request(&target)).await);
        file.assert_arrived_at(&target);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn never_overwrites_a_file() {
    let file = seeded(500_000).await;
    let peer = file.peer("peer").await;
    let target = file.path("out");
    std::fs::write(&target, "precious").unwrap();
    assert_eq!(
        failure_reason(&peer.download(file.request(&target)).await),
        "TARGET_EXISTS"
    );
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    // An existing file of the same size is verified and left alone.
    let mut other = file.data.clone();
    other[400_000] ^= 1;
    std::fs::write(&target, &other).unwrap();
    assert_eq!(
        failure_reason(&peer.download(file.request(&target)).await),
        "TARGET_EXISTS"
    );
    assert_eq!(std::fs::read(&target).unwrap(), other);
    // An existing file with the right content completes the download.
    std::fs::write(&target, &file.data).unwrap();
    let done = peer.download(file.request(&target)).await;
    assert_done(&done);
    assert_eq!(done.resumed_bytes, file.data.len() as u64);
    // An unfinished download of another file is in the way.
    std::fs::remove_file(&target).unwrap();
    let foreign = write_file(file.dir.path(), "out.part", b"not ours");
    let third = file.peer("third").await;
    assert_eq!(
        failure_reason(&third.download(file.request(&target)).await),
        "TARGET_EXISTS"
    );
    assert_eq!(std::fs::read(foreign).unwrap(), b"not ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_target_downloads_into_the_files_folder() {
    let file = seeded(300_000).await;
    let peer = file.peer("peer").await;
    let done = peer
        .download(v1::StartTransferRequest {
            target: String::new(),
            ..file.request(Path::new("/"))
        })
        .await;
    assert_done(&done);
    assert_eq!(
        Path::new(&done.path),
        file.path("peer/files/data.bin").canonicalize().unwrap()
    );
    // A target that is a folder gets the file inside. The local copy makes the network unnecessary.
    let folder = file.path("shelf");
    std::fs::create_dir(&folder).unwrap();
    let request = v1::StartTransferRequest {
        providers: Vec::new(),
        name: "other.bin".into(),
        ..transfer_request(file.id, &folder)
    };
    let done = peer.download(request).await;
    assert_done(&done);
    file.assert_arrived_at(&folder.join("other.bin"));
    assert!(done.peers.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_a_file_with_another_sha256() {
    let file = seeded(300_000).await;
    let peer = file.peer("peer").await;
    let target = file.path("out");
    let shared = std::fs::File::open(file.path("src/data.bin")).unwrap();
    let right = hash::sha256_file(&shared, &hash::ignore_progress).unwrap();
    let mut wrong = right;
    wrong.0[5] ^= 1;
    let request = v1::StartTransferRequest {
        sha256: wrong.to_bytes(),
        ..file.request(&target)
    };
    assert_eq!(
        failure_reason(&peer.download(request).await),
        "VERIFICATION_FAILED"
    );
    assert!(!target.exists());
    let request = v1::StartTransferRequest {
        sha256: right.to_bytes(),
        ..file.request(&target)
    };
    assert_done(&peer.download(request).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_targets_that_cannot_be_written() {
    let file = seeded(1000).await;
    let peer = file.peer("peer").await;
    let below_a_file = file.path("src/data.bin/out");
    assert_eq!(
        failure_reason(&peer.download(file.request(&below_a_file)).await),
        "TARGET_NOT_WRITABLE"
    );
    let relative = v1::StartTransferRequest {
        target: "out".into(),
        ..file.request(Path::new("/"))
    };
    let status = peer
        .control
        .client
        .clone()
        .start_transfer(relative)
        .await
        .unwrap_err();
    assert_eq!(Problem::from(status).reason, Reason::UnsafePath);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_pauses_without_a_follower_and_resumes_on_request() {
    let file = seeded(8_000_000).await;
    let peer = file.peer("peer").await;
    let target = file.path("out");
    let (request, events, transfer_id) = begin_slowly(&file, &peer, &target, 4).await;
    drop(events);
    wait_until("it is paused", async || {
        peer.control.transfers().await[0].state() == v1::TransferState::Paused
    })
    .await;
    assert!(target.with_file_name("out.part.state").exists());
    peer.control.limit_download(0).await;
    peer.control.resume(transfer_id).await;
    let done = peer.download(request).await;
    assert_done(&done);
    assert_eq!(done.transfer_id, transfer_id, "the same transfer is joined");
    assert!(done.resumed_bytes > 0, "{done:#?}");
    file.assert_arrived_at(&target);
    assert_eq!(peer.control.transfers().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_transfer_leaves_no_files() {
    let file = seeded(8_000_000).await;
    let peer = file.peer("peer").await;
    let target = file.path("sub/out");
    let slow = v1::StartTransferRequest {
        max_bytes_per_second: Some(500_000),
        detach: true,
        ..file.request(&target)
    };
    let mut events = peer.control.start_transfer(slow).await;
    let transfer = until_units_done(&mut events, 2).await;
    let cancelled = peer.control.cancel(transfer.transfer_id).await;
    assert_eq!(cancelled.state(), v1::TransferState::Cancelled);
    assert_eq!(std::fs::read_dir(target.parent().unwrap()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_downloading_peer_serves_its_units() {
    let file = seeded(6_000_000).await;
    let middle = file.peer("middle").await;
    let target = file.path("middle-out");
    let slow = v1::StartTransferRequest {
        max_bytes_per_second: Some(1_500_000),
        detach: true,
        ..file.request(&target)
    };
    let mut events = middle.control.start_transfer(slow).await;
    until_units_done(&mut events, 2).await;
    // Two more peers, which know only the peer that is still downloading.
    let from_middle = |target: &Path| transfer_request_from(file.id, target, [&middle.address]);
    let (one, two) = (file.peer("one").await, file.peer("two").await);
    let (a, b) = (file.path("a"), file.path("b"));
    let (first, second) =
        tokio::join!(one.download(from_middle(&a)), two.download(from_middle(&b)));
    for (done, path) in [(first, a), (second, b)] {
        assert_done(&done);
        file.assert_arrived_at(&path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resumes_a_part_file_from_another_home() {
    let file = seeded(8_000_000).await;
    let peer = file.peer("peer").await;
    let target = file.path("out");
    drop(begin_slowly(&file, &peer, &target, 4).await);
    peer.stop().await;
    assert!(!target.exists());
    let other = file.peer("other").await;
    let done = other.download(file.request(&target)).await;
    assert_done(&done);
    assert!(
        done.resumed_bytes > 0 && done.resumed_bytes < file.data.len() as u64,
        "{done:#?}"
    );
    file.assert_arrived_at(&target);
}

#[tokio::test(flavor = "multi_thread")]
async fn verifies_a_damaged_part_file_again() {
    use std::os::unix::fs::FileExt as _;
    let file = seeded(8_000_000).await;
    let target = file.path("out");
    for damage in ["state", "data"] {
        let peer = file.peer(&format!("peer-{damage}")).await;
        drop(begin_slowly(&file, &peer, &target, 4).await);
        peer.stop().await;
        let state = target.with_file_name("out.part.state");
        match damage {
            "state" => std::fs::write(state, "nonsense").unwrap(),
            _ => {
                let part = target.with_file_name("out.part");
                let part = std::fs::File::options().write(true).open(part).unwrap();
                for piece in 0..file.data.len().div_ceil(128 * 1024) {
                    part.write_all_at(b"damage", piece as u64 * 128 * 1024 + 5)
                        .unwrap();
                }
            }
        }
        let other = file.peer(&format!("other-{damage}")).await;
        let done = other.download(file.request(&target)).await;
        assert_done(&done);
        assert_eq!(done.resumed_bytes > 0, damage == "state", "{done:#?}");
        file.assert_arrived_at(&target);
        std::fs::remove_file(&target).unwrap();
        other.stop().await;
    }
}
