//! Tests which input the index refuses, with which reason and field, and which it survives.

use std::time::Duration;

use bytes::Bytes;
use potluck_core::{FileId, Reason, index_client::MAX_BATCH, model::QueryKey, proto::v1};
use potluck_index::Config;
use potluck_testkit::{
    records::{own_address, record, registration, token},
    services::TestIndex,
    wait::in_time,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::refusal;

fn register_request(change: impl FnOnce(&mut v1::RegisterRequest)) -> v1::RegisterRequest {
    let mut request = v1::RegisterRequest {
        token: Bytes::copy_from_slice(token(1).expose()),
        address: Some(v1::Address {
            host: String::new(),
            port: 7001,
        }),
        files: vec![(&registration(1, "a")).into(), (&registration(2, "b")).into()],
        ..Default::default()
    };
    change(&mut request);
    request
}

fn second(request: &mut v1::RegisterRequest) -> &mut v1::Registration {
    &mut request.files[1]
}

fn record_of(request: &mut v1::RegisterRequest) -> &mut v1::FileRecord {
    second(request).file.as_mut().unwrap()
}

#[tokio::test]
async fn rejects_invalid_registrations_and_names_the_field() {
    use Reason::*;
    let index = TestIndex::in_memory().await;
    let mut raw = index.raw_client().await;
    type Change = Box<dyn FnOnce(&mut v1::RegisterRequest)>;
    let host = |host: &'static str| -> Change {
        Box::new(move |r| r.address.as_mut().unwrap().host = host.to_owned())
    };
    let port = |port: u32| -> Change { Box::new(move |r| r.address.as_mut().unwrap().port = port) };
    let name = |name: String| -> Change {
        Box::new(move |r| second(r).names = vec!["fine".to_owned(), name])
    };
    let ttl = |ttl: u32| -> Change { Box::new(move |r| r.ttl_ms = ttl) };
    let cases: Vec<(Change, Reason, &str)> = vec![
        (
            Box::new(|r| r.token = Bytes::from_static(b"short")),
            InvalidToken,
            "token",
        ),
        (Box::new(|r| r.address = None), InvalidAddress, "address.port"),
        (port(0), InvalidAddress, "address.port"),
        (port(65536), InvalidAddress, "address.port"),
        (host("not a host"), InvalidAddress, "address.host"),
        (host("0.0.0.0"), InvalidAddress, "address.host"),
        (host("192.0.2.1"), AddressRefused, "address.host"),
        (host("victim.example"), AddressRefused, "address.host"),
        (ttl(999), InvalidArgument, "ttl_ms"),
        (ttl(3_600_001), InvalidArgument, "ttl_ms"),
        (
            Box::new(|r| second(r).file = None),
            InvalidArgument,
            "files[1].file",
        ),
        (
            Box::new(|r| record_of(r).root = Bytes::new()),
            InvalidId,
            "files[1].file.root",
        ),
        (
            Box::new(|r| record_of(r).file_id = Bytes::from_static(&[1])),
            InvalidId,
            "files[1].file.file_id",
        ),
        (
            Box::new(|r| record_of(r).file_id = record(1).id.to_bytes()),
            IdMismatch,
            "files[1].file.file_id",
        ),
        (
            Box::new(|r| record_of(r).size += 1),
            IdMismatch,
            "files[1].file.file_id",
        ),
        (
            Box::new(|r| record_of(r).size = u64::MAX),
            OutOfRange,
            "files[1].file.size",
        ),
        (
            Box::new(|r| record_of(r).sha256 = Bytes::from_static(&[1; 31])),
            InvalidId,
            "files[1].file.sha256",
        ),
        (
            Box::new(|r| second(r).names.clear()),
            InvalidName,
            "files[1].names",
        ),
        (
            Box::new(|r| second(r).names = vec!["x".to_owned(); 17]),
            InvalidName,
            "files[1].names",
        ),
        (name(String::new()), InvalidName, "files[1].names[1]"),
        (name("..".to_owned()), InvalidName, "files[1].names[1]"),
        (name("a/b".to_owned()), InvalidName, "files[1].names[1]"),
        (name("a\\b".to_owned()), InvalidName, "files[1].names[1]"),
        (name("a\u{7}b".to_owned()), InvalidName, "files[1].names[1]"),
        (name("x".repeat(256)), InvalidName, "files[1].names[1]"),
        (
            Box::new(|r| r.files = vec![(&registration(1, "a")).into(); MAX_BATCH + 1]),
            InvalidArgument,
            "files",
        ),
    ];
    for (change, reason, field) in cases {
        let refused = refusal(raw.register(register_request(change)).await);
        assert_eq!(
            (refused.reason, refused.field.as_deref()),
            (reason, Some(field)),
            "{refused}"
        );
        let secret = hex::encode(token(1).expose());
        assert!(
            !refused.message.contains(&secret) && !refused.message.contains("short"),
            "{refused}"
        );
    }
    assert_eq!(index.new_client().stats().await.unwrap().peers, 0);
    // A request of the maximum size is accepted.
    let largest = register_request(|r| {
        r.files = (0..MAX_BATCH as u64)
            .map(|n| (&registration(n, "a")).into())
            .collect()
    });
    assert_eq!(
        raw.register(largest).await.unwrap().into_inner().file_count,
        MAX_BATCH as u64
    );
}

