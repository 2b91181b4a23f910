//! `IndexService` over gRPC: requests in, the registry and the committer asked, answers out.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{Stream, stream};
use potluck_core::{
    FileId, Problem, Token,
    index_client::{By, Found, Registration, WatchEvent},
    proto::v1::{self, index_service_server::IndexService, watch_response::Event},
    transport::admission::Cost,
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use crate::{
    address::{self, AddressError, AllowedHost},
    catalog::{PAGE_WORK, RankCursor, cost},
    commit::{self, Committer},
    pages::Pages,
    quota::RateLimiter,
    registry::Registry,
    request::{Query, Register, Renew, Search, Unregister, Watch},
    store::PeerRecord,
    watch::Subscription,
};

/// Files of a request that cost a caller as much as one call.
const FILES_A_CALL: usize = 100;

/// What a search costs a caller, in calls: it reads far more than a lookup.
const SEARCH_COST: u32 = 4;

/// What a call about the server itself costs: reflection answers a few bytes with dozens of KiB.
const DIAGNOSTIC_COST: u32 = 10;

/// Bytes of answers that cost a caller as much as one call.
const BYTES_A_CALL: usize = 16 * 1024;

/// Files with one name or claim that a query goes through for what one call costs: as many as a search takes steps for it.
const LISTED_A_CALL: usize = PAGE_WORK / SEARCH_COST as usize;

/// The service's state.
#[derive(Debug)]
pub(crate) struct Service {
    /// What the index knows.
    pub(crate) registry: Arc<Registry>,
    /// Where changes go.
    pub(crate) committer: Committer,
    /// Calls a second of each source.
    pub(crate) limiter: Mutex<RateLimiter>,
    /// Page tokens of this run.
    pub(crate) pages: Pages,
    /// Hosts that peers may register besides their own.
    pub(crate) allowed_hosts: Vec<AllowedHost>,
    /// Lease of a peer that asks for none.
    pub(crate) ttl: Duration,
    /// When the index began.
    pub(crate) started: Instant,
    /// What kind of store there is.
    pub(crate) store: &'static str,
}

impl Service {
    /// Takes calls from the budget of a request's source.
    fn admit<T>(&self, request: &Request<T>, cost: u32) -> Result<Option<IpAddr>, Problem> {
        let source = request.remote_addr().map(|address| address.ip());
        self.charge(source, cost)?;
        Ok(source)
    }

    /// Takes calls from the budget of a source.
    fn charge(&self, source: Option<IpAddr>, cost: u32) -> Result<(), Problem> {
        if let Some(source) = source {
            let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
            limiter.take(source, cost, Instant::now())?;
        }
        Ok(())
    }

    /// Takes what a call costs beside what the call itself is charged.
    pub(crate) fn charge_cost(&self, source: Option<IpAddr>, cost: Cost) -> Result<(), Problem> {
        match cost {
            Cost::Diagnostic => self.charge(source, DIAGNOSTIC_COST),
            Cost::Answer(bytes) => {
                let calls = u32::try_from(bytes / BYTES_A_CALL).unwrap_or(u32::MAX);
                if let Some(source) = source.filter(|_| calls > 0) {
                    let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
                    limiter.spend(source, calls, Instant::now());
                }
                Ok(())
            }
        }
    }

    /// What a query costs beside the call: its answer is chosen from all files with the name or claim.
    fn listing_cost(&self, query: &Query) -> u32 {
        let catalog = self.registry.catalog();
        let files = match &query.by {
            By::Id(_) => 0,
            By::Sha256(sum) => catalog.count_by_sha256(sum),
            By::Name(name) => catalog.count_by_name(name),
        };
        u32::try_from(files / LISTED_A_CALL).unwrap_or(u32::MAX)
    }

    fn ranked(&self, query: &Query) -> Result<(Vec<Found>, String), Problem> {
        let rng = &mut rand::rng();
        let question = match &query.by {
            By::Id(id) => {
                self.pages
                    .position::<RankCursor>(&("id", id), &query.page_token)?;
                let found = self.registry.catalog().by_id(id, query.max_providers, rng);
                return Ok((found.into_iter().collect(), String::new()));
            }
            By::Sha256(sum) => ("sha256", sum.0.to_vec()),
            By::Name(name) => ("name", name.as_bytes().to_vec()),
        };
        let after = self.pages.position(&question, &query.page_token)?;
        let catalog = self.registry.catalog();
        let page = match &query.by {
            By::Sha256(sum) => catalog.by_sha256(sum, after, query.page_size, query.max_providers, rng),
            By::Name(name) => catalog.by_name(name, after, query.page_size, query.max_providers, rng),
            By::Id(_) => return Ok((Vec::new(), String::new())),
        };
        Ok((page.files, self.pages.token(&question, page.next)))
    }
}

fn call_cost(files: usize) -> u32 {
    1 + u32::try_from(files / FILES_A_CALL).unwrap_or(u32::MAX)
}

fn memory_cost(files: &[Registration]) -> u64 {
    files.iter().map(cost::most).sum()
}

#[tonic::async_trait]
impl IndexService for Service {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let source = self.admit(&request, call_cost(request.get_ref().files.len()))?;
        let bytes = request.get_ref().encoded_len();
        let Register {
            token,
            address,
            files,
            ttl,
            replace,
        } = request.into_inner().try_into()?;
        let address = address::resolve(&address, source, &self.allowed_hosts).map_err(Problem::from)?;
        let (token, issued) = match token {
            Some(token) => (token, None),
            None => {
                let token = Token::generate();
                (token.clone(), Some(token))
            }
        };
        let ttl = ttl.unwrap_or(self.ttl);
        let peer = PeerRecord {
            id: token.peer_id(),
            address: address.clone(),
            ttl,
        };
        let file_ids = files.iter().map(|file| file.file.id.to_bytes()).collect();
        let id = peer.id;
        let cost = memory_cost(&files);
        let change = commit::Request::Register {
            peer,
            files,
            replace,
            cost,
        };
        let file_count = self
            .committer
            .commit(change, bytes)
            .await
            .map_err(Problem::from)?;
        Ok(Response::new(v1::RegisterResponse {
            token: issued
                .map(|token| bytes::Bytes::copy_from_slice(token.expose()))
                .unwrap_or_default(),
            peer_id: id.to_bytes(),
            address: Some((&address).into()),
            ttl_ms: millis(ttl),
            file_count,
            file_ids,
        }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let source = self.admit(&request, 1)?;
        let Renew { token, address } = request.into_inner().try_into()?;
        let unknown = || {
            Problem::new(
                potluck_core::Reason::LeaseUnknown,
                "the index has no lease for this peer at this address: register everything again",
            )
        };
        let address = match address::resolve(&address, source, &self.allowed_hosts) {
            Ok(address) => address,
            // Registering again tells the peer why.
            Err(AddressError::Refused { .. }) => return Err(unknown().into()),
            Err(error) => return Err(Problem::from(error).into()),
        };
        let renewed = self
            .registry
            .renew(&token.peer_id(), &address, Instant::now())
            .ok_or_else(unknown)?;
        Ok(Response::new(v1::RenewResponse {
            ttl_ms: millis(renewed.ttl),
            file_count: renewed.file_count,
        }))
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Result<Response<v1::QueryResponse>, Status> {
        let source = self.admit(&request, 1)?;
        let query: Query = request.into_inner().try_into()?;
        self.charge(source, self.listing_cost(&query))?;
        let (found, next_page_token) = self.ranked(&query)?;
        let files = found
            .into_iter()
            .map(|found| v1::QueryResult {
                file: Some((&found.file).into()),
                provider_count: found.provider_count,
                providers: found.providers.iter().map(Into::into).collect(),
                names: found.names,
            })
            .collect();
        Ok(Response::new(v1::QueryResponse {
            files,
            next_page_token,
            by: query.by.to_bytes(),
        }))
    }

    async fn search(
        &self,
        request: Request<v1::SearchRequest>,
    ) -> Result<Response<v1::SearchResponse>, Status> {
        self.admit(&request, SEARCH_COST)?;
        let Search {
            terms,
            page_size,
            page_token,
        } = request.into_inner().try_into()?;
        let question = ("search", &terms);
        let after = self
            .pages
            .position(&question, &page_token)
            .map_err(Problem::from)?;
        let page = self.registry.catalog().search(&terms, after, page_size);
        let files = page
            .files
            .into_iter()
            .map(|found| v1::SearchResult {
                file: Some((&found.file).into()),
                names: found.names,
                provider_count: found.provider_count,
            })
            .collect();
        Ok(Response::new(v1::SearchResponse {
            files,
            next_page_token: self.pages.token(&question, page.next),
        }))
    }

    async fn unregister(
        &self,
        request: Request<v1::UnregisterRequest>,
    ) -> Result<Response<v1::UnregisterResponse>, Status> {
        self.admit(&request, call_cost(request.get_ref().file_ids.len()))?;
        let bytes = request.get_ref().encoded_len();
        let Unregister { token, files } = request.into_inner().try_into()?;
        let peer = token.peer_id();
        let change = match files {
            Some(files) => commit::Request::Unregister { peer, files },
            None => commit::Request::Forget { peer },
        };
        let removed = self
            .committer
            .commit(change, bytes)
            .await
            .map_err(Problem::from)?;
        Ok(Response::new(v1::UnregisterResponse { removed }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let source = self.admit(&request, 1)?;
        let Watch { file, max_providers } = request.into_inner().try_into()?;
        // Callers without an address share one place among sources.
        let source = source.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let (subscription, providers, provider_count) = self
            .registry
            .watch(file, source, max_providers)
            .map_err(Problem::from)?;
        let snapshot = v1::WatchSnapshot {
            providers: providers.iter().map(Into::into).collect(),
            provider_count,
            file_id: file.to_bytes(),
        };
        let first = Ok(v1::WatchResponse {
            event: Some(Event::Snapshot(snapshot)),
        });
        let events = stream::unfold(Some(subscription), next_event);
        Ok(Response::new(Box::pin(stream::StreamExt::chain(
            stream::iter([first]),
            events,
        ))))
    }

    async fn get_stats(
        &self,
        request: Request<v1::GetStatsRequest>,
    ) -> Result<Response<v1::GetStatsResponse>, Status> {
        self.admit(&request, 1)?;
        let catalog = self.registry.catalog();
        Ok(Response::new(v1::GetStatsResponse {
            peers: catalog.peer_count(),
            files: catalog.file_count(),
            registrations: catalog.registration_count(),
            watchers: self.registry.hub().count() as u64,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store: self.store.to_owned(),
        }))
    }
}

/// The next event of a watcher; an error is its last.
async fn next_event(
    subscription: Option<Subscription>,
) -> Option<(Result<v1::WatchResponse, Status>, Option<Subscription>)> {
    let mut subscription = subscription?;
    match subscription.next().await {
        Ok(event) => Some((
            Ok(v1::WatchResponse {
                event: Some(to_wire(&subscription.file(), event)),
            }),
            Some(subscription),
        )),
        Err(ended) => Some((Err(Problem::from(ended).into()), None)),
    }
}

fn to_wire(file: &FileId, event: WatchEvent) -> Event {
    match event {
        WatchEvent::Snapshot(providers) => Event::Snapshot(v1::WatchSnapshot {
            provider_count: providers.len() as u64,
            providers: providers.iter().map(Into::into).collect(),
            file_id: file.to_bytes(),
        }),
        WatchEvent::Joined(provider) => Event::Joined((&provider).into()),
        WatchEvent::Left(peer) => Event::Left(peer.to_bytes()),
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use potluck_core::{
        PeerId, Root,
        index_client::{Address, FileRecord, Kind},
    };
    use tonic::transport::server::TcpConnectInfo;

    use super::*;
    use crate::{
        quota::Limits,
        registry::Restored,
        store::{MemoryStore, StoredPeer},
    };

    /// A service that keeps nothing, and lets each source make this many calls a second.
    pub(crate) fn service(restored: Restored, calls: u32) -> Service {
        let registry = Arc::new(Registry::new(restored, 10, Instant::now()));
        let store = Box::new(MemoryStore::default());
        let (committer, _) = Committer::start(store, Arc::clone(&registry), Limits::default()).unwrap();
        Service {
            registry,
            committer,
            limiter: Mutex::new(RateLimiter::new(calls)),
            pages: Pages::default(),
            allowed_hosts: Vec::new(),
            ttl: Duration::from_secs(60),
            started: Instant::now(),
            store: "memory",
        }
    }

    /// A peer with files of one name and one claim.
    fn crowd(files: usize) -> StoredPeer {
        let files = (0..files as u64).map(|n| {
            let root = Root([1; 32]);
            Registration {
                file: FileRecord {
                    id: FileId::derive(n, &root),
                    size: n,
                    root,
                    sha256: Some(potluck_core::Sha256([2; 32])),
                    kind: Kind::File,
                },
                names: vec!["same".to_owned()],
                partial: false,
            }
        });
        let address = Address {
            host: "192.0.2.1".to_owned(),
            port: 1,
        };
        StoredPeer {
            record: PeerRecord {
                id: PeerId([1; 32]),
                address,
                ttl: Duration::from_secs(60),
            },
            files: files.collect(),
        }
    }

    #[tokio::test]
    async fn a_query_costs_by_how_many_files_it_goes_through() {
        use v1::query_request::By as Asked;
        let mut restored = Restored::default();
        restored.add(crowd(2 * LISTED_A_CALL));
        let service = service(restored, 1);
        let asked = [
            Asked::Name("same".to_owned()),
            Asked::Sha256(vec![2; 32].into()),
            Asked::Name("another".to_owned()),
        ];
        // Five calls may come at once.
        for (n, (by, most)) in (1..).zip(asked.into_iter().zip([1, 1, 5])) {
            let mut answered = 0;
            for _ in 0..6 {
                let mut request = Request::new(v1::QueryRequest {
                    by: Some(by.clone()),
                    ..Default::default()
                });
                request.extensions_mut().insert(TcpConnectInfo {
                    local_addr: None,
                    remote_addr: Some(SocketAddr::from(([192, 0, 2, n], 1))),
                });
                answered += u32::from(service.query(request).await.is_ok());
            }
            assert_eq!(answered, most, "{by:?}");
        }
    }
}
