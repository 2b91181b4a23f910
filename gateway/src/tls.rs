//! Connections of clients over TLS.
//!
//! Invariant: a slow or failed handshake delays no other connection. The number of handshakes at a time is
//! limited.

use std::{fmt, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use axum::serve::Listener;
use potluck_core::{Problem, Reason, files::read_own};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::config::TlsFiles;

/// Largest file of certificates, in bytes: many times that of a chain.
const MAX_FILE: u64 = 256 * 1024;

/// Handshakes at a time.
const MAX_HANDSHAKES: usize = 256;

/// Time limit for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The settings of TLS for clients that verify the gateway's name, and have no certificate.
///
/// # Errors
/// [`Reason::InvalidArgument`] if a file cannot be used.
pub(crate) fn server_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, Problem> {
    let invalid = |path: &Path, why: &dyn fmt::Display| {
        Problem::new(Reason::InvalidArgument, format!("{}: {why}", path.display()))
    };
    let read = |path: &Path| read_own(path, MAX_FILE).map_err(|error| invalid(path, &error));
    let certificate = read(&files.certificate)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificate)
        .collect::<Result<_, _>>()
        .map_err(|_| invalid(&files.certificate, &"it does not contain certificates in PEM"))?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| invalid(&files.key, &"it does not contain a private key in PEM"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Problem::new(Reason::Internal, error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| invalid(&files.certificate, &error))?;
    Ok(Arc::new(config))
}

/// Accepts connections and does their handshakes side by side.
pub(crate) struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    handshakes: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl TlsListener {
    pub(crate) fn new(listener: TcpListener, config: Arc<ServerConfig>) -> Self {
        Self {
            listener,
            acceptor: TlsAcceptor::from(config),
            handshakes: JoinSet::new(),
        }
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            // Cancel-safe: both only wait, and what has ended stays in the set.
            tokio::select! {
                (stream, address) = Listener::accept(&mut self.listener),
                    if self.handshakes.len() < MAX_HANDSHAKES =>
                {
                    let accepted = self.acceptor.accept(stream);
                    self.handshakes.spawn(async move {
                        let stream = timeout(HANDSHAKE_TIMEOUT, accepted).await.ok()?.ok()?;
                        Some((stream, address))
                    });
                }
                Some(ended) = self.handshakes.join_next() => {
                    if let Ok(Some(connection)) = ended {
                        return connection;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
