//! Connections as they come: counted, made to speak soon, and cut when the index must end.
//!
//! Invariant: at most as many connections are open as were allowed; one more is closed at once, so that its caller does not wait for
//! nothing. A connection that has not sent HTTP/2's opening bytes in time is closed: the server's own probes begin only after it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// How long a connection may take to begin.
const OPENING: Duration = Duration::from_secs(10);

/// Length of HTTP/2's connection preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// How long to wait after the system refused a connection, as when it has no more file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// One connection.
pub(crate) struct Connection {
    stream: TcpStream,
    opening: Option<Pin<Box<Sleep>>>,
    read: usize,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

/// Connections of a listener, at most `most` at a time, all cut by `cut`.
pub(crate) fn connections(
    listener: TcpListener,
    most: usize,
    cut: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
    stream::unfold((listener, places, cut), |(listener, places, cut)| async move {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tracing::debug!(%from, "too many connections: closed one");
                continue;
            };
            // Only slower where the system does not do it.
            let _ = stream.set_nodelay(true);
            let connection = Connection {
                stream,
                opening: Some(Box::pin(tokio::time::sleep(OPENING))),
                read: 0,
                cut: Box::pin(cut.clone().cancelled_owned()),
                _place: place,
            };
            return Some((Ok(connection), (listener, places, cut)));
        }
    })
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.opening.is_some() {
            self.read += buf.filled().len() - before;
            if self.read >= PREFACE {
                self.opening = None;
            }
        }
        if polled.is_pending()
            && let Some(opening) = &mut self.opening
            && opening.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
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
