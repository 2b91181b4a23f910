//! The gateway: speaks the protocols of the Hugging Face Hub and of registries of container images to
//! its clients, and gets the bytes from peers and from where they began.
//!
//! | module | purpose |
//! |---|---|
//! | [`config`] | settings |
//! | `route` | what a path asks for; pure |
//! | `range` | the range that a request asks for; pure |
//! | `host` | which `Host` headers are accepted; pure |
//! | `upstream` | requests to the hub, and cached metadata |
//! | `objects` | content in the cache, or on its way |
//! | `send` | sends content |
//! | `reply` | parts of answers |
//! | `oci` | the protocol of registries |
//! | `tls` | connections of clients over TLS |
//! | `handler` | the answer to each request |
//!
//! Invariants:
//!
//! - Every request for content asks the origin first whether the client's own credentials may have it.
//! - Bytes are sent once they are verified; those whose root is not known only if the origin itself
//!   sent them, and the last piece only after the SHA-256 of all of them was compared.
//! - After content with a wrong SHA-256 was sent in part, ranges of it are refused until one whole
//!   verified answer was sent.

pub mod config;
mod handler;
mod host;
mod objects;
mod oci;
mod range;
mod reply;
mod route;
mod send;
mod tls;
mod upstream;

use std::sync::Arc;

use axum::Router;
use potluck_core::{Problem, Reason};
use potluck_peer::Running;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::config::{GatewayConfig, RegistryConfig, TlsFiles};
use self::{
    handler::Gateway, objects::Objects, oci::Oci, send::Sender, tls::TlsListener,
    upstream::Upstream,
};

/// Serves on `listener` with this peer until `shutdown` is cancelled.
///
/// # Errors
/// If the listener is beyond loopback without permission, or the cache cannot be opened.
pub async fn serve(
    listener: TcpListener,
    config: GatewayConfig,
    peer: &Running,
    shutdown: CancellationToken,
) -> Result<(), Problem> {
    let failed = |error: std::io::Error| Problem::new(Reason::Internal, error.to_string());
    let address = listener.local_addr().map_err(failed)?;
    if !address.ip().to_canonical().is_loopback() && config.tls.is_none() && !config.plaintext {
        return Err(Problem::new(
            Reason::InvalidAddress,
            format!(
                "{address} is beyond this machine, where tokens of clients would cross the network \
                 in the clear: give --https-cert and --https-key, or start it with --plaintext"
            ),
        ));
    }
    let tls = config.tls.as_ref().map(tls::server_config).transpose()?;
    let upstream = Upstream::new(&config)?;
    let objects = Objects::open(&config, peer, upstream.client().clone())?;
    let sender = Sender::new(objects);
    let oci = Oci::new(&config, upstream.client(), peer.cache.clone(), sender.clone())?;
    let gateway = Arc::new(Gateway::new(config, address, upstream, sender, oci));
    let router = Router::new().fallback(handler::answer).with_state(gateway);
    let stopped = async move { shutdown.cancelled().await };
    let served = match tls {
        None => {
            axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .await
        }
        Some(tls) => {
            let listener = TlsListener::new(listener, tls);
            axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .await
        }
    };
    served.map_err(failed)
}
