//! PeerService: what is open to other peers.

use std::sync::{Arc, atomic::AtomicU64};

use potluck_core::{PeerId, proto::v1};
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use crate::{limits::Limits, offer::Shelf};

/// What the service has done since it started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes handed over to be sent to other peers.
    pub uploaded_bytes: AtomicU64,
}

/// The service that other peers call.
#[derive(Debug, Clone)]
pub struct PeerApi {}

impl PeerApi {
    /// Serves what is on the shelves, the first that has a file before the others.
    pub fn new(
        _shelves: Vec<Arc<dyn Shelf>>,
        _peer_id: PeerId,
        _limits: Limits,
        _counters: Arc<Counters>,
    ) -> Self {
        Self {}
    }
}

#[tonic::async_trait]
impl v1::peer_service_server::PeerService for PeerApi {
    type GetPieceHashesStream = Empty<Result<v1::GetPieceHashesResponse, Status>>;
    type WatchAvailabilityStream = Empty<Result<v1::WatchAvailabilityResponse, Status>>;
    type DownloadStream = Empty<Result<v1::DownloadResponse, Status>>;

    async fn describe(
        &self,
        _request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        Err(Status::unimplemented("not there yet"))
    }

    async fn get_piece_hashes(
        &self,
        _request: Request<v1::GetPieceHashesRequest>,
    ) -> Result<Response<Self::GetPieceHashesStream>, Status> {
        Err(Status::unimplemented("not there yet"))
    }

    async fn watch_availability(
        &self,
        _request: Request<v1::WatchAvailabilityRequest>,
    ) -> Result<Response<Self::WatchAvailabilityStream>, Status> {
        Err(Status::unimplemented("not there yet"))
    }

    async fn download(
        &self,
        _request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        Err(Status::unimplemented("not there yet"))
    }
}
