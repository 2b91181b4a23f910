//! A gateway between clients and the stand-in, over loopback.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use potluck_gateway::{GatewayConfig, RegistryConfig, TlsFiles, serve};
use potluck_stand_in::{StandIn, hub::Repository};
use potluck_testkit::{
    content::bytes,
    services::{TestIndex, TestPeer},
};
use reqwest::{Client, Response};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub(crate) const COMMIT: &str = "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff";
pub(crate) const WEIGHTS: &str = "/org/repo/resolve/main/a%20b/model.safetensors";

pub(crate) struct World {
    pub(crate) hub: Arc<StandIn>,
    pub(crate) index: Arc<TestIndex>,
    pub(crate) peer: Arc<TestPeer>,
    pub(crate) dir: TempDir,
    pub(crate) url: String,
    pub(crate) weights: Vec<u8>,
}

impl World {
    /// A gateway to a hub with a repository, which may be gated.
    pub(crate) async fn new(is_gated: bool) -> Self {
        potluck_testkit::log();
        let hub = StandIn::start().await;
        let weights = bytes(3_000_000, 5);
        let mut files = BTreeMap::new();
        files.insert("config.json".to_owned(), b"{\"a\": 1}".to_vec().into());
        files.insert("empty".to_owned(), Vec::new().into());
        files.insert("a b/model.safetensors".to_owned(), weights.clone().into());
        let repository = Repository {
            commit: COMMIT.to_owned(),
            is_gated,
            files,
        };
        hub.shared.hub.put("models", "org/repo", repository);
        let index = Arc::new(TestIndex::in_memory().await);
        Self::with(Arc::new(hub), index, weights, None).await
    }

    /// Another gateway to the same hub, with the same index.
    pub(crate) async fn beside(&self) -> Self {
        let (hub, index) = (Arc::clone(&self.hub), Arc::clone(&self.index));
        Self::with(hub, index, self.weights.clone(), None).await
    }

    /// Another gateway to the same hub, with TLS.
    pub(crate) async fn beside_with_tls(&self, tls: TlsFiles) -> Self {
        let (hub, index) = (Arc::clone(&self.hub), Arc::clone(&self.index));
        Self::with(hub, index, self.weights.clone(), Some(tls)).await
    }

    async fn with(
        hub: Arc<StandIn>,
        index: Arc<TestIndex>,
        weights: Vec<u8>,
        tls: Option<TlsFiles>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let peer = TestPeer::start(&dir.path().join("peer"), Some(&index.endpoint)).await;
        let peer = Arc::new(peer);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let config = GatewayConfig {
            hub: hub.url("").parse().unwrap(),
            registries: vec![RegistryConfig {
                name: "registry.example".to_owned(),
                url: hub.url("").parse().unwrap(),
            }],
            auth_grace: Duration::from_secs(600),
            hosts: Vec::new(),
            tls,
            plaintext: false,
            share_gated: false,
        };
        let served = Arc::clone(&peer);
        tokio::spawn(async move {
            serve(listener, config, &served.running, CancellationToken::new())
                .await
                .unwrap();
        });
        Self {
            hub,
            index,
            peer,
            dir,
            url,
            weights,
        }
    }

    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        self.ask(reqwest::Method::GET, path, headers).await
    }

    pub(crate) async fn ask(
        &self,
        method: reqwest::Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Response {
        let client = client(rustls::RootCertStore::empty());
        let mut request = client.request(method, format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    /// Bytes of weights that the hub sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent_of("/_storage/")
    }

    /// Bytes that the hub sent below this path.
    pub(crate) fn sent_of(&self, path: &str) -> u64 {
        let entries = self.hub.shared.log.entries().into_iter();
        let fitting = entries.filter(|entry| entry.path.starts_with(path));
        fitting.map(|entry| entry.bytes).sum()
    }
}

/// A client that trusts these certificates.
pub(crate) fn client(roots: rustls::RootCertStore) -> Client {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .build()
        .unwrap()
}

/// A header of a response; empty if it is not there.
pub(crate) fn text(response: &Response, name: &str) -> String {
    let value = response.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap()).to_owned()
}
