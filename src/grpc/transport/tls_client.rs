//! Opens TLS connections for channels.
//!
//! Each connection uses the settings of that moment, so that a renewed certificate needs no new
//! channel.

use std::{
    io::{self, IoSlice},
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::Uri;
use tower::Service;

use crate::{
    grpc::transport::{
        endpoint::{Endpoint, TlsEndpoint},
        settings::CONNECT_TIMEOUT,
        tcp,
    },
    network::tls::ConnectionGuard,
};

/// Bytes that are read from a socket at once, for small calls. rustls alone would read 4 KiB at a
/// time.
pub(super) const READ_BUFFER: usize = 16 * 1024;

/// The same for bulk data: several TLS records. A crowd has hundreds of such connections.
pub(super) const BULK_READ_BUFFER: usize = 128 * 1024;

/// A connection whose server was verified. Reads fail once the server is revoked.
pub(super) struct ClientStream {
    stream: TlsStream<BufReader<TcpStream>>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    /// `None` for the index, which is not a member.
    _guard: Option<ConnectionGuard>,
}

/// A service that opens connections to `endpoint`, from the local address `from`, with a read buffer
/// of this many bytes.
pub(super) fn tls_connector(
    endpoint: TlsEndpoint,
    from: Option<IpAddr>,
    read_buffer: usize,
) -> impl Service<Uri, Response = TokioIo<ClientStream>, Error = io::Error, Future: Send> + Send + 'static
{
    tower::service_fn(move |_: Uri| {
        let endpoint = endpoint.clone();
        async move { connect(&endpoint, from, read_buffer).await.map(TokioIo::new) }
    })
}

/// Opens a connection and verifies the server within [`CONNECT_TIMEOUT`] each.
pub(super) async fn connect(
    endpoint: &TlsEndpoint,
    from: Option<IpAddr>,
    read_buffer: usize,
) -> io::Result<ClientStream> {
    let stream = connect_tcp(endpoint.address(), from).await?;
    let tls = endpoint.tls();
    let connector = TlsConnector::from(tls.client_config());
    let host = match endpoint.address() {
        Endpoint::Http(uri) => uri.host().unwrap_or_default().trim_matches(['[', ']']),
        _ => "",
    };
    let name = tls
        .server_name(endpoint.expected(), host)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let stream = BufReader::with_capacity(read_buffer, stream);
    let handshake = connector.connect(name, stream);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, handshake)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let close = CancellationToken::new();
    let (_, connection) = stream.get_ref();
    let certificate = connection.peer_certificates().and_then(|chain| chain.first());
    let admitted = match certificate {
        Some(certificate) => tls.admit(certificate, close.clone())?,
        None => return Err(io::ErrorKind::PermissionDenied.into()),
    };
    Ok(ClientStream {
        stream,
        closed: Box::pin(close.cancelled_owned()),
        _guard: admitted.map(|(_, guard)| guard),
    })
}

async fn connect_tcp(address: &Endpoint, from: Option<IpAddr>) -> io::Result<TcpStream> {
    match address {
        Endpoint::Http(uri) => {
            let connected = tcp::http_connector(from).call(uri.clone()).await;
            connected.map(TokioIo::into_inner).map_err(into_io)
        }
        Endpoint::LinkLocal(address) => {
            tokio::time::timeout(CONNECT_TIMEOUT, tcp::connect_link_local(address))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        }
        Endpoint::Unix(_) | Endpoint::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// The cause of a failed connection attempt, with its kind.
fn into_io(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return match found.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => io::Error::new(found.kind(), found.to_string()),
            };
        }
        cause = error.source();
    }
    io::Error::other(error)
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
