//! A real peer.

use std::path::Path;

use potluck_core::{
    FileId, grpc::transport::Endpoint, model::Address, network::own_pki::OwnPki, proto::v1,
};
use potluck_peer::{Config, Running, start};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{control::Control, wait::in_time};

/// A peer with a home of its own, which runs until it is stopped or the runtime ends.
#[derive(Debug)]
pub struct TestPeer {
    /// The running service.
    pub running: Running,
    /// Its owner's calls.
    pub control: Control,
    /// Its address for other peers; port 0 if it only downloads.
    pub address: Address,
    shutdown: CancellationToken,
}

impl TestPeer {
    /// A peer with this home and index.
    pub async fn start(home: &Path, index: Option<&Endpoint>) -> Self {
        Self::with_config(Config {
            index: index.cloned().map(Into::into),
            ..Config::new(home)
        })
        .await
    }

    /// A peer with this home and the certificate of a PKI of one's own.
    pub async fn in_own_pki(home: &Path, files: OwnPki) -> Self {
        Self::with_config(Config {
            own_pki: Some(files),
            ..Config::new(home)
        })
        .await
    }

    /// A peer with this configuration.
    pub async fn with_config(config: Config) -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), config).await
    }

    /// A peer on this listener.
    pub async fn serve(listener: impl Into<Option<TcpListener>>, config: Config) -> Self {
        let shutdown = CancellationToken::new();
        let running = start(listener, config, shutdown.clone()).await.unwrap();
        Self {
            control: Control::connect(&running.control).await,
            address: running
                .local_addr
                .unwrap_or_else(|| ([0, 0, 0, 0], 0).into())
                .into(),
            running,
            shutdown,
        }
    }

    /// Shares a path; returns its id.
    pub async fn share(&self, path: &Path) -> FileId {
        self.control.share(path).await
    }

    /// Runs a transfer to its end; returns its last state.
    pub async fn download(&self, request: v1::StartTransferRequest) -> v1::Transfer {
        self.control.download(request).await
    }

    /// Stops the peer and waits until it has ended.
    pub async fn stop(self) {
        self.shutdown.cancel();
        in_time("the peer ends", self.running.join()).await;
    }
}
