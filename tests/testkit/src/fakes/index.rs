//! An index that keeps what one peer registers, answers queries with a list, and can be made to
//! fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use potluck_core::{
    Problem, Reason, SetDigest,
    grpc::transport,
    model::{Reachability, Registration},
    proto::v1::{
        self,
        index_service_server::{IndexService, IndexServiceServer},
    },
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::{Empty, wrappers::TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::Answer;

/// Duration of its leases, in ms: short, so that renewals come soon.
const TTL_MS: u32 = 300;

/// A fake index. Clones share their state.
#[derive(Debug, Clone, Default)]
pub struct FakeIndex(Arc<Mutex<FakeIndexState>>);

/// What the index has, how it fails, and what it was asked.
#[derive(Debug, Default)]
pub struct FakeIndexState {
    /// Whether the peer has a lease.
    pub has_lease: bool,
    /// The peer's registrations by file id.
    pub files: BTreeMap<Vec<u8>, Registration>,
    /// Maximum number of files.
    pub quota: Option<usize>,
    /// Names that are refused.
    pub bad_names: BTreeSet<String>,
    /// Fails every call with this reason. With [`Reason::StoreUnavailable`], renewals succeed.
    pub failure: Option<Reason>,
    /// Carries out the next change and loses its answer.
    pub loses_next_answer: bool,
    /// Runs once after the next registration that replaces everything; then everything is lost.
    pub forgets_after_replace: Option<Hook>,
    /// The digest to return instead of the real one.
    pub wrong_digest: Option<[u8; 32]>,
    /// Another peer that uses the same token.
    pub conflicting_address: Option<v1::Address>,

    /// The answer to a check of reachability; `None` for an index that does not know the call.
    pub reachability: Option<Reachability>,

    /// The answer to every query and search.
    pub query_results: Vec<v1::QueryResult>,
    /// Number of empty search pages before the page with the files.
    pub empty_pages: usize,
    /// Its version.
    pub version: String,

    /// Number of registrations, whether they succeeded or not.
    pub register_calls: usize,
    /// Number of registrations that replace everything.
    pub replace_calls: usize,
    /// Files in the largest registration.
    pub largest_batch: usize,
    /// Number of renewals, whether they succeeded or not.
    pub renew_calls: usize,
    /// Number of checks of reachability.
    pub reachability_checks: usize,
    /// Number of searches, one per page.
    pub search_calls: usize,
    /// Instance ids of the peer's runs.
    pub instances: BTreeSet<Vec<u8>>,
}

/// An action of the test in the middle of a call.
pub struct Hook(pub Box<dyn FnOnce() + Send>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

impl FakeIndexState {
    /// An index with these registrations from an earlier run of the peer.
    pub fn with_files(files: &[Registration]) -> Self {
        let files = files.iter().map(|one| (one.file.id.0.to_vec(), one.clone()));
        Self {
            has_lease: true,
            files: files.collect(),
            ..Self::default()
        }
    }

    fn digest(&self) -> Bytes {
        match self.wrong_digest {
            Some(digest) => Bytes::copy_from_slice(&digest),
            None => SetDigest::from_iter(self.files.values()).to_bytes(),
        }
    }
}

impl FakeIndex {
    /// An index in this state.
    pub fn new(state: FakeIndexState) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    /// Its state.
    pub fn state(&self) -> MutexGuard<'_, FakeIndexState> {
        self.0.lock().unwrap()
    }

    /// Serves on this address until the token is cancelled; returns the address and the task.
    pub async fn serve(
        &self,
        address: SocketAddr,
        stop: CancellationToken,
    ) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let service =
            IndexServiceServer::new(self.clone()).max_decoding_message_size(transport::MAX_MESSAGE);
        let server = transport::server().add_service(service);
        let served = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let served = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
            served.await.unwrap();
        });
        (address, served)
    }

    fn checked(&self) -> Result<MutexGuard<'_, FakeIndexState>, Status> {
        let state = self.state();
        match state.failure {
            Some(reason) => Err(Problem::new(reason, "made to fail").into()),
            None => Ok(state),
        }
    }
}

fn lost() -> Status {
    Problem::new(Reason::Unreachable, "the answer is lost").into()
}

