//! Serves the control service on its own endpoint.

use std::path::PathBuf;

use potluck_core::{
    Problem,
    grpc::{
        limiter::{MaxShare, PerAddressLimiter},
        transport::{
            self, Accept, Health, admission::Admission, connections, with_health_and_reflection,
        },
    },
    network::tls::TlsContext,
    process::traces::server_span,
    proto::v1::control_service_server::ControlServiceServer,
};
use tokio_util::task::TaskTracker;

use crate::{
    control::{
        ControlApi,
        listener::{ControlListener, TokenInterceptor},
    },
    server::{
        endpoint::{MAX_STREAMS, reflection_problem},
        shutdown::ShutdownSignals,
    },
};

/// Maximum connections to the control endpoint; each running `get` uses one.
const CONTROL_CONNECTIONS: usize = 512;

/// The control endpoint of a running peer.
pub(super) struct ControlPort {
    pub(super) health: Health,
    /// The token that calls must carry; only over TCP.
    pub(super) token: Option<String>,
    /// The path of the socket.
    pub(super) socket: Option<PathBuf>,
}

/// Starts to serve `api` to the peer's owner.
///
/// # Errors
/// Only on a defect in the service's description.
pub(super) async fn serve(
    listener: ControlListener,
    api: ControlApi,
    signals: &ShutdownSignals,
    servers: &TaskTracker,
) -> Result<ControlPort, Problem> {
    match listener {
        ControlListener::Unix { listener, path } => Ok(ControlPort {
            health: serve_on((listener, None), api, None, signals, servers).await?,
            token: None,
            socket: Some(path),
        }),
        ControlListener::Tcp { listener, token, tls } => Ok(ControlPort {
            health: serve_on((listener, tls), api, Some(token.clone()), signals, servers).await?,
            token: Some(token),
            socket: None,
        }),
    }
}

/// Serves the control service with its own health and reflection services.
async fn serve_on<L: Accept>(
    (listener, tls): (L, Option<TlsContext>),
    api: ControlApi,
    token: Option<String>,
    signals: &ShutdownSignals,
    servers: &TaskTracker,
) -> Result<Health, Problem> {
    let service = ControlServiceServer::new(api)
        .max_decoding_message_size(transport::MAX_MESSAGE)
        .max_encoding_message_size(transport::MAX_MESSAGE);
    let (health, routes) = with_health_and_reflection(service, true)
        .await
        .map_err(reflection_problem)?;
    let limiter = PerAddressLimiter::new(CONTROL_CONNECTIONS, MaxShare::ALL);
    let server = transport::server()
        .trace_fn(server_span)
        .max_concurrent_streams(MAX_STREAMS)
        .layer(tonic::service::InterceptorLayer::new(TokenInterceptor::new(
            token,
        )))
        .layer(Admission::without_limits())
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            connections(listener, tls, limiter, signals.close_connections.clone()),
            signals.stop_accepting.clone().cancelled_owned(),
        );
    servers.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the control endpoint failed");
        }
    });
    Ok(health)
}
