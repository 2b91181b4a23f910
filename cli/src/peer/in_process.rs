//! A peer that runs in this process for as long as a command needs it.
//!
//! Its control socket is in a private temporary folder, so that other commands do not mistake it
//! for a daemon.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use potluck_core::{
    Problem, Reason,
    grpc::transport::Endpoint,
    index_client::IndexList,
    network::{credentials::Credentials, own_pki::OwnPki},
};
use potluck_peer::{
    Config, ControlAt, Running,
    locality::Locality,
    options::{DEFAULT_LISTEN, labels_of_environment},
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::peer::home::{CONTROL_SOCKET, default_home};

/// How long the peer may take to stop. An index that does not answer must not delay the shell.
const GRACE: Duration = Duration::from_secs(10);

/// Settings of an in-process peer.
#[derive(Debug, Clone)]
pub(crate) struct InProcessSettings {
    /// The index to register with and to query; `None` for no index.
    pub(crate) index: Option<IndexList>,
    /// The private network; `None` for plaintext.
    pub(crate) network: Option<Credentials>,
    /// The files of a PKI of one's own, instead of a private network.
    pub(crate) own_pki: Option<OwnPki>,
    /// Listen address; `None` for the default port on loopback, or a free port if that one is
    /// taken.
    pub(crate) listen: Option<SocketAddr>,
    /// Whether the peer may listen beyond this machine without encryption.
    pub(crate) plaintext: bool,
    /// Whether to use a temporary home if the default home is unavailable.
    pub(crate) temporary: bool,
}

/// A running peer and the resources that must outlive it.
#[derive(Debug)]
pub(crate) struct InProcessPeer {
    running: Running,
    /// Stops the peer if this value is dropped without a call of `stop`.
    shutdown: DropGuard,
    /// Removed after the peer has stopped.
    home: Option<TempDir>,
    _socket: TempDir,
}

impl InProcessPeer {
    /// Starts in the default home, or in a temporary home if the default one is in use or cannot be
    /// created.
    pub(crate) async fn start(settings: InProcessSettings) -> Result<Self, Problem> {
        match default_home() {
            Ok(home) => match Self::start_in(home, None, &settings).await {
                Err(problem) if settings.temporary && is_fixed_by_another_home(&problem) => {
                    tracing::info!(%problem, "using a temporary home, not the default one");
                }
                done => return done,
            },
            Err(problem) if !settings.temporary => return Err(problem),
            Err(_) => {}
        }
        let home = temporary_folder("potluck-home-")?;
        Self::start_in(home.path().to_owned(), Some(home), &settings).await
    }

    async fn start_in(
        path: PathBuf,
        home: Option<TempDir>,
        settings: &InProcessSettings,
    ) -> Result<Self, Problem> {
        let socket = temporary_folder("potluck-")?;
        let config = Config {
            index: settings.index.clone(),
            network: settings.network.clone(),
            own_pki: settings.own_pki.clone(),
            plaintext: settings.plaintext,
            locality: Locality::new(labels_of_environment()?),
            control: ControlAt::Unix(Some(socket.path().join(CONTROL_SOCKET))),
            ..Config::new(path)
        };
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        let listener = bind(settings.listen).await?;
        let running = potluck_peer::start(listener, config, shutdown.clone()).await?;
        Ok(Self {
            running,
            shutdown: guard,
            home,
            _socket: socket,
        })
    }

    pub(crate) const fn control(&self) -> &Endpoint {
        &self.running.control
    }

    pub(crate) const fn is_temporary(&self) -> bool {
        self.home.is_some()
    }

    /// Stops the peer. Returns when downloads are saved and the lease is released, or after
    /// [`GRACE`].
    pub(crate) async fn stop(self) {
        drop(self.shutdown);
        if tokio::time::timeout(GRACE, self.running.join()).await.is_err() {
            tracing::warn!("the peer did not stop within {GRACE:?}");
        }
    }
}

/// Whether a different home could avoid the problem.
const fn is_fixed_by_another_home(problem: &Problem) -> bool {
    matches!(
        problem.reason,
        Reason::HomeLocked
            | Reason::PermissionDenied
            | Reason::DiskFull
            | Reason::TargetNotWritable
    )
}

/// Listen addresses to try for an in-process peer, in order.
fn candidates(listen: Option<SocketAddr>) -> Vec<SocketAddr> {
    match listen {
        Some(address) => vec![address],
        None => vec![DEFAULT_LISTEN, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)],
    }
}

async fn bind(listen: Option<SocketAddr>) -> Result<TcpListener, Problem> {
    let mut last = None;
    for address in candidates(listen) {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some((address, error)),
        }
    }
    Err(match last {
        Some((address, error)) => Problem::new(
            Reason::AddressInUse,
            format!("cannot listen on {address}: {error}; choose another address with --listen"),
        ),
        None => Problem::new(Reason::Internal, "no address to listen on"),
    })
}

fn temporary_folder(prefix: &str) -> Result<TempDir, Problem> {
    // `tempfile` creates folders with mode 0700.
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir()
        .map_err(|error| {
            Problem::new(
                Reason::PermissionDenied,
                format!(
                    "cannot create a folder in {}: {error}; set TMPDIR to a writable folder",
                    std::env::temp_dir().display()
                ),
            )
        })
}
