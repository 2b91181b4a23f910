//! Accepts connections: limits their number, requires a prompt start, and closes them on shutdown.
//!
//! Invariants:
//! - The limiter bounds the number of open connections, in total and per address. Above the limit,
//!   a new connection evicts an idle one or is closed immediately, so that its client can try
//!   elsewhere.
//! - A connection that does not complete its TLS handshake and send the HTTP/2 preface in time is
//!   closed, since the server's keepalive starts only after it.
//! - A connection that is idle for long or does not read its responses is closed
//!   ([`crate::grpc::transport::clients`]).

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener},
    time::{MissedTickBehavior, Sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::grpc::{
    limiter::{ClientAddress, PerAddressLimiter},
    transport::{
        clients::{ClientConnection, Clients, OpenConnectionGuard, SWEEP_INTERVAL},
        socket_authority::{PREFACE, SocketStream},
        tls_stream::ServerStream,
    },
};
use crate::network::tls::TlsContext;

/// Deadline for the TLS handshake and the connection preface: enough to retransmit a lost packet
/// twice.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// Unsent bytes that the kernel buffers per connection: enough to keep the link busy. A larger
/// buffer is a queue from which nothing can be withdrawn, and whose bytes the upload scheduler
/// counts as sent.
#[cfg(target_os = "linux")]
const NOTSENT_LOWAT: u32 = 256 * 1024;

/// Pause after a failed accept, for example when no file descriptors are left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A listener that accepts connections.
pub trait Accept: Send + Sync + 'static {
    /// The connection type.
    type Io: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static;

    /// Accepts a connection and returns it with the client's address, if it has one. Cancel-safe.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Io, Option<SocketAddr>)>> + Send;
}

impl Accept for TcpListener {
    type Io = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Option<SocketAddr>)> {
        let (stream, address) = self.accept().await?;
        // On failure the connection is only slower.
        let _ = stream.set_nodelay(true);
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(NOTSENT_LOWAT);
        Ok((stream, Some(address)))
    }
}

impl Accept for UnixListener {
    type Io = SocketStream;

    async fn accept(&self) -> io::Result<(SocketStream, Option<SocketAddr>)> {
        Ok((SocketStream::new(self.accept().await?.0), None))
    }
}

/// One accepted connection. Returns its permit when dropped.
pub struct Connection<S> {
    stream: ServerStream<S>,
    open: OpenConnectionGuard,
    preface_deadline: Option<Pin<Box<Sleep>>>,
    preface_bytes: usize,
    disconnect: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// The connections of a listener, limited by `limiter` and closed by `disconnect`; with `tls` they
/// are encrypted. The stream never ends and never fails: it retries after a pause if the system
/// refuses a connection.
pub fn connections<L: Accept>(
    listener: L,
    tls: Option<TlsContext>,
    limiter: PerAddressLimiter,
    disconnect: CancellationToken,
) -> impl Stream<Item = io::Result<Connection<L::Io>>> + Send {
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let state = (listener, tls, limiter, disconnect, Clients::default(), sweep);
    stream::unfold(
        state,
        |(listener, tls, limiter, disconnect, clients, mut sweep)| async move {
            loop {
                // Both branches are cancel-safe.
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    _ = sweep.tick() => {
                        clients.sweep();
                        if let Some(tls) = &tls {
                            tls.close_expired(SystemTime::now());
                        }
                        continue;
                    }
                };
                let (stream, address) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::debug!(%error, "failed to accept a connection");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                        continue;
                    }
                };
                let client = address.map_or(ClientAddress::LOCAL, ClientAddress::from);
                let permit = limiter
                    .try_acquire(client)
                    .or_else(|why| clients.evict(client, why).ok_or(why));
                let permit = match permit {
                    Ok(permit) => permit,
                    Err(why) => {
                        tracing::debug!(
                            ?why,
                            ?client,
                            "closed a new connection: the limit is reached"
                        );
                        continue;
                    }
                };
                let open = clients.open(client, address, permit, disconnect.child_token());
                let stream = match &tls {
                    None => ServerStream::plain(stream),
                    Some(tls) => match ServerStream::tls(stream, tls, open.client().clone()) {
                        Some(stream) => stream,
                        None => continue,
                    },
                };
                let connection = Connection {
                    stream,
                    preface_deadline: Some(Box::pin(tokio::time::sleep(PREFACE_TIMEOUT))),
                    preface_bytes: 0,
                    disconnect: Box::pin(open.client().disconnected()),
                    open,
                };
                return Some((
                    Ok(connection),
                    (listener, tls, limiter, disconnect, clients, sweep),
                ));
            }
        },
    )
}

impl<S> Connection<S> {
    /// The handle for the handlers of the connection's calls.
    pub const fn client(&self) -> &ClientConnection {
        self.open.client()
    }
}

impl<S> fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("client", self.client())
            .finish_non_exhaustive()
    }
}

impl<S: Connected> Connected for Connection<S> {
    type ConnectInfo = ClientConnection;

    fn connect_info(&self) -> ClientConnection {
        self.client().clone()
    }
}

