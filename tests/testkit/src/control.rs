//! The calls of a peer's owner.

use std::path::Path;

use potluck_core::{
    FileId, Problem,
    grpc::transport::Endpoint,
    proto::v1::{self, control_service_client::ControlServiceClient},
};
use tonic::{Streaming, transport::Channel};

use crate::{
    transfer::{TransferEvents, last_state, until},
    wait::DEADLINE,
};

/// A client of one peer's control service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    /// The generated client, for calls that have no method here.
    pub client: ControlServiceClient<Channel>,
}

impl Control {
    /// Connects to this endpoint.
    pub async fn connect(endpoint: &Endpoint) -> Self {
        let client = ControlServiceClient::new(endpoint.connect().await.unwrap());
        Self { client }
    }

    /// Connects to the socket in this peer's home.
    pub async fn in_home(home: &Path) -> Self {
        Self::connect(&Endpoint::Unix(home.join("control.sock"))).await
    }

    /// Begins to share a path. It is hashed only while the events are kept.
    pub async fn begin_share(&self, path: &Path) -> Streaming<v1::ShareResponse> {
        let request = v1::ShareRequest {
            paths: vec![path.to_str().unwrap().to_owned()],
            ..Default::default()
        };
        self.client.clone().share(request).await.unwrap().into_inner()
    }

    /// Begins to share a path and waits for its item only.
    pub async fn shared_item(&self, path: &Path) -> v1::LibraryItem {
        let mut events = self.begin_share(path).await;
        loop {
            let event = events.message().await.unwrap().expect("a share reports a result");
            if let v1::share_response::Event::Shared(item) = event.event.unwrap() {
                return item;
            }
        }
    }

    /// Shares a path; returns the item.
    ///
    /// # Errors
    /// The reason why the path is not shared.
    pub async fn try_share(&self, path: &Path) -> Result<v1::LibraryItem, v1::Failure> {
        let mut events = self.begin_share(path).await;
        let mut result = None;
        while let Some(event) = events.message().await.unwrap() {
            match event.event.unwrap() {
                v1::share_response::Event::Shared(item) => _ = result.get_or_insert(Ok(item)),
                v1::share_response::Event::Failed(failed) => {
                    result = Some(Err(failed.failure.unwrap()))
                }
                v1::share_response::Event::Progress(_) | v1::share_response::Event::Omitted(_) => {}
            }
        }
        result.expect("a share reports a result")
    }

    /// Shares a path; returns its id.
    pub async fn share(&self, path: &Path) -> FileId {
        let item = self.try_share(path).await.unwrap();
        FileId::try_from(item.file.unwrap().file_id.as_ref()).unwrap()
    }

    /// Stops sharing an item; returns how many items that was.
    ///
    /// # Errors
    /// The reason why the item is still shared, or shared again after a restart.
    pub async fn try_unshare(&self, target: v1::unshare_request::Target) -> Result<usize, Problem> {
        let request = v1::UnshareRequest { target: Some(target) };
        let answer = self.client.clone().unshare(request).await?;
        Ok(answer.into_inner().removed.len())
    }

    /// Stops sharing the items with this id.
    pub async fn unshare(&self, id: FileId) {
        let target = v1::unshare_request::Target::FileId(id.to_bytes());
        self.try_unshare(target).await.unwrap();
    }

    /// Up to a page of the shared items.
    pub async fn library(&self) -> Vec<v1::LibraryItem> {
        let request = v1::ListLibraryRequest::default();
        let answer = self.client.clone().list_library(request).await.unwrap();
        answer.into_inner().items
    }

    /// Starts a transfer or joins a running one.
    pub async fn start_transfer(&self, request: v1::StartTransferRequest) -> TransferEvents {
        self.client
            .clone()
            .start_transfer(request)
            .await
            .unwrap()
            .into_inner()
    }

