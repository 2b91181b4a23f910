//! Shared by the end-to-end tests: an index on a free port, clients, and waiting with a deadline.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::{net::SocketAddr, time::Duration};

use potluck_core::{
    FileId, Problem, Root, Sha256, Token,
    grpc::transport::Endpoint,
    index_client::IndexClient,
    model::{Address, FileKind, FileRecord, Registration},
    proto::v1::index_service_client::IndexServiceClient,
};
use potluck_index::{Config, ServeError, serve};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub const DEADLINE: Duration = Duration::from_secs(60);

pub struct TestIndex {
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    pub served: JoinHandle<Result<(), ServeError>>,
}

impl TestIndex {
    pub async fn start(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(serve(listener, config, shutdown.clone()));
        Self {
            address,
            shutdown,
            served,
        }
    }

    pub async fn in_memory() -> Self {
        Self::start(Config::default()).await
    }

    pub fn endpoint(&self) -> Endpoint {
        self.address.to_string().parse().unwrap()
    }

    pub fn client(&self) -> IndexClient {
        IndexClient::new(self.endpoint())
    }

    pub async fn raw(&self) -> IndexServiceClient<Channel> {
        IndexServiceClient::new(self.endpoint().connect().await.unwrap())
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.served)
            .await
            .expect("ends in time")
            .unwrap()
            .unwrap();
    }
}

pub fn here(port: u16) -> Address {
    Address {
        host: String::new(),
        port,
    }
}

pub fn token(n: u8) -> Token {
    Token::try_from([n; 32].as_slice()).unwrap()
}

pub fn record(n: u64) -> FileRecord {
    let mut root = [3; 32];
    root[..8].copy_from_slice(&n.to_le_bytes());
    let root = Root(root);
    FileRecord {
        id: FileId::derive(n + 1, &root),
        size: n + 1,
        root,
        sha256: None,
        kind: FileKind::File,
    }
}

pub fn file(n: u64, name: &str) -> Registration {
    Registration {
        file: record(n),
        names: vec![name.to_owned()],
        is_complete: true,
    }
}

pub fn with_sum(n: u64, name: &str, sum: u8) -> Registration {
    let mut file = file(n, name);
    file.file.sha256 = Some(Sha256([sum; 32]));
    file
}

/// Waits until `condition` holds.
pub async fn wait_until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let began = std::time::Instant::now();
    while !condition().await {
        assert!(began.elapsed() < DEADLINE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn problem<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, tonic::Status>) -> Problem {
    answer.expect_err("should have been refused").into()
}
