//! Peers that lie, stall and cheat, next to one that is honest: the file is right, and the liar is named.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{path::Path, pin::Pin, time::Duration};

use common::*;
use futures_util::{Stream, StreamExt as _, stream};
use potluck_core::{
    FileId, PeerId,
    index_client::Address,
    merkle::FileTree,
    proto::v1::{
        self,
        peer_service_server::{PeerService, PeerServiceServer},
    },
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// What is wrong with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vice {
    /// Flips a bit in everything it sends.
    Corrupts,
    /// Sends half of what was asked for, then nothing.
    Stalls,
    /// Sends more than was asked for.
    SendsTooMuch,
    /// Sends chunks out of order.
    Disorder,
    /// Sends empty chunks for ever.
    EmptyChunks,
    /// Gives piece hashes of another file.
    WrongHashes,
    /// Gives more piece hashes than there are pieces.
    EndlessHashes,
    /// Describes the file with another size.
    LiesAboutSize,
    /// Breaks off in the middle of each stream.
    Disconnects,
    /// Speaks of another number of units.
    WrongUnits,
    /// Has no room, ever.
    Busy,
    /// Says it has everything, and has nothing.
    Empty,
    /// Answers no call.
    Silent,
    /// Says that a plain file is a collection.
    SaysCollection,
}

