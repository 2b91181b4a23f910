//! A fake index and a fake control service that send scripted answers, including those that the
//! real services never send.

use std::{
    net::Ipv4Addr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use potluck_core::{
    FileId, Root,
    proto::v1::{
        self,
        control_service_server::{ControlService, ControlServiceServer},
        index_service_server::{IndexService, IndexServiceServer},
    },
};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

/// The scripted answers.
#[derive(Debug, Default, Clone)]
pub(crate) struct Script {
    /// The index's answer to every query.
    pub(crate) files: Vec<v1::QueryResult>,
    /// Number of empty search pages before the page with the files.
    pub(crate) empty_pages: usize,
    /// The status messages of a download, with the delay before each.
    pub(crate) transfer: Vec<(Duration, v1::Transfer)>,
    /// Whether the stream of a download stays open after the last message.
    pub(crate) hangs: bool,
    /// Number of further pages of transfers, each with a copy of the last one under the next number.
    pub(crate) more_transfers: u64,
    /// The items in the library.
    pub(crate) items: Vec<v1::LibraryItem>,
}

/// The running fakes; dropping this stops them.
#[derive(Debug)]
pub(crate) struct Fake {
    /// The index's URL.
    pub(crate) index: String,
    /// The control service's address, in the form that `--peer` takes.
    pub(crate) peer: String,
    /// Names of the calls that the control service received.
    calls: Arc<Mutex<Vec<String>>>,
    _stop: DropGuard,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    /// Starts both services, with the control socket in `folder`.
    pub(crate) fn start(folder: &Path, script: Script) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let stop = CancellationToken::new();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let service = Service {
            script: Arc::new(script),
            calls: Arc::clone(&calls),
            stop: stop.clone(),
        };
        let socket = folder.join("fake.sock");
        let address = runtime.block_on(async {
            let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let address = tcp.local_addr().unwrap();
            let unix = UnixListener::bind(&socket).unwrap();
            let index =
                tonic::transport::Server::builder().add_service(IndexServiceServer::new(service.clone()));
            let control = tonic::transport::Server::builder().add_service(ControlServiceServer::new(service));
            tokio::spawn(index.serve_with_incoming(tonic::transport::server::TcpIncoming::from(tcp)));
            tokio::spawn(control.serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(unix)));
            address
        });
        Self {
            index: format!("http://{address}"),
            peer: format!("unix:{}", socket.display()),
            calls,
            _stop: stop.drop_guard(),
            _runtime: runtime,
        }
    }

    /// How many calls with this name the control service received.
    pub(crate) fn calls(&self, name: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| *call == name).count()
    }

    /// Whether the control service received a call with this name.
    pub(crate) fn was_called(&self, name: &str) -> bool {
        self.calls(name) > 0
    }
}

/// A valid file record.
pub(crate) fn record(seed: u8, size: u64) -> v1::FileRecord {
    let root = Root([seed; 32]);
    v1::FileRecord {
        file_id: FileId::derive(size, &root).to_bytes(),
        size,
        root: root.to_bytes(),
        sha256: Vec::new().into(),
        kind: v1::FileKind::File.into(),
    }
}

/// A query result of the index.
pub(crate) fn found(seed: u8, names: &[&str]) -> v1::QueryResult {
    v1::QueryResult {
        file: Some(record(seed, 1000)),
        names: names.iter().map(|&name| name.to_owned()).collect(),
        provider_count: 1,
        providers: vec![v1::Provider {
            peer_id: vec![seed; 32].into(),
            address: Some(address(1)),
            complete: true,
        }],
    }
}

/// An address in 192.0.2.0/24, the documentation network of RFC 5737.
pub(crate) fn address(last: u8) -> v1::Address {
    v1::Address {
        host: format!("192.0.2.{last}"),
        port: 12349,
    }
}

/// A transfer of [`record`]`(seed, 1000)` in this state.
pub(crate) fn transfer(seed: u8, state: v1::TransferState, done: u64) -> v1::Transfer {
    v1::Transfer {
        transfer_id: 7,
        file_id: record(seed, 1000).file_id,
        name: "fake.bin".into(),
        kind: v1::FileKind::File.into(),
        path: "/tmp/fake.bin".into(),
        state: state.into(),
        bytes_done: done,
        bytes_total: 1000,
        priority: 10,
        ..v1::Transfer::default()
    }
}

#[derive(Debug, Clone)]
struct Service {
    script: Arc<Script>,
    calls: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
}

impl Service {
    fn called(&self, name: &str) {
        self.calls.lock().unwrap().push(name.to_owned());
    }

    fn last(&self) -> Option<v1::Transfer> {
        self.script.transfer.last().map(|(_, transfer)| transfer.clone())
    }
}

#[tonic::async_trait]
impl IndexService for Service {
    type WatchProvidersStream = Streamed<v1::WatchProvidersResponse>;

    async fn query(&self, request: Request<v1::QueryRequest>) -> Answer<v1::QueryResponse> {
        use v1::query_request::Key;
        let key = match request.into_inner().key {
            Some(Key::FileId(id)) => id,
            Some(Key::Sha256(sum)) => sum,
            Some(Key::Name(text) | Key::FileIdPrefix(text)) => text.into_bytes().into(),
            None => Default::default(),
        };
        Ok(Response::new(v1::QueryResponse {
            key,
            files: self.script.files.clone(),
            next_page_token: String::new(),
        }))
    }

