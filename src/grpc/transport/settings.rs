//! HTTP/2 settings and deadlines that all clients and servers share.

use std::time::Duration;

use tonic::transport::Server;

/// Receive window of a stream, in bytes: two of the largest chunks, so that a sender on a LAN
/// never waits for a window update.
pub(crate) const STREAM_WINDOW: u32 = 2 * 1024 * 1024;

/// Receive window of a connection, in bytes: four streams at full window.
pub(crate) const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;

/// Maximum window for bulk data over a long path, in bytes. Bounds the unrequested data that a
/// peer can send before it is detected.
pub(crate) const MAX_BULK_WINDOW: u32 = 16 * 1024 * 1024;

/// Rate that a window for bulk data must sustain, in bytes per second: twice 1 Gbit/s, since a
/// window update is sent after half of it is used.
pub(crate) const BULK_RATE: f64 = 2.0 * 125_000_000.0;

/// Maximum HTTP/2 frame size that a receiver accepts, in bytes: 256 KiB of data with headers, and
/// some reserve. The default of 16 KiB would split that into many frames.
pub(crate) const MAX_FRAME: u32 = 512 * 1024;

/// Maximum message size that a receiver decodes, in bytes: larger than the largest page of
/// results.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Deadline for opening a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Deadline for a server that accepted a connection to prove that it speaks gRPC.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval of keepalive pings on a connection without traffic.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long a keepalive ping may stay unanswered before the connection counts as dead.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum concurrent streams per connection.
pub(crate) const MAX_STREAMS: u32 = 1024;

/// A server with the settings of all services. The caller adds services and limits.
pub fn server() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}
