//! A server that answers every gRPC call with the bytes that a test wants: HTTP/2 by hand.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};

use super::raw_client::framed;

/// Answers every call with this message, until the runtime ends. Returns its address.
pub async fn always_answering(message: &[u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = framed(message);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer.clone()));
        }
    });
    address
}

async fn serve(stream: TcpStream, answer: Bytes) {
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
        let _ = sending.send_data(answer.clone(), false);
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let _ = sending.send_trailers(trailers);
    }
}