    /// Starts a transfer and follows it to the first state that fits.
    pub async fn start_transfer_until(
        &self,
        state_name: &str,
        request: v1::StartTransferRequest,
        fits: impl Fn(&v1::Transfer) -> bool,
    ) -> (TransferEvents, v1::Transfer) {
        let mut events = self.start_transfer(request).await;
        let transfer = until(state_name, &mut events, fits).await;
        (events, transfer)
    }

    /// Runs a transfer to its end; returns its last state.
    pub async fn download(&self, request: v1::StartTransferRequest) -> v1::Transfer {
        let follow = async { last_state(&mut self.start_transfer(request).await).await };
        match tokio::time::timeout(DEADLINE, follow).await {
            Ok(last) => last,
            Err(_) => panic!("the transfer hangs: {:#?}", self.transfers().await),
        }
    }

    /// The transfers, newest first.
    pub async fn transfers(&self) -> Vec<v1::Transfer> {
        let request = v1::ListTransfersRequest::default();
        let answer = self.client.clone().list_transfers(request).await.unwrap();
        answer.into_inner().transfers
    }

    /// The transfer with this number, if it is listed.
    pub async fn transfer(&self, transfer_id: u64) -> Option<v1::Transfer> {
        let mut transfers = self.transfers().await.into_iter();
        transfers.find(|transfer| transfer.transfer_id == transfer_id)
    }

    /// The transfer with this number and why it is in its state.
    pub async fn explain(&self, transfer_id: u64) -> v1::ExplainTransferResponse {
        let target = Some(v1::explain_transfer_request::Target::TransferId(transfer_id));
        let request = v1::ExplainTransferRequest { target };
        let answer = self.client.clone().explain_transfer(request).await.unwrap();
        answer.into_inner()
    }

    /// Pauses a transfer.
    pub async fn pause(&self, transfer_id: u64) {
        let request = v1::PauseTransferRequest { transfer_id };
        self.client.clone().pause_transfer(request).await.unwrap();
    }

    /// Resumes a paused transfer.
    pub async fn resume(&self, transfer_id: u64) {
        let request = v1::ResumeTransferRequest { transfer_id };
        self.client.clone().resume_transfer(request).await.unwrap();
    }

    /// Cancels a transfer; returns its last state.
    pub async fn cancel(&self, transfer_id: u64) -> v1::Transfer {
        let request = v1::CancelTransferRequest { transfer_id };
        let answer = self.client.clone().cancel_transfer(request).await.unwrap();
        answer.into_inner().transfer.unwrap()
    }

    /// Changes the rate limit and the priority of a transfer.
    ///
    /// # Errors
    /// The reason of the refusal.
    pub async fn adjust(
        &self,
        request: v1::AdjustTransferRequest,
    ) -> Result<v1::Transfer, Problem> {
        let answer = self.client.clone().adjust_transfer(request).await?;
        Ok(answer.into_inner().transfer.unwrap())
    }

    /// The peer's state.
    pub async fn status(&self) -> v1::GetStatusResponse {
        let request = v1::GetStatusRequest {};
        self.client
            .clone()
            .get_status(request)
            .await
            .unwrap()
            .into_inner()
    }

    /// The limits in force.
    pub async fn limits(&self) -> v1::Limits {
        let limits = self.client.clone().get_limits(v1::GetLimitsRequest {}).await;
        limits.unwrap().into_inner().limits.unwrap()
    }

    /// Limits all uploads to this many bytes per second; 0 means no limit.
    pub async fn limit_upload(&self, bytes_per_second: u64) {
        self.set_limits(v1::Limits {
            upload_bytes_per_second: Some(bytes_per_second),
            ..Default::default()
        })
        .await;
    }

    /// Limits all downloads to this many bytes per second; 0 means no limit.
    pub async fn limit_download(&self, bytes_per_second: u64) {
        self.set_limits(v1::Limits {
            download_bytes_per_second: Some(bytes_per_second),
            ..Default::default()
        })
        .await;
    }

    async fn set_limits(&self, limits: v1::Limits) {
        let request = v1::SetLimitsRequest { limits: Some(limits) };
        self.client.clone().set_limits(request).await.unwrap();
    }
}
