//! Answers that nobody reads: they hold their permits while HTTP/2 queues them, but only until
//! other clients need the permits.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod served_library;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use potluck_core::{
    Problem, Reason,
    grpc::transport,
    proto::v1::{self, peer_service_client::PeerServiceClient},
};
use potluck_peer::upload::{EvictableConnection, PeerApi, SendScheduler, UploadCounters};
use served_library::{DEADLINE, Peer, bytes};
use tokio::{net::TcpListener, time::Instant};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;

/// Maximum number of hash lists that a peer sends in parallel.
const PLACES: usize = 128;

type Client = PeerServiceClient<Channel>;

struct World {
    _dir: tempfile::TempDir,
    _peer: Peer,
    address: SocketAddr,
    request: v1::GetPieceHashesRequest,
}

impl World {
    /// A peer that serves a file of eight pieces over connections of one send scheduler.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), bytes(5, 1 << 20)).unwrap();
        let peer = Peer::open(&dir.path().join("home")).await;
        let id = peer.share_one(&dir.path().join("file")).await.record.id;
        let shelf = Arc::new(peer.library.clone());
        let api = PeerApi::new(
            vec![shelf],
            peer.home.peer_id(),
            peer.limits.clone(),
            Arc::<UploadCounters>::default(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let turns = SendScheduler::new();
        let connections = TcpListenerStream::new(listener).map(move |stream| {
            stream.map(|stream| {
                stream.set_nodelay(true).unwrap();
                let source = stream.peer_addr().unwrap().ip().into();
                EvictableConnection::new(stream, turns.add_connection(source))
            })
        });
        let server = transport::server().add_service(api.into_service());
        let stop = peer.shutdown.clone().cancelled_owned();
        tokio::spawn(server.serve_with_incoming_shutdown(connections, stop));
        Self {
            _dir: dir,
            _peer: peer,
            address,
            request: v1::GetPieceHashesRequest {
                file_id: id.to_bytes(),
                first_piece: 0,
                count: 0,
            },
        }
    }

    /// A client with this stream window: the peer can send so many bytes of each answer before the
    /// client reads.
    async fn client(&self, window: u32) -> Client {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let endpoint = endpoint.initial_stream_window_size(window);
        PeerServiceClient::new(endpoint.connect().await.unwrap())
    }

    /// Requests one and a half times as many lists as there are permits and reads none of them.
    /// Returns those that were answered.
    async fn hoard(&self, client: &mut Client) -> Vec<tonic::Streaming<v1::GetPieceHashesResponse>> {
        let mut held = Vec::new();
        let mut busy = 0;
        for _ in 0..PLACES * 3 / 2 {
            match client.get_piece_hashes(self.request.clone()).await {
                Ok(answer) => held.push(answer.into_inner()),
                Err(status) => {
                    assert_busy(&status.into());
                    busy += 1;
                }
            }
        }
        assert_eq!((held.len(), busy), (PLACES, PLACES / 2));
        held
    }

    /// Requests until a permit is free, and reads the list.
    async fn read(&self, client: &mut Client) {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < DEADLINE, "no place is free");
            match client.get_piece_hashes(self.request.clone()).await {
                Ok(answer) => {
                    let mut answer = answer.into_inner();
                    let message = answer.message().await.unwrap().unwrap();
                    assert_eq!((message.first_piece, message.hashes.len()), (0, 8 * 32));
                    assert!(answer.message().await.unwrap().is_none());
                    return;
                }
                Err(status) => assert_busy(&status.into()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn assert_busy(problem: &Problem) {
    assert_eq!(problem.reason, Reason::Busy, "{problem}");
    assert!(problem.retry_after.is_some_and(|wait| wait > Duration::ZERO));
}

/// HTTP/2 accepts a whole message even if its receiver takes a byte at a time: the permit must stay
/// taken while the message is queued.
#[tokio::test]
async fn hashes_that_lie_unread_hold_their_places_until_their_connection_ends() {
    let world = World::new().await;
    let mut hostile = world.client(1).await;
    let held = world.hoard(&mut hostile).await;
    drop((held, hostile));
    let mut other = world.client(1 << 20).await;
    world.read(&mut other).await;
}

#[tokio::test]
async fn whoever_hoards_hashes_is_cut_when_others_find_no_place() {
    let world = World::new().await;
    let mut hostile = world.client(1).await;
    let mut held = world.hoard(&mut hostile).await;
    let mut other = world.client(1 << 20).await;
    world.read(&mut other).await;
    let ended = tokio::time::timeout(DEADLINE, held[0].message()).await.unwrap();
    assert!(ended.is_err(), "its connection was cut");
}

/// Permits come back as lists are read: twice as many lists as permits, one after the other.
#[tokio::test]
async fn hashes_that_are_read_give_their_places_back() {
    let world = World::new().await;
    let mut client = world.client(1 << 20).await;
    for _ in 0..2 * PLACES {
        world.read(&mut client).await;
    }
}
