//! PeerService: the service that is open to other peers. Serves only shared content.
//!
//! | module | purpose |
//! |---|---|
//! | `availability` | streams which units are here, and each change |
//! | `buffers` | the pool of memory that chunks are read into |
//! | `connection` | a connection that can be evicted |
//! | `connection_queue` | the chunks handed to a connection, and whether its receiver reads |
//! | `idle_timeout` | ends streams whose receiver does not read |
//! | `in_flight_sends` | reports the units being sent, and limits waiting requests of a crowd |
//! | `piece_hashes` | encodes lists of piece hashes as messages |
//! | `raw_grpc` | `Download` and `GetPieceHashes` without the generated codec |
//! | `reader` | reads spans from the disk into messages |
//! | `scheduler` | decides which connection may send next |
//! | `upload_stream` | validates a download request, and streams the answer |
//!
//! Invariants:
//!
//! - The memory for a caller is bounded, however much it asks for and however slowly it reads.
//! - Every stream ends when its receiver stops reading.
//! - Bytes are sent only while the file is unchanged since it was hashed.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use potluck_core::{
    FileId, PeerId, Problem, Reason, convert,
    grpc::{
        limiter::{ClientAddress, LimitError, PerAddressLimiter, Permit},
        transport::{
            MAX_MESSAGE,
            admission::{CallKind, SMALL_REQUEST},
        },
    },
    proto::v1::{self, peer_service_server::PeerServiceServer},
};
use tonic::{Request, Response, Status};

use crate::{
    content::{BadPieces, Content, ContentSource},
    fs::blocking::blocking,
    limits::Limits,
};
use buffers::BufferPool;
use idle_timeout::IdleTimeoutStream;
use in_flight_sends::InFlightSends;

mod availability;
mod buffers;
mod connection;
mod connection_queue;
mod idle_timeout;
mod in_flight_sends;
mod piece_hashes;
mod raw_grpc;
mod reader;
mod scheduler;
#[cfg(test)]
mod tests;
mod upload_stream;

pub use self::{
    connection::EvictableConnection,
    raw_grpc::RawGrpcService,
    scheduler::{ConnectionHandle, SendScheduler},
};

/// Maximum WatchAvailability streams; each holds two bitfields. Allows for a crowd of thousands.
const MAX_WATCHERS: usize = 4096;

/// Maximum GetPieceHashes answers; each holds a piece layer, usually 128 KiB, until its last
/// message is freed.
const MAX_HASH_STREAMS: usize = 128;

/// When a refused caller should retry: about the time until a slot becomes free.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// When a refused report of bad pieces may be sent again.
const REPORT_AGAIN: Duration = Duration::from_secs(30);

/// How long a connection must stall before it may be evicted to free a slot for others.
const STALL_BEFORE_EVICTION: Duration = Duration::from_secs(2);

/// The path of the call, as in [`call_kind`].
const WATCH_AVAILABILITY: &str = "/potluck.v1.PeerService/WatchAvailability";

/// Counters since the service started.
#[derive(Debug, Default)]
pub struct UploadCounters {
    /// Bytes queued for sending to other peers.
    pub uploaded_bytes: Arc<AtomicU64>,
}

/// The service that other peers call. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PeerApi {
    shared: Arc<UploadShared>,
}

#[derive(Debug)]
struct UploadShared {
    sources: Vec<Arc<dyn ContentSource>>,
    peer_id: PeerId,
    limits: Limits,
    counters: Arc<UploadCounters>,
    watchers: PerAddressLimiter,
    hash_streams: PerAddressLimiter,
    buffers: BufferPool,
    in_flight_sends: InFlightSends,
}

impl PeerApi {
    /// Serves the content of `sources`; earlier sources take precedence.
    pub fn new(
        sources: Vec<Arc<dyn ContentSource>>,
        peer_id: PeerId,
        limits: Limits,
        counters: Arc<UploadCounters>,
    ) -> Self {
        let share = limits.max_share();
        Self {
            shared: Arc::new(UploadShared {
                sources,
                peer_id,
                limits,
                counters,
                watchers: PerAddressLimiter::new(MAX_WATCHERS, share),
                hash_streams: PerAddressLimiter::new(MAX_HASH_STREAMS, share),
                buffers: BufferPool::default(),
                in_flight_sends: InFlightSends::new(share),
            }),
        }
    }

    /// The tonic service for all calls of `PeerService`.
    pub fn into_service(self) -> RawGrpcService<PeerServiceServer<Self>> {
        let rest = PeerServiceServer::new(self.clone())
            .max_decoding_message_size(SMALL_REQUEST)
            .max_encoding_message_size(MAX_MESSAGE);
        RawGrpcService::new(self, rest)
    }