struct Fake {
    vice: Vice,
    data: Vec<u8>,
    tree: FileTree,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for Fake {
    type GetPieceHashesStream = Answers<v1::GetPieceHashesResponse>;
    type WatchAvailabilityStream = Answers<v1::WatchAvailabilityResponse>;
    type DownloadStream = Answers<v1::DownloadResponse>;

    async fn describe(
        &self,
        _: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        if self.vice == Vice::Silent {
            std::future::pending::<()>().await;
        }
        let size = match self.vice {
            Vice::LiesAboutSize => 1 << 50,
            _ => self.tree.size,
        };
        Ok(Response::new(v1::DescribeResponse {
            file: Some(v1::FileRecord {
                file_id: self.tree.id().to_bytes(),
                size,
                root: self.tree.root.to_bytes(),
                kind: match self.vice {
                    Vice::SaysCollection => v1::FileKind::Collection.into(),
                    _ => v1::FileKind::File.into(),
                },
                ..Default::default()
            }),
            name: "../../data.bin".into(),
            complete: true,
            peer_id: PeerId([9; 32]).to_bytes(),
        }))
    }

    async fn get_piece_hashes(
        &self,
        _: Request<v1::GetPieceHashesRequest>,
    ) -> Result<Response<Self::GetPieceHashesStream>, Status> {
        let mut hashes = self.tree.piece_hashes.concat();
        if self.vice == Vice::WrongHashes {
            hashes[3] ^= 1;
        }
        let answer = v1::GetPieceHashesResponse {
            first_piece: 0,
            hashes: hashes.into(),
        };
        let count = if self.vice == Vice::EndlessHashes {
            usize::MAX
        } else {
            1
        };
        let per_answer = self.tree.piece_hashes.len() as u32;
        let answers = stream::iter(0..count).map(move |n| {
            Ok(v1::GetPieceHashesResponse {
                first_piece: (n as u32).wrapping_mul(per_answer),
                ..answer.clone()
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn watch_availability(
        &self,
        _: Request<v1::WatchAvailabilityRequest>,
    ) -> Result<Response<Self::WatchAvailabilityStream>, Status> {
        let units = self.tree.piece_hashes.len() as u32;
        let units = if self.vice == Vice::WrongUnits {
            units + 1
        } else {
            units
        };
        let snapshot = v1::AvailabilitySnapshot {
            units,
            complete: true,
            ..Default::default()
        };
        let event = v1::watch_availability_response::Event::Snapshot(snapshot);
        let first = v1::WatchAvailabilityResponse { event: Some(event) };
        Ok(Response::new(Box::pin(
            stream::iter([Ok(first)]).chain(stream::pending()),
        )))
    }

    async fn download(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        match self.vice {
            Vice::Busy => return Err(Status::resource_exhausted("no room")),
            Vice::Empty => return Err(Status::not_found("not here")),
            _ => {}
        }
        let mut answers = Vec::new();
        for (span, asked) in request.into_inner().spans.into_iter().enumerate() {
            let (start, end) = (asked.offset as usize, (asked.offset + asked.length) as usize);
            let mut data = self.data[start..end].to_vec();
            if self.vice == Vice::Corrupts {
                data[1000] ^= 1;
            }
            for (n, chunk) in data.chunks(64 * 1024).enumerate() {
                answers.push(Ok(v1::DownloadResponse {
                    span: span as u32,
                    offset: asked.offset + n as u64 * 64 * 1024,
                    data: chunk.to_vec().into(),
                }));
            }
        }
        let half = answers.len() / 2;
        let answers: Answers<_> = match self.vice {
            Vice::Stalls => Box::pin(stream::iter(answers).take(half).chain(stream::pending())),
            Vice::Disconnects => Box::pin(
                stream::iter(answers)
                    .take(half)
                    .chain(stream::iter([Err(Status::unavailable("gone"))])),
            ),
            Vice::SendsTooMuch => {
                let more = answers[0].clone();
                Box::pin(stream::iter(answers).chain(stream::repeat(more)))
            }
            Vice::Disorder => Box::pin(stream::iter(answers.into_iter().rev())),
            Vice::EmptyChunks => {
                let offset = answers[0].as_ref().unwrap().offset;
                Box::pin(stream::repeat(Ok(v1::DownloadResponse {
                    span: 0,
                    offset,
                    data: Default::default(),
                })))
            }
            _ => Box::pin(stream::iter(answers)),
        };
        Ok(Response::new(answers))
    }
}

/// Starts a peer with a vice; it runs for as long as the test.
async fn fake(vice: Vice, data: &[u8]) -> Address {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().into();
    let service = Fake {
        vice,
        data: data.to_vec(),
        tree: potluck_core::hash::hash_bytes(data),
    };
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(PeerServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    address
}

struct World {
    dir: tempfile::TempDir,
    data: Vec<u8>,
    id: FileId,
    honest: Peer,
    peer: Peer,
}

async fn world() -> World {
    log();
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(5_000_000, 3);
    let path = file(dir.path(), "src/data.bin", &data);
    let honest = Peer::start(&dir.path().join("honest"), None).await;
    let id = honest.share(&path).await;
    let peer = Peer::start(&dir.path().join("peer"), None).await;
    World {
        dir,
        data,
        id,
        honest,
        peer,
    }
}

fn from(id: FileId, target: &Path, peers: &[&Address]) -> v1::FetchRequest {
    let providers = peers.iter().map(|&address| address.into()).collect();
    // Slowly enough that everybody gets to send something.
    v1::FetchRequest {
        providers,
        max_bytes_per_second: 4_000_000,
        ..wish(id, target)
    }
}

/// Fetches from one honest peer and this one; gives what became of it.
async fn next_to(vice: Vice) -> v1::TransferPeer {
    let world = world().await;
    let bad = fake(vice, &world.data).await;
    let target = world.dir.path().join("out");
    let done = world
        .peer
        .fetch(from(world.id, &target, &[&world.honest.address, &bad]))
        .await;
    assert_done(&done);
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
    done.peers
        .into_iter()
        .find(|peer| {
            peer.address
                .as_ref()
                .is_some_and(|at| at.port == u32::from(bad.port))
        })
        .expect("the bad one is listed")
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_send_what_is_false_are_banned_and_named() {
    let vices = [
        Vice::Corrupts,
        Vice::SendsTooMuch,
        Vice::Disorder,
        Vice::EmptyChunks,
    ];
    for vice in vices {
        let peer = next_to(vice).await;
        assert_eq!(peer.state(), v1::PeerState::Banned, "{vice:?}: {peer:?}");
        assert!(!peer.reason.is_empty(), "{vice:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_fail_cost_little() {
    for vice in [
        Vice::Stalls,
        Vice::Disconnects,
        Vice::Busy,
        Vice::Empty,
        Vice::Silent,
    ] {
        let peer = next_to(vice).await;
        assert_ne!(peer.state(), v1::PeerState::Banned, "{vice:?}: {peer:?}");
    }
}

/// One false record that makes a file of a folder must not ban everybody who counts the folder's units.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_count_other_units_are_left_out_and_not_banned() {
    let peer = next_to(Vice::WrongUnits).await;
    assert_ne!(peer.state(), v1::PeerState::Banned, "{peer:?}");
    assert!(peer.reason.contains("units"), "{peer:?}");
    assert_eq!(peer.bytes, 0);
}

/// What a liar says of the file itself is checked before anything is done with it: only the honest one is believed, whenever it comes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_the_file_is_checked() {
    for vice in [Vice::WrongHashes, Vice::EndlessHashes, Vice::LiesAboutSize] {
        let world = world().await;
        let bad = fake(vice, &world.data).await;
        let target = world.dir.path().join("out");
        // First the liar alone.
        let request = v1::FetchRequest {
            detach: true,
            ..from(world.id, &target, &[&bad])
        };
        let mut events = world
            .peer
            .control
            .clone()
            .fetch(request)
            .await
            .unwrap()
            .into_inner();
        let stuck = async {
            loop {
                let transfer = events.message().await.unwrap().unwrap().transfer.unwrap();
                assert_eq!(transfer.bytes_done, 0, "{transfer:?}");
                if transfer.state() == v1::TransferState::Waiting {
                    break transfer;
                }
            }
        };
        tokio::time::timeout(PATIENCE, stuck)
            .await
            .expect("it waits for somebody honest");
        assert!(std::fs::metadata(&target).is_err());
        let number = world
            .peer
            .control
            .clone()
            .list_transfers(v1::ListTransfersRequest {})
            .await
            .unwrap();
        let number = number.into_inner().transfers[0].transfer_id;
        world
            .peer
            .control
            .clone()
            .pause_transfer(v1::PauseTransferRequest { transfer_id: number })
            .await
            .unwrap();
        // Then the honest one as well: it goes on where it was.
        let done = world
            .peer
            .fetch(from(world.id, &target, &[&bad, &world.honest.address]))
            .await;
        assert_done(&done);
        assert_eq!(std::fs::read(&target).unwrap(), world.data, "{vice:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_said_to_be_a_collection_is_fetched_as_a_file() {
    let world = world().await;
    let bad = fake(Vice::SaysCollection, &world.data).await;
    let target = world.dir.path().join("out");
    let done = world.peer.fetch(wish_from(&world, &target, &bad)).await;
    assert_done(&done);
    assert_eq!(done.kind(), v1::FileKind::File);
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
}

fn wish_from(world: &World, target: &Path, address: &Address) -> v1::FetchRequest {
    v1::FetchRequest {
        providers: vec![address.into()],
        ..wish(world.id, target)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_liars_means_waiting_and_no_file() {
    let world = world().await;
    let (one, two) = (
        fake(Vice::Corrupts, &world.data).await,
        fake(Vice::Corrupts, &world.data).await,
    );
    let target = world.dir.path().join("out");
    let mut events = world
        .peer
        .control
        .clone()
        .fetch(from(world.id, &target, &[&one, &two]))
        .await
        .unwrap()
        .into_inner();
    let waiting = async {
        loop {
            let transfer = events.message().await.unwrap().unwrap().transfer.unwrap();
            let banned = |peer: &v1::TransferPeer| peer.state() == v1::PeerState::Banned;
            if transfer.state() == v1::TransferState::Waiting && transfer.peers.iter().all(banned) {
                return transfer;
            }
        }
    };
    let transfer = tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap();
    assert_eq!(transfer.bytes_done, 0);
    assert_eq!(transfer.error.unwrap().reason, "NO_PROVIDERS");
    assert!(!target.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_dies_is_done_without() {
    let world = world().await;
    let second = Peer::start(&world.dir.path().join("second"), None).await;
    second.share(&world.dir.path().join("src/data.bin")).await;
    let target = world.dir.path().join("out");
    let request = from(world.id, &target, &[&world.honest.address, &second.address]);
    let request = v1::FetchRequest {
        max_bytes_per_second: 1_500_000,
        ..request
    };
    let mut events = world
        .peer
        .control
        .clone()
        .fetch(request)
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
        < 3
    {}
    second.stop().await;
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.transfer;
    }
    let last = last.unwrap();
    assert_done(&last);
    // What the dead one gave still counts as its own.
    let given: u64 = last.peers.iter().map(|peer| peer.bytes).sum();
    assert_eq!(given, last.bytes_total);
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_under_a_seed_is_never_served_wrong() {
    let world = world().await;
    let own = file(world.dir.path(), "second-src/data.bin", &world.data);
    let second = Peer::start(&world.dir.path().join("second"), None).await;
    second.share(&own).await;
    let target = world.dir.path().join("out");
    let request = from(world.id, &target, &[&world.honest.address, &second.address]);
    let request = v1::FetchRequest {
        max_bytes_per_second: 1_500_000,
        ..request
    };
    let mut events = world
        .peer
        .control
        .clone()
        .fetch(request)
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
        < 3
    {}
    let mut changed = world.data.clone();
    changed.iter_mut().step_by(1000).for_each(|byte| *byte ^= 1);
    std::fs::write(&own, changed).unwrap();
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.transfer;
    }
    assert_done(&last.unwrap());
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
}
