//! Downloads of one file from many peers in parallel, over real services.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use common::*;
use potluck_core::proto::v1;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_from_three_peers_named_by_address() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(20_000_000, 1);
    let mut seeds = Vec::new();
    let mut id = None;
    for n in 0..3 {
        let path = file(dir.path(), &format!("src{n}/data.bin"), &data);
        let seed = Peer::start(&dir.path().join(format!("seed{n}")), None).await;
        id = Some(seed.share(&path).await);
        seeds.push(seed);
    }
    let peer = Peer::start(&dir.path().join("peer"), None).await;
    let target = dir.path().join("out.bin");
    let request = v1::StartTransferRequest {
        providers: seeds.iter().map(|seed| (&seed.address).into()).collect(),
        ..wish(id.unwrap(), &target)
    };
    let done = peer.fetch(request).await;
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

struct World {
    dir: tempfile::TempDir,
    data: Vec<u8>,
    id: potluck_core::FileId,
    seed: Peer,
}

/// One seed with one file.
async fn world(len: usize) -> World {
    log();
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(len, 7);
    let path = file(dir.path(), "src/data.bin", &data);
    let seed = Peer::start(&dir.path().join("seed"), None).await;
    let id = seed.share(&path).await;
    World { dir, data, id, seed }
}

impl World {
    async fn peer(&self, name: &str) -> Peer {
        Peer::start(&self.dir.path().join(name), None).await
    }

