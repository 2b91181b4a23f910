//! A connection of a listener: plaintext, or TLS whose handshake runs as the connection is read and
//! written.
//!
//! So a handshake runs in the task of its own connection, never in the accept loop, and the deadline
//! and the limits of connections hold for it too ([`crate::grpc::transport::accept`]).

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{Accept, TlsAcceptor, server::TlsStream};

use crate::{
    grpc::transport::clients::ClientConnection,
    network::tls::{ConnectionGuard, TlsContext},
};

/// The bytes of a connection, decrypted if it uses TLS.
///
/// Without a read buffer of its own: rustls reads 4 KiB at a time, which is enough for requests, and
/// a larger buffer would be most of the memory of an idle connection.
pub(super) struct ServerStream<S> {
    state: State<S>,
}

enum State<S> {
    Plain(S),
    Handshake {
        accept: Box<Accept<S>>,
        tls: TlsContext,
        client: ClientConnection,
    },
    Tls {
        stream: Box<TlsStream<S>>,
        /// `None` for a client without a certificate.
        _guard: Option<ConnectionGuard>,
    },
    /// The handshake failed.
    Closed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ServerStream<S> {
    /// A connection without encryption.
    pub(super) const fn plain(stream: S) -> Self {
        Self {
            state: State::Plain(stream),
        }
    }

    /// A connection with TLS. After the handshake, `client` has the identity that the client's
    /// certificate proves. `None` if the context has no certificate for a server.
    pub(super) fn tls(stream: S, tls: &TlsContext, client: ClientConnection) -> Option<Self> {
        let acceptor = TlsAcceptor::from(tls.server_config()?);
        let accept = acceptor.accept(stream);
        Some(Self {
            state: State::Handshake {
                accept: Box::new(accept),
                tls: tls.clone(),
                client,
            },
        })
    }

    /// Completes the handshake.
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State::Handshake { accept, tls, client } = &mut self.state else {
            return Poll::Ready(Ok(()));
        };
        let done = ready!(Pin::new(accept).poll(cx)).and_then(|stream| {
            let (_, connection) = stream.get_ref();
            let certificate = connection.peer_certificates().and_then(|chain| chain.first());
            let guard = match certificate {
                Some(certificate) => match tls.admit(certificate, client.close_token())? {
                    Some((identity, guard)) => {
                        client.set_identity(identity);
                        Some(guard)
                    }
                    None => return Err(io::ErrorKind::PermissionDenied.into()),
                },
                None => None,
            };
            Ok(State::Tls {
                stream: Box::new(stream),
                _guard: guard,
            })
        });
        match done {
            Ok(state) => {
                self.state = state;
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                tracing::debug!(client = ?client.address(), %error, "a TLS handshake failed");
                self.state = State::Closed;
                Poll::Ready(Err(error))
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ServerStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            State::Tls { stream, .. } => Pin::new(stream).poll_read(cx, buf),
            State::Handshake { .. } | State::Closed => Poll::Ready(Ok(())),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ServerStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            State::Tls { stream, .. } => Pin::new(stream).poll_write(cx, buf),
            State::Handshake { .. } | State::Closed => closed(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_handshake(cx))?;
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            State::Tls { stream, .. } => Pin::new(stream).poll_write_vectored(cx, bufs),
            State::Handshake { .. } | State::Closed => closed(),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.state {
            State::Plain(stream) => stream.is_write_vectored(),
            State::Handshake { .. } | State::Tls { .. } | State::Closed => true,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_flush(cx),
            State::Tls { stream, .. } => Pin::new(stream).poll_flush(cx),
            // Nothing is written before the handshake is complete.
            State::Handshake { .. } | State::Closed => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            State::Tls { stream, .. } => Pin::new(stream).poll_shutdown(cx),
            State::Handshake { .. } | State::Closed => Poll::Ready(Ok(())),
        }
    }
}

fn closed() -> Poll<io::Result<usize>> {
    Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
}
