//! Implements `IndexService`: parses requests, calls the registry and the committer, builds
//! responses.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{Stream, stream};
use parking_lot::Mutex;
use potluck_core::{
    FileId, PeerId, Problem, Reason, Token,
    grpc::transport::admission::Cost,
    identity::id::IdError,
    model::{ClusterId, ProviderEvent, QueryKey, Registration},
    network::identity::{CertifiedIdentity, Role},
    proto::v1::{self, index_service_server::IndexService, watch_providers_response::Event},
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use crate::{
    address::{self, AddressError, AllowedHost},
    catalog::{self, Listing, ListingCursor, ListingPage, PeerCursor, SearchPage, cost},
    commit::{self, CommitError, Committer},
    grpc::{
        access_layer::{self, caller},
        network_api::bind,
        page_tokens::PageTokens,
        reachability::ReachabilityChecker,
        request::{
            ParsedListPeers, ParsedQuery, ParsedRegister, ParsedRenew, ParsedSearch,
            ParsedUnregister, ParsedWatch, read_token, require_names,
        },
    },
    leases::LeaseHolder,
    network::{
        audit::{AuditEntry, AuditLog, Caller},
        private_network::PrivateNetwork,
    },
    problem::invalid_token,
    rate_limiter::RateLimiter,
    registry::{PeerSummary, Registry},
    search_queue::SearchQueue,
    store::PeerRecord,
    watch::Subscription,
};

/// Files of a request that cost as much as one call.
const FILES_PER_CALL: usize = 100;

/// Peers of a page that cost as much as one call.
const PEERS_PER_CALL: usize = 100;

/// What the page tokens of `ListPeers` belong to.
const LIST_PEERS_QUERY: &str = "peers";

/// Steps of a search or listing that cost as much as one call: about the work of a short answer.
const STEPS_PER_CALL: usize = 4_000;

/// Cost of a call about the server itself, in calls: reflection answers a few bytes with dozens of
/// KiB.
const DIAGNOSTIC_COST: u32 = 10;

/// Bytes of a request or answer that cost as much as one call: the size of a request with 100 files
/// and names of usual length.
const BYTES_PER_CALL: usize = 16 * 1024;

/// Steps of a search per catalog lock: about 0.2 milliseconds.
const SLICE_STEPS: usize = 8_000;

/// Names whose words a busy machine indexes in a second.
const NAMES_PER_SECOND: u32 = 100_000;

/// When to search again while words are indexed: clients try thirty times.
const MIN_WORDS_DELAY: Duration = Duration::from_secs(1);
const MAX_WORDS_DELAY: Duration = Duration::from_secs(10);

/// Steps of a listing that run inline: enough for most names. A longer listing continues in the
/// search queue.
const INLINE_STEPS: usize = 4_000;

/// The state of the service.
#[derive(Debug)]
pub(crate) struct IndexApi {
    /// Catalog, leases and watchers.
    pub(crate) registry: Arc<Registry>,
    /// Makes all changes.
    pub(crate) committer: Committer,
    /// Limits the calls per second of each source.
    pub(crate) rate_limiter: Arc<Mutex<RateLimiter>>,
    /// Runs searches and long listings.
    pub(crate) searches: SearchQueue,
    /// Encodes and checks page tokens.
    pub(crate) page_tokens: PageTokens,
    /// Hosts that peers may register besides their own address.
    pub(crate) allowed_hosts: Vec<AllowedHost>,
    /// Lease duration of a peer that requests none.
    pub(crate) ttl: Duration,
    /// Connects to peers that ask whether they can be reached.
    pub(crate) reachability: ReachabilityChecker,
    /// When the index started.
    pub(crate) started: Instant,
    /// The kind of store, for `GetStats`.
    pub(crate) store_kind: &'static str,
    /// Whether several processes share the store.
    pub(crate) is_store_shared: bool,
    /// The identity of the store.
    pub(crate) cluster_id: ClusterId,
    /// The private network that the index serves, if any.
    pub(crate) network: Option<Arc<PrivateNetwork>>,
    /// Where changes and refusals are recorded.
    pub(crate) audit: AuditLog,
    /// Whether certificates identify peers.
    pub(crate) is_private: bool,
}

impl IndexApi {
    /// Takes calls from the budget of a request's source, and returns the source.
    fn admit<T>(&self, request: &Request<T>, cost: u32) -> Result<Option<IpAddr>, Problem> {
        let source = request.remote_addr().map(|address| address.ip());
        if let Some(source) = source {
            self.rate_limiter.lock().take(source, cost, Instant::now())?;
        }
        Ok(source)
    }

    /// The peer that a call acts as: the one in the certificate in a private network, otherwise the
    /// one with the token.
    fn acting_peer(&self, caller: &Caller, token: Option<Token>) -> Result<PeerId, Problem> {
        if !self.is_private {
            return match token {
                Some(token) => Ok(token.peer_id()),
                None => Err(invalid_token(&IdError::Bytes(0))),
            };
        }
        if token.is_some() {
            let message = "in a private network the certificate identifies the peer: leave the token \
                           empty";
            return Err(Problem::new(Reason::InvalidToken, message).field("token"));
        }
        let peer = caller.identity.as_ref().and_then(|identity| identity.peer);
        peer.ok_or_else(|| {
            Problem::new(
                Reason::Unauthenticated,
                "a member's certificate does not identify a peer: call with the certificate of a peer",
            )
        })
    }

    /// Checks the names of files that a peer registers. Returns the change that binds them in a
    /// private network.
    fn check_names(
        &self,
        caller: &Caller,
        files: &[Registration],
    ) -> Result<Option<commit::CommitRequest>, Problem> {
        if !self.is_private {
            require_names(files)?;
            return Ok(None);
        }
        let Some(at) = files.iter().position(|file| !file.names.is_empty()) else {
            return Ok(None);
        };
        let Some(identity) = &caller.identity else {
            return Ok(None);
        };
        let CertifiedIdentity {
            member,
            peer: Some(peer),
            ..
        } = identity
        else {
            return Ok(None);
        };
        let allowed = access_layer::require(self.network.as_deref(), identity, Role::Publisher);
        if let Err(problem) = allowed {
            let problem = problem.field(format!("files[{at}].names"));
            self.audit.record(
                caller.clone(),
                AuditEntry::Refused {
                    call: "IndexService/Register".to_owned(),
                    reason: problem.reason.word(),
                },
            );
            return Err(problem);
        }
        let named = files.iter().filter(|file| !file.names.is_empty());
        let bindings = named.map(|file| Registration {
            is_complete: true,
            ..file.clone()
        });
        Ok(Some(bind(
            PeerRecord::of_bindings(peer, member),
            bindings.collect(),
        )))
    }

    /// Charges the source for costs beyond the call itself.
    pub(crate) fn charge_cost(&self, source: Option<IpAddr>, cost: Cost) -> Result<(), Problem> {
        let Some(source) = source else { return Ok(()) };
        match cost {
            Cost::Diagnostic => {
                self.rate_limiter
                    .lock()
                    .take(source, DIAGNOSTIC_COST, Instant::now())?
            }
            Cost::Answer(bytes) => charge_calls(&self.rate_limiter, source, bytes / BYTES_PER_CALL),
        }
        Ok(())
    }

    /// A page of the files that a query finds.
    async fn list_files(
        &self,
        source: Option<IpAddr>,
        query: &ParsedQuery,
        after: Option<ListingCursor>,
    ) -> Result<ListingPage, Problem> {
        let key = query.key.clone();
        let mut listing = Listing::new(key, after, query.page_size, query.max_providers);
        let is_done =
            self.registry
                .catalog()
                .advance_listing(&mut listing, INLINE_STEPS, &mut rand::rng());
        if is_done {
            charge_steps(&self.rate_limiter, source, listing.steps());
            return Ok(listing.finish());
        }
        let (registry, limiter) = (Arc::clone(&self.registry), Arc::clone(&self.rate_limiter));
        let finish = move || {
            let rng = &mut rand::rng();
            while !registry.catalog().advance_listing(&mut listing, SLICE_STEPS, rng) {
                std::thread::yield_now();
            }
            charge_steps(&limiter, source, listing.steps());
            listing.finish()
        };
        self.searches.run(source, finish).await
    }

    /// A page of the files that a search finds.
    async fn search_files(
        &self,
        source: Option<IpAddr>,
        mut search: catalog::SearchScan,
    ) -> Result<SearchPage, Problem> {
        let (registry, limiter) = (Arc::clone(&self.registry), Arc::clone(&self.rate_limiter));
        let finish = move || {
            while !registry.catalog().advance_search(&mut search, SLICE_STEPS) {
                std::thread::yield_now();
            }
            charge_steps(&limiter, source, search.steps());
            search.finish()
        };
        self.searches.run(source, finish).await
    }
}

/// Charges the source for finished steps, even if the caller is gone.
fn charge_steps(limiter: &Mutex<RateLimiter>, source: Option<IpAddr>, steps: usize) {
    if let Some(source) = source {
        charge_calls(limiter, source, steps / STEPS_PER_CALL);
    }
}

fn charge_calls(limiter: &Mutex<RateLimiter>, source: IpAddr, calls: usize) {
    if calls > 0 {
        let calls = u32::try_from(calls).unwrap_or(u32::MAX);
        limiter.lock().charge(source, calls, Instant::now());
    }
}

fn lease_unknown() -> Problem {
    Problem::new(
        potluck_core::Reason::LeaseUnknown,
        "the index has no lease for this peer at this address: register all files again",
    )
}

/// The answer to a search while the words of `names` names are not indexed yet.
fn words_not_indexed(names: u32) -> Problem {
    let delay = Duration::from_secs((names / NAMES_PER_SECOND).into());
    Problem::new(
        potluck_core::Reason::Busy,
        "the index has just started and prepares searches: try again in a moment",
    )
    .retry_after(delay.clamp(MIN_WORDS_DELAY, MAX_WORDS_DELAY))
}

/// Cost of a request with this many files and bytes, in calls.
fn call_cost(files: usize, bytes: usize) -> u32 {
    let more = (files / FILES_PER_CALL).max(bytes / BYTES_PER_CALL);
    u32::try_from(more).unwrap_or(u32::MAX).saturating_add(1)
}

fn memory_cost(files: &[Registration]) -> u64 {
    files.iter().map(cost::max_cost).sum()
}

#[tonic::async_trait]
impl IndexService for IndexApi {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let bytes = request.get_ref().encoded_len();
        let source = self.admit(&request, call_cost(request.get_ref().files.len(), bytes))?;
        let caller = caller(request.extensions());
        let ParsedRegister {
            token,
            address,
            files,
            ttl,
            replace,
            instance,
            version,
        } = request.into_inner().try_into()?;
        let bindings = self.check_names(&caller, &files)?;
        let address =
            address::resolve(&address, source, &self.allowed_hosts).map_err(Problem::from)?;
        let (id, issued) = match (self.is_private, token) {
            (false, None) => {
                let token = Token::generate();
                (token.peer_id(), Some(token))
            }
            (_, token) => (self.acting_peer(&caller, token)?, None),
        };
        let ttl = ttl.unwrap_or(self.ttl);
        let peer = PeerRecord {
            id,
            address: address.clone(),
            ttl,
        };
        let file_ids: Vec<_> = files.iter().map(|file| file.file.id.to_bytes()).collect();
        let cost = memory_cost(&files);
        let names = files.iter().map(|file| file.names.len()).sum();
        let change = commit::CommitRequest::Register {
            peer,
            files,
            replace,
            cost,
            instance: instance.to_vec(),
        };
        let registered = self.committer.commit(change, bytes);
        let file_count = match bindings {
            None => registered.await.map_err(Problem::from)?,
            Some(change) => {
                let bound = self.committer.commit(change, bytes);
                let (file_count, _) =
                    futures_util::try_join!(registered, bound).map_err(Problem::from)?;
                file_count
            }
        };
        self.audit.record(
            caller,
            AuditEntry::Registered {
                files: file_ids.len(),
                names,
                replace,
            },
        );
        self.registry.set_version(&id, &version);
        let PeerSummary {
            digest,
            conflicting_address,
            ..
        } = self.registry.summary_of(&id, Instant::now());
        Ok(Response::new(v1::RegisterResponse {
            digest: digest.to_bytes(),
            conflicting_address: conflicting_address.as_ref().map(Into::into),
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

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        let source = self.admit(&request, 1)?;
        let caller = caller(request.extensions());
        let known_revocations = request.get_ref().revocations_number;
        let ParsedRenew {
            token,
            address,
            instance,
            version,
        } = request.into_inner().try_into()?;
        let address = match address::resolve(&address, source, &self.allowed_hosts) {
            Ok(address) => address,
            // The peer then registers again, and that call returns the reason.
            Err(AddressError::Refused { .. } | AddressError::Loopback { .. }) => {
                return Err(lease_unknown().into());
            }
            Err(error) => return Err(Problem::from(error).into()),
        };
        let holder = LeaseHolder {
            address,
            instance: instance.to_vec(),
        };
        let peer = self.acting_peer(&caller, token)?;
        if self.is_store_shared && !*self.committer.store_works().borrow() {
            // The other processes do not learn of a renewal, and let the lease end.
            return Err(Problem::from(CommitError::Store).into());
        }
        let (ttl, summary) = self
            .registry
            .renew(&peer, &holder, Instant::now())
            .ok_or_else(lease_unknown)?;
        self.registry.set_version(&peer, &version);
        Ok(Response::new(v1::RenewResponse {
            ttl_ms: millis(ttl),
            file_count: summary.file_count,
            digest: summary.digest.to_bytes(),
            conflicting_address: summary.conflicting_address.as_ref().map(Into::into),
            store_generation: self.registry.store_generation(),
            revocations: self
                .network
                .as_ref()
                .map(|network| network.revocations_after(known_revocations))
                .unwrap_or_default(),
        }))
    }

    async fn query(
        &self,
        request: Request<v1::QueryRequest>,
    ) -> Result<Response<v1::QueryResponse>, Status> {
        let source = self.admit(&request, 1)?;
        let query: ParsedQuery = request.into_inner().try_into()?;
        let token_query = match &query.key {
            QueryKey::Id(id) => ("id", id.as_bytes().to_vec()),
            QueryKey::IdPrefix(prefix) => ("id prefix", prefix.to_string().into_bytes()),
            QueryKey::Sha256(sum) => ("sha256", sum.0.to_vec()),
            QueryKey::Name(name) => ("name", name.as_bytes().to_vec()),
        };
        let after = self
            .page_tokens
            .position(&token_query, &query.page_token)
            .map_err(Problem::from)?;
        let page = self.list_files(source, &query, after).await?;
        let files = page
            .files
            .into_iter()
            .map(|file| v1::QueryResult {
                file: Some((&file.file).into()),
                provider_count: file.provider_count,
                providers: file.providers.iter().map(Into::into).collect(),
                names: file.names,
            })
            .collect();
        Ok(Response::new(v1::QueryResponse {
            files,
            next_page_token: self.page_tokens.token(&token_query, page.next),
            key: query.key.to_bytes(),
        }))
    }

    async fn search(
        &self,
        request: Request<v1::SearchRequest>,
    ) -> Result<Response<v1::SearchResponse>, Status> {
        let source = self.admit(&request, 1)?;
        let ParsedSearch {
            terms,
            page_size,
            page_token,
        } = request.into_inner().try_into()?;
        let unindexed = self.registry.catalog().unindexed_names();
        if unindexed > 0 && !terms.is_empty() {
            return Err(words_not_indexed(unindexed).into());
        }
        let token_query = ("search", &terms);
        let after = self
            .page_tokens
            .position(&token_query, &page_token)
            .map_err(Problem::from)?;
        let page = self
            .search_files(source, catalog::SearchScan::new(terms.clone(), after, page_size))
            .await?;
        let files = page
            .files
            .into_iter()
            .map(|file| v1::SearchResult {
                file: Some((&file.file).into()),
                names: file.names,
                provider_count: file.provider_count,
            })
            .collect();
        Ok(Response::new(v1::SearchResponse {
            files,
            next_page_token: self.page_tokens.token(&token_query, page.next),
        }))
    }

    async fn unregister(
        &self,
        request: Request<v1::UnregisterRequest>,
    ) -> Result<Response<v1::UnregisterResponse>, Status> {
        let bytes = request.get_ref().encoded_len();
        self.admit(&request, call_cost(request.get_ref().file_ids.len(), bytes))?;
        let caller = caller(request.extensions());
        let ParsedUnregister {
            token,
            files,
            instance,
        } = request.into_inner().try_into()?;
        let peer = self.acting_peer(&caller, token)?;
        if !self.registry.may_hold(&peer, &instance) {
            // A stopping process must not remove the registrations of another live process.
            return match files {
                Some(_) => Err(lease_unknown().into()),
                None => Ok(Response::new(v1::UnregisterResponse { removed: 0 })),
            };
        }
        let all = files.is_none();
        let change = match files {
            Some(files) => commit::CommitRequest::Unregister { peer, files },
            None => commit::CommitRequest::Forget { peer },
        };
        let removed = self
            .committer
            .commit(change, bytes)
            .await
            .map_err(Problem::from)?;
        self.audit
            .record(caller, AuditEntry::Unregistered { files: removed, all });
        Ok(Response::new(v1::UnregisterResponse { removed }))
    }

    type WatchProvidersStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchProvidersResponse, Status>> + Send>>;

    async fn watch_providers(
        &self,
        request: Request<v1::WatchProvidersRequest>,
    ) -> Result<Response<Self::WatchProvidersStream>, Status> {
        let source = self.admit(&request, 1)?;
        let ParsedWatch { file, max_providers } = request.into_inner().try_into()?;
        // Callers without an address count as one source.
        let source = source.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let (subscription, providers, provider_count) = self
            .registry
            .watch(file, source, max_providers)
            .map_err(Problem::from)?;
        let snapshot = v1::ProviderSnapshot {
            providers: providers.iter().map(Into::into).collect(),
            provider_count,
            file_id: file.to_bytes(),
        };
        let first = Ok(v1::WatchProvidersResponse {
            event: Some(Event::Snapshot(snapshot)),
        });
        let events = stream::unfold(Some(subscription), next_event);
        Ok(Response::new(Box::pin(stream::StreamExt::chain(
            stream::iter([first]),
            events,
        ))))
    }

    async fn check_reachability(
        &self,
        request: Request<v1::CheckReachabilityRequest>,
    ) -> Result<Response<v1::CheckReachabilityResponse>, Status> {
        let source = self.admit(&request, 1)?;
        let token = read_token(&request.get_ref().token)?;
        let peer = self.acting_peer(&caller(request.extensions()), token)?;
        let registered = self.registry.catalog().address_of(&peer).cloned();
        let registered = registered.ok_or_else(lease_unknown)?;
        let found = self.reachability.check(peer, &registered, source).await?;
        Ok(Response::new(v1::CheckReachabilityResponse {
            reachability: v1::Reachability::from(found).into(),
        }))
    }

    async fn list_peers(
        &self,
        request: Request<v1::ListPeersRequest>,
    ) -> Result<Response<v1::ListPeersResponse>, Status> {
        let ParsedListPeers {
            page_size,
            page_token,
        } = request.get_ref().clone().into();
        let cost = u32::try_from(page_size / PEERS_PER_CALL).unwrap_or(u32::MAX);
        self.admit(&request, cost.saturating_add(1))?;
        let cursor = self
            .page_tokens
            .position(&LIST_PEERS_QUERY, &page_token)
            .map_err(Problem::from)?
            .unwrap_or(PeerCursor(0));
        let (peers, next) = self.registry.list_peers(cursor, page_size, Instant::now());
        Ok(Response::new(v1::ListPeersResponse {
            peers: peers.iter().map(Into::into).collect(),
            next_page_token: self.page_tokens.token(&LIST_PEERS_QUERY, next),
        }))
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
            watchers: self.registry.watch_hub().count() as u64,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store: self.store_kind.to_owned(),
            cluster_id: self.cluster_id.to_bytes(),
        }))
    }
}