    /// Answers a `Download` with encoded messages for this connection.
    async fn download(
        &self,
        request: v1::DownloadRequest,
        connection: ConnectionHandle,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<>, Problem> {
        let spans = upload_stream::parse(request)?;
        let slot = self.shared.limits.try_upload(connection.client_address());
        let slot = slot.map_err(|why| {
            if why == LimitError::Full {
                // The evicted connection frees its slot for others; its peer can reconnect.
                connection.evict_slowest(STALL_BEFORE_EVICTION);
            }
            busy("downloads", why)
        })?;
        upload_stream::stream(self.shared.clone(), spans, slot, connection).await
    }

    /// Answers a `GetPieceHashes` with encoded messages for this connection.
    async fn piece_hashes(
        &self,
        request: v1::GetPieceHashesRequest,
        connection: ConnectionHandle,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<>, Problem> {
        let messages = piece_hashes::stream(self.shared.clone(), request, connection).await?;
        Ok(IdleTimeoutStream::new(messages))
    }
}

impl UploadShared {
    /// Finds content without blocking.
    ///
    /// # Errors
    /// `NOT_FOUND`, also if the lookup would block.
    fn try_find(&self, id: &FileId) -> Result<Arc<dyn Content>, Problem> {
        let content = self.sources.iter().find_map(|source| source.try_find(id));
        content.ok_or_else(|| not_found(id))
    }

    /// Number of open WatchAvailability streams.
    fn watcher_count(&self) -> u32 {
        // At most MAX_WATCHERS, so it fits.
        self.watchers.in_use() as u32
    }

    /// Finds content. May wait for locks, so do not call it on async threads.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    fn find(&self, id: &FileId) -> Result<Arc<dyn Content>, Problem> {
        let content = self.sources.iter().find_map(|source| source.find(id));
        content.ok_or_else(|| not_found(id))
    }
}

fn not_found(id: &FileId) -> Problem {
    Problem::new(Reason::NotFound, format!("this peer does not share {id}"))
}

fn busy(what: &str, why: LimitError) -> Problem {
    let message = match why {
        LimitError::Full => format!("this peer serves no more {what} at once: try again"),
        LimitError::AddressShare => format!(
            "this peer serves no more {what} at once to your address, which has its share of them: end some, or try again"
        ),
    };
    Problem::new(Reason::Busy, message).retry_after(RETRY_AFTER)
}

/// A permit for the caller's address, or `BUSY`.
fn acquire_permit<T>(
    places: &PerAddressLimiter,
    request: &Request<T>,
    what: &str,
) -> Result<Permit, Problem> {
    let connection = request.extensions().get::<ConnectionHandle>();
    let source = connection.map_or(ClientAddress::LOCAL, ConnectionHandle::client_address);
    places.try_acquire(source).map_err(|why| busy(what, why))
}

/// The admission limits for a call on the open port.
pub(crate) fn call_kind(path: &str) -> CallKind {
    match path {
        raw_grpc::DOWNLOAD => CallKind::SelfBounded {
            max_request: raw_grpc::MAX_DOWNLOAD,
        },
        raw_grpc::PIECE_HASHES => CallKind::SelfBounded {
            max_request: SMALL_REQUEST,
        },
        WATCH_AVAILABILITY => CallKind::Watch,
        other => CallKind::of_common(other),
    }
}

/// Copies the connection's `ClientConnection` into the request's extensions.
pub(crate) fn name_client<B>(mut request: http::Request<B>) -> http::Request<B> {
    let client = request
        .extensions()
        .get::<ConnectionHandle>()
        .and_then(ConnectionHandle::client);
    if let Some(client) = client.cloned() {
        request.extensions_mut().insert(client);
    }
    request
}

#[tonic::async_trait]
impl v1::peer_service_server::PeerService for PeerApi {
    type GetPieceHashesStream = stream::Empty<Result<v1::GetPieceHashesResponse, Status>>;
    type WatchAvailabilityStream = IdleTimeoutStream<v1::WatchAvailabilityResponse>;
    type DownloadStream = stream::Empty<Result<v1::DownloadResponse, Status>>;

    async fn describe(
        &self,
        request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        let id = convert::file_id(&request.get_ref().file_id, "file_id")?;
        let shared = self.shared.clone();
        let answer = blocking(move || {
            let content = shared.find(&id)?;
            Ok::<_, Problem>(v1::DescribeResponse {
                file: Some((&content.record()?).into()),
                name: content.name(),
                complete: content.availability().have.is_full(),
                peer_id: shared.peer_id.to_bytes(),
            })
        });
        Ok(Response::new(answer.await??))
    }

    async fn get_piece_hashes(
        &self,
        _: Request<v1::GetPieceHashesRequest>,
    ) -> Result<Response<Self::GetPieceHashesStream>, Status> {
        Err(Problem::new(Reason::Internal, "lists of piece hashes are answered by `ByHand`").into())
    }

    async fn watch_availability(
        &self,
        request: Request<v1::WatchAvailabilityRequest>,
    ) -> Result<Response<Self::WatchAvailabilityStream>, Status> {
        let id = convert::file_id(&request.get_ref().file_id, "file_id")?;
        let permit = acquire_permit(&self.shared.watchers, &request, "watchers")?;
        let events = availability::watch(self.shared.clone(), id, permit).await?;
        Ok(Response::new(IdleTimeoutStream::new(events)))
    }

    async fn report_bad_pieces(
        &self,
        request: Request<v1::ReportBadPiecesRequest>,
    ) -> Result<Response<v1::ReportBadPiecesResponse>, Status> {
        let id = convert::file_id(&request.get_ref().file_id, "file_id")?;
        let pieces = BadPieces {
            id,
            first: request.get_ref().first_piece,
            count: request.get_ref().count.max(1),
        };
        let connection = request.extensions().get::<ConnectionHandle>();
        let source = connection.map_or(ClientAddress::LOCAL, ConnectionHandle::client_address);
        let mut sources = self.shared.sources.iter();
        match sources.all(|content_source| content_source.on_bad_pieces(pieces, source)) {
            true => Ok(Response::new(v1::ReportBadPiecesResponse {})),
            false => {
                let message = "this peer has reports enough to look at: nothing need be done";
                Err(Problem::new(Reason::RateLimited, message)
                    .retry_after(REPORT_AGAIN)
                    .into())
            }
        }
    }

    async fn download(
        &self,
        _: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        Err(Problem::new(Reason::Internal, "downloads are answered by `ByHand`").into())
    }
}
