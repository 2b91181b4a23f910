//! The properties of calls on the open port that admission control needs.

use potluck_core::grpc::transport::admission::{CallKind, SMALL_REQUEST};

use crate::upload::{
    grpc::raw::{DOWNLOAD, MAX_DOWNLOAD, PIECE_HASHES},
    scheduling::scheduler::ConnectionHandle,
};

/// The path of the call (gRPC over HTTP/2, "Path").
const WATCH_AVAILABILITY: &str = "/potluck.v1.PeerService/WatchAvailability";

/// The admission limits for a call on the open port.
pub(crate) fn call_kind(path: &str) -> CallKind {
    match path {
        DOWNLOAD => CallKind::SelfBounded {
            max_request: MAX_DOWNLOAD,
        },
        PIECE_HASHES => CallKind::SelfBounded {
            max_request: SMALL_REQUEST,
        },
        WATCH_AVAILABILITY => CallKind::Watch,
        other => CallKind::of_common(other),
    }
}

/// Copies the connection's `ClientConnection` into the request's extensions.
pub(crate) fn name_client<B>(mut request: http::Request<B>) -> http::Request<B> {
    let client = request
        .extensions()
        .get::<ConnectionHandle>()
        .and_then(ConnectionHandle::client);
    if let Some(client) = client.cloned() {
        request.extensions_mut().insert(client);
    }
    request
}
