//! The peer that a command uses: the one given by `--peer`, the daemon in the default home, or a
//! peer in this process.
//!
//! Invariant: an in-process peer unregisters and stops before the command ends.

mod lock_owner;
mod own;

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use potluck_core::{Problem, Reason, grpc::transport::Endpoint};
use potluck_peer::options::DEFAULT_LISTEN;

pub(crate) use self::lock_owner::LockOwner;
use self::own::OwnPeer;
use crate::control::{ControlClient, model::Status};

/// Environment variable for the peer's home, shared with `potluck peer`.
const HOME_VARIABLE: &str = "POTLUCK_PEER_HOME";

/// Environment variable for the token of a control service on TCP.
const TOKEN_VARIABLE: &str = "POTLUCK_PEER_TOKEN";

/// File name of the control socket in a home.
const SOCKET: &str = "control.sock";

/// A peer with an open control connection.
#[derive(Debug)]
pub(crate) struct ConnectedPeer {
    /// The control service.
    pub(crate) control: ControlClient,
    /// The status that the peer reported when it was connected.
    pub(crate) status: Status,
    own: Option<OwnPeer>,
}

/// Settings of an in-process peer.
#[derive(Debug, Clone)]
pub(crate) struct OwnSettings {
    /// The index to register with and to query; `None` for no index.
    pub(crate) index: Option<Endpoint>,
    /// Listen address; `None` for the default port on loopback, or a free port if that one is
    /// taken.
    pub(crate) listen: Option<SocketAddr>,
    /// Whether to use a temporary home if the default home is unavailable.
    pub(crate) temporary: bool,
}

impl ConnectedPeer {
    /// Whether the peer runs in this process.
    pub(crate) const fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Whether the peer's home is temporary: its library is lost when it stops.
    pub(crate) fn is_temporary(&self) -> bool {
        self.own.as_ref().is_some_and(OwnPeer::is_temporary)
    }

    /// Stops the peer if it runs in this process.
    pub(crate) async fn close(self) {
        if let Some(own) = self.own {
            own.stop().await;
        }
    }

    /// Connects to the peer at `endpoint`.
    ///
    /// # Errors
    /// [`Reason::Unreachable`] if nothing answers; [`Reason::NotPotluck`] if the answer does not
    /// come from a control service; [`Reason::Unauthenticated`] if the token is missing or wrong.
    pub(crate) async fn at(endpoint: &Endpoint, token_file: Option<&PathBuf>) -> Result<Self, Problem> {
        let control = ControlClient::connect(endpoint, token(token_file)?.as_deref())
            .await
            .map_err(|problem| Problem {
                message: format!("no peer to talk to: {}", problem.message),
                ..problem
            })?;
        let status = control.status().await.map_err(|problem| match problem.reason {
            Reason::Unauthenticated => Problem::new(
                problem.reason,
                format!(
                    "the peer at {endpoint} asks for its control token: give --peer-token-file FILE, or {TOKEN_VARIABLE} \
                     (the token is in state/control-token in the peer's home)"
                ),
            ),
            // The original message would mention an unimplemented call.
            Reason::NotPotluck => Problem::new(
                problem.reason,
                format!(
                    "what answers at {endpoint} is not a peer's control service: give --peer unix:HOME/{SOCKET}, HOME being the \
                     peer's home; `potluck status` shows where it is"
                ),
            ),
            _ => problem,
        })?;
        Ok(Self {
            control,
            status,
            own: None,
        })
    }

    /// Connects to the daemon in the default home, if one listens there.
    ///
    /// # Errors
    /// As [`Self::at`], if something listens there and does not answer as a peer.
    pub(crate) async fn daemon() -> Result<Option<Self>, Problem> {
        let Ok(home) = default_home() else { return Ok(None) };
        let socket = home.join(SOCKET);
        match tokio::net::UnixStream::connect(&socket).await {
            Ok(_) => Self::at(&Endpoint::Unix(socket), None).await.map(Some),
            // The socket is absent, stale, or owned by another user.
            Err(_) => Ok(None),
        }
    }

    /// Starts a peer in this process.
    ///
    /// # Errors
    /// As [`potluck_peer::start`].
    pub(crate) async fn own(settings: OwnSettings) -> Result<Self, Problem> {
        let own = OwnPeer::start(settings).await?;
        let control = ControlClient::connect(own.control(), None).await?;
        let status = control.status().await?;
        Ok(Self {
            control,
            status,
            own: Some(own),
        })
    }
}

/// The home that commands and `potluck peer` share by default.
///
/// # Errors
/// If the user has no data directory.
pub(crate) fn default_home() -> Result<PathBuf, Problem> {
    match std::env::var_os(HOME_VARIABLE).filter(|home| !home.is_empty()) {
        Some(home) => Ok(home.into()),
        None => potluck_peer::options::default_home(DEFAULT_LISTEN.port()),
    }
}

/// The control token: from the given file, or else from the environment.
fn token(file: Option<&PathBuf>) -> Result<Option<String>, Problem> {
    match file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                let reason = match error.kind() {
                    ErrorKind::NotFound => Reason::NotFound,
                    ErrorKind::PermissionDenied => Reason::PermissionDenied,
                    _ => Reason::InvalidArgument,
                };
                Problem::new(
                    reason,
                    format!("cannot read the control token from {}: {error}", path.display()),
                )
            })?;
            Ok(Some(text.trim().to_owned()))
        }
        None => Ok(std::env::var(TOKEN_VARIABLE)
            .ok()
            .filter(|token| !token.is_empty())),
    }
}

/// Listen addresses to try for an in-process peer, in order.
fn candidates(listen: Option<SocketAddr>) -> Vec<SocketAddr> {
    match listen {
        Some(address) => vec![address],
        None => vec![DEFAULT_LISTEN, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)],
    }
}
