//! The handlers of PeerService's calls.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use potluck_core::{
    PeerId, Problem, Reason, convert,
    grpc::limiter::{ClientAddress, LimitError},
    model::LabelValue,
    proto::v1::{self, peer_service_server::PeerService},
};
use tonic::{Request, Response, Status};

use crate::{
    content::ContentSource,
    fs::blocking::blocking,
    limits::Limits,
    locality::Locality,
    upload::{
        crowd::availability,
        data::upload_stream,
        grpc::{idle_timeout::IdleTimeoutStream, wire},
        piece_hashes,
        refusal::{busy, too_many_reports},
        scheduling::{STALL_BEFORE_EVICTION, scheduler::ConnectionHandle},
        shared::{UploadCounters, UploadShared},
    },
};

/// The service that other peers call. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PeerApi {
    shared: Arc<UploadShared>,
}

impl PeerApi {
    /// Serves the content of `sources`; earlier sources take precedence.
    pub fn new(
        sources: Vec<Arc<dyn ContentSource>>,
        peer_id: PeerId,
        limits: Limits,
        counters: Arc<UploadCounters>,
        locality: Locality,
    ) -> Self {
        Self {
            shared: Arc::new(UploadShared::new(sources, peer_id, limits, counters, locality)),
        }
    }

    /// Answers a `Download` with encoded messages for this connection.
    pub(crate) async fn download(
        &self,
        request: v1::DownloadRequest,
        connection: ConnectionHandle,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<>, Problem> {
        let zone = LabelValue::parse(&request.zone);
        let same_zone = self.shared.locality.compare(zone.as_ref());
        let ranges = wire::parse_download(request)?;
        let slot = self.shared.limits.try_upload(connection.client_address());
        let slot = slot.map_err(|limit| {
            if limit == LimitError::Full {
                // The evicted connection frees its slot for others; its peer can reconnect.
                connection.evict_slowest(STALL_BEFORE_EVICTION);
            }
            busy("downloads", limit)
        })?;
        let messages =
            upload_stream::stream(self.shared.clone(), (ranges, same_zone), slot, connection)
                .await?;
        Ok(messages.map(|message| message.map_err(Status::from)))
    }

    /// Answers a `GetPieceHashes` with encoded messages for this connection.
    pub(crate) async fn piece_hashes(
        &self,
        request: v1::GetPieceHashesRequest,
        connection: ConnectionHandle,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<>, Problem> {
        let request = wire::parse_piece_hashes(&request)?;
        let encode = wire::encode_piece_hashes;
        let messages =
            piece_hashes::stream(self.shared.clone(), request, connection, encode).await?;
        Ok(IdleTimeoutStream::new(
            messages.map(|message| message.map_err(Status::from)),
        ))
    }
}

/// The address of the caller.
fn client_address<T>(request: &Request<T>) -> ClientAddress {
    let connection = request.extensions().get::<ConnectionHandle>();
    connection.map_or(ClientAddress::LOCAL, ConnectionHandle::client_address)
}

/// The answer to a call that [`RawGrpcService`](super::raw::RawGrpcService) must answer.
fn answered_elsewhere(call: &str) -> Status {
    Problem::new(Reason::Internal, format!("{call} is answered by RawGrpcService")).into()
}

#[tonic::async_trait]
impl PeerService for PeerApi {
    type GetPieceHashesStream = stream::Empty<Result<v1::GetPieceHashesResponse, Status>>;
    type WatchAvailabilityStream = IdleTimeoutStream<v1::WatchAvailabilityResponse>;
    type DownloadStream = stream::Empty<Result<v1::DownloadResponse, Status>>;

    async fn identify(
        &self,
        _: Request<v1::IdentifyRequest>,
    ) -> Result<Response<v1::IdentifyResponse>, Status> {
        Ok(Response::new(v1::IdentifyResponse {
            peer_id: self.shared.peer_id.to_bytes(),
        }))
    }

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
        Err(answered_elsewhere("GetPieceHashes"))
    }

    async fn watch_availability(
        &self,
        request: Request<v1::WatchAvailabilityRequest>,
    ) -> Result<Response<Self::WatchAvailabilityStream>, Status> {
        let id = convert::file_id(&request.get_ref().file_id, "file_id")?;
        let permit = self.shared.watchers.try_acquire(client_address(&request));
        let permit = permit.map_err(|limit| busy("watchers", limit))?;
        let labels = self.shared.locality.labels();
        let updates = availability::watch(self.shared.clone(), id, permit).await?;
        let messages =
            updates.map(move |update| Ok(wire::availability_message(&id, update?, &labels)));
        Ok(Response::new(IdleTimeoutStream::new(messages)))
    }

    async fn report_bad_pieces(
        &self,
        request: Request<v1::ReportBadPiecesRequest>,
    ) -> Result<Response<v1::ReportBadPiecesResponse>, Status> {
        let pieces = wire::parse_bad_pieces(request.get_ref())?;
        let client = client_address(&request);
        match self
            .shared
            .sources()
            .all(|source| source.on_bad_pieces(pieces, client))
        {
            true => Ok(Response::new(v1::ReportBadPiecesResponse {})),
            false => Err(too_many_reports().into()),
        }
    }

    async fn download(
        &self,
        _: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        Err(answered_elsewhere("Download"))
    }
}