impl<S> Connection<S> {
    /// Fails a pending write if the connection must close. A connection that waits to write may
    /// never be polled for reading; the first write waits for the TLS handshake.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_pending() && self.disconnect.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        self.started(cx, polled)
    }

    /// Fails a pending read or write once the deadline for the start of the connection has passed.
    fn started<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_pending()
            && let Some(deadline) = &mut self.preface_deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.disconnect.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.preface_deadline.is_some() {
            self.preface_bytes += buf.filled().len() - before;
            if self.preface_bytes >= PREFACE {
                self.preface_deadline = None;
            }
        }
        self.started(cx, polled)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // With TLS this writes.
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.written(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use std::net::IpAddr;

    use futures_util::StreamExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        sync::mpsc,
        time::Instant,
    };

    use super::*;
    use crate::grpc::limiter::MaxShare;

    fn limiter_of(max: usize) -> PerAddressLimiter {
        PerAddressLimiter::new(max, MaxShare::ALL)
    }

    /// Accepts the connections that a test passes in.
    struct Handed(Mutex<mpsc::UnboundedReceiver<DuplexStream>>);

    impl Accept for Handed {
        type Io = DuplexStream;

        async fn accept(&self) -> io::Result<(DuplexStream, Option<SocketAddr>)> {
            let next = std::future::poll_fn(|cx| self.0.lock().poll_recv(cx)).await;
            match next {
                Some(stream) => Ok((stream, Some(SocketAddr::from(([192, 0, 2, 1], 1))))),
                None => std::future::pending().await,
            }
        }
    }

    /// Returns a function that opens a connection and gives its client end.
    fn listener() -> (impl Fn() -> DuplexStream, Handed) {
        let (hand, handed) = mpsc::unbounded_channel();
        let call = move || {
            let (ours, theirs) = duplex(1024);
            hand.send(theirs).unwrap();
            ours
        };
        (call, Handed(Mutex::new(handed)))
    }

    #[tokio::test]
    async fn a_connection_above_the_limit_is_closed_and_a_permit_is_reused() {
        let (call, listener) = listener();
        let mut incoming = Box::pin(connections(
            listener,
            None,
            limiter_of(1),
            CancellationToken::new(),
        ));
        let _first = call();
        let open = incoming.next().await.unwrap().unwrap();
        let mut second = call();
        assert!(futures_util::poll!(incoming.next()).is_pending());
        assert_eq!(second.read(&mut [0; 1]).await.unwrap(), 0, "closed");
        drop(open);
        let _third = call();
        incoming.next().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_address_above_its_limit_is_refused() {
        let (call, listener) = listener();
        let limiter = PerAddressLimiter::new(4, MaxShare::default());
        let mut incoming = Box::pin(connections(
            listener,
            None,
            limiter.clone(),
            CancellationToken::new(),
        ));
        let callers = [call(), call(), call()];
        let _open = [incoming.next().await, incoming.next().await];
        assert!(futures_util::poll!(incoming.next()).is_pending(), "{callers:?}");
        assert!(
            limiter.try_acquire(IpAddr::from([192, 0, 2, 2]).into()).is_ok(),
            "another address gets a permit"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_listener_evicts_an_idle_connection() {
        let (call, listener) = listener();
        let mut incoming = Box::pin(connections(
            listener,
            None,
            limiter_of(2),
            CancellationToken::new(),
        ));
        let _callers = (call(), call());
        let mut idle = incoming.next().await.unwrap().unwrap();
        let busy = incoming.next().await.unwrap().unwrap();
        let _call = busy.client().activity();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let _third = call();
        let third = tokio::time::timeout(ACCEPT_RETRY, incoming.next()).await;
        assert!(third.is_ok(), "the idle connection was evicted");
        let error = idle.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pending_write_fails_when_the_connection_must_close() {
        let (call, listener) = listener();
        let disconnect = CancellationToken::new();
        let mut incoming = Box::pin(connections(listener, None, limiter_of(1), disconnect.clone()));
        let _silent = call();
        let mut open = incoming.next().await.unwrap().unwrap();
        let writing = tokio::spawn(async move { open.write_all(&[0; 4096]).await.unwrap_err() });
        tokio::task::yield_now().await;
        disconnect.cancel();
        assert_eq!(writing.await.unwrap().kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_preface_is_closed() {
        let (call, listener) = listener();
        let mut incoming = Box::pin(connections(
            listener,
            None,
            limiter_of(1),
            CancellationToken::new(),
        ));
        let mut caller = call();
        let mut open = incoming.next().await.unwrap().unwrap();
        caller.write_all(&[0; PREFACE - 1]).await.unwrap();
        let began = Instant::now();
        let error = open.read_exact(&mut [0; PREFACE]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= PREFACE_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_may_be_silent_after_the_preface() {
        let (call, listener) = listener();
        let mut incoming = Box::pin(connections(
            listener,
            None,
            limiter_of(1),
            CancellationToken::new(),
        ));
        let mut caller = call();
        let mut open = incoming.next().await.unwrap().unwrap();
        caller.write_all(&[0; PREFACE]).await.unwrap();
        open.read_exact(&mut [0; PREFACE]).await.unwrap();
        let mut byte = [0];
        let quiet = tokio::time::timeout(10 * PREFACE_TIMEOUT, open.read(&mut byte)).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }

    #[tokio::test]
    async fn all_connections_are_closed_at_shutdown() {
        let (call, listener) = listener();
        let disconnect = CancellationToken::new();
        let mut incoming = Box::pin(connections(listener, None, limiter_of(2), disconnect.clone()));
        let _callers = (call(), call());
        for _ in 0..2 {
            let mut open = incoming.next().await.unwrap().unwrap();
            let reading = tokio::spawn(async move { open.read(&mut [0; 1]).await.unwrap_err() });
            disconnect.cancel();
            assert_eq!(reading.await.unwrap().kind(), io::ErrorKind::ConnectionAborted);
        }
    }
}
