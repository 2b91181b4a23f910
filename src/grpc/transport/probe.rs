//! A second look at whoever broke a connection: does it speak HTTP/2 at all?
//!
//! What a client is told of a broken connection depends on how far it had come: a call that the connection did not take up in time is only
//! told that it is closed. Here the opening bytes are read alone, so that the same server always gets the same name.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

use crate::grpc::transport::Endpoint;

/// How long it may take: it comes on top of a call that has failed already.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The client's connection preface (RFC 9113, section 3.4), with a SETTINGS frame that sets nothing.
const CLIENT_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Length of a frame's header (section 4.1), in bytes.
const FRAME_HEADER: usize = 9;

/// Type of the frame that a server has to begin with.
const SETTINGS: u8 = 4;

/// Whether whoever answers at the endpoint begins with something else than HTTP/2. False where nothing answers in time.
pub(crate) async fn is_not_http2(endpoint: &Endpoint) -> bool {
    let look = async {
        match endpoint {
            Endpoint::Http(uri) => {
                let host = uri.host()?.trim_matches(['[', ']']);
                first_frame_is_not_http2(TcpStream::connect((host, uri.port_u16()?)).await.ok()?).await
            }
            Endpoint::LinkLocal(address) => {
                let stream = TcpStream::connect((address.host(), address.port)).await;
                first_frame_is_not_http2(stream.ok()?).await
            }
            Endpoint::Unix(path) => first_frame_is_not_http2(UnixStream::connect(path).await.ok()?).await,
        }
    };
    tokio::time::timeout(PROBE_TIMEOUT, look)
        .await
        .ok()
        .flatten()
        .unwrap_or(false)
}

/// `None` where nothing was said.
async fn first_frame_is_not_http2(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<bool> {
    // Who speaks first and hangs up need not have listened.
    let _ = stream.write_all(CLIENT_PREFACE).await;
    let mut header = Vec::with_capacity(FRAME_HEADER);
    let mut stream = stream.take(FRAME_HEADER as u64);
    // Of a connection that breaks, what came before counts.
    let _ = stream.read_to_end(&mut header).await;
    match header[..] {
        [] => None,
        // On stream 0, as all that concerns the connection.
        [_, _, _, SETTINGS, _, 0, 0, 0, 0] => Some(false),
        _ => Some(true),
    }
}