/// The next event of a watcher; after an error the stream ends.
async fn next_event(
    subscription: Option<Subscription>,
) -> Option<(Result<v1::WatchProvidersResponse, Status>, Option<Subscription>)> {
    let mut subscription = subscription?;
    match subscription.next().await {
        Ok(event) => Some((
            Ok(v1::WatchProvidersResponse {
                event: Some(to_message(&subscription.file(), &event)),
            }),
            Some(subscription),
        )),
        Err(end) => Some((Err(Problem::from(end).into()), None)),
    }
}

fn to_message(file: &FileId, event: &ProviderEvent) -> Event {
    match event {
        ProviderEvent::Snapshot(providers) => Event::Snapshot(v1::ProviderSnapshot {
            provider_count: providers.len() as u64,
            providers: providers.iter().map(Into::into).collect(),
            file_id: file.to_bytes(),
        }),
        ProviderEvent::Joined(provider) => Event::Joined(provider.into()),
        ProviderEvent::Left(peer) => Event::Left(peer.to_bytes()),
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
        model::{Address, FileKind, FileRecord},
    };
    use tonic::transport::server::TcpConnectInfo;

    use super::*;
    use crate::{
        limits::Limits,
        registry::RestoredPeers,
        store::{MemoryStore, StoredPeer},
    };

    /// An in-memory service that allows each source `calls` calls per second.
    pub(crate) fn service(restored: RestoredPeers, calls: u32) -> IndexApi {
        let registry = Arc::new(Registry::new(restored, 10, Instant::now()));
        let store = Box::new(MemoryStore::default());
        let (committer, _) =
            Committer::start(store, Arc::clone(&registry), Limits::default()).unwrap();
        IndexApi {
            registry,
            committer,
            rate_limiter: Arc::new(Mutex::new(RateLimiter::new(calls))),
            searches: SearchQueue::new(),
            page_tokens: PageTokens::default(),
            allowed_hosts: Vec::new(),
            ttl: Duration::from_secs(60),
            reachability: ReachabilityChecker::new(true, None),
            started: Instant::now(),
            store_kind: "memory",
            cluster_id: ClusterId::generate(),
            is_store_shared: false,
            network: None,
            audit: AuditLog::disabled(),
            is_private: false,
        }
    }

    /// A peer with files that share one name and one SHA-256.
    fn crowd(files: usize) -> StoredPeer {
        let files = (0..files as u64).map(|n| {
            let root = Root([1; 32]);
            Registration {
                file: FileRecord {
                    id: FileId::derive(n, &root),
                    size: n,
                    root,
                    sha256: Some(potluck_core::Sha256([2; 32])),
                    kind: FileKind::File,
                },
                names: vec!["same".to_owned()],
                is_complete: true,
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

    fn request_from<T>(n: u8, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(TcpConnectInfo {
            local_addr: None,
            remote_addr: Some(SocketAddr::from(([192, 0, 2, n], 1))),
        });
        request
    }

    #[tokio::test]
    async fn a_query_is_charged_for_the_files_that_it_ranks() {
        use v1::query_request::Key;
        let mut restored = RestoredPeers::default();
        restored.add_stored(&crowd(5 * STEPS_PER_CALL));
        let service = service(restored, 1);
        let keys = [
            Key::Name("same".to_owned()),
            Key::Sha256(vec![2; 32].into()),
            Key::Name("another".to_owned()),
        ];
        // The budget admits a burst of five calls.
        for (n, (key, max)) in (1..).zip(keys.into_iter().zip([1, 1, 5])) {
            let mut answered = 0;
            for _ in 0..6 {
                let request = v1::QueryRequest {
                    key: Some(key.clone()),
                    ..Default::default()
                };
                answered += u32::from(service.query(request_from(n, request)).await.is_ok());
            }
            assert_eq!(answered, max, "{key:?}");
        }
    }

    #[test]
    fn a_search_waits_longer_if_more_names_are_not_indexed() {
        let delay = |names| words_not_indexed(names).retry_after.unwrap().as_secs();
        assert_eq!([1, 400_000, u32::MAX].map(delay), [1, 4, 10]);
    }

    #[tokio::test]
    async fn a_search_is_charged_for_the_names_that_it_checks() {
        let mut restored = RestoredPeers::default();
        let mut all = crowd(4_000);
        for (n, file) in all.files.iter_mut().enumerate() {
            file.names = vec![format!("a{n} b{n}")];
        }
        restored.add_stored(&all);
        let service = service(restored, 1);
        // `a` and `b` match too many words for a lookup, and every name matches both. No name
        // matches `c`.
        for (n, (query, max)) in (1..).zip([("a b", 1), ("a c", 5)]) {
            let mut answered = 0;
            for _ in 0..6 {
                let request = v1::SearchRequest {
                    query: query.to_owned(),
                    page_size: 1000,
                    ..Default::default()
                };
                answered += u32::from(service.search(request_from(n, request)).await.is_ok());
            }
            assert_eq!(answered, max, "{query}");
        }
    }
}
