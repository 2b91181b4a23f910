//! A real index.

use std::net::SocketAddr;

use potluck_core::{
    FileId,
    grpc::transport::Endpoint,
    index_client::IndexClient,
    model::{IndexedFile, Lease, QueryKey, Registration},
    network::tls::TlsContext,
    proto::v1::index_service_client::IndexServiceClient,
};
use potluck_index::{Config, ServeError, StoreConfig, serve};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{
    network::endpoint_at,
    records::{own_address, token},
    wait::{in_time, wait_until},
};

/// An index that runs until it is stopped or the runtime ends.
#[derive(Debug)]
pub struct TestIndex {
    /// Its address.
    pub address: SocketAddr,
    /// Its address for clients.
    pub endpoint: Endpoint,
    /// A client of it.
    pub client: IndexClient,
    /// Begins its shutdown.
    pub shutdown: CancellationToken,
    served: JoinHandle<Result<(), ServeError>>,
}

impl TestIndex {
    /// An index with this configuration.
    pub async fn start(config: Config) -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), config)
    }

    /// An index that keeps everything in memory.
    pub async fn in_memory() -> Self {
        Self::start(Config::default()).await
    }

    /// An index with TLS that keeps everything in memory.
    pub async fn secured(tls: TlsContext) -> Self {
        Self::start(Config {
            tls: Some(tls),
            ..Config::default()
        })
        .await
    }

    /// An index that stores into this folder.
    pub fn in_folder(listener: TcpListener, folder: &std::path::Path) -> Self {
        let store = StoreConfig::Sled(folder.to_owned());
        let config = Config {
            store,
            ..Config::default()
        };
        Self::serve(listener, config)
    }

    /// An index on this listener.
    pub fn serve(listener: TcpListener, config: Config) -> Self {
        let address = listener.local_addr().unwrap();
        let endpoint = endpoint_at(address);
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(serve(listener, config, shutdown.clone()));
        Self {
            address,
            client: IndexClient::new(endpoint.clone()),
            endpoint,
            shutdown,
            served,
        }
    }

    /// Another client, with a connection of its own.
    pub fn new_client(&self) -> IndexClient {
        IndexClient::new(self.endpoint.clone())
    }

    /// The generated client, which sends whatever it is given.
    pub async fn raw_client(&self) -> IndexServiceClient<Channel> {
        IndexServiceClient::new(self.endpoint.connect().await.unwrap())
    }

    /// Registers files of peer `n`, which listens on port `n`, in addition to its earlier ones.
    pub async fn register(&self, n: u8, files: &[Registration]) -> Lease {
        let (token, address) = (token(n), own_address(n.into()));
        let registered = self.client.register(&token, &address, files, None, false);
        registered.await.unwrap()
    }

    /// The file with this id and up to ten of its providers, if any peer has registered it.
    pub async fn query(&self, id: FileId) -> Option<IndexedFile> {
        let page = self.client.query(&QueryKey::Id(id), 10, None).await.unwrap();
        page.files.into_iter().next()
    }

    /// Number of providers of a file.
    pub async fn provider_count(&self, id: FileId) -> u64 {
        self.query(id).await.map_or(0, |found| found.provider_count)
    }

    /// Waits until the index knows at least this many providers of a file.
    pub async fn wait_for_providers(&self, id: FileId, count: u64) {
        wait_until(&format!("{count} providers are registered"), async || {
            self.provider_count(id).await >= count
        })
        .await;
    }

    /// Stops the index and waits until it has ended.
    pub async fn stop(self) {
        self.shutdown.cancel();
        let served = in_time("the index ends", self.served).await;
        served.unwrap().unwrap();
    }
}
