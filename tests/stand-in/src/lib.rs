//! A web server that answers as origins do, rightly and wrongly.
//!
//! | module | purpose |
//! |---|---|
//! | [`content`] | the files that it has |
//! | [`fault`] | the ways in which it misbehaves |
//! | [`hub`] | the endpoints of the Hugging Face Hub |
//! | [`registry`] | a registry of container images |
//! | [`log`] | the requests and the bytes that it sent |
//! | `serve` | responses with ranges, validators and faults |
//!
//! `GET /files/NAME` serves a file; `?fault=…` makes it misbehave. `GET /_log` returns the log as
//! JSON, and `DELETE /_log` empties it.

pub mod content;
pub mod fault;
pub mod hub;
pub mod log;
pub mod registry;
mod serve;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::HeaderMap,
    response::Response,
    routing::get,
};
use tokio::net::TcpListener;

use self::{
    content::Files,
    fault::{FaultPlan, FaultQuery},
    hub::Hub,
    log::{LogEntry, RequestLog},
    registry::ImageRegistry,
};

/// What all handlers share.
#[derive(Debug, Default)]
pub struct Shared {
    /// The files of `/files/`.
    pub files: Files,
    /// The repositories of the hub.
    pub hub: Hub,
    /// The images of the registry.
    pub registry: ImageRegistry,
    /// Faults of content.
    pub faults: FaultPlan,
    /// The requests so far.
    pub log: RequestLog,
}

/// A running server. It stops when the runtime of the test ends.
#[derive(Debug)]
pub struct StandIn {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its content and its log.
    pub shared: Arc<Shared>,
}

impl StandIn {
    /// Starts a server on a free port of loopback.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::<Shared>::default();
        let served = serve(listener, Arc::clone(&shared));
        tokio::spawn(async move { served.await.expect("the server runs until the test ends") });
        Self { address, shared }
    }

    /// The URL of a path on this server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// Serves until the listener fails.
///
/// # Errors
/// If the listener fails.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/files/{*name}", get(file))
        .route("/_log", get(read_log).delete(clear_log))
        .merge(hub::router())
        .merge(registry::router())
        .with_state(shared);
    axum::serve(listener, router).await
}

async fn file(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Query(query): Query<FaultQuery>,
    headers: HeaderMap,
) -> Response {
    let entry = shared.log.open(format!("/files/{name}"), &headers);
    match shared.files.get(&name) {
        Some(bytes) => serve::respond(&bytes, &headers, &query, entry).await,
        None => serve::status(http::StatusCode::NOT_FOUND, entry),
    }
}

async fn read_log(State(shared): State<Arc<Shared>>) -> Json<Vec<LogEntry>> {
    Json(shared.log.entries())
}

async fn clear_log(State(shared): State<Arc<Shared>>) {
    shared.log.clear();
}
