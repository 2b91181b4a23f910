//! Access to the control API over TCP, and the availability that a downloading peer reports.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::*;
use potluck_core::{
    Problem, Reason,
    identity::hash::hash_bytes,
    proto::v1::{
        self, control_service_client::ControlServiceClient, peer_service_client::PeerServiceClient,
        unshare_request, watch_availability_response::Event,
    },
};
use potluck_peer::{Config, options::ControlAt, start};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_only_the_token_opens_the_control_service() {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let config = Config {
        control: ControlAt::Tcp("127.0.0.1:0".parse().unwrap()),
        ..Config::new(dir.path().join("peer"))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running = start(listener, config, stop.clone()).await.unwrap();
    let right = running.control_token.clone().unwrap();
    let mut client = ControlServiceClient::new(running.control.connect().await.unwrap());
    let mut ask = async |authorization: Option<String>| {
        let mut request = Request::new(v1::GetStatusRequest {});
        if let Some(text) = authorization {
            request
                .metadata_mut()
                .insert("authorization", text.parse().unwrap());
        }
        client.get_status(request).await
    };
    let mut wrong = right.clone().into_bytes();
    wrong[10] ^= 1;
    let wrong = String::from_utf8(wrong).unwrap();
    let refused = [
        None,
        Some(format!("Bearer {wrong}")),
        Some(format!("Bearer {}", &right[..right.len() - 1])),
        Some("Bearer ".to_owned()),
        Some(right.clone()),
    ];
    for authorization in refused {
        let status = ask(authorization.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{authorization:?}");
        let problem = Problem::from(status);
        assert_eq!(problem.reason, Reason::Unauthenticated);
        assert!(problem.message.contains("control-token"), "{problem}");
        assert!(!problem.message.contains(&right));
    }
    let status = ask(Some(format!("Bearer {right}"))).await.unwrap().into_inner();
    assert_eq!(status.peer_id, running.peer_id.to_bytes());
    stop.cancel();
    running.join().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_a_peer_that_fetches_goes_on_when_it_has_the_whole() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(6_000_000, 21);
    let seed = Peer::start(&dir.path().join("seed"), None).await;
    let id = seed.share(&file(dir.path(), "src/data.bin", &data)).await;
    let middle = Peer::start(&dir.path().join("middle"), None).await;
    let request = v1::StartTransferRequest {
        providers: vec![(&seed.address).into()],
        max_bytes_per_second: Some(2_000_000),
        ..wish(id, &dir.path().join("out"))
    };
    let mut events = middle
        .control
        .clone()
        .start_transfer(request)
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
    let endpoint: potluck_core::grpc::transport::Endpoint =
        middle.running.local_addr.to_string().parse().unwrap();
    let mut peer = PeerServiceClient::new(endpoint.connect().await.unwrap());
    let watch = v1::WatchAvailabilityRequest {
        file_id: id.to_bytes(),
    };
    let mut changes = peer.watch_availability(watch.clone()).await.unwrap().into_inner();
    let Some(Event::Snapshot(first)) = changes.message().await.unwrap().unwrap().event else {
        panic!("the first event is a snapshot");
    };
    assert!(!first.complete && first.units == 46, "{first:?}");
    let has = |unit: u32| first.have[unit as usize / 8] & (128 >> (unit % 8)) != 0;
    let mut have: std::collections::BTreeSet<u32> = (0..first.units).filter(|&unit| has(unit)).collect();
    assert!(have.len() >= 2);
    // Each unit is reported exactly once, whether the transfer or the library reports it.
    let all = async {
        while have.len() < 46 {
            match changes.message().await.unwrap().unwrap().event.unwrap() {
                Event::Change(change) => {
                    for unit in change.have {
                        assert!(have.insert(unit), "unit {unit} is told twice");
                    }
                }
                Event::Snapshot(_) => panic!("only the first event is a snapshot"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, all)
        .await
        .expect("all units are told");
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.transfer;
    }
    assert_done(&last.unwrap());
    // The file is in the library now, and the same watch goes on.
    let mut again = peer.watch_availability(watch).await.unwrap().into_inner();
    let Some(Event::Snapshot(whole)) = again.message().await.unwrap().unwrap().event else {
        panic!("the first event is a snapshot");
    };
    assert!(whole.complete && whole.units == 46, "{whole:?}");
    let request = v1::UnshareRequest {
        target: Some(unshare_request::Target::FileId(id.to_bytes())),
    };
    middle.control.clone().unshare(request).await.unwrap();
    for watch in [&mut changes, &mut again] {
        let ended = tokio::time::timeout(PATIENCE, watch.message())
            .await
            .expect("it ends");
        assert_eq!(Problem::from(ended.unwrap_err()).reason, Reason::NotFound);
    }
    middle.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_not_known_yet_is_never_told() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("cookbook");
    // Files of one piece: the only piece hash is the root.
    let contents: Vec<Vec<u8>> = (0..20).map(|n| bytes(100_000, 40 + n)).collect();
    for (n, content) in contents.iter().enumerate() {
        file(&source, &n.to_string(), content);
    }
    let trees: Vec<_> = contents.iter().map(|content| hash_bytes(content)).collect();
    let seed = Peer::start(&dir.path().join("seed"), None).await;
    let id = seed.share(&source).await;
    let middle = Peer::start(&dir.path().join("middle"), None).await;
    let request = v1::StartTransferRequest {
        providers: vec![(&seed.address).into()],
        max_bytes_per_second: Some(500_000),
        ..wish(id, &dir.path().join("out"))
    };
    let mut events = middle
        .control
        .clone()
        .start_transfer(request)
        .await
        .unwrap()
        .into_inner();
    loop {
        let event = events.message().await.unwrap().expect("it goes on");
        if event.transfer.unwrap().state() == v1::TransferState::Running {
            break;
        }
    }
    let endpoint: potluck_core::grpc::transport::Endpoint =
        middle.running.local_addr.to_string().parse().unwrap();
    let mut peer = PeerServiceClient::new(endpoint.connect().await.unwrap());
    let mut unknown = 0;
    for tree in &trees {
        let file_id = tree.id().to_bytes();
        let hashes = v1::GetPieceHashesRequest {
            file_id: file_id.clone(),
            first_piece: 0,
            count: 0,
        };
        // Piece hashes are requested first: a known hash must not become unknown again.
        let hash = match peer.get_piece_hashes(hashes).await {
            Ok(answer) => Ok(answer.into_inner().message().await.unwrap().unwrap().hashes),
            Err(status) => Err(Problem::from(status)),
        };
        let described = peer.describe(v1::DescribeRequest { file_id }).await;
        let root = described.map(|answer| answer.into_inner().file.unwrap().root);
        for told in [hash, root.map_err(Problem::from)] {
            match told {
                Ok(told) => assert_eq!(told, tree.root.to_bytes()),
                Err(problem) => {
                    assert_eq!(problem.reason, Reason::PieceNotAvailable, "{problem}");
                    assert!(problem.retry_after.is_some());
                    unknown += 1;
                }
            }
        }
    }
    assert!(unknown > 0, "the fetch is still under way");
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.transfer;
    }
    assert_done(&last.unwrap());
    for tree in &trees {
        let file_id = tree.id().to_bytes();
        let described = peer.describe(v1::DescribeRequest { file_id }).await;
        let record = described.unwrap().into_inner().file.unwrap();
        assert_eq!(record.root, tree.root.to_bytes());
    }
}