    async fn search(&self, request: Request<v1::SearchRequest>) -> Answer<v1::SearchResponse> {
        self.called("search");
        let page = request.into_inner().page_token.parse().unwrap_or(0);
        if page < self.script.empty_pages {
            return Ok(Response::new(v1::SearchResponse {
                files: Vec::new(),
                next_page_token: (page + 1).to_string(),
            }));
        }
        let files = self.script.files.iter().map(|found| v1::SearchResult {
            file: found.file.clone(),
            names: found.names.clone(),
            provider_count: found.provider_count,
        });
        Ok(Response::new(v1::SearchResponse {
            files: files.collect(),
            next_page_token: String::new(),
        }))
    }

    async fn get_stats(&self, _: Request<v1::GetStatsRequest>) -> Answer<v1::GetStatsResponse> {
        Ok(Response::new(v1::GetStatsResponse {
            version: "\x1b[2Jfake".into(),
            ..v1::GetStatsResponse::default()
        }))
    }

    async fn register(&self, _: Request<v1::RegisterRequest>) -> Answer<v1::RegisterResponse> {
        Err(Status::unimplemented(""))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Answer<v1::RenewResponse> {
        Err(Status::unimplemented(""))
    }

    async fn unregister(&self, _: Request<v1::UnregisterRequest>) -> Answer<v1::UnregisterResponse> {
        Err(Status::unimplemented(""))
    }

    async fn watch_providers(
        &self,
        _: Request<v1::WatchProvidersRequest>,
    ) -> Answer<Self::WatchProvidersStream> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl ControlService for Service {
    type ShareStream = Streamed<v1::ShareResponse>;
    type StartTransferStream = Streamed<v1::StartTransferResponse>;
    type CheckStream = Streamed<v1::CheckResponse>;

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        Ok(Response::new(v1::GetStatusResponse {
            peer_id: vec![9; 32].into(),
            listening: Some(address(9)),
            registered: true,
            version: "fake".into(),
            ..v1::GetStatusResponse::default()
        }))
    }

    async fn start_transfer(
        &self,
        _: Request<v1::StartTransferRequest>,
    ) -> Answer<Self::StartTransferStream> {
        self.called("start");
        let told = stream::iter(self.script.transfer.clone()).then(|(delay, transfer)| async move {
            tokio::time::sleep(delay).await;
            Ok(v1::StartTransferResponse {
                transfer: Some(transfer),
            })
        });
        Ok(Response::new(match self.script.hangs {
            true => Box::pin(told.chain(stream::pending())),
            false => Box::pin(told),
        }))
    }

    async fn pause_transfer(
        &self,
        _: Request<v1::PauseTransferRequest>,
    ) -> Answer<v1::PauseTransferResponse> {
        self.called("pause");
        Ok(Response::new(v1::PauseTransferResponse {
            transfer: self.last(),
        }))
    }

    async fn resume_transfer(
        &self,
        _: Request<v1::ResumeTransferRequest>,
    ) -> Answer<v1::ResumeTransferResponse> {
        self.called("resume");
        Ok(Response::new(v1::ResumeTransferResponse {
            transfer: self.last(),
        }))
    }

    async fn cancel_transfer(
        &self,
        _: Request<v1::CancelTransferRequest>,
    ) -> Answer<v1::CancelTransferResponse> {
        self.called("cancel");
        Ok(Response::new(v1::CancelTransferResponse {
            transfer: self.last(),
        }))
    }

    async fn adjust_transfer(
        &self,
        request: Request<v1::AdjustTransferRequest>,
    ) -> Answer<v1::AdjustTransferResponse> {
        self.called("adjust");
        let asked = request.into_inner();
        let adjusted = self.last().map(|transfer| v1::Transfer {
            max_bytes_per_second: asked
                .max_bytes_per_second
                .unwrap_or(transfer.max_bytes_per_second),
            priority: asked.priority.unwrap_or(transfer.priority),
            ..transfer
        });
        Ok(Response::new(v1::AdjustTransferResponse { transfer: adjusted }))
    }

    async fn list_transfers(
        &self,
        request: Request<v1::ListTransfersRequest>,
    ) -> Answer<v1::ListTransfersResponse> {
        let page: u64 = request.into_inner().page_token.parse().unwrap_or_default();
        let transfer = self.last().map(|transfer| v1::Transfer {
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
            transfer: self.last(),
            missing: vec![v1::MissingUnits {
                first: 3,
                count: 4,
                providers: 0,
                in_flight: 0,
            }],
            findings: vec!["no peer has units 3 to 6".into()],
        }))
    }

    async fn list_library(&self, _: Request<v1::ListLibraryRequest>) -> Answer<v1::ListLibraryResponse> {
        Ok(Response::new(v1::ListLibraryResponse {
            items: self.script.items.clone(),
            next_page_token: String::new(),
        }))
    }

    async fn check(&self, request: Request<v1::CheckRequest>) -> Answer<Self::CheckStream> {
        use v1::check_response::Event;
        self.called("check");
        let paths = request.into_inner().paths;
        let bad = paths.iter().filter(|path| path.ends_with("damaged"));
        let bad: Vec<_> = bad
            .map(|path| {
                Event::Bad(v1::BadFile {
                    path: path.clone(),
                    file_id: vec![7; 32].into(),
                    failure: Some(v1::Failure {
                        reason: "VERIFICATION_FAILED".into(),
                        message: "its bytes are not what was hashed".into(),
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
        let told = events.map(|event| Ok(v1::CheckResponse { event: Some(event) }));
        Ok(Response::new(Box::pin(stream::iter(told.collect::<Vec<_>>()))))
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

    async fn set_limits(&self, _: Request<v1::SetLimitsRequest>) -> Answer<v1::SetLimitsResponse> {
        let _ = &self.stop;
        Err(Status::unimplemented(""))
    }
}
