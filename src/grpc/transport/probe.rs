//! Probes an endpoint whose connection broke: does it speak HTTP/2?
//!
//! The error of a broken connection depends on timing: a call that the connection had not yet
//! accepted only reports that the connection is closed. The probe reads the first frame directly,
//! so that the same server always gives the same error.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

use crate::{
    Reason,
    grpc::transport::{endpoint::Endpoint, tls_client},
    network::tls,
};

/// Time limit of the probe, which adds to a call that has already failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The client's connection preface (RFC 9113, section 3.4) with an empty SETTINGS frame.
const CLIENT_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Length of a frame header in bytes (RFC 9113, section 4.1).
const FRAME_HEADER: usize = 9;

/// Type of the SETTINGS frame, with which a server must start.
const SETTINGS: u8 = 4;

/// The first record of a TLS server that was not spoken to in TLS: an alert (RFC 8446, section 5.1).
const TLS_ALERT: [u8; 2] = [21, 3];

/// What a server sends first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FirstAnswer {
    /// HTTP/2.
    Http2,
    /// A TLS alert, to a client without TLS.
    Tls,
    /// It ended the TLS handshake, for this reason.
    TlsFailed(Reason, String),
    /// Something else.
    Foreign,
}

/// The first bytes that the endpoint sends. `None` if it does not answer in time.
pub(crate) async fn first_answer(endpoint: &Endpoint) -> Option<FirstAnswer> {
    let look = async {
        match endpoint {
            Endpoint::Http(uri) => {
                let host = uri.host()?.trim_matches(['[', ']']);
                first_frame(TcpStream::connect((host, uri.port_u16()?)).await.ok()?).await
            }
            Endpoint::LinkLocal(address) => {
                let stream = TcpStream::connect((address.host(), address.port)).await;
                first_frame(stream.ok()?).await
            }
            Endpoint::Unix(path) => first_frame(UnixStream::connect(path).await.ok()?).await,
            Endpoint::Tls(endpoint) => {
                match tls_client::connect(endpoint, None, tls_client::READ_BUFFER).await {
                    Ok(stream) => first_frame(stream).await,
                    Err(error) => tls_failure(&error),
                }
            }
        }
    };
    tokio::time::timeout(PROBE_TIMEOUT, look).await.ok().flatten()
}

fn tls_failure(error: &io::Error) -> Option<FirstAnswer> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let (reason, why) = tls::explain(error);
    Some(FirstAnswer::TlsFailed(reason, why))
}

/// `None` if the server sent nothing.
async fn first_frame(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<FirstAnswer> {
    // A server that speaks first and hangs up need not read this.
    let _ = stream.write_all(CLIENT_PREFACE).await;
    let _ = stream.flush().await;
    let mut header = Vec::with_capacity(FRAME_HEADER);
    let mut stream = stream.take(FRAME_HEADER as u64);
    // If the connection breaks, the bytes received before count. A TLS server learns only after its
    // side of the handshake that it does not accept the client's certificate.
    if let Err(error) = stream.read_to_end(&mut header).await
        && let Some(failed) = tls_failure(&error)
    {
        return Some(failed);
    }
    Some(match header[..] {
        [] => return None,
        // SETTINGS frames use stream 0.
        [_, _, _, SETTINGS, _, 0, 0, 0, 0] => FirstAnswer::Http2,
        _ if header.starts_with(&TLS_ALERT) => FirstAnswer::Tls,
        _ => FirstAnswer::Foreign,
    })
}
