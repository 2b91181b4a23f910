//! Client of the index: domain types in and out, and a deadline for every call.

use std::{sync::Arc, time::Duration};

use crate::{
    FileId, Problem, Reason, SetDigest, Token,
    grpc::{
        counting_codec::CountingCodec,
        transport::{self, Endpoint},
    },
    index_client::{
        index_list::IndexList, indexes::Indexes, limits::INSTANCE, responses::CountedResponse,
    },
    model::{
        Address, FilePage, IndexStats, Lease, PeerPage, ProviderEvent, QueryKey, Reachability,
        Registration,
    },
    process::traces::TracedChannel,
    proto::v1::{self, index_service_client::IndexServiceClient},
};
use futures_util::{Stream, StreamExt as _};
use http::uri::PathAndQuery;
use tonic::{Status, client::Grpc};

/// Maximum response size in bytes: about twice the largest page.
const MAX_RESPONSE: usize = 2 * 1024 * 1024;

/// Paths of the calls (gRPC over HTTP/2, "Path").
const REGISTER: &str = "/potluck.v1.IndexService/Register";
const QUERY: &str = "/potluck.v1.IndexService/Query";
const SEARCH: &str = "/potluck.v1.IndexService/Search";
const LIST_PEERS: &str = "/potluck.v1.IndexService/ListPeers";
const WATCH: &str = "/potluck.v1.IndexService/WatchProviders";

/// The version that this program's peers report.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Valid lease durations in ms, as the contract defines them. Outside this range a peer would
/// renew without pause, or never.
const TTL_MS: std::ops::RangeInclusive<u32> = 1_000..=3_600_000;

fn lease_ttl(ms: u32) -> Duration {
    Duration::from_millis(ms.clamp(*TTL_MS.start(), *TTL_MS.end()).into())
}

/// The token as a field of a request: empty in a network, where the certificate identifies the peer.
fn token_bytes(token: Option<&Token>) -> bytes::Bytes {
    token.map_or_else(bytes::Bytes::new, |token| {
        bytes::Bytes::copy_from_slice(token.expose())
    })
}

/// An invalid digest counts as absent, which costs no extra work.
fn digest(bytes: &[u8]) -> Option<SetDigest> {
    SetDigest::try_from(bytes).ok()
}

/// A client of one index, or of several that share a store. Connects on first use and again after a
/// failure; if there are several indexes, then to the next. Cheap to clone.
#[derive(Debug, Clone)]
pub struct IndexClient {
    indexes: Arc<Indexes>,
    instance: bytes::Bytes,
}

fn service(channel: TracedChannel) -> IndexServiceClient<TracedChannel> {
    IndexServiceClient::new(channel)
        .max_decoding_message_size(MAX_RESPONSE)
        .max_encoding_message_size(transport::MAX_MESSAGE)
}

/// Client for calls whose responses contain lists. The codec counts these before decoding.
async fn grpc(channel: TracedChannel) -> Result<Grpc<TracedChannel>, Status> {
    let mut grpc = Grpc::new(channel)
        .max_decoding_message_size(MAX_RESPONSE)
        .max_encoding_message_size(transport::MAX_MESSAGE);
    let ready = grpc.ready().await;
    ready.map_err(|error| Status::unknown(format!("the channel is not ready: {error}")))?;
    Ok(grpc)
}

impl IndexClient {
    /// A client of these indexes. Connects on the first call.
    pub fn new(indexes: impl Into<IndexList>) -> Self {
        Self::with_local_address(indexes, None)
    }

    /// A client whose connections use `from` as their local address, if that address can reach the
    /// index.
    pub fn with_local_address(
        indexes: impl Into<IndexList>,
        from: Option<std::net::IpAddr>,
    ) -> Self {
        Self {
            indexes: Arc::new(Indexes::new(indexes.into(), from)),
            instance: bytes::Bytes::new(),
        }
    }

    /// Identifies the caller's leases as those of one run of a peer, by random bytes drawn at its
    /// start.
    #[must_use]
    pub fn with_instance(mut self, instance: [u8; INSTANCE]) -> Self {
        self.instance = bytes::Bytes::copy_from_slice(&instance);
        self
    }

    /// The indexes that it may use.
    pub fn list(&self) -> &IndexList {
        self.indexes.list()
    }

    /// The endpoint of the index in use.
    pub fn endpoint(&self) -> &Endpoint {
        self.indexes.endpoint()
    }

    pub(super) async fn call<T, F>(&self, call: impl Fn(TracedChannel) -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        self.indexes.call(call).await
    }

    async fn unary<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Problem>
    where
        Q: prost::Message + Clone + 'static,
        A: CountedResponse,
    {
        self.call(|channel| {
            let request = tonic::Request::new(request.clone());
            async move {
                let codec = CountingCodec::<Q, A>::new(A::check_counts);
                let path = PathAndQuery::from_static(path);
                grpc(channel).await?.unary(request, path, codec).await
            }
        })
        .await
    }