#[tokio::test]
async fn accepts_addresses_of_allowed_hosts() {
    let allowed_hosts = vec!["192.0.2.0/24".parse().unwrap(), "peer.example".parse().unwrap()];
    let index = TestIndex::start(Config {
        allowed_hosts,
        ..Config::default()
    })
    .await;
    let mut raw = index.raw_client().await;
    for (host, registered) in [
        ("192.0.2.9", "192.0.2.9"),
        ("PEER.example", "peer.example"),
        ("", "127.0.0.1"),
    ] {
        let request = register_request(|r| r.address.as_mut().unwrap().host = host.to_owned());
        let answer = raw.register(request).await.unwrap().into_inner();
        assert_eq!(answer.address.unwrap().host, registered);
    }
    let request = register_request(|r| r.address.as_mut().unwrap().host = "192.0.3.9".to_owned());
    assert_eq!(
        refusal(raw.register(request).await).reason,
        Reason::AddressRefused
    );
}

#[tokio::test]
async fn a_peer_cannot_unregister_files_of_others() {
    let index = TestIndex::in_memory().await;
    let client = &index.client;
    index.register(1, &[registration(1, "a")]).await;
    assert_eq!(
        client.unregister(&token(2), Some(&[record(1).id])).await.unwrap(),
        0
    );
    assert_eq!(client.unregister(&token(2), None).await.unwrap(), 0);
    client
        .register(&token(2), &own_address(1), &[], None, true)
        .await
        .unwrap();
    // The public id does not work as a token.
    let id = token(1).peer_id();
    let impostor = potluck_core::Token::try_from(id.as_bytes().as_slice()).unwrap();
    assert_eq!(client.unregister(&impostor, None).await.unwrap(), 0);
    let page = client.query(&QueryKey::Id(record(1).id), 0, None).await.unwrap();
    assert_eq!(page.files[0].providers[0].peer, id);
}

#[tokio::test]
async fn reduces_a_page_size_over_the_maximum() {
    let index = TestIndex::in_memory().await;
    let files: Vec<_> = (0..1_001).map(|n| registration(n, "same name")).collect();
    index.register(1, &files).await;
    let mut raw = index.raw_client().await;
    for page_size in [1_000, 1_001, u32::MAX] {
        let query = v1::QueryRequest {
            key: Some(v1::query_request::Key::Name("same name".to_owned())),
            max_providers: page_size,
            page_size,
            ..Default::default()
        };
        let page = raw.query(query).await.unwrap().into_inner();
        assert_eq!(page.files.len(), 1_000);
        assert!(!page.next_page_token.is_empty());
        let search = v1::SearchRequest {
            query: "same".to_owned(),
            page_size,
            ..Default::default()
        };
        let page = raw.search(search).await.unwrap().into_inner();
        assert_eq!(page.files.len(), 1_000);
        assert!(!page.next_page_token.is_empty());
        let watch = v1::WatchProvidersRequest {
            file_id: record(1).id.to_bytes(),
            max_providers: page_size,
        };
        assert!(raw.watch_providers(watch).await.is_ok());
    }
}

