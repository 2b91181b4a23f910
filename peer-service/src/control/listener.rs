//! Opens the control endpoint: a Unix socket that only the owner can open, or TCP with a token.
//!
//! Invariant: only the owner can call the service. The socket has mode 0600 and is created in a
//! private folder; over TCP, every call carries the token. Beyond loopback, connections use TLS in a
//! private network, and plaintext only if the owner allows it (`--plaintext`).

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use potluck_core::{
    Problem, Reason, Token,
    grpc::transport::Endpoint,
    network::tls::{ServerIdentity, TlsContext},
};
use tokio::net::{TcpListener, UnixListener};
use tonic::{Request, Status};

use crate::{fs::durable, home::Home, network::PeerNetwork, options::ControlAt};

/// Name of the file in the home's state folder that holds the token for TCP.
const TOKEN_FILE: &str = "control-token";

/// Maximum length of a socket path, in bytes: the system's limit without the terminating zero.
const MAX_SOCKET_PATH: usize = 107;

/// An open control endpoint.
#[derive(Debug)]
pub enum ControlListener {
    /// A Unix socket.
    Unix {
        /// The listening socket.
        listener: UnixListener,
        /// The socket's path; removed when the peer stops.
        path: PathBuf,
    },
    /// TCP.
    Tcp {
        /// The listening socket.
        listener: TcpListener,
        /// The token that every call must carry, in hex.
        token: String,
        /// TLS beyond loopback in a private network; `None` for plaintext.
        tls: Option<TlsContext>,
    },
}

impl ControlListener {
    /// Opens the endpoint. The home is locked, so an existing socket in it is stale and gets
    /// replaced. A TCP endpoint may be reachable from other machines with the TLS of `network`, or with
    /// `plaintext`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the address is reachable from other machines without either, or if the socket cannot be created; otherwise the error of binding or of writing the token. The
    /// message says what to do.
    pub async fn open(
        at: &ControlAt,
        plaintext: bool,
        network: Option<&PeerNetwork>,
        home: &Home,
    ) -> Result<(Self, Endpoint), Problem> {
        match at {
            ControlAt::Unix(path) => {
                let inside = home.control_socket();
                let path = path.clone().unwrap_or_else(|| inside.clone());
                let listener = bind_socket(&path, path == inside)?;
                Ok((
                    Self::Unix {
                        listener,
                        path: path.clone(),
                    },
                    Endpoint::Unix(path),
                ))
            }
            ControlAt::Tcp(address) => {
                let is_loopback = address.ip().to_canonical().is_loopback();
                let network = network.filter(|_| !is_loopback);
                if !is_loopback && network.is_none() {
                    if !plaintext {
                        return Err(beyond_loopback(*address));
                    }
                    tracing::warn!(
                        %address,
                        "the control service listens beyond this machine without encryption: \
                         anyone who can read the network's traffic learns the token and can \
                         control this peer"
                    );
                }
                let token = create_token(&home.state().join(TOKEN_FILE))?;
                let listener = TcpListener::bind(address)
                    .await
                    .map_err(|error| in_use(*address, &error))?;
                let bound = listener.local_addr().map_err(|error| in_use(*address, &error))?;
                let endpoint: Endpoint = format!("http://{bound}").parse()?;
                let endpoint = match network {
                    Some(network) => {
                        let expected = ServerIdentity::Peer(network.peer_id());
                        endpoint.secured(network.tls(), expected)?
                    }
                    None => endpoint,
                };
                let tls = network.map(|network| network.tls().clone());
                let listener = Self::Tcp { listener, token, tls };
                Ok((listener, endpoint))
            }
        }
    }
}

fn beyond_loopback(address: SocketAddr) -> Problem {
    Problem::new(
        Reason::InvalidArgument,
        format!(
            "--control {address} would let other machines control this peer without encryption: \
             join a private network, use a socket or 127.0.0.1 and connect from elsewhere through a \
             tunnel such as `ssh -L`, or give --plaintext as well"
        ),
    )
    .field("control")
}

fn in_use(address: SocketAddr, error: &io::Error) -> Problem {
    crate::problem::cannot_listen(address, "--control", error)
}

