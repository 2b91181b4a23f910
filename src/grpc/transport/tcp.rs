//! Opens TCP connections of clients, with the socket options that all of them need.

use std::{io, net::IpAddr};

use hyper_util::client::legacy::connect::HttpConnector;
use tokio::net::TcpStream;

use crate::grpc::transport::{endpoint::LinkLocal, settings::CONNECT_TIMEOUT};

/// How long sent bytes may stay unacknowledged, or unsent because the other end does not read.
///
/// Only the kernel can end such a connection: HTTP/2 pings nothing while no call is open, and waits
/// forever to flush its last frames. It also ends a connection whose local address is gone before
/// the ping of an open call does. Long enough for TCP to retransmit a lost packet five times.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Opens connections to the address of a URL, from the local address `from`.
pub(super) fn http_connector(from: Option<IpAddr>) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_local_address(from);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    #[cfg(target_os = "linux")]
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT));
    connector
}

/// Opens a connection to an address with a zone, which a URL cannot hold. Has no deadline.
pub(super) async fn connect_link_local(address: &LinkLocal) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((address.host(), address.port)).await?;
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    #[cfg(target_os = "linux")]
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        time::Duration,
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A server that accepts a connection, pings without end, counts the pings, and never reads.
    #[cfg(target_os = "linux")]
    async fn ping_without_reading(listener: TcpListener, pings: Arc<AtomicU64>) -> io::Result<()> {
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7];
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(&SETTINGS).await?;
        loop {
            stream.write_all(&PING.repeat(100)).await?;
            pings.fetch_add(100, Relaxed);
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test(flavor = "multi_thread")]
    async fn a_connection_to_a_server_that_never_reads_is_closed_after_its_last_call() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        // Answers to pings soon fill this.
        socket2::SockRef::from(&listener)
            .set_recv_buffer_size(4096)
            .unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = address.to_string().parse::<crate::grpc::transport::Endpoint>();
        let channel = endpoint.unwrap().open().await.unwrap();
        let pings = Arc::new(AtomicU64::new(0));
        let server = tokio::spawn(ping_without_reading(listener, Arc::clone(&pings)));
        // Until the buffers of both sockets are full and nothing moves.
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let sent = pings.load(Relaxed);
            if sent > 0 && sent == before {
                break;
            }
            before = sent;
        }
        assert!(!server.is_finished());
        drop(channel);
        let ended = tokio::time::timeout(4 * UNACKNOWLEDGED_TIMEOUT, server).await;
        ended
            .expect("the client closes the connection")
            .unwrap()
            .unwrap_err();
    }

    #[tokio::test]
    async fn a_connection_is_usable() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let connect = tower::ServiceExt::oneshot(http_connector(None), uri);
        let (connected, accepted) = tokio::join!(connect, listener.accept());
        accepted.unwrap().0.write_all(b"x").await.unwrap();
        let mut stream = connected.unwrap().into_inner();
        #[cfg(target_os = "linux")]
        assert_eq!(
            socket2::SockRef::from(&stream).tcp_user_timeout().unwrap(),
            Some(UNACKNOWLEDGED_TIMEOUT)
        );
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }
}
