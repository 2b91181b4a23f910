//! A connection that can be closed from outside, and that passes its [`ConnectionHandle`] to the
//! handlers of its calls.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use crate::upload::scheduling::scheduler::ConnectionHandle;

/// Wraps a connection. Call handlers find its [`ConnectionHandle`] among the request's extensions.
/// Reads fail once the connection is evicted.
#[derive(Debug)]
pub struct EvictableConnection<S> {
    stream: S,
    handle: ConnectionHandle,
    disconnected: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> EvictableConnection<S> {
    /// Wraps a stream together with its handle.
    pub fn new(stream: S, connection: ConnectionHandle) -> Self {
        Self {
            stream,
            disconnected: Box::pin(connection.disconnected()),
            handle: connection,
        }
    }
}

impl<S> Connected for EvictableConnection<S> {
    type ConnectInfo = ConnectionHandle;

    fn connect_info(&self) -> ConnectionHandle {
        self.handle.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for EvictableConnection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The HTTP/2 server always polls for input, so an eviction takes effect here immediately.
        if self.disconnected.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for EvictableConnection<S> {
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
