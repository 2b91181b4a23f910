//! A peer of one file that misbehaves in one of many ways.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::{StreamExt as _, stream};
use potluck_core::{
    PeerId, Problem, Reason, Sha256,
    identity::{hash::hash_bytes, merkle::FileTree},
    model::{Address, FileRecord},
    proto::v1::{
        self,
        peer_service_server::{PeerService, PeerServiceServer},
    },
};
use sha2::Digest as _;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::{Answer, Answers};

/// Size of the chunks that it sends, in bytes.
const CHUNK: usize = 64 * 1024;

/// How a peer misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misbehavior {
    /// Flips a bit in all data that it sends.
    CorruptsData,
    /// Flips a bit in the last piece only.
    CorruptsLastPiece,
    /// Sends half of the requested bytes, then nothing.
    Stalls,
    /// Sends more than was requested.
    SendsTooMuch,
    /// Sends chunks out of order.
    ReordersChunks,
    /// Sends empty chunks without end.
    SendsEmptyChunks,
    /// Sends piece hashes of another file.
    SendsWrongHashes,
    /// Sends more piece hashes than there are pieces.
    SendsEndlessHashes,
    /// Describes the file with another size.
    ClaimsWrongSize,
    /// Breaks off in the middle of each stream.
    Disconnects,
    /// Reports another number of units.
    ClaimsWrongUnits,
    /// Always answers that it is busy.
    IsBusy,
    /// Claims to have everything and has nothing.
    HasNothing,
    /// Answers that the file changed, but sends no change of its availability.
    ReportsChange,
    /// Reports that it has nothing, as a damaged answer does.
    ClaimsNothing,
    /// Answers no call.
    IsSilent,
    /// Claims that a plain file is a collection.
    ClaimsCollection,
    /// Claims that a collection is a plain file, and sends its manifest as one.
    ClaimsFile,
}

/// A running fake peer. It serves until the runtime ends.
#[derive(Debug)]
pub struct FakePeer {
    /// Its address.
    pub address: Address,
    is_healed: Arc<AtomicBool>,
}

impl FakePeer {
    /// A peer that misbehaves and has a file with this content.
    pub async fn start(misbehavior: Misbehavior, data: &[u8]) -> Self {
        let is_healed = Arc::new(AtomicBool::new(false));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().into();
        let service = FakePeerService {
            misbehavior,
            is_healed: Arc::clone(&is_healed),
            data: data.to_vec(),
            tree: hash_bytes(data),
        };
        let server = Server::builder().add_service(PeerServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, is_healed }
    }

    /// From now on, its data and its availability are correct.
    pub fn heal(&self) {
        self.is_healed.store(true, Ordering::Relaxed);
    }
}

struct FakePeerService {
    misbehavior: Misbehavior,
    is_healed: Arc<AtomicBool>,
    data: Vec<u8>,
    tree: FileTree,
}

impl FakePeerService {
    /// Whether it misbehaves in this way now.
    fn does(&self, misbehavior: Misbehavior) -> bool {
        self.misbehavior == misbehavior && !self.is_healed.load(Ordering::Relaxed)
    }

    /// The chunks of an honest answer, except for flipped bits.
    fn chunks(&self, spans: Vec<v1::Span>) -> Vec<Result<v1::DownloadResponse, Status>> {
        let mut chunks = Vec::new();
        for (span, requested) in spans.into_iter().enumerate() {
            let (start, end) = (requested.offset, requested.offset + requested.length);
            let mut data = self.data[start as usize..end as usize].to_vec();
            if self.does(Misbehavior::CorruptsData) {
                data[1000] ^= 1;
            }
            let is_last = end == self.data.len() as u64;
            if self.does(Misbehavior::CorruptsLastPiece) && is_last {
                *data.last_mut().unwrap() ^= 1;
            }
            for (n, chunk) in data.chunks(CHUNK).enumerate() {
                chunks.push(Ok(v1::DownloadResponse {
                    span: span as u32,
                    offset: start + (n * CHUNK) as u64,
                    data: chunk.to_vec().into(),
                }));
            }
        }
        chunks
    }
}

#[tonic::async_trait]
impl PeerService for FakePeerService {
    type GetPieceHashesStream = Answers<v1::GetPieceHashesResponse>;
    type WatchAvailabilityStream = Answers<v1::WatchAvailabilityResponse>;
    type DownloadStream = Answers<v1::DownloadResponse>;

