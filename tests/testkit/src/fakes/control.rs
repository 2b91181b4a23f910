//! A control service that sends scripted states of a transfer, including those that no real peer
//! sends.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use potluck_core::proto::v1::{
    self,
    control_service_server::{ControlService, ControlServiceServer},
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::{Answer, Answers};

/// The scripted answers.
#[derive(Debug, Default, Clone)]
pub struct ControlScript {
    /// The states of every transfer, with the delay before each.
    pub transfer: Vec<(Duration, v1::Transfer)>,
    /// Whether the stream of a transfer stays open after the last state.
    pub hangs: bool,
    /// Number of further pages of transfers, each with the transfer under the next number.
    pub more_transfers: u64,
    /// The shared items.
    pub items: Vec<v1::LibraryItem>,
}

/// A fake control service. Clones share the list of calls.
#[derive(Debug, Clone)]
pub struct FakeControl {
    script: Arc<ControlScript>,
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl FakeControl {
    /// A service with this script.
    pub fn new(script: ControlScript) -> Self {
        Self {
            script: Arc::new(script),
            calls: Arc::default(),
        }
    }

    /// Serves on this Unix socket until the runtime ends. Takes a runtime's context.
    pub fn serve(&self, socket: &Path) {
        let listener = UnixListener::bind(socket).unwrap();
        let server = Server::builder().add_service(ControlServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    }

    /// Number of calls with this name, such as `start` or `pause`.
    pub fn calls(&self, name: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| **call == name).count()
    }

    fn note(&self, call: &'static str) {
        self.calls.lock().unwrap().push(call);
    }

    fn last_state(&self) -> Option<v1::Transfer> {
        let last = self.script.transfer.last();
        last.map(|(_, transfer)| transfer.clone())
    }
}

#[tonic::async_trait]
impl ControlService for FakeControl {
    type ShareStream = Answers<v1::ShareResponse>;
    type StartTransferStream = Answers<v1::StartTransferResponse>;
    type ReadFileStream = Answers<v1::ReadFileResponse>;
    type CheckStream = Answers<v1::CheckResponse>;

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        Ok(Response::new(v1::GetStatusResponse {
            peer_id: vec![9; 32].into(),
            listening: Some(v1::Address {
                host: "192.0.2.9".to_owned(),
                port: 12349,
            }),
            registered: true,
            version: "fake".to_owned(),
            ..Default::default()
        }))
    }

    async fn start_transfer(
        &self,
        _: Request<v1::StartTransferRequest>,
    ) -> Answer<Self::StartTransferStream> {
        self.note("start");
        let states = stream::iter(self.script.transfer.clone()).then(async |(delay, transfer)| {
            tokio::time::sleep(delay).await;
            Ok(v1::StartTransferResponse {
                transfer: Some(transfer),
            })
        });
        Ok(Response::new(match self.script.hangs {
            true => Box::pin(states.chain(stream::pending())),
            false => Box::pin(states),
        }))
    }

    async fn read_file(&self, _: Request<v1::ReadFileRequest>) -> Answer<Self::ReadFileStream> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn pause_transfer(
        &self,
        _: Request<v1::PauseTransferRequest>,
    ) -> Answer<v1::PauseTransferResponse> {
        self.note("pause");
        let transfer = self.last_state();
        Ok(Response::new(v1::PauseTransferResponse { transfer }))
    }

    async fn resume_transfer(
        &self,
        _: Request<v1::ResumeTransferRequest>,
    ) -> Answer<v1::ResumeTransferResponse> {
        self.note("resume");
        let transfer = self.last_state();
        Ok(Response::new(v1::ResumeTransferResponse { transfer }))
    }

    async fn cancel_transfer(
        &self,
        _: Request<v1::CancelTransferRequest>,
    ) -> Answer<v1::CancelTransferResponse> {
        self.note("cancel");
        let transfer = self.last_state();
        Ok(Response::new(v1::CancelTransferResponse { transfer }))
    }

    async fn adjust_transfer(
        &self,
        request: Request<v1::AdjustTransferRequest>,
    ) -> Answer<v1::AdjustTransferResponse> {
        self.note("adjust");
        let request = request.into_inner();
        let transfer = self.last_state().map(|transfer| v1::Transfer {
            max_bytes_per_second: request
                .max_bytes_per_second
                .unwrap_or(transfer.max_bytes_per_second),
            priority: request.priority.unwrap_or(transfer.priority),
            ..transfer
        });
        Ok(Response::new(v1::AdjustTransferResponse { transfer }))
    }

