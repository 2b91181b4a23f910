//! Probes an endpoint whose connection broke: does it speak HTTP/2?
//!
//! The error of a broken connection depends on timing: a call that the connection had not yet
//! accepted only reports that the connection is closed. The probe reads the first frame directly,
//! so that the same server always gives the same error.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

use crate::grpc::transport::endpoint::Endpoint;

/// Time limit of the probe, which adds to a call that has already failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The client's connection preface (RFC 9113, section 3.4) with an empty SETTINGS frame.
const CLIENT_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Length of a frame header in bytes (RFC 9113, section 4.1).
const FRAME_HEADER: usize = 9;

/// Type of the SETTINGS frame, with which a server must start.
const SETTINGS: u8 = 4;

/// Whether the endpoint sends something other than HTTP/2. `false` if it does not answer in time.
pub(crate) async fn is_not_http2(endpoint: &Endpoint) -> bool {
    let look = async {
        match endpoint {
            Endpoint::Http(uri) => {
                let host = uri.host()?.trim_matches(['[', ']']);
                first_frame_is_not_http2(TcpStream::connect((host, uri.port_u16()?)).await.ok()?)
                    .await
            }
            Endpoint::LinkLocal(address) => {
                let stream = TcpStream::connect((address.host(), address.port)).await;
                first_frame_is_not_http2(stream.ok()?).await
            }
            Endpoint::Unix(path) => {
                first_frame_is_not_http2(UnixStream::connect(path).await.ok()?).await
            }
        }
    };
    tokio::time::timeout(PROBE_TIMEOUT, look)
        .await
        .ok()
        .flatten()
        .unwrap_or(false)
}

/// `None` if the server sent nothing.
async fn first_frame_is_not_http2(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<bool> {
    // A server that speaks first and hangs up need not read this.
    let _ = stream.write_all(CLIENT_PREFACE).await;
    let mut header = Vec::with_capacity(FRAME_HEADER);
    let mut stream = stream.take(FRAME_HEADER as u64);
    // If the connection breaks, the bytes received before count.
    let _ = stream.read_to_end(&mut header).await;
    match header[..] {
        [] => None,
        // SETTINGS frames use stream 0.
        [_, _, _, SETTINGS, _, 0, 0, 0, 0] => Some(false),
        _ => Some(true),
    }
}
