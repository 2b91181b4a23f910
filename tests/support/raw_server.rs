//! A server that answers any gRPC call with given bytes; it writes HTTP/2 frames directly.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::net::TcpListener;

/// Answers every call with this message until the runtime ends. Returns its address.
pub(crate) async fn answering(message: Bytes) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, message.clone()));
        }
    });
    address
}

async fn serve(stream: tokio::net::TcpStream, message: Bytes) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let response = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let Ok(mut sending) = respond.send_response(response, false) else {
            continue;
        };
        let length = (message.len() as u32).to_be_bytes();
        let header = [&[0], &length[..]].concat();
        let _ = sending.send_data(header.into(), false);
        let _ = sending.send_data(message.clone(), false);
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let _ = sending.send_trailers(trailers);
    }
}