/// Binds a socket that only this user can open.
fn bind_socket(path: &Path, ours: bool) -> Result<UnixListener, Problem> {
    let failed = |why: String| {
        Problem::new(
            Reason::InvalidArgument,
            format!(
                "cannot create the control socket {}: {why}; choose another with --control \
                 unix:PATH",
                path.display()
            ),
        )
    };
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(failed(format!("its path is longer than {MAX_SOCKET_PATH} bytes")));
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(failed("something other than a socket is there".into()));
        }
        Ok(_) => {
            if !ours && std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(failed("another program listens on it".into()));
            }
            fs::remove_file(path).map_err(|error| failed(error.to_string()))?;
        }
        Err(_) => {}
    }
    // Bind the socket in a private temporary folder, then rename it: no other user can open it at
    // any time.
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    let private = tempfile::Builder::new()
        .prefix(".ctl")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(folder)
        .map_err(|error| failed(error.to_string()))?;
    let hidden = private.path().join("s");
    let listener = match hidden.as_os_str().len() > MAX_SOCKET_PATH {
        false => {
            let listener =
                UnixListener::bind(&hidden).map_err(|error| failed(error.to_string()))?;
            fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))
                .and_then(|()| fs::rename(&hidden, path))
                .map_err(|error| failed(error.to_string()))?;
            listener
        }
        // The temporary path would be too long, so only the folder of the socket protects it until
        // its mode is set.
        true => {
            let listener = UnixListener::bind(path).map_err(|error| failed(error.to_string()))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))
                .map_err(|error| failed(error.to_string()))?;
            listener
        }
    };
    Ok(listener)
}

/// Creates a token for this run, and writes it to a file that only the owner can read.
fn create_token(path: &Path) -> Result<String, Problem> {
    let token = hex::encode(Token::generate().expose());
    durable::write(path, format!("{token}\n").as_bytes(), 0o600).map_err(|error| {
        Problem::new(
            Reason::Internal,
            format!("cannot write the control token {}: {error}", path.display()),
        )
    })?;
    Ok(token)
}

/// Rejects calls without the token.
#[derive(Debug, Clone)]
pub struct TokenInterceptor {
    expected_token: Option<String>,
}

impl TokenInterceptor {
    /// Requires this token; `None` on a Unix socket, which requires no token.
    pub const fn new(expected: Option<String>) -> Self {
        Self {
            expected_token: expected,
        }
    }
}

impl tonic::service::Interceptor for TokenInterceptor {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(expected) = &self.expected_token else {
            return Ok(request);
        };
        let given = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        let given = given
            .and_then(|value| value.strip_prefix("Bearer "))
            .unwrap_or_default();
        match constant_time_eq(given.as_bytes(), expected.as_bytes()) {
            true => Ok(request),
            false => Err(Problem::new(
                Reason::Unauthenticated,
                "the call lacks the token from state/control-token in the peer's folder: send it \
                 as `authorization: Bearer TOKEN`",
            )
            .into()),
        }
    }
}

/// Compares two secrets in a time that does not depend on where they differ.
fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use tonic::service::Interceptor as _;

    use super::*;

    #[test]
    fn calls_without_the_token_are_refused() {
        let mut guard = TokenInterceptor::new(Some("secret".into()));
        let mut request = Request::new(());
        assert!(guard.call(Request::new(())).is_err());
        request
            .metadata_mut()
            .insert("authorization", "Bearer secreT".parse().unwrap());
        assert!(guard.call(request).is_err());
        let mut request = Request::new(());
        request
            .metadata_mut()
            .insert("authorization", "Bearer secret".parse().unwrap());
        assert!(guard.call(request).is_ok());
    }

    #[tokio::test]
    async fn control_beyond_this_machine_needs_the_plaintext_flag() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(&folder.path().join("home")).unwrap();
        let open = async |at: &str, plaintext| {
            let at = ControlAt::Tcp(at.parse().unwrap());
            let opened = ControlListener::open(&at, plaintext, None, &home).await;
            opened.map(drop).map_err(|problem| problem.reason)
        };
        for beyond in ["0.0.0.0:0", "[::]:0", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            assert_eq!(
                open(beyond, false).await,
                Err(Reason::InvalidArgument),
                "{beyond}"
            );
        }
        assert_eq!(open("0.0.0.0:0", true).await, Ok(()));
        assert_eq!(open("127.0.0.1:0", false).await, Ok(()));
    }

    #[tokio::test]
    async fn only_a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(bind_socket(&path, true).unwrap());
        let live = bind_socket(&path, true).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(
            bind_socket(&path, false).is_err(),
            "another program listens on it"
        );
        drop(live);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(bind_socket(&path, true).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
