//! One connection of an attacker at a time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    sync::Mutex,
    task::{JoinHandle, JoinSet},
};

use crate::{
    frames::{self, ACK, HEADER, PING, SETTINGS},
    target::{Target, Wire},
};

/// Pause between two connections of a lane.
const REST: Duration = Duration::from_millis(5);

/// Calls that a client opens before the server tells its limit.
const CALLS_AT_FIRST: usize = 100;

/// What an attacker did.
#[derive(Debug, Default)]
pub struct Effort {
    pub(crate) connections: AtomicU64,
    pub(crate) sent: AtomicU64,
}

/// A lane of an attack.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    pub(crate) target: Target,
    effort: Arc<Effort>,
}

impl Lane {
    pub(crate) fn new(target: &Target, effort: &Arc<Effort>) -> Self {
        Self {
            target: target.clone(),
            effort: Arc::clone(effort),
        }
    }

    pub(crate) async fn rest(&self) {
        tokio::time::sleep(REST).await;
    }

    /// Counts a connection.
    pub(crate) fn count_connection(&self) {
        self.effort.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts frames or calls.
    pub(crate) fn count_sent(&self, count: usize) {
        self.effort.sent.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Opens a connection: in a network, as a member.
    pub(crate) async fn connect(&self) -> Option<Wire> {
        let wire = self.target.connect().await.ok()?;
        self.count_connection();
        Some(wire)
    }

    /// Opens a connection and sends the preface. Answers of the server are read and dropped.
    pub(crate) async fn open_raw(&self) -> Option<RawConnection> {
        self.open_raw_with(frames::opening()).await
    }

    /// Opens a connection and sends these bytes first.
    pub(crate) async fn open_raw_with(&self, opening: Vec<u8>) -> Option<RawConnection> {
        let (read, write) = tokio::io::split(self.connect().await?);
        let write = Arc::new(Mutex::new(write));
        let mut reading = JoinSet::new();
        reading.spawn(read_and_answer(read, Arc::clone(&write)));
        let mut connection = RawConnection {
            lane: self.clone(),
            write,
            reading,
        };
        connection.send(1, &opening).await?;
        Some(connection)
    }

    /// Opens a connection of which the attacker never reads a byte.
    pub(crate) async fn open_deaf(&self) -> Option<RawConnection> {
        let (read, write) = tokio::io::split(self.connect().await?);
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            std::future::pending::<()>().await;
            drop(read);
        });
        let mut connection = RawConnection {
            lane: self.clone(),
            write: Arc::new(Mutex::new(write)),
            reading,
        };
        connection.send(1, &frames::opening()).await?;
        Some(connection)
    }

    /// Opens an HTTP/2 connection on which each answer may have `window` bytes before it is read.
    pub(crate) async fn open_h2(&self, window: u32) -> Option<H2Connection> {
        H2Connection::start(self, self.connect().await?, window).await
    }

    /// Opens an HTTP/2 connection without a certificate.
    pub(crate) async fn open_anonymous_h2(&self) -> Option<H2Connection> {
        let wire = self.target.connect_anonymously().await.ok()?;
        self.count_connection();
        H2Connection::start(self, wire, DEFAULT_WINDOW).await
    }
}

/// The HTTP/2 default of bytes that a server may send on one stream before the client reads.
pub(crate) const DEFAULT_WINDOW: u32 = 65_535;

/// A connection on which the attacker writes frames by hand.
pub(crate) struct RawConnection {
    lane: Lane,
    write: Arc<Mutex<WriteHalf<Wire>>>,
    /// Ends when the server closes the connection.
    reading: JoinSet<()>,
}

impl RawConnection {
    /// Sends `count` frames. `None` once the server has closed the connection.
    pub(crate) async fn send(&mut self, count: usize, bytes: &[u8]) -> Option<()> {
        if self.reading.try_join_next().is_some() || self.reading.is_empty() {
            return None;
        }
        let mut write = self.write.lock().await;
        write.write_all(bytes).await.ok()?;
        write.flush().await.ok()?;
        self.lane.count_sent(count);
        Some(())
    }

    /// Waits until the server closes the connection.
    pub(crate) async fn closed(&mut self) {
        self.reading.join_next().await;
    }
}

/// Reads frames until the connection ends; answers PINGs and settings, so that the server does not
/// take the client for dead.
async fn read_and_answer(mut read: ReadHalf<Wire>, write: Arc<Mutex<WriteHalf<Wire>>>) {
    let mut header = [0; HEADER];
    while read.read_exact(&mut header).await.is_ok() {
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; length as usize];
        if read.read_exact(&mut payload).await.is_err() {
            return;
        }
        let answer = match (header[3], header[4] & ACK) {
            (PING, 0) => frames::frame(PING, ACK, 0, &payload),
            (SETTINGS, 0) => frames::frame(SETTINGS, ACK, 0, &[]),
            _ => continue,
        };
        // An attack that writes without pause answers nothing meanwhile, as a flood would.
        if let Ok(mut write) = write.try_lock()
            && (write.write_all(&answer).await.is_err() || write.flush().await.is_err())
        {
            return;
        }
    }
}

/// A connection whose HTTP/2 is right, for calls that are not.
pub(crate) struct H2Connection {
    lane: Lane,
    send: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

impl Drop for H2Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl H2Connection {
    async fn start(lane: &Lane, wire: Wire, window: u32) -> Option<Self> {
        let mut builder = h2::client::Builder::new();
        let (send, connection) = builder
            .initial_window_size(window)
            .initial_max_send_streams(CALLS_AT_FIRST)
            .max_concurrent_reset_streams(10_000)
            .handshake(wire)
            .await
            .ok()?;
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Some(Self {
            lane: lane.clone(),
            send,
            driver,
        })
    }

    /// Whether the connection is open.
    pub(crate) fn is_open(&self) -> bool {
        !self.driver.is_finished()
    }

    /// Begins a call with these headers beside the usual ones. Waits while the server accepts no
    /// more calls; `None` once it has closed the connection.
    pub(crate) async fn begin(
        &self,
        path: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Option<(ResponseFuture, SendStream<Bytes>)> {
        let mut request = http::Request::post(format!("http://hostile{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut send = self.send.clone().ready().await.ok()?;
        // The connection's own task must run, too.
        tokio::task::yield_now().await;
        let begun = send.send_request(request.body(()).ok()?, false).ok()?;
        self.lane.count_sent(1);
        Some(begun)
    }

    /// Makes a call with this request body and waits for the whole answer, or for `limit`.
    pub(crate) async fn call(
        &self,
        path: &str,
        headers: &[(&'static str, &'static str)],
        body: impl Into<Bytes>,
        limit: Duration,
    ) -> Option<()> {
        let (response, mut sending) = self.begin(path, headers).await?;
        sending.send_data(body.into(), true).ok()?;
        let read = async {
            let mut body = response.await.ok()?.into_body();
            while let Some(Ok(bytes)) = body.data().await {
                let _ = body.flow_control().release_capacity(bytes.len());
            }
            Some(())
        };
        let _ = tokio::time::timeout(limit, read).await;
        self.is_open().then_some(())
    }
}
