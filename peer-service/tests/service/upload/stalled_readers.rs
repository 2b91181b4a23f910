//! Answers that nobody reads: they hold their permits while HTTP/2 queues them, but only until
//! other clients need the permits.

use std::{net::SocketAddr, time::Duration};

use potluck_core::{
    Problem, Reason,
    proto::v1::{self, peer_service_client::PeerServiceClient},
};
use potluck_testkit::{
    content::{MIB, bytes, write_file},
    services::LibraryPeer,
    wait::{DEADLINE, in_time},
};
use tokio::time::Instant;
use tonic::transport::Channel;

/// Maximum number of hash lists that a peer sends in parallel.
const PERMITS: usize = 128;

/// A stream window of one byte: the server cannot send an answer until the client reads.
const NO_WINDOW: u32 = 1;

/// A stream window that takes whole answers.
const WIDE_WINDOW: u32 = 1 << 20;

type Client = PeerServiceClient<Channel>;

struct World {
    _dir: tempfile::TempDir,
    _peer: LibraryPeer,
    address: SocketAddr,
    request: v1::GetPieceHashesRequest,
}

impl World {
    /// A peer that serves a file of eight pieces over connections of one send scheduler.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = write_file(dir.path(), "file", &bytes(MIB, 5));
        let peer = LibraryPeer::open(&dir.path().join("home")).await;
        let id = peer.share_one(&path).await.record.id;
        let address = peer
            .serve_scheduled(peer.peer_api(), |stream| stream.peer_addr().unwrap().ip())
            .await;
        Self {
            _dir: dir,
            _peer: peer,
            address,
            request: v1::GetPieceHashesRequest {
                file_id: id.to_bytes(),
                ..Default::default()
            },
        }
    }

    /// A client with this stream window: the peer can send so many bytes of each answer before the
    /// client reads.
    async fn client(&self, window: u32) -> Client {
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let endpoint = endpoint.initial_stream_window_size(window);
        PeerServiceClient::new(endpoint.connect().await.unwrap())
    }

    /// Requests one and a half times as many lists as there are permits and reads none of them.
    /// Returns those that were answered.
    async fn hoard(
        &self,
        client: &mut Client,
    ) -> Vec<tonic::Streaming<v1::GetPieceHashesResponse>> {
        let mut held = Vec::new();
        let mut busy = 0;
        for _ in 0..PERMITS * 3 / 2 {
            match client.get_piece_hashes(self.request.clone()).await {
                Ok(answer) => held.push(answer.into_inner()),
                Err(status) => {
                    assert_busy(&status.into());
                    busy += 1;
                }
            }
        }
        assert_eq!((held.len(), busy), (PERMITS, PERMITS / 2));
        held
    }

    /// Requests until a permit is free, and reads the list.
    async fn read(&self, client: &mut Client) {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < DEADLINE, "no permit became free");
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
async fn unread_hash_lists_hold_their_permits_until_their_connection_ends() {
    let world = World::new().await;
    let mut hostile = world.client(NO_WINDOW).await;
    let held = world.hoard(&mut hostile).await;
    drop((held, hostile));
    let mut other = world.client(WIDE_WINDOW).await;
    world.read(&mut other).await;
}

#[tokio::test]
async fn a_connection_that_hoards_permits_is_closed_when_others_need_one() {
    let world = World::new().await;
    let mut hostile = world.client(NO_WINDOW).await;
    let mut held = world.hoard(&mut hostile).await;
    let mut other = world.client(WIDE_WINDOW).await;
    world.read(&mut other).await;
    let ended = in_time("the hoarded stream ends", held[0].message()).await;
    assert!(ended.is_err(), "its connection was closed");
}

/// Permits come back as lists are read: twice as many lists as permits, one after the other.
#[tokio::test]
async fn read_hash_lists_return_their_permits() {
    let world = World::new().await;
    let mut client = world.client(WIDE_WINDOW).await;
    for _ in 0..2 * PERMITS {
        world.read(&mut client).await;
    }
}
