//! A misbehaving client that writes HTTP/2 frames by hand. It sends half of the announced bytes and
//! reads no answer, but replies to PINGs.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use tokio::{net::TcpStream, task::JoinHandle};

use crate::system::memory::settled_memory;

/// Path of the call of gRPC reflection.
pub const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Path of the call that watches a server's health.
pub const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// The HTTP/2 default of bytes that a server may send on one stream before the client reads.
pub const DEFAULT_WINDOW: u32 = 65_535;

/// One connection. It ends when this is dropped.
#[derive(Debug)]
pub struct RawClient {
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
    /// Connects. The server may send `window` bytes of each answer.
    pub async fn connect(address: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
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

    /// Whether the connection is open.
    pub fn is_open(&self) -> bool {
        !self.driver.is_finished()
    }

    /// Begins a call with these bytes, ends the request if `end` is set, and reads nothing of the
    /// answer. Returns false if the server accepts no more calls.
    pub async fn begin(&mut self, path: &str, body: Bytes, end: bool) -> bool {
        let request = http::Request::post(format!("http://raw{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let ready = tokio::time::timeout(Duration::from_secs(1), self.send.clone().ready());
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

    /// Begins up to `calls` calls.
    pub async fn begin_many(&mut self, calls: usize, path: &str, body: &Bytes, end: bool) {
        for _ in 0..calls {
            if !self.begin(path, body.clone(), end).await {
                break;
            }
        }
    }
}

/// Begins `calls` calls that never end on each of `connections` connections to a server, and waits
/// until the memory of the server's process `pid` has settled.
pub async fn flood(
    (address, pid): (SocketAddr, u32),
    connections: usize,
    calls: usize,
    path: &str,
    body: &Bytes,
) -> Vec<RawClient> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        let mut client = RawClient::connect(address, 1).await;
        client.begin_many(calls, path, body, false).await;
        clients.push(client);
    }
    settled_memory(pid).await;
    clients
}

/// A gRPC message with its header.
pub fn framed(message: &[u8]) -> Bytes {
    let length = (message.len() as u32).to_be_bytes();
    [&[0], &length[..], message].concat().into()
}

/// All but the last byte of a message of this length.
pub fn half_sent(length: usize) -> Bytes {
    let whole = framed(&vec![0; length]);
    whole.slice(..whole.len() - 1)
}

/// A request to reflection that has a long answer.
pub fn describe(symbol: &str) -> Bytes {
    framed(&[&[0x22, symbol.len() as u8], symbol.as_bytes()].concat())
}