#[tonic::async_trait]
impl IndexService for FakeIndex {
    type WatchProvidersStream = Empty<Result<v1::WatchProvidersResponse, Status>>;

    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Answer<v1::RegisterResponse> {
        let request = request.into_inner();
        // A larger batch takes longer: a small batch overtakes a large one.
        tokio::time::sleep(Duration::from_micros(10) * request.files.len() as u32).await;
        let mut state = self.checked()?;
        state.register_calls += 1;
        state.instances.insert(request.instance.to_vec());
        state.replace_calls += usize::from(request.replace);
        state.largest_batch = state.largest_batch.max(request.files.len());
        let mut files = if request.replace {
            BTreeMap::new()
        } else {
            state.files.clone()
        };
        for file in &request.files {
            if file.names.iter().any(|name| state.bad_names.contains(name)) {
                return Err(Problem::new(Reason::InvalidName, "bad name").into());
            }
            let record = file.file.clone().unwrap();
            let registration = Registration {
                file: record.clone().try_into().unwrap(),
                names: file.names.clone(),
                is_complete: file.complete.unwrap_or(true),
            };
            files.insert(record.file_id.to_vec(), registration);
        }
        if state.quota.is_some_and(|quota| files.len() > quota) {
            return Err(Problem::new(Reason::QuotaExceeded, "too many files").into());
        }
        state.files = files;
        state.has_lease = true;
        let file_count = state.files.len() as u64;
        if let Some(Hook(run)) = state.forgets_after_replace.take_if(|_| request.replace) {
            run();
            *state = FakeIndexState::default();
        }
        if std::mem::take(&mut state.loses_next_answer) {
            return Err(lost());
        }
        Ok(Response::new(v1::RegisterResponse {
            address: request.address,
            ttl_ms: TTL_MS,
            file_count,
            digest: state.digest(),
            conflicting_address: state.conflicting_address.clone(),
            ..Default::default()
        }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Answer<v1::RenewResponse> {
        // With a full disk everything fails except renewals.
        let mut state = self.state();
        state.renew_calls += 1;
        let failure = state.failure.filter(|reason| *reason != Reason::StoreUnavailable);
        if let Some(reason) = failure {
            return Err(Problem::new(reason, "made to fail").into());
        }
        state.instances.insert(request.into_inner().instance.to_vec());
        if !state.has_lease {
            return Err(Problem::new(Reason::LeaseUnknown, "no lease").into());
        }
        Ok(Response::new(v1::RenewResponse {
            ttl_ms: TTL_MS,
            file_count: state.files.len() as u64,
            digest: state.digest(),
            conflicting_address: state.conflicting_address.clone(),
            ..Default::default()
        }))
    }

    async fn unregister(
        &self,
        request: Request<v1::UnregisterRequest>,
    ) -> Answer<v1::UnregisterResponse> {
        let request = request.into_inner();
        let mut state = self.checked()?;
        let before = state.files.len();
        if request.all {
            state.files.clear();
            state.has_lease = false;
        }
        for id in request.file_ids {
            state.files.remove(&id[..]);
        }
        if std::mem::take(&mut state.loses_next_answer) {
            return Err(lost());
        }
        let removed = (before - state.files.len()) as u64;
        Ok(Response::new(v1::UnregisterResponse { removed }))
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Answer<v1::QueryResponse> {
        use v1::query_request::Key;
        let key = match request.into_inner().key {
            Some(Key::FileId(id)) => id,
            Some(Key::Sha256(sum)) => sum,
            Some(Key::Name(text) | Key::FileIdPrefix(text)) => text.into_bytes().into(),
            None => Bytes::new(),
        };
        Ok(Response::new(v1::QueryResponse {
            key,
            files: self.checked()?.query_results.clone(),
            next_page_token: String::new(),
        }))
    }

    async fn search(&self, request: Request<v1::SearchRequest>) -> Answer<v1::SearchResponse> {
        let mut state = self.checked()?;
        state.search_calls += 1;
        let page = request.into_inner().page_token.parse().unwrap_or(0);
        if page < state.empty_pages {
            return Ok(Response::new(v1::SearchResponse {
                files: Vec::new(),
                next_page_token: (page + 1).to_string(),
            }));
        }
        let files = state.query_results.iter().map(|found| v1::SearchResult {
            file: found.file.clone(),
            names: found.names.clone(),
            provider_count: found.provider_count,
        });
        Ok(Response::new(v1::SearchResponse {
            files: files.collect(),
            next_page_token: String::new(),
        }))
    }

    async fn check_reachability(
        &self,
        _: Request<v1::CheckReachabilityRequest>,
    ) -> Answer<v1::CheckReachabilityResponse> {
        let mut state = self.checked()?;
        state.reachability_checks += 1;
        match state.reachability {
            Some(found) => Ok(Response::new(v1::CheckReachabilityResponse {
                reachability: v1::Reachability::from(found).into(),
            })),
            None => Err(Status::unimplemented("")),
        }
    }

    async fn list_peers(&self, _: Request<v1::ListPeersRequest>) -> Answer<v1::ListPeersResponse> {
        Ok(Response::new(v1::ListPeersResponse::default()))
    }

    async fn get_stats(&self, _: Request<v1::GetStatsRequest>) -> Answer<v1::GetStatsResponse> {
        Ok(Response::new(v1::GetStatsResponse {
            version: self.checked()?.version.clone(),
            ..Default::default()
        }))
    }

    async fn watch_providers(
        &self,
        _: Request<v1::WatchProvidersRequest>,
    ) -> Answer<Self::WatchProvidersStream> {
        Err(Status::unimplemented(""))
    }
}
