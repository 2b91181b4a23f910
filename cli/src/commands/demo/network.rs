//! The demo's network: an index and four peers in this process, on free ports, in one temporary
//! folder.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use potluck_core::{Problem, Reason, grpc::transport::Endpoint, index_client::IndexClient};
use potluck_peer::{Config, Running};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::folder::DemoFolder;
use crate::{
    context::PeerHandle, control::ControlClient, error::CommandError, peer::ConnectedPeer,
};

/// Number of peers that share the file.
const SHARERS: usize = 3;

/// How long all services together may take to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Running services, and the temporary folder that is removed with them.
#[derive(Debug)]
pub(crate) struct DemoNetwork {
    index: Endpoint,
    index_task: JoinHandle<Result<(), potluck_index::ServeError>>,
    peers: Vec<Running>,
    sharers: Vec<ControlClient>,
    downloader: PeerHandle,
    shutdown: CancellationToken,
    folder: DemoFolder,
}

impl DemoNetwork {
    /// Starts the index and the peers in `folder`.
    pub(crate) async fn start(folder: DemoFolder) -> Result<Self, CommandError> {
        let shutdown = CancellationToken::new();
        let (listener, address) = listen().await?;
        let index: Endpoint = format!("http://{address}").parse()?;
        let index_config = potluck_index::Config {
            store: potluck_index::StoreConfig::Sled(folder.path().join("index")),
            ..potluck_index::Config::default()
        };
        // If a later step fails, the guard cancels the services that already run.
        let guard = shutdown.clone().drop_guard();
        let index_task =
            tokio::spawn(potluck_index::serve(listener, index_config, shutdown.clone()));
        let mut peers = Vec::new();
        let mut sharers = Vec::new();
        for number in 1..=SHARERS + 1 {
            let (listener, _) = listen().await?;
            let config = Config {
                index: Some(index.clone().into()),
                ..Config::new(folder.path().join(format!("peer-{number}")))
            };
            let running = potluck_peer::start(listener, config, shutdown.clone()).await?;
            sharers.push(ControlClient::connect(&running.control, None).await?);
            peers.push(running);
        }
        let downloader =
            PeerHandle::from(ConnectedPeer::connect(&peers[SHARERS].control, None).await?);
        sharers.truncate(SHARERS);
        let shutdown = guard.disarm();
        Ok(Self {
            index,
            index_task,
            peers,
            sharers,
            downloader,
            shutdown,
            folder,
        })
    }

    /// The temporary folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder that the download goes to.
    pub(crate) fn download_folder(&self) -> PathBuf {
        self.peers[SHARERS].home.join("files")
    }

    /// A client of the index.
    pub(crate) fn index_client(&self) -> IndexClient {
        IndexClient::new(self.index.clone())
    }

    /// The peers that share.
    pub(crate) fn sharers(&self) -> impl Iterator<Item = &ControlClient> {
        self.sharers.iter()
    }

    /// The peer that downloads.
    pub(crate) const fn downloader(&self) -> &PeerHandle {
        &self.downloader
    }

    /// Stops all services and removes the folder.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        let all = async {
            for peer in self.peers {
                peer.join().await;
            }
            // Ignore the result: a failure of the index would have shown in the peers.
            let _ = self.index_task.await;
        };
        if tokio::time::timeout(GRACE, all).await.is_err() {
            tracing::warn!("the demo's services did not stop within {GRACE:?}");
        }
        let path = self.folder.path().to_owned();
        if let Err(error) = self.folder.remove() {
            tracing::warn!(%error, path = %path.display(), "cannot remove the demo's folder");
        }
    }
}

async fn listen() -> Result<(TcpListener, SocketAddr), Problem> {
    let failed = |error: std::io::Error| {
        Problem::new(
            Reason::AddressInUse,
            format!("cannot listen on this machine's loopback address: {error}"),
        )
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}