    /// Registers at most [`MAX_BATCH`](crate::index_client::MAX_BATCH) files, and opens or renews
    /// the lease. With `replace`, the index forgets earlier registrations.
    ///
    /// # Errors
    /// Those of `IndexService.Register`. [`crate::Reason::Unreachable`] or
    /// [`crate::Reason::TimedOut`] if the index does not answer.
    pub async fn register<'a>(
        &self,
        token: impl Into<Option<&'a Token>>,
        address: &Address,
        files: &[Registration],
        ttl: Option<Duration>,
        replace: bool,
    ) -> Result<Lease, Problem> {
        let request = v1::RegisterRequest {
            token: token_bytes(token.into()),
            address: Some(address.into()),
            files: files.iter().map(Into::into).collect(),
            ttl_ms: ttl.map_or(0, |ttl| u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX)),
            replace,
            instance: self.instance.clone(),
            version: VERSION.to_owned(),
        };
        let answer: v1::RegisterResponse = self.unary(REGISTER, request).await?;
        Ok(Lease {
            ttl: lease_ttl(answer.ttl_ms),
            file_count: answer.file_count,
            address: answer.address.map(TryInto::try_into).transpose()?,
            digest: digest(&answer.digest),
            conflicting_address: answer
                .conflicting_address
                .and_then(|address| address.try_into().ok()),
            store_generation: 0,
        })
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// [`crate::Reason::LeaseUnknown`] if the index holds no lease; the peer must register all its
    /// files again.
    pub async fn renew(&self, token: &Token, address: &Address) -> Result<Lease, Problem> {
        let (lease, _) = self.renew_lease(Some(token), address, 0).await?;
        Ok(lease)
    }

    /// Renews the lease of a peer in a private network. Returns also the signed list of revocations,
    /// if its number is higher than `revocations_number`; empty otherwise.
    ///
    /// # Errors
    /// Those of [`IndexClient::renew`].
    pub async fn renew_in_network(
        &self,
        address: &Address,
        revocations_number: u64,
    ) -> Result<(Lease, bytes::Bytes), Problem> {
        self.renew_lease(None, address, revocations_number).await
    }

    async fn renew_lease(
        &self,
        token: Option<&Token>,
        address: &Address,
        revocations_number: u64,
    ) -> Result<(Lease, bytes::Bytes), Problem> {
        let request = v1::RenewRequest {
            token: token_bytes(token),
            address: Some(address.into()),
            instance: self.instance.clone(),
            revocations_number,
            version: VERSION.to_owned(),
        };
        let answer = self
            .call(|channel| {
                let request = request.clone();
                async move { service(channel).renew(request).await }
            })
            .await?;
        let lease = Lease {
            ttl: lease_ttl(answer.ttl_ms),
            file_count: answer.file_count,
            address: None,
            digest: digest(&answer.digest),
            conflicting_address: answer
                .conflicting_address
                .and_then(|address| address.try_into().ok()),
            store_generation: answer.store_generation,
        };
        Ok((lease, answer.revocations))
    }

    /// Removes registrations, or with `None` all registrations and the lease. Returns the number
    /// of files removed.
    ///
    /// # Errors
    /// Those of `IndexService.Unregister`.
    pub async fn unregister<'a>(
        &self,
        token: impl Into<Option<&'a Token>>,
        files: Option<&[FileId]>,
    ) -> Result<u64, Problem> {
        let request = v1::UnregisterRequest {
            token: token_bytes(token.into()),
            file_ids: files.unwrap_or_default().iter().map(|id| id.to_bytes()).collect(),
            all: files.is_none(),
            instance: self.instance.clone(),
        };
        let answer = self
            .call(|channel| {
                let request = request.clone();
                async move { service(channel).unregister(request).await }
            })
            .await?;
        Ok(answer.removed)
    }

    /// Lets the index connect to the caller at its registered address.
    ///
    /// # Errors
    /// Those of `IndexService.CheckReachability`. [`Reason::NotPotluck`] if the index is too old to
    /// know the call.
    pub async fn check_reachability<'a>(
        &self,
        token: impl Into<Option<&'a Token>>,
    ) -> Result<Reachability, Problem> {
        let request = v1::CheckReachabilityRequest {
            token: token_bytes(token.into()),
        };
        let answer = self
            .call(|channel| {
                let request = request.clone();
                async move { service(channel).check_reachability(request).await }
            })
            .await?;
        Ok(Reachability::from_message(answer.reachability()).unwrap_or(Reachability::NotChecked))
    }

    /// Finds files by an exact key, with their providers.
    ///
    /// # Errors
    /// Those of `IndexService.Query`. [`Reason::Unreachable`] if the response is for another key.
    pub async fn query(
        &self,
        key: &QueryKey,
        max_providers: u32,
        page: Option<String>,
    ) -> Result<FilePage, Problem> {
        let request = v1::QueryRequest {
            key: Some(match key {
                QueryKey::Id(id) => v1::query_request::Key::FileId(id.to_bytes()),
                QueryKey::IdPrefix(prefix) => {
                    v1::query_request::Key::FileIdPrefix(prefix.to_string())
                }
                QueryKey::Sha256(sha256) => v1::query_request::Key::Sha256(sha256.to_bytes()),
                QueryKey::Name(name) => v1::query_request::Key::Name(name.clone()),
            }),
            max_providers,
            page_size: 0,
            page_token: page.unwrap_or_default(),
        };
        let mut answer: v1::QueryResponse = self.unary(QUERY, request.clone()).await?;
        if answer.key != key.to_bytes() {
            // The response is for another key: the network damaged the request. Try once more.
            answer = self.unary(QUERY, request).await?;
        }
        if answer.key != key.to_bytes() {
            return Err(Problem::new(
                Reason::Unreachable,
                format!("the index at {} answered a different query", self.endpoint()),
            ));
        }
        Ok(FilePage {
            files: answer
                .files
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            next: Some(answer.next_page_token).filter(|token| !token.is_empty()),
        })
    }

    /// Finds files whose names contain all words of `query`.
    ///
    /// # Errors
    /// Those of `IndexService.Search`.
    pub async fn search(
        &self,
        query: &str,
        page_size: u32,
        page: Option<String>,
    ) -> Result<FilePage, Problem> {
        let request = v1::SearchRequest {
            query: query.to_owned(),
            page_size,
            page_token: page.unwrap_or_default(),
        };
        let answer: v1::SearchResponse = self.unary(SEARCH, request).await?;
        Ok(FilePage {
            files: answer
                .files
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            next: Some(answer.next_page_token).filter(|token| !token.is_empty()),
        })
    }

    /// Lists peers with a lease, from the first one or the page with this token.
    ///
    /// # Errors
    /// Those of `IndexService.ListPeers`; [`Reason::NotPotluck`] if the index is too old to know the
    /// call.
    pub async fn list_peers(
        &self,
        page_size: u32,
        page: Option<String>,
    ) -> Result<PeerPage, Problem> {
        let request = v1::ListPeersRequest {
            page_size,
            page_token: page.unwrap_or_default(),
        };
        let answer: v1::ListPeersResponse = self.unary(LIST_PEERS, request).await?;
        Ok(PeerPage {
            peers: answer
                .peers
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            next: Some(answer.next_page_token).filter(|token| !token.is_empty()),
        })
    }

    /// Streams changes to a file's providers. Ends with an error if the connection to the index is
    /// lost.
    ///
    /// # Errors
    /// Those of `IndexService.WatchProviders`, returned directly or as the last item of the
    /// stream.
    pub async fn watch_providers(
        &self,
        file: FileId,
        max_providers: u32,
    ) -> Result<impl Stream<Item = Result<ProviderEvent, Problem>> + Send + use<>, Problem> {
        let request = v1::WatchProvidersRequest {
            file_id: file.to_bytes(),
            max_providers,
        };
        let stream = self
            .call(|channel| {
                let request = tonic::Request::new(request.clone());
                async move {
                    let check = v1::WatchProvidersResponse::check_counts;
                    let codec = CountingCodec::<
                        v1::WatchProvidersRequest,
                        v1::WatchProvidersResponse,
                    >::new(check);
                    let path = PathAndQuery::from_static(WATCH);
                    let mut grpc = grpc(channel).await?;
                    grpc.server_streaming(request, path, codec).await
                }
            })
            .await?;
        let endpoint = self.endpoint().clone();
        Ok(stream.enumerate().map(move |(place, event)| {
            let event = event.map_err(|status| endpoint.problem(status, "index"))?;
            // The network may have damaged the request: providers of another file must not count
            // for this one.
            let is_ours = match &event.event {
                Some(v1::watch_providers_response::Event::Snapshot(snapshot)) => {
                    snapshot.file_id == file.to_bytes()
                }
                _ => place > 0,
            };
            match is_ours {
                true => event.try_into(),
                false => Err(Problem::new(
                    Reason::Unreachable,
                    format!("the index at {endpoint} answered for a different file"),
                )),
            }
        }))
    }

    /// Statistics of the index.
    ///
    /// # Errors
    /// [`Reason::Unreachable`] or [`Reason::TimedOut`] if the index does not answer.
    pub async fn stats(&self) -> Result<IndexStats, Problem> {
        let stats = async |channel| service(channel).get_stats(v1::GetStatsRequest {}).await;
        let answer = self.call(stats).await?;
        Ok(answer.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_duration_is_in_the_valid_range() {
        assert_eq!(lease_ttl(0), Duration::from_secs(1));
        assert_eq!(lease_ttl(60_000), Duration::from_secs(60));
        assert_eq!(lease_ttl(u32::MAX), Duration::from_secs(3600));
    }
}
