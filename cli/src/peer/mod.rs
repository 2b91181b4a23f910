//! Which peer a command talks to: the one named, the one that runs in the default home, or one of the command's own.
//!
//! Invariant: a peer of one's own is stopped, its registrations taken back, before the command ends.

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

/// Names the folder of the peer that commands talk to, as it does for `potluck peer`.
const HOME_VARIABLE: &str = "POTLUCK_PEER_HOME";

/// Holds the token of a control service on TCP.
const TOKEN_VARIABLE: &str = "POTLUCK_PEER_TOKEN";

/// The control socket's name in a home.
const SOCKET: &str = "control.sock";

/// A peer to talk to.
#[derive(Debug)]
pub(crate) struct ConnectedPeer {
    /// Its control service.
    pub(crate) control: ControlClient,
    /// What it said of itself when it was found.
    pub(crate) status: Status,
    own: Option<OwnPeer>,
}

/// What a peer of one's own starts with.
#[derive(Debug, Clone)]
pub(crate) struct OwnSettings {
    /// The index to register with and ask; `None`: none.
    pub(crate) index: Option<Endpoint>,
    /// Where to serve other peers; `None`: the default port of this machine, or any if it is taken.
    pub(crate) listen: Option<SocketAddr>,
    /// Whether a folder for the moment will do where the default home is in use.
    pub(crate) temporary: bool,
}

impl ConnectedPeer {
    /// Whether it lives only as long as the command.
    pub(crate) const fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Whether it forgets what it shares when it ends.
    pub(crate) fn is_temporary(&self) -> bool {
        self.own.as_ref().is_some_and(OwnPeer::is_temporary)
    }

    /// Stops it if it is the command's own.
    pub(crate) async fn close(self) {
        if let Some(own) = self.own {
            own.stop().await;
        }
    }

    /// The peer at `endpoint`.
    ///
    /// # Errors
    /// [`Reason::Unreachable`] and its kin where it does not answer as a peer.
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
            // Its own words would be of a peer or of a call that is not implemented.
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

    /// The daemon in the default home, if one answers.
    ///
    /// # Errors
    /// Where something listens there and does not answer as a peer.
    pub(crate) async fn daemon() -> Result<Option<Self>, Problem> {
        let Ok(home) = default_home() else { return Ok(None) };
        let socket = home.join(SOCKET);
        match tokio::net::UnixStream::connect(&socket).await {
            Ok(_) => Self::at(&Endpoint::Unix(socket), None).await.map(Some),
            // No file, a left-over file, or another user's: nobody to talk to.
            Err(_) => Ok(None),
        }
    }

    /// A peer of the command's own.
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

/// The home that commands and `potluck peer` share unless told otherwise.
///
/// # Errors
/// Where the user has no data directory.
pub(crate) fn default_home() -> Result<PathBuf, Problem> {
    match std::env::var_os(HOME_VARIABLE).filter(|home| !home.is_empty()) {
        Some(home) => Ok(home.into()),
        None => potluck_peer::options::default_home(DEFAULT_LISTEN.port()),
    }
}

/// The control token: from the file named, else from the environment.
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

/// Where a peer of one's own tries to listen, in order.
fn candidates(listen: Option<SocketAddr>) -> Vec<SocketAddr> {
    match listen {
        Some(address) => vec![address],
        None => vec![DEFAULT_LISTEN, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)],
    }
}
