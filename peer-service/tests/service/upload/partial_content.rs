//! What a peer serves of a file or collection that it still downloads.

use std::collections::BTreeSet;

use potluck_core::{
    Problem, Reason,
    identity::hash::hash_bytes,
    proto::v1::{self, watch_availability_response::Event},
};
use potluck_testkit::{
    content::{bytes, write_file},
    services::{PeerPair, SeededFile, peer_client},
    transfer::{assert_done, until, until_end, until_units_done},
    wait::in_time,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_a_downloading_peer_goes_on_after_the_download() {
    let file = SeededFile::new(6_000_000, 21).await;
    let id = file.id;
    let middle = file.peer("middle").await;
    let request = v1::StartTransferRequest {
        max_bytes_per_second: Some(2_000_000),
        ..file.request(&file.path("out"))
    };
    let mut events = middle.control.start_transfer(request).await;
    until_units_done(&mut events, 2).await;
    let mut client = peer_client(&middle.address).await;
    let watch = v1::WatchAvailabilityRequest {
        file_id: id.to_bytes(),
    };
    let mut changes = client
        .watch_availability(watch.clone())
        .await
        .unwrap()
        .into_inner();
    let Some(Event::Snapshot(first)) = changes.message().await.unwrap().unwrap().event else {
        panic!("the first event is a snapshot");
    };
    assert!(!first.complete && first.units == 46, "{first:?}");
    let has = |unit: u32| first.have[unit as usize / 8] & (128 >> (unit % 8)) != 0;
    let mut have: BTreeSet<u32> = (0..first.units).filter(|&unit| has(unit)).collect();
    assert!(have.len() >= 2);
    // Each unit is reported exactly once, whether the transfer or the library reports it.
    let all = async {
        while have.len() < 46 {
            match changes.message().await.unwrap().unwrap().event.unwrap() {
                Event::Change(change) => {
                    for unit in change.have {
                        assert!(have.insert(unit), "unit {unit} is announced twice");
                    }
                }
                Event::Snapshot(_) => panic!("only the first event is a snapshot"),
            }
        }
    };
    in_time("all units are announced", all).await;
    let last = until_end(&mut events).await;
    assert_done(&last);
    // The file is in the library now, and the same watch goes on.
    let mut again = client.watch_availability(watch).await.unwrap().into_inner();
    let Some(Event::Snapshot(whole)) = again.message().await.unwrap().unwrap().event else {
        panic!("the first event is a snapshot");
    };
    assert!(whole.complete && whole.units == 46, "{whole:?}");
    middle.control.unshare(id).await;
    for watch in [&mut changes, &mut again] {
        let ended = in_time("the watch ends", watch.message()).await;
        assert_eq!(Problem::from(ended.unwrap_err()).reason, Reason::NotFound);
    }
    middle.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_downloading_peer_sends_only_roots_that_it_knows() {
    let peers = PeerPair::new().await;
    let middle = &peers.peer;
    let source = peers.dir.path().join("cookbook");
    // Files of one piece: the only piece hash is the root.
    let contents: Vec<Vec<u8>> = (0..20).map(|n| bytes(100_000, 40 + n)).collect();
    for (n, content) in contents.iter().enumerate() {
        write_file(&source, &n.to_string(), content);
    }
    let trees: Vec<_> = contents.iter().map(|content| hash_bytes(content)).collect();
    let id = peers.seed.share(&source).await;
    let target = peers.dir.path().join("out");
    let mut events = peers.start_limited_transfer(id, &target, 500_000).await;
    let is_running = |transfer: &v1::Transfer| transfer.state() == v1::TransferState::Running;
    until("it runs", &mut events, is_running).await;
    let mut client = peer_client(&middle.address).await;
    let mut unknown = 0;
    for tree in &trees {
        let file_id = tree.id().to_bytes();
        let hashes = v1::GetPieceHashesRequest {
            file_id: file_id.clone(),
            ..Default::default()
        };
        // Piece hashes are requested first: a known hash must not become unknown again.
        let hash = match client.get_piece_hashes(hashes).await {
            Ok(answer) => Ok(answer.into_inner().message().await.unwrap().unwrap().hashes),
            Err(status) => Err(Problem::from(status)),
        };
        let described = client.describe(v1::DescribeRequest { file_id }).await;
        let root = described.map(|answer| answer.into_inner().file.unwrap().root);
        for answer in [hash, root.map_err(Problem::from)] {
            match answer {
                Ok(hash) => assert_eq!(hash, tree.root.to_bytes()),
                Err(problem) => {
                    assert_eq!(problem.reason, Reason::PieceNotAvailable, "{problem}");
                    assert!(problem.retry_after.is_some());
                    unknown += 1;
                }
            }
        }
    }
    assert!(unknown > 0, "the transfer had ended already");
    let last = until_end(&mut events).await;
    assert_done(&last);
    for tree in &trees {
        let file_id = tree.id().to_bytes();
        let described = client.describe(v1::DescribeRequest { file_id }).await;
        let record = described.unwrap().into_inner().file.unwrap();
        assert_eq!(record.root, tree.root.to_bytes());
    }
}
