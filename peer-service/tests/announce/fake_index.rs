//! A fake index that follows the protocol and can be made to fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use potluck_core::{
    Problem, Reason, SetDigest,
    model::Registration,
    proto::v1::{self, index_service_server::IndexService},
};
use potluck_peer::announce::set::AnnounceSet;
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) lease: bool,
    pub(crate) files: BTreeMap<Vec<u8>, Registration>,
    pub(crate) quota: Option<usize>,
    pub(crate) bad_names: BTreeSet<String>,
    pub(crate) registers: usize,
    pub(crate) replaces: usize,
    pub(crate) largest: usize,
    pub(crate) fail: Option<Reason>,
    /// Drops the next answer.
    pub(crate) lose: bool,
    /// After the next replacement, forgets everything and puts these registrations into this
    /// announce set.
    pub(crate) forget: Option<(AnnounceSet, Vec<Registration>)>,
    /// The digest to return instead of the real one.
    pub(crate) wrong_digest: Option<[u8; 32]>,
    /// Another peer that uses the same token.
    pub(crate) conflicting_address: Option<v1::Address>,
    pub(crate) renewals: usize,
    /// Instance ids of the peer's runs.
    pub(crate) instances: BTreeSet<Vec<u8>>,
}

impl State {
    fn digest(&self) -> bytes::Bytes {
        match self.wrong_digest {
            Some(digest) => bytes::Bytes::copy_from_slice(&digest),
            None => SetDigest::from_iter(self.files.values()).to_bytes(),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Fake(pub(crate) Arc<Mutex<State>>);

impl Fake {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn checked(&self) -> Result<MutexGuard<'_, State>, Status> {
        let state = self.state();
        match state.fail {
            Some(reason) => Err(Problem::new(reason, "made to fail").into()),
            None => Ok(state),
        }
    }
}

fn lost() -> Status {
    Problem::new(Reason::Unreachable, "nobody hears this").into()
}

fn lease_unknown() -> Status {
    Problem::new(Reason::LeaseUnknown, "no lease").into()
}

#[tonic::async_trait]
impl IndexService for Fake {
    type WatchProvidersStream = Empty<Result<v1::WatchProvidersResponse, Status>>;

    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let request = request.into_inner();
        // A larger batch takes longer: a small batch overtakes a large one.
        tokio::time::sleep(Duration::from_micros(10) * request.files.len() as u32).await;
        let mut state = self.checked()?;
        state.registers += 1;
        state.instances.insert(request.instance.to_vec());
        state.replaces += usize::from(request.replace);
        state.largest = state.largest.max(request.files.len());
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
        state.lease = true;
        let file_count = state.files.len() as u64;
        if let Some((holdings, new)) = state.forget.take_if(|_| request.replace) {
            holdings.put(new);
            *state = State::default();
        }
        if std::mem::take(&mut state.lose) {
            return Err(lost());
        }
        Ok(Response::new(v1::RegisterResponse {
            address: request.address,
            ttl_ms: 300,
            file_count,
            digest: state.digest(),
            conflicting_address: state.conflicting_address.clone(),
            ..Default::default()
        }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        // With a full disk everything fails except renewals.
        let mut state = self.state();
        if let Some(reason) = state.fail.filter(|reason| *reason != Reason::StoreUnavailable) {
            return Err(Problem::new(reason, "made to fail").into());
        }
        state.renewals += 1;
        state.instances.insert(request.into_inner().instance.to_vec());
        if !state.lease {
            return Err(lease_unknown());
        }
        Ok(Response::new(v1::RenewResponse {
            ttl_ms: 300,
            file_count: state.files.len() as u64,
            digest: state.digest(),
            conflicting_address: state.conflicting_address.clone(),
        }))
    }

    async fn unregister(
        &self,
        request: Request<v1::UnregisterRequest>,
    ) -> Result<Response<v1::UnregisterResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.checked()?;
        let before = state.files.len();
        if request.all {
            state.files.clear();
            state.lease = false;
        }
        for id in request.file_ids {
            state.files.remove(&id[..]);
        }
        if std::mem::take(&mut state.lose) {
            return Err(lost());
        }
        let removed = (before - state.files.len()) as u64;
        Ok(Response::new(v1::UnregisterResponse { removed }))
    }

    async fn query(&self, _: Request<v1::QueryRequest>) -> Result<Response<v1::QueryResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn search(&self, _: Request<v1::SearchRequest>) -> Result<Response<v1::SearchResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn watch_providers(
        &self,
        _: Request<v1::WatchProvidersRequest>,
    ) -> Result<Response<Self::WatchProvidersStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_stats(
        &self,
        _: Request<v1::GetStatsRequest>,
    ) -> Result<Response<v1::GetStatsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
