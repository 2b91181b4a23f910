//! Tests that a client reports the right reason and the endpoint, without a long delay, if nothing
//! answers or if another program does.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use potluck_core::{
    FileId, Problem, Reason,
    grpc::transport::{self, Endpoint},
    index_client::IndexClient,
    model::QueryKey,
};
use potluck_testkit::{
    fakes::foreign::{self, WEB_SERVER, answer_and_read_on},
    network::endpoint_at,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

/// Longer than a connection attempt and one call can take together.
const SOON: Duration = Duration::from_secs(18);

/// A server that runs `answer` for every connection.
async fn listen<F: Future<Output = ()> + Send + 'static>(
    answer: impl Fn(TcpStream) -> F + Send + 'static,
) -> Endpoint {
    endpoint_at(foreign::listen(answer).await)
}

/// Asserts that both ways to connect fail in time with this reason and name the endpoint.
async fn assert_fails(endpoint: Endpoint, reason: Reason) {
    let start = Instant::now();
    let connect = async { endpoint.connect().await.map(drop).unwrap_err() };
    let client = IndexClient::new(endpoint.clone());
    let key = QueryKey::Name("a".into());
    let call = async { client.query(&key, 0, None).await.unwrap_err() };
    let (connected, called): (Problem, Problem) = tokio::join!(connect, call);
    for problem in [connected, called] {
        assert_eq!(problem.reason, reason, "{problem}");
        assert!(problem.message.contains(&endpoint.to_string()), "{problem}");
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_port_without_a_listener() {
    // The socket is bound, so no other process can listen on this port meanwhile.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    assert_fails(endpoint_at(address), Reason::Unreachable).await;
}

#[tokio::test]
async fn a_host_that_does_not_exist() {
    assert_fails(
        "http://no-such-host.invalid:1313".parse().unwrap(),
        Reason::Unreachable,
    )
    .await;
}

#[tokio::test]
async fn a_socket_that_does_not_exist() {
    assert_fails("unix:/no/such/control.sock".parse().unwrap(), Reason::Unreachable).await;
}

#[tokio::test]
async fn a_web_server() {
    let server = listen(answer_and_read_on(WEB_SERVER)).await;
    assert_fails(server, Reason::NotPotluck).await;
}

#[tokio::test]
async fn another_protocol() {
    let server = listen(answer_and_read_on(b"SSH-2.0-OpenSSH_9.2\r\n")).await;
    assert_fails(server, Reason::NotPotluck).await;
}

/// A server that speaks first may break the connection before or after the first call arrives.
#[tokio::test]
async fn a_protocol_in_which_the_server_speaks_first() {
    let hangs_up = listen(|mut stream| async move {
        let _ = stream.write_all(b"220 mail.example ESMTP ready\r\n").await;
    })
    .await;
    let reads_on = listen(|mut stream| async move {
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await;
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    for _ in 0..50 {
        assert_fails(hangs_up.clone(), Reason::NotPotluck).await;
        assert_fails(reads_on.clone(), Reason::NotPotluck).await;
    }
}

#[tokio::test]
async fn http2_without_grpc() {
    let endpoint = listen(|stream| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else {
            return;
        };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let page = http::Response::builder()
                .header("content-type", "text/html")
                .body(())
                .unwrap();
            let mut body = respond.send_response(page, false).unwrap();
            let _ = body.send_data("<html>".into(), true);
        }
    })
    .await;
    assert_fails(endpoint, Reason::NotPotluck).await;
}

#[tokio::test]
async fn a_server_that_hangs_up() {
    assert_fails(
        listen(|stream| async move { drop(stream) }).await,
        Reason::Unreachable,
    )
    .await;
}

#[tokio::test]
async fn a_server_that_never_answers() {
    let server = listen(answer_and_read_on(b"")).await;
    assert_fails(server, Reason::TimedOut).await;
}

#[tokio::test]
async fn a_host_that_drops_packets() {
    // With a full backlog the kernel ignores further connection attempts.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        waiting.push(stream);
        assert!(waiting.len() < 100);
    }
    assert_fails(endpoint_at(address), Reason::TimedOut).await;
}

#[tokio::test]
async fn a_grpc_server_of_something_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint: Endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        transport::server()
            .add_service(health)
            .serve_with_incoming(incoming),
    );
    endpoint.connect().await.unwrap();
    let problem = IndexClient::new(endpoint.clone())
        .query(&QueryKey::Name("a".into()), 0, None)
        .await
        .unwrap_err();
    assert_eq!(problem.reason, Reason::NotPotluck, "{problem}");
    assert!(problem.message.contains(&endpoint.to_string()), "{problem}");
}

/// A killed peer or index counts as unreachable, not as a foreign program, so that the client may
/// retry.
#[tokio::test]
async fn a_server_that_dies_in_the_middle_of_a_stream() {
    let endpoint = listen(|stream| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else {
            return;
        };
        let Some(Ok((_, mut respond))) = connection.accept().await else {
            return;
        };
        let head = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let body = respond.send_response(head, false).unwrap();
        // Sends the headers, then drops the connection.
        let _ = tokio::time::timeout(Duration::from_millis(100), connection.accept()).await;
        drop((body, connection));
    })
    .await;
    let client = IndexClient::new(endpoint.clone());
    let mut events = std::pin::pin!(client.watch_providers(FileId([1; 32]), 0).await.unwrap());
    let problem = events.next().await.unwrap().unwrap_err();
    assert_eq!(problem.reason, Reason::Unreachable, "{problem}");
    assert!(problem.message.contains(&endpoint.to_string()), "{problem}");
}

#[test]
fn addresses_are_parsed_or_explained() {
    for (text, shown) in [
        ("127.0.0.1:1313", "http://127.0.0.1:1313"),
        ("http://127.0.0.1:1313/", "http://127.0.0.1:1313"),
        ("[::1]:1313", "http://[::1]:1313"),
        ("index.example:1", "http://index.example:1"),
        ("unix:/run/p.sock", "unix:/run/p.sock"),
        ("unix:///run/p.sock", "unix:/run/p.sock"),
    ] {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
    }
    for text in [
        "",
        "localhost",
        ":1313",
        "http://:1313",
        "h:0",
        "h:65536",
        "h:x",
        "https://h:1",
        "ftp://h:1",
        "http://h:1/x",
        "http://u@h:1",
        "http://h:1?q",
        "unix:",
        "http://",
        "a b:1",
        "http://h:1#f",
    ] {
        let problem = text.parse::<Endpoint>().unwrap_err();
        assert_eq!(problem.reason, Reason::InvalidAddress, "{text}");
        assert!(problem.message.contains(&format!("`{text}`")), "{problem}");
    }
}
