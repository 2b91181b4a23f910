//! Fixtures: a real index and real peers on loopback, in this process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod damage;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use potluck_core::{
    FileId,
    grpc::transport::Endpoint,
    index_client::IndexClient,
    model::{Address, QueryKey},
    proto::v1::{self, control_service_client::ControlServiceClient},
};
use potluck_peer::{Config, Running, start};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Channel;

/// Maximum time for any step before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An index that runs until it is dropped or stopped.
pub(crate) struct Index {
    pub(crate) endpoint: Endpoint,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) client: IndexClient,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Index {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener).await
    }

    pub(crate) async fn serve(listener: TcpListener) -> Self {
        Self::with_store(listener, potluck_index::StoreConfig::Memory).await
    }

    pub(crate) async fn with_store(listener: TcpListener, store: potluck_index::StoreConfig) -> Self {
        let address = listener.local_addr().unwrap();
        let endpoint: Endpoint = address.to_string().parse().unwrap();
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let config = potluck_index::Config {
            store,
            ..Default::default()
        };
        let token = stop.clone();
        tracker.spawn(async move { potluck_index::serve(listener, config, token).await.unwrap() });
        tracker.close();
        Self {
            client: IndexClient::new(endpoint.clone()),
            endpoint,
            address,
            stop,
            tracker,
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tracker.wait().await;
    }
}

/// A peer with its own home folder.
pub(crate) struct Peer {
    pub(crate) running: Running,
    pub(crate) control: ControlServiceClient<Channel>,
    pub(crate) address: Address,
    stop: CancellationToken,
}

impl Peer {
    pub(crate) async fn start(home: &Path, index: Option<&Endpoint>) -> Self {
        Self::with(Config {
            index: index.cloned(),
            ..Config::new(home)
        })
        .await
    }

    pub(crate) async fn with(config: Config) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), config).await
    }

    pub(crate) async fn on(listener: TcpListener, config: Config) -> Self {
        let stop = CancellationToken::new();
        let running = start(listener, config, stop.clone()).await.unwrap();
        let control = ControlServiceClient::new(running.control.connect().await.unwrap());
        let address = running.local_addr.into();
        Self {
            running,
            control,
            address,
            stop,
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.running.join())
            .await
            .expect("the peer stops");
    }

    /// Limits its uploads to this many bytes per second; 0 means no limit.
    pub(crate) async fn limit_upload(&self, bytes: u64) {
        let limits = v1::Limits {
            upload_bytes_per_second: Some(bytes),
            ..Default::default()
        };
        let request = v1::SetLimitsRequest { limits: Some(limits) };
        self.control.clone().set_limits(request).await.unwrap();
    }

    /// Shares a path; returns its id.
    pub(crate) async fn share(&self, path: &Path) -> FileId {
        let request = v1::ShareRequest {
            paths: vec![path.to_str().unwrap().to_owned()],
        };
        let mut events = self.control.clone().share(request).await.unwrap().into_inner();
        while let Some(event) = events.message().await.unwrap() {
            match event.event.unwrap() {
                v1::share_response::Event::Shared(item) => {
                    return FileId::try_from(item.file.unwrap().file_id.as_ref()).unwrap();
                }
                v1::share_response::Event::Failed(failed) => panic!("not shared: {failed:?}"),
                v1::share_response::Event::Progress(_) => {}
            }
        }
        panic!("share ended without a result");
    }

    /// Fetches to the end; returns the last state.
    pub(crate) async fn fetch(&self, request: v1::StartTransferRequest) -> v1::Transfer {
        let follow = async {
            let mut events = self
                .control
                .clone()
                .start_transfer(request)
                .await
                .unwrap()
                .into_inner();
            let mut last = None;
            while let Some(event) = events.message().await.unwrap() {
                last = event.transfer;
            }
            last.expect("a fetch tells how it stands")
        };
        match tokio::time::timeout(PATIENCE, follow).await {
            Ok(last) => last,
            Err(_) => {
                let transfers = self
                    .control
                    .clone()
                    .list_transfers(v1::ListTransfersRequest::default())
                    .await;
                panic!("the fetch hangs: {transfers:#?}");
            }
        }
    }
}

/// A request to fetch this file to this path.
pub(crate) fn wish(id: FileId, target: &Path) -> v1::StartTransferRequest {
    v1::StartTransferRequest {
        file_id: id.to_bytes(),
        target: target.to_str().unwrap().to_owned(),
        ..Default::default()
    }
}

/// Asserts that a transfer is done.
#[track_caller]
pub(crate) fn assert_done(transfer: &v1::Transfer) {
    assert_eq!(transfer.state(), v1::TransferState::Done, "{transfer:#?}");
}

/// Asserts that a transfer failed; returns the reason.
#[track_caller]
pub(crate) fn failure(transfer: &v1::Transfer) -> String {
    assert_eq!(transfer.state(), v1::TransferState::Failed, "{transfer:#?}");
    transfer.error.clone().unwrap().reason
}

/// Pseudo-random bytes, determined by the seed.
pub(crate) fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&next().to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Writes a file; returns its path.
pub(crate) fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Waits until `condition` holds.
pub(crate) async fn wait_until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited in vain until {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the index knows this many providers of a file.
pub(crate) async fn wait_for_providers(index: &Index, id: FileId, count: u64) {
    wait_until(&format!("{count} providers are known"), || async {
        let page = index.client.query(&QueryKey::Id(id), 10, None).await.unwrap();
        page.files
            .first()
            .is_some_and(|found| found.provider_count >= count)
    })
    .await;
}

/// Enables logging for debugging: `POTLUCK_LOG=debug cargo test …`.
pub(crate) fn log() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("POTLUCK_LOG") {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_test_writer()
            .try_init();
    }
}
