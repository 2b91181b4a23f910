//! A fake peer that misbehaves in one of many ways.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{Stream, StreamExt as _, stream};
use potluck_core::{
    PeerId, Problem, Reason,
    identity::merkle::FileTree,
    model::Address,
    proto::v1::{
        self,
        peer_service_server::{PeerService, PeerServiceServer},
    },
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// How a peer misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vice {
    /// Flips a bit in all data that it sends.
    Corrupts,
    /// Sends half of the requested bytes, then nothing.
    Stalls,
    /// Sends more than was requested.
    SendsTooMuch,
    /// Sends chunks out of order.
    Disorder,
    /// Sends empty chunks without end.
    EmptyChunks,
    /// Sends piece hashes of another file.
    WrongHashes,
    /// Sends more piece hashes than there are pieces.
    EndlessHashes,
    /// Describes the file with another size.
    LiesAboutSize,
    /// Breaks off in the middle of each stream.
    Disconnects,
    /// Reports another number of units.
    WrongUnits,
    /// Always answers that it is busy.
    Busy,
    /// Claims to have everything and has nothing.
    Empty,
    /// Answers that the file changed, but sends no change of its availability.
    Changed,
    /// Reports that it has nothing, as a damaged answer does.
    TellsNothing,
    /// Answers no call.
    Silent,
    /// Claims that a plain file is a collection.
    SaysCollection,
    /// Claims that a collection is a plain file, and sends its manifest as one.
    SaysFile,
}

struct Fake {
    vice: Vice,
    /// Once set, it behaves correctly.
    healed: Arc<AtomicBool>,
    data: Vec<u8>,
    tree: FileTree,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for Fake {
    type GetPieceHashesStream = Answers<v1::GetPieceHashesResponse>;
    type WatchAvailabilityStream = Answers<v1::WatchAvailabilityResponse>;
    type DownloadStream = Answers<v1::DownloadResponse>;

    async fn report_bad_pieces(
        &self,
        _: Request<v1::ReportBadPiecesRequest>,
    ) -> Result<Response<v1::ReportBadPiecesResponse>, Status> {
        Ok(Response::new(v1::ReportBadPiecesResponse {}))
    }

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
            name: "../../another.bin".into(),
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
        let units = (self.tree.piece_hashes.len() as u32).max(1);
        let units = if self.vice == Vice::WrongUnits {
            units + 1
        } else {
            units
        };
        let healed = self.healed.load(Ordering::Relaxed);
        let snapshot = v1::AvailabilitySnapshot {
            units,
            complete: self.vice != Vice::TellsNothing || healed,
            file_id: self.tree.id().to_bytes(),
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
        let vice = Some(self.vice).filter(|_| !self.healed.load(Ordering::Relaxed));
        match self.vice {
            Vice::Changed if vice.is_some() => {
                return Err(Problem::new(Reason::FileChanged, "the file is not what it was").into());
            }
            Vice::Busy => return Err(Status::resource_exhausted("no room")),
            Vice::Empty => return Err(Status::not_found("not here")),
            _ => {}
        }
        let mut answers = Vec::new();
        for (span, asked) in request.into_inner().spans.into_iter().enumerate() {
            let (start, end) = (asked.offset as usize, (asked.offset + asked.length) as usize);
            let mut data = self.data[start..end].to_vec();
            if vice == Some(Vice::Corrupts) {
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

/// Starts a peer that misbehaves; it runs until the test ends.
pub(crate) async fn fake(vice: Vice, data: &[u8]) -> Address {
    fake_that_heals(vice, data).await.0
}

/// Starts a peer that misbehaves in what it sends until the returned flag is set.
pub(crate) async fn fake_that_heals(vice: Vice, data: &[u8]) -> (Address, Arc<AtomicBool>) {
    let healed = Arc::new(AtomicBool::new(false));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().into();
    let service = Fake {
        vice,
        healed: Arc::clone(&healed),
        data: data.to_vec(),
        tree: potluck_core::identity::hash::hash_bytes(data),
    };
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(PeerServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (address, healed)
}
