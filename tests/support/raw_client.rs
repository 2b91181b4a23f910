//! A client that misbehaves on the wire: it writes HTTP/2 frames directly, sends incomplete
//! messages and reads nothing, but answers PINGs.
#![allow(dead_code, reason = "each test uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use tokio::{net::TcpStream, task::JoinHandle};

/// Reflection's call.
pub(crate) const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Opens a watch of the server's health.
pub(crate) const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// One connection. It ends when the client is dropped.
pub(crate) struct RawClient {
    send: SendRequest<Bytes>,
    driver: JoinHandle<()>,
    /// Streams that are neither read nor reset.
    held: Vec<(ResponseFuture, h2::SendStream<Bytes>)>,
}

impl Drop for RawClient {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl RawClient {
    /// Connects with this window in bytes for each answer.
    pub(crate) async fn connect(at: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(at).await.unwrap();
        let mut builder = h2::client::Builder::new();
        let (send, connection) = builder
            .initial_window_size(window)
            .initial_max_send_streams(100)
            .handshake(stream)
            .await
            .unwrap();
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self {
            send,
            driver,
            held: Vec::new(),
        }
    }

    /// Whether the connection is still open.
    pub(crate) fn is_open(&self) -> bool {
        !self.driver.is_finished()
    }

    /// Begins a call with these bytes and reads nothing of its answer. Returns false if the server
    /// accepts no more.
    pub(crate) async fn begin(&mut self, path: &str, body: Bytes, end: bool) -> bool {
        let request = http::Request::post(format!("http://raw{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let ready = tokio::time::timeout(std::time::Duration::from_secs(1), self.send.clone().ready());
        let Ok(Ok(mut send)) = ready.await else {
            return false;
        };
        let Ok((answer, mut sending)) = send.send_request(request, false) else {
            return false;
        };
        let sent = sending.send_data(body, end).is_ok();
        self.held.push((answer, sending));
        sent
    }
}

/// A message with its header.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let length = (message.len() as u32).to_be_bytes();
    [&[0], &length[..], message].concat().into()
}

/// All but the last byte of a message of this length.
pub(crate) fn half_sent(length: usize) -> Bytes {
    let whole = framed(&vec![0; length]);
    whole.slice(..whole.len() - 1)
}

/// A reflection request with a long answer.
pub(crate) fn describe(symbol: &str) -> Bytes {
    framed(&[&[0x22, symbol.len() as u8], symbol.as_bytes()].concat())
}

/// Peak memory of a process in MiB; `None` if the system does not report it.
pub(crate) fn peak_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024)
}

/// The peak memory after it has not grown for a second, so that all sent bytes have had their
/// effect.
pub(crate) async fn settled_memory(pid: u32) -> Option<u64> {
    let mut peak = peak_memory(pid)?;
    let mut unchanged = 0;
    while unchanged < 20 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let now = peak_memory(pid)?;
        unchanged = if now > peak { 0 } else { unchanged + 1 };
        peak = now;
    }
    Some(peak)
}