    async fn report_bad_pieces(
        &self,
        _: Request<v1::ReportBadPiecesRequest>,
    ) -> Answer<v1::ReportBadPiecesResponse> {
        Ok(Response::new(v1::ReportBadPiecesResponse {}))
    }

    async fn identify(&self, _: Request<v1::IdentifyRequest>) -> Answer<v1::IdentifyResponse> {
        Err(Status::unimplemented(""))
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeRequest>,
    ) -> Answer<v1::DescribeResponse> {
        if self.does(Misbehavior::IsSilent) {
            std::future::pending::<()>().await;
        }
        let requested = request.into_inner().file_id;
        let sha256 = Sha256(sha2::Sha256::digest(&self.data).into());
        let provisional = FileRecord::provisional(self.data.len() as u64, sha256);
        if requested == provisional.id.to_bytes() {
            return Ok(Response::new(v1::DescribeResponse {
                file: Some((&provisional).into()),
                name: "another.bin".to_owned(),
                complete: true,
                peer_id: PeerId([9; 32]).to_bytes(),
            }));
        }
        let size = match self.does(Misbehavior::ClaimsWrongSize) {
            true => 1 << 50,
            false => self.tree.size,
        };
        let kind = match self.does(Misbehavior::ClaimsCollection) {
            true => v1::FileKind::Collection,
            false => v1::FileKind::File,
        };
        Ok(Response::new(v1::DescribeResponse {
            file: Some(v1::FileRecord {
                file_id: self.tree.id().to_bytes(),
                size,
                root: self.tree.root.to_bytes(),
                kind: kind.into(),
                ..Default::default()
            }),
            name: "../../another.bin".to_owned(),
            complete: true,
            peer_id: PeerId([9; 32]).to_bytes(),
        }))
    }

    async fn get_piece_hashes(
        &self,
        _: Request<v1::GetPieceHashesRequest>,
    ) -> Answer<Self::GetPieceHashesStream> {
        let mut hashes = self.tree.piece_hashes.concat();
        if self.does(Misbehavior::SendsWrongHashes) {
            hashes[3] ^= 1;
        }
        let answer = v1::GetPieceHashesResponse {
            first_piece: 0,
            hashes: hashes.into(),
        };
        let count = match self.does(Misbehavior::SendsEndlessHashes) {
            true => usize::MAX,
            false => 1,
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
        request: Request<v1::WatchAvailabilityRequest>,
    ) -> Answer<Self::WatchAvailabilityStream> {
        let units = (self.tree.piece_hashes.len() as u32).max(1);
        let snapshot = v1::AvailabilitySnapshot {
            units: units + u32::from(self.does(Misbehavior::ClaimsWrongUnits)),
            complete: !self.does(Misbehavior::ClaimsNothing),
            // Also a provisional id.
            file_id: request.into_inner().file_id,
            ..Default::default()
        };
        let event = v1::watch_availability_response::Event::Snapshot(snapshot);
        let first = v1::WatchAvailabilityResponse { event: Some(event) };
        let answers = stream::iter([Ok(first)]).chain(stream::pending());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn download(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Answer<Self::DownloadStream> {
        if self.does(Misbehavior::ReportsChange) {
            return Err(Problem::new(Reason::FileChanged, "the file is not what it was").into());
        }
        let chunks = self.chunks(request.into_inner().spans);
        let half = chunks.len() / 2;
        let answers: Answers<_> = match self.misbehavior {
            Misbehavior::IsBusy => return Err(Status::resource_exhausted("no room")),
            Misbehavior::HasNothing => return Err(Status::not_found("not here")),
            Misbehavior::Stalls => {
                Box::pin(stream::iter(chunks).take(half).chain(stream::pending()))
            }
            Misbehavior::Disconnects => {
                let end = stream::iter([Err(Status::unavailable("gone"))]);
                Box::pin(stream::iter(chunks).take(half).chain(end))
            }
            Misbehavior::SendsTooMuch => {
                let more = chunks[0].clone();
                Box::pin(stream::iter(chunks).chain(stream::repeat(more)))
            }
            Misbehavior::ReordersChunks => Box::pin(stream::iter(chunks.into_iter().rev())),
            Misbehavior::SendsEmptyChunks => {
                let offset = chunks[0].as_ref().unwrap().offset;
                Box::pin(stream::repeat(Ok(v1::DownloadResponse {
                    span: 0,
                    offset,
                    data: Default::default(),
                })))
            }
            _ => Box::pin(stream::iter(chunks)),
        };
        Ok(Response::new(answers))
    }
}
