//! Serves the peer service on the open port.
//!
//! Invariant: whatever strangers send, memory for them is bounded by admission, the number of
//! connections, and the windows of HTTP/2.

use futures_util::StreamExt as _;
use potluck_core::{
    Problem,
    grpc::{
        limiter::PerAddressLimiter,
        transport::{
            self, Health,
            admission::{Admission, Budgets, MAX_HEADERS},
            connections, with_health_and_reflection,
        },
    },
    monitoring::CallMetrics,
    network::tls::TlsContext,
    process::traces::server_span,
};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::{
    options::Config,
    server::{
        endpoint::{MAX_STREAMS, reflection_problem},
        shutdown::ShutdownSignals,
    },
    upload::{self, EvictableConnection, PeerApi, SendScheduler},
};

/// Memory on the open port, in bytes, for requests being received and for small answers not yet
/// read: enough for hundreds of the largest requests and for the availability of many large files.
/// `Download` and `GetPieceHashes` have limits of their own.
const MAX_INCOMING: usize = 32 * 1024 * 1024;
const MAX_UNREAD: usize = 64 * 1024 * 1024;

/// Receive window per stream on the open port, in bytes. Streams there carry only requests. A
/// connection's window is four times this, which bounds its unread bytes.
const REQUEST_WINDOW: u32 = 256 * 1024;

/// Starts to serve `api` to other peers.
///
/// # Errors
/// Only on a defect in the service's description.
pub(super) async fn serve(
    listener: TcpListener,
    api: PeerApi,
    config: &Config,
    tls: Option<TlsContext>,
    signals: &ShutdownSignals,
    servers: &TaskTracker,
) -> Result<Health, Problem> {
    let (health, routes) = with_health_and_reflection(api.into_service(), config.reflection)
        .await
        .map_err(reflection_problem)?;
    let scheduler = SendScheduler::new();
    servers.spawn(scheduler.clone().run_eviction(signals.stop_accepting.clone()));
    let budgets = Budgets {
        incoming: MAX_INCOMING,
        unread: MAX_UNREAD,
        max_share: config.address_share,
    };
    let limiter = PerAddressLimiter::new(config.max_connections, config.address_share);
    let accepted = connections(listener, tls, limiter, signals.close_connections.clone());
    let accepted = accepted.map(move |stream| {
        stream.map(|stream| {
            let connection = scheduler.add_client(stream.client().clone());
            EvictableConnection::new(stream, connection)
        })
    });
    let server = transport::server()
        .trace_fn(server_span)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(REQUEST_WINDOW)
        .initial_connection_window_size(4 * REQUEST_WINDOW)
        .max_frame_size(None)
        .http2_max_header_list_size(MAX_HEADERS)
        .layer(CallMetrics::new(&config.metrics))
        .layer(tower::util::MapRequestLayer::new(upload::name_client))
        .layer(Admission::new(budgets, upload::call_kind))
        .add_routes(routes)
        .serve_with_incoming_shutdown(accepted, signals.stop_accepting.clone().cancelled_owned());
    servers.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the open port failed");
        }
    });
    Ok(health)
}