    async fn list_transfers(
        &self,
        request: Request<v1::ListTransfersRequest>,
    ) -> Answer<v1::ListTransfersResponse> {
        let page: u64 = request.into_inner().page_token.parse().unwrap_or_default();
        let transfer = self.last_state().map(|transfer| v1::Transfer {
            transfer_id: transfer.transfer_id + page,
            ..transfer
        });
        let next_page_token = match page < self.script.more_transfers {
            true => (page + 1).to_string(),
            false => String::new(),
        };
        Ok(Response::new(v1::ListTransfersResponse {
            transfers: transfer.into_iter().collect(),
            next_page_token,
        }))
    }

    async fn explain_transfer(
        &self,
        _: Request<v1::ExplainTransferRequest>,
    ) -> Answer<v1::ExplainTransferResponse> {
        Ok(Response::new(v1::ExplainTransferResponse {
            transfer: self.last_state(),
            missing: vec![v1::MissingUnits {
                first: 3,
                count: 4,
                providers: 0,
                in_flight: 0,
            }],
            findings: vec!["no peer has units 3 to 6".to_owned()],
            map: None,
        }))
    }

    async fn list_library(
        &self,
        _: Request<v1::ListLibraryRequest>,
    ) -> Answer<v1::ListLibraryResponse> {
        Ok(Response::new(v1::ListLibraryResponse {
            items: self.script.items.clone(),
            next_page_token: String::new(),
        }))
    }

    /// Reports each path that ends with `damaged` as bad.
    async fn check(&self, request: Request<v1::CheckRequest>) -> Answer<Self::CheckStream> {
        use v1::check_response::Event;
        self.note("check");
        let paths = request.into_inner().paths;
        let bad = paths.iter().filter(|path| path.ends_with("damaged"));
        let bad: Vec<_> = bad
            .map(|path| {
                Event::Bad(v1::BadFile {
                    path: path.clone(),
                    file_id: vec![7; 32].into(),
                    failure: Some(v1::Failure {
                        reason: "VERIFICATION_FAILED".to_owned(),
                        message: "its bytes are not what was hashed".to_owned(),
                    }),
                })
            })
            .collect();
        let summary = Event::Summary(v1::CheckSummary {
            files: paths.len() as u64,
            bytes: 100,
            bad_files: bad.len() as u64,
        });
        let events = bad.into_iter().chain([summary]);
        let events = events.map(|event| Ok(v1::CheckResponse { event: Some(event) }));
        let events: Vec<_> = events.collect();
        Ok(Response::new(Box::pin(stream::iter(events))))
    }

    async fn share(&self, _: Request<v1::ShareRequest>) -> Answer<Self::ShareStream> {
        Err(Status::unimplemented(""))
    }

    async fn await_registration(
        &self,
        _: Request<v1::AwaitRegistrationRequest>,
    ) -> Answer<v1::AwaitRegistrationResponse> {
        Ok(Response::new(v1::AwaitRegistrationResponse::default()))
    }

    async fn unshare(&self, _: Request<v1::UnshareRequest>) -> Answer<v1::UnshareResponse> {
        Err(Status::unimplemented(""))
    }

    async fn get_limits(&self, _: Request<v1::GetLimitsRequest>) -> Answer<v1::GetLimitsResponse> {
        Err(Status::unimplemented(""))
    }

    async fn list_cache(&self, _: Request<v1::ListCacheRequest>) -> Answer<v1::ListCacheResponse> {
        Err(Status::unimplemented(""))
    }

    async fn collect_cache(
        &self,
        _: Request<v1::CollectCacheRequest>,
    ) -> Answer<v1::CollectCacheResponse> {
        Err(Status::unimplemented(""))
    }

    async fn pin_cache(&self, _: Request<v1::PinCacheRequest>) -> Answer<v1::PinCacheResponse> {
        Err(Status::unimplemented(""))
    }

    async fn set_limits(&self, _: Request<v1::SetLimitsRequest>) -> Answer<v1::SetLimitsResponse> {
        Err(Status::unimplemented(""))
    }
}
