//! One address among others: it never has all that a peer gives.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod parts;

use std::{net::IpAddr, time::Duration};

use futures_util::StreamExt as _;
use parts::{Peer, bytes, span, wait_until};
use potluck_core::{
    FileId, Problem, Reason,
    proto::v1::{self, peer_service_client::PeerServiceClient},
    transport,
};
use potluck_peer::serve::{Counters, Outgoing, PeerApi, Turns};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;

const FAR: [u8; 4] = [192, 0, 2, 1];
const OTHER: [u8; 4] = [192, 0, 2, 2];

/// A client whose connection counts as one from `address`.
async fn from(peer: &Peer, api: &PeerApi, address: [u8; 4]) -> PeerServiceClient<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at: transport::Endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    let turns = Turns::new();
    let source = IpAddr::from(address).into();
    let connections = TcpListenerStream::new(listener)
        .map(move |stream| stream.map(|stream| Outgoing::new(stream, turns.outlet(source))));
    let server = transport::server().add_service(api.clone().into_service());
    let stop = peer.shutdown.clone().cancelled_owned();
    tokio::spawn(server.serve_with_incoming_shutdown(connections, stop));
    PeerServiceClient::new(at.connect().await.unwrap())
}

async fn world() -> (tempfile::TempDir, Peer, PeerApi, FileId) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), bytes(5, 1 << 20)).unwrap();
    let peer = Peer::open(&dir.path().join("home")).await;
    let id = peer.share_one(&dir.path().join("file")).await.record.id;
    let shelf = std::sync::Arc::new(peer.library.clone());
    let counters = std::sync::Arc::<Counters>::default();
    let api = PeerApi::new(vec![shelf], peer.home.peer_id(), peer.limits.clone(), counters);
    (dir, peer, api, id)
}

fn assert_busy(problem: &Problem) {
    assert_eq!(problem.reason, Reason::Busy);
    assert!(problem.message.contains("address"), "it says why: {problem}");
    assert!(problem.retry_after.is_some_and(|wait| wait > Duration::ZERO));
}

#[tokio::test]
async fn one_address_leaves_upload_slots_to_others() {
    let (_dir, peer, api, id) = world().await;
    peer.limits.set(1, 0, 8);
    let (mut far, mut other) = (from(&peer, &api, FAR).await, from(&peer, &api, OTHER).await);
    let request = || v1::DownloadRequest {
        spans: vec![span(id, 0, 1 << 20)],
    };
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(far.download(request()).await.unwrap());
    }
    assert_busy(&far.download(request()).await.unwrap_err().into());
    held.push(other.download(request()).await.unwrap());
    drop(held);
}

#[tokio::test]
async fn few_of_a_crowd_wait_for_a_file_and_an_address_leaves_places_to_others() {
    let (_dir, peer, api, id) = world().await;
    peer.limits.set(1, 0, 0);
    let (mut far, mut other) = (from(&peer, &api, FAR).await, from(&peer, &api, OTHER).await);
    let watched = v1::WatchAvailabilityRequest {
        file_id: id.to_bytes(),
    };
    let request = || v1::DownloadRequest {
        spans: vec![span(id, 0, 128 * 1024)],
    };
    let mut watches = vec![far.watch_availability(watched.clone()).await.unwrap()];
    let mut held = Vec::new();
    // Who is alone may ask for as much as it likes.
    for _ in 0..20 {
        held.push(far.download(request()).await.unwrap());
    }
    watches.push(other.watch_availability(watched).await.unwrap());
    for _ in 0..6 {
        held.push(far.download(request()).await.unwrap());
    }
    assert_busy(&far.download(request()).await.unwrap_err().into());
    let waits = other.download(request()).await.unwrap();
    drop((waits, held));
    wait_until("the calls have ended", || peer.limits.uploads() == 0).await;
    assert!(far.download(request()).await.is_ok());
}

#[tokio::test]
async fn one_address_leaves_watches_to_others() {
    let (_dir, peer, api, id) = world().await;
    let request = v1::WatchAvailabilityRequest {
        file_id: id.to_bytes(),
    };
    let mut held = Vec::new();
    let refused = 'full: loop {
        // As many streams as a connection may have open.
        let mut far = from(&peer, &api, FAR).await;
        for _ in 0..1000 {
            match far.watch_availability(request.clone()).await {
                Ok(stream) => held.push(stream),
                Err(status) => break 'full Problem::from(status),
            }
        }
        assert!(held.len() < 4096, "one address watches as often as it likes");
    };
    assert_busy(&refused);
    let mut other = from(&peer, &api, OTHER).await;
    assert!(other.watch_availability(request).await.is_ok());
}
