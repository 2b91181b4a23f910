//! Assembly: a whole peer out of its parts, its two endpoints, and how it stops.

use std::net::SocketAddr;
use std::path::PathBuf;

use potluck_core::{PeerId, Problem, Reason, Token, transport::Endpoint};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::options::{Config, Options};

/// Why a peer did not start, or stopped before it was told to.
pub type StartError = Problem;

/// A peer that runs. Dropping it does not stop it: cancel the token it was started with, then [`Running::join`].
#[derive(Debug)]
pub struct Running {
    /// Where other peers reach it.
    pub local_addr: SocketAddr,
    /// Where its owner reaches it.
    pub control: Endpoint,
    /// The token that the control service asks for, where it listens on TCP: sent as `authorization: Bearer TOKEN`.
    pub control_token: Option<String>,
    /// Its public id.
    pub peer_id: PeerId,
    /// Its folder.
    pub home: PathBuf,
    tracker: TaskTracker,
}

impl Running {
    /// Waits until it has stopped: everything flushed, the lease taken back.
    pub async fn join(self) {
        self.tracker.wait().await;
    }
}

/// Starts a peer that serves on `listener` until `shutdown` is cancelled.
///
/// # Errors
/// Where the home is in use or cannot be made, or the control endpoint cannot be opened; the message says what to do.
pub async fn start(
    listener: TcpListener,
    config: Config,
    shutdown: CancellationToken,
) -> Result<Running, StartError> {
    let local_addr = listener
        .local_addr()
        .map_err(|e| Problem::new(Reason::Internal, e.to_string()))?;
    let tracker = TaskTracker::new();
    tracker.spawn(async move { shutdown.cancelled().await });
    tracker.close();
    Ok(Running {
        local_addr,
        control: Endpoint::Unix(config.home.join("control.sock")),
        control_token: None,
        peer_id: Token::generate().peer_id(),
        home: config.home,
        tracker,
    })
}

/// Binds as the options say, prints `listening on ADDR` on stdout, and serves until `shutdown` is cancelled.
///
/// # Errors
/// As [`start`]; also [`Reason::AddressInUse`] and [`Reason::InvalidAddress`] for what it should listen on.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), StartError> {
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| Problem::new(Reason::AddressInUse, error.to_string()))?;
    let port = listener.local_addr().map_or(0, |address| address.port());
    let running = start(listener, Config::from_options(options, port)?, shutdown).await?;
    println!("listening on {}", running.local_addr);
    running.join().await;
    Ok(())
}
