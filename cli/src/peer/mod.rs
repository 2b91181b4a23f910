//! The peer that a command uses: the one given by `--peer`, the daemon in the default home, or a
//! peer in this process.
//!
//! Invariant: an in-process peer unregisters and stops before the command ends.

mod home;
mod in_process;
mod lock_owner;

use std::{io::ErrorKind, path::PathBuf};

use potluck_core::{Problem, Reason, grpc::transport::Endpoint};

use self::in_process::InProcessPeer;
pub(crate) use self::{
    home::{CONTROL_SOCKET, default_home},
    in_process::InProcessSettings,
    lock_owner::LockOwner,
};
use crate::control::{ControlClient, model::Status};

/// Environment variable for the token of a control service on TCP.
const TOKEN_VARIABLE: &str = "POTLUCK_PEER_TOKEN";

/// A peer with an open control connection.
#[derive(Debug)]
pub(crate) struct ConnectedPeer {
    /// The control service.
    pub(crate) control: ControlClient,
    /// The status that the peer reported when it was connected.
    pub(crate) status: Status,
    in_process: Option<InProcessPeer>,
}

impl ConnectedPeer {
    /// Whether the peer runs in this process.
    pub(crate) const fn is_in_process(&self) -> bool {
        self.in_process.is_some()
    }

    /// Whether the peer's home is temporary: its library is lost when it stops.
    pub(crate) fn is_temporary(&self) -> bool {
        self.in_process.as_ref().is_some_and(InProcessPeer::is_temporary)
    }

    /// Stops the peer if it runs in this process.
    pub(crate) async fn close(self) {
        if let Some(peer) = self.in_process {
            peer.stop().await;
        }
    }

    /// Connects to the peer at `endpoint`.
    ///
    /// # Errors
    /// [`Reason::Unreachable`] if nothing answers; [`Reason::NotPotluck`] if the answer does not
    /// come from a control service; [`Reason::Unauthenticated`] if the token is missing or wrong.
    pub(crate) async fn connect(
        endpoint: &Endpoint,
        token_file: Option<&PathBuf>,
    ) -> Result<Self, Problem> {
        let control = ControlClient::connect(endpoint, token(token_file)?.as_deref())
            .await
            .map_err(|problem| Problem {
                message: format!("cannot connect to the peer: {}", problem.message),
                ..problem
            })?;
        let status = control.status().await.map_err(|problem| match problem.reason {
            Reason::Unauthenticated => Problem::new(
                problem.reason,
                format!(
                    "the peer at {endpoint} requires its control token: give --peer-token-file FILE, \
                     or set {TOKEN_VARIABLE} (the token is in state/control-token in the peer's home)"
                ),
            ),
            // The original message would mention an unimplemented call.
            Reason::NotPotluck => Problem::new(
                problem.reason,
                format!(
                    "the server at {endpoint} is not a peer's control service: give the socket in \
                     the peer's home, --peer unix:HOME/{CONTROL_SOCKET}"
                ),
            ),
            _ => problem,
        })?;
        Ok(Self {
            control,
            status,
            in_process: None,
        })
    }

    /// Connects to the daemon in the default home, if one listens there.
    ///
    /// # Errors
    /// As [`Self::connect`], if something listens there and does not answer as a peer.
    pub(crate) async fn in_default_home() -> Result<Option<Self>, Problem> {
        let Ok(home) = default_home() else {
            return Ok(None);
        };
        let socket = home.join(CONTROL_SOCKET);
        match tokio::net::UnixStream::connect(&socket).await {
            Ok(_) => Self::connect(&Endpoint::Unix(socket), None).await.map(Some),
            // The socket is absent, stale, or owned by another user.
            Err(_) => Ok(None),
        }
    }

    /// Starts a peer in this process.
    ///
    /// # Errors
    /// As [`potluck_peer::start`].
    pub(crate) async fn start(settings: InProcessSettings) -> Result<Self, Problem> {
        let peer = InProcessPeer::start(settings).await?;
        let control = ControlClient::connect(peer.control(), None).await?;
        let status = control.status().await?;
        Ok(Self {
            control,
            status,
            in_process: Some(peer),
        })
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