    fn wish(&self, target: &Path) -> v1::StartTransferRequest {
        v1::StartTransferRequest {
            providers: vec![(&self.seed.address).into()],
            ..wish(self.id, target)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_size_arrive() {
    for len in [0, 1, 16 * 1024, 128 * 1024, 128 * 1024 + 1, 1_000_003] {
        let world = world(len).await;
        let peer = world.peer("peer").await;
        let target = world.dir.path().join("out");
        assert_done(&peer.fetch(world.wish(&target)).await);
        assert_eq!(std::fs::read(&target).unwrap(), world.data, "{len} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_ever_overwritten() {
    let world = world(500_000).await;
    let peer = world.peer("peer").await;
    let target = world.dir.path().join("out");
    std::fs::write(&target, "precious").unwrap();
    assert_eq!(failure(&peer.fetch(world.wish(&target)).await), "TARGET_EXISTS");
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    // An existing file of the same size is verified and left alone.
    let mut other = world.data.clone();
    other[400_000] ^= 1;
    std::fs::write(&target, &other).unwrap();
    assert_eq!(failure(&peer.fetch(world.wish(&target)).await), "TARGET_EXISTS");
    assert_eq!(std::fs::read(&target).unwrap(), other);
    // An existing file with the right content completes the download.
    std::fs::write(&target, &world.data).unwrap();
    let done = peer.fetch(world.wish(&target)).await;
    assert_done(&done);
    assert_eq!(done.resumed_bytes, world.data.len() as u64);
    // An unfinished download of another file is in the way.
    std::fs::remove_file(&target).unwrap();
    let foreign = file(world.dir.path(), "out.part", b"not ours");
    let third = world.peer("third").await;
    assert_eq!(failure(&third.fetch(world.wish(&target)).await), "TARGET_EXISTS");
    assert_eq!(std::fs::read(foreign).unwrap(), b"not ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_target_it_lands_in_the_files_folder_under_the_name_it_is_shared_by() {
    let world = world(300_000).await;
    let peer = world.peer("peer").await;
    let done = peer
        .fetch(v1::StartTransferRequest {
            target: String::new(),
            ..world.wish(Path::new("/"))
        })
        .await;
    assert_done(&done);
    assert_eq!(
        Path::new(&done.path),
        world
            .dir
            .path()
            .join("peer/files/data.bin")
            .canonicalize()
            .unwrap()
    );
    // A target that is a folder gets the file inside. The local copy makes the network unnecessary.
    let shelf = world.dir.path().join("shelf");
    std::fs::create_dir(&shelf).unwrap();
    let request = v1::StartTransferRequest {
        providers: Vec::new(),
        name: "other.bin".into(),
        ..wish(world.id, &shelf)
    };
    let done = peer.fetch(request).await;
    assert_done(&done);
    assert_eq!(std::fs::read(shelf.join("other.bin")).unwrap(), world.data);
    assert!(done.peers.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_claim_of_the_whole_is_noticed_before_the_file_appears() {
    let world = world(300_000).await;
    let peer = world.peer("peer").await;
    let target = world.dir.path().join("out");
    let sum = potluck_core::identity::hash::sha256_file(
        &std::fs::File::open(world.dir.path().join("src/data.bin")).unwrap(),
        &potluck_core::identity::hash::ignore_progress,
    );
    let mut wrong = sum.unwrap();
    wrong.0[5] ^= 1;
    let request = v1::StartTransferRequest {
        sha256: wrong.to_bytes(),
        ..world.wish(&target)
    };
    assert_eq!(failure(&peer.fetch(request).await), "VERIFICATION_FAILED");
    assert!(!target.exists());
    wrong.0[5] ^= 1;
    let request = v1::StartTransferRequest {
        sha256: wrong.to_bytes(),
        ..world.wish(&target)
    };
    assert_done(&peer.fetch(request).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_that_cannot_be_written_are_named() {
    let world = world(1000).await;
    let peer = world.peer("peer").await;
    let below_a_file = world.dir.path().join("src/data.bin/out");
    assert_eq!(
        failure(&peer.fetch(world.wish(&below_a_file)).await),
        "TARGET_NOT_WRITABLE"
    );
    let relative = v1::StartTransferRequest {
        target: "out".into(),
        ..world.wish(Path::new("/"))
    };
    let status = peer.control.clone().start_transfer(relative).await.unwrap_err();
    assert_eq!(
        potluck_core::Problem::from(status).reason,
        potluck_core::Reason::UnsafePath
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_nobody_watches_is_paused_and_goes_on_when_asked_again() {
    let world = world(8_000_000).await;
    let peer = world.peer("peer").await;
    let target = world.dir.path().join("out");
    let slow = v1::StartTransferRequest {
        max_bytes_per_second: Some(1_000_000),
        ..world.wish(&target)
    };
    let mut events = peer
        .control
        .clone()
        .start_transfer(slow.clone())
        .await
        .unwrap()
        .into_inner();
    let number = loop {
        let transfer = events.message().await.unwrap().unwrap().transfer.unwrap();
        if transfer.units_done > 3 {
            break transfer.transfer_id;
        }
    };
    drop(events);
    let list = || async {
        let answer = peer
            .control
            .clone()
            .list_transfers(v1::ListTransfersRequest::default())
            .await
            .unwrap();
        answer.into_inner().transfers
    };
    wait_until("it is paused", || async {
        list().await[0].state() == v1::TransferState::Paused
    })
    .await;
    assert!(target.with_file_name("out.part.state").exists());
    peer.control
        .clone()
        .set_limits(v1::SetLimitsRequest {
            limits: Some(v1::Limits {
                upload_bytes_per_second: Some(0),
                download_bytes_per_second: Some(0),
                ..Default::default()
            }),
        })
        .await
        .unwrap();
    peer.control
        .clone()
        .resume_transfer(v1::ResumeTransferRequest { transfer_id: number })
        .await
        .unwrap();
    let done = peer.fetch(slow).await;
    assert_done(&done);
    assert_eq!(done.transfer_id, number, "the same transfer is joined");
    assert!(done.resumed_bytes > 0, "{done:#?}");
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
    assert_eq!(list().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_fetch_leaves_nothing_behind() {
    let world = world(8_000_000).await;
    let peer = world.peer("peer").await;
    let target = world.dir.path().join("sub/out");
    let slow = v1::StartTransferRequest {
        max_bytes_per_second: Some(500_000),
        detach: true,
        ..world.wish(&target)
    };
    let mut events = peer
        .control
        .clone()
        .start_transfer(slow)
        .await
        .unwrap()
        .into_inner();
    let number = loop {
        let transfer = events.message().await.unwrap().unwrap().transfer.unwrap();
        if transfer.units_done > 1 {
            break transfer.transfer_id;
        }
    };
    let cancelled = peer
        .control
        .clone()
        .cancel_transfer(v1::CancelTransferRequest { transfer_id: number })
        .await
        .unwrap();
    assert_eq!(
        cancelled.into_inner().transfer.unwrap().state(),
        v1::TransferState::Cancelled
    );
    assert_eq!(std::fs::read_dir(target.parent().unwrap()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_peer_serves_what_it_has() {
    let world = world(6_000_000).await;
    let middle = world.peer("middle").await;
    let target = world.dir.path().join("middle-out");
    let slow = v1::StartTransferRequest {
        max_bytes_per_second: Some(1_500_000),
        detach: true,
        ..world.wish(&target)
    };
    let mut events = middle
        .control
        .clone()
        .start_transfer(slow)
        .await
        .unwrap()
        .into_inner();
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
    // Two more peers, which know only the peer that is still downloading.
    let from_middle = |target: &Path| v1::StartTransferRequest {
        providers: vec![(&middle.address).into()],
        ..wish(world.id, target)
    };
    let (one, two) = (world.peer("one").await, world.peer("two").await);
    let (a, b) = (world.dir.path().join("a"), world.dir.path().join("b"));
    let (first, second) = tokio::join!(one.fetch(from_middle(&a)), two.fetch(from_middle(&b)));
    for (done, path) in [(first, a), (second, b)] {
        assert_done(&done);
        assert_eq!(std::fs::read(path).unwrap(), world.data);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_peer_resumes_from_another_home() {
    let world = world(8_000_000).await;
    let peer = world.peer("peer").await;
    let target = world.dir.path().join("out");
    let slow = v1::StartTransferRequest {
        max_bytes_per_second: Some(1_000_000),
        ..world.wish(&target)
    };
    let mut events = peer
        .control
        .clone()
        .start_transfer(slow)
        .await
        .unwrap()
        .into_inner();
    while events
        .message()
        .await
        .unwrap()
        .unwrap()
        .transfer
        .unwrap()
        .units_done
        < 4
    {}
    drop(events);
    peer.stop().await;
    assert!(!target.exists());
    let other = world.peer("other").await;
    let done = other.fetch(world.wish(&target)).await;
    assert_done(&done);
    assert!(
        done.resumed_bytes > 0 && done.resumed_bytes < world.data.len() as u64,
        "{done:#?}"
    );
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_part_is_verified_again() {
    use std::os::unix::fs::FileExt as _;
    let world = world(8_000_000).await;
    let target = world.dir.path().join("out");
    for damage in ["state", "data"] {
        let peer = world.peer(&format!("peer-{damage}")).await;
        let slow = v1::StartTransferRequest {
            max_bytes_per_second: Some(1_000_000),
            ..world.wish(&target)
        };
        let mut events = peer
            .control
            .clone()
            .start_transfer(slow)
            .await
            .unwrap()
            .into_inner();
        while events
            .message()
            .await
            .unwrap()
            .unwrap()
            .transfer
            .unwrap()
            .units_done
            < 4
        {}
        drop(events);
        peer.stop().await;
        let state = target.with_file_name("out.part.state");
        match damage {
            "state" => std::fs::write(state, "nonsense").unwrap(),
            _ => {
                let part = target.with_file_name("out.part");
                let part = std::fs::File::options().write(true).open(part).unwrap();
                for piece in 0..world.data.len().div_ceil(128 * 1024) {
                    part.write_all_at(b"damage", piece as u64 * 128 * 1024 + 5)
                        .unwrap();
                }
            }
        }
        let other = world.peer(&format!("other-{damage}")).await;
        let done = other.fetch(world.wish(&target)).await;
        assert_done(&done);
        assert_eq!(done.resumed_bytes > 0, damage == "state", "{done:#?}");
        assert_eq!(std::fs::read(&target).unwrap(), world.data);
        std::fs::remove_file(&target).unwrap();
        other.stop().await;
    }
}
