//! Servers that are not Potluck.

use std::{net::SocketAddr, pin::Pin};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// The answer of a web server to a request that it does not understand.
pub const WEB_SERVER: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Runs `answer` for every connection until the runtime ends; returns the address.
pub async fn listen<F: Future<Output = ()> + Send + 'static>(
    answer: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    address
}

/// For [`listen`]: waits until the client speaks, sends `text`, and reads on.
pub fn answer_and_read_on(text: &'static [u8]) -> impl Fn(TcpStream) -> Answering + Send + 'static {
    move |mut stream| {
        Box::pin(async move {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(text).await;
            while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        })
    }
}

/// For [`listen`]: waits until the client speaks, sends `text`, and closes the connection.
pub fn answer_and_close(text: &'static [u8]) -> impl Fn(TcpStream) -> Answering + Send + 'static {
    move |mut stream| {
        Box::pin(async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(text).await;
        })
    }
}

/// What a server does with one connection.
type Answering = Pin<Box<dyn Future<Output = ()> + Send>>;