#[tokio::test]
async fn rejects_invalid_queries_and_names_the_field() {
    let index = TestIndex::in_memory().await;
    let client = &index.client;
    let files: Vec<_> = (0..5).map(|n| registration(n, "same name")).collect();
    index.register(1, &files).await;
    let mut raw = index.raw_client().await;
    let query = |key, page: &str| v1::QueryRequest {
        key,
        page_token: page.to_owned(),
        page_size: 2,
        ..Default::default()
    };
    use v1::query_request::Key;
    let name = || Some(Key::Name("same name".to_owned()));
    let first = raw.query(query(name(), "")).await.unwrap().into_inner();
    let next = first.next_page_token;
    assert!(raw.query(query(name(), &next)).await.is_ok());

    let other = Some(Key::Name("other name".to_owned()));
    let cases = [
        (query(None, ""), Reason::InvalidArgument, "key"),
        (
            query(Some(Key::FileId(Bytes::from_static(b"x"))), ""),
            Reason::InvalidId,
            "file_id",
        ),
        (
            query(Some(Key::Sha256(Bytes::new())), ""),
            Reason::InvalidId,
            "sha256",
        ),
        (
            query(Some(Key::Name("a/b".to_owned())), ""),
            Reason::InvalidName,
            "name",
        ),
        (
            query(Some(Key::FileIdPrefix("3f9a123".to_owned())), ""),
            Reason::InvalidId,
            "file_id_prefix",
        ),
        (
            query(Some(Key::FileIdPrefix("3f9a123x".to_owned())), ""),
            Reason::InvalidId,
            "file_id_prefix",
        ),
        (query(name(), "invalid"), Reason::InvalidPageToken, "page_token"),
        (query(name(), &next[1..]), Reason::InvalidPageToken, "page_token"),
        (query(other, &next), Reason::InvalidPageToken, "page_token"),
        (
            query(Some(Key::FileId(record(1).id.to_bytes())), &next),
            Reason::InvalidPageToken,
            "page_token",
        ),
    ];
    for (request, reason, field) in cases {
        let refused = refusal(raw.query(request).await);
        assert_eq!(
            (refused.reason, refused.field.as_deref()),
            (reason, Some(field)),
            "{refused}"
        );
    }
    let search = |query: String, page: &str| v1::SearchRequest {
        query,
        page_token: page.to_owned(),
        page_size: 0,
    };
    for (request, reason, field) in [
        (search("x".repeat(256), ""), Reason::InvalidQuery, "query"),
        (
            search((0..17).map(|n| format!("w{n:02} ")).collect(), ""),
            Reason::InvalidQuery,
            "query",
        ),
        (search("///".to_owned(), ""), Reason::InvalidQuery, "query"),
        (
            search("same".to_owned(), &next),
            Reason::InvalidPageToken,
            "page_token",
        ),
    ] {
        let refused = refusal(raw.search(request).await);
        assert_eq!(
            (refused.reason, refused.field.as_deref()),
            (reason, Some(field)),
            "{refused}"
        );
    }
    let watch = v1::WatchProvidersRequest {
        file_id: Bytes::from_static(b"x"),
        max_providers: 0,
    };
    assert_eq!(
        refusal(raw.watch_providers(watch).await).reason,
        Reason::InvalidId
    );
    let unregister = v1::UnregisterRequest {
        token: Bytes::copy_from_slice(token(1).expose()),
        file_ids: vec![record(1).id.to_bytes(), Bytes::from_static(b"x")],
        all: false,
        ..Default::default()
    };
    let refused = refusal(raw.unregister(unregister.clone()).await);
    assert_eq!(
        (refused.reason, refused.field.as_deref()),
        (Reason::InvalidId, Some("file_ids[1]"))
    );
    let both = v1::UnregisterRequest {
        file_ids: vec![record(1).id.to_bytes()],
        all: true,
        ..unregister
    };
    assert_eq!(
        refusal(raw.unregister(both).await).field.as_deref(),
        Some("file_ids")
    );
    assert_eq!(client.stats().await.unwrap().registrations, 5);
}

#[tokio::test]
async fn closes_connections_that_do_not_speak_grpc() {
    let index = TestIndex::in_memory().await;
    for bytes in [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        vec![],
    ] {
        let mut stream = TcpStream::connect(index.address).await.unwrap();
        // The connection may be closed already.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = in_time("the connection is closed", stream.read_to_end(&mut answer)).await;
    }
    assert!(index.new_client().stats().await.is_ok());
    index.stop().await;
}

#[tokio::test]
async fn closes_silent_connections() {
    let index = TestIndex::in_memory().await;
    let mut stream = TcpStream::connect(index.address).await.unwrap();
    let mut answer = Vec::new();
    let _ = in_time("the connection is closed", stream.read_to_end(&mut answer)).await;
}

#[tokio::test]
async fn shuts_down_in_time_despite_open_streams() {
    let config = Config {
        grace: Duration::from_millis(500),
        ..Config::default()
    };
    let index = TestIndex::start(config).await;
    let client = &index.client;
    let _watch = client.watch_providers(FileId([1; 32]), 0).await.unwrap();
    let _idle = TcpStream::connect(index.address).await.unwrap();
    let channel = index.endpoint.connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest::default();
    // The health service never ends this stream.
    let _health = health.watch(request).await.unwrap();
    let began = std::time::Instant::now();
    index.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
