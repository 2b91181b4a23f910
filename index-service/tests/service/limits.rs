//! Tests the limits on callers over loopback.

use std::time::Duration;

use potluck_core::{FileId, Reason, index_client::MAX_BATCH};
use potluck_index::{Config, Limits};
use potluck_testkit::{
    records::{own_address, registration, token},
    services::TestIndex,
    wait::wait_until,
};
use tokio::net::TcpStream;

/// An index with these limits.
async fn index_with(limits: Limits) -> TestIndex {
    TestIndex::start(Config {
        limits,
        ..Config::default()
    })
    .await
}

#[tokio::test]
async fn refuses_registrations_over_a_quota() {
    let index = index_with(Limits {
        max_files_per_peer: 10,
        max_peers_per_address: 2,
        ..Limits::default()
    })
    .await;
    let client = &index.client;
    let files: Vec<_> = (0..11).map(|n| registration(n, "a")).collect();
    let refused = client
        .register(&token(1), &own_address(1), &files, None, false)
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::QuotaExceeded);
    assert_eq!(
        client.stats().await.unwrap().peers,
        0,
        "a refused request changes nothing"
    );
    index.register(1, &files[..10]).await;
    index.register(1, &files[..10]).await;
    let refused = client
        .register(&token(1), &own_address(1), &files[10..], None, false)
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::QuotaExceeded);
    client
        .register(&token(1), &own_address(1), &files[1..], None, true)
        .await
        .unwrap();
    index.register(2, &[]).await;
    let refused = client
        .register(&token(3), &own_address(3), &[], None, false)
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::QuotaExceeded);
    client.unregister(&token(2), None).await.unwrap();
    index.register(3, &[]).await;
}

#[tokio::test]
async fn refuses_more_than_its_memory_limit() {
    let index = index_with(Limits {
        max_memory_mib: 1,
        ..Limits::default()
    })
    .await;
    let client = &index.client;
    let files: Vec<_> = (0..MAX_BATCH as u64)
        .map(|n| registration(n, "the same name"))
        .collect();
    let refused = client
        .register(&token(1), &own_address(1), &files, None, false)
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::QuotaExceeded);
    index.register(1, &files[..100]).await;
    assert_eq!(client.stats().await.unwrap().registrations, 100);
}

#[tokio::test]
async fn limits_the_calls_per_second() {
    let index = index_with(Limits {
        max_calls_per_second: 1,
        ..Limits::default()
    })
    .await;
    let client = &index.client;
    let mut refused = None;
    for _ in 0..20 {
        if let Err(problem) = client.stats().await {
            refused = Some(problem);
            break;
        }
    }
    let refused = refused.expect("20 calls at once exceed one per second");
    assert_eq!(refused.reason, Reason::RateLimited);
    assert!(
        refused
            .retry_after
            .is_some_and(|wait| wait <= Duration::from_secs(2)),
        "{refused:?}"
    );
}

#[tokio::test]
async fn limits_the_connections() {
    let index = index_with(Limits {
        max_connections: 2,
        ..Limits::default()
    })
    .await;
    let one = &index.client;
    one.stats().await.unwrap();
    let idle = TcpStream::connect(index.address).await.unwrap();
    let other = index.new_client();
    assert!(other.stats().await.is_err(), "no connection is free");
    assert!(one.stats().await.is_ok());
    drop(idle);
    wait_until("a connection is free", async || other.stats().await.is_ok()).await;
}

#[tokio::test]
async fn limits_the_watchers() {
    let index = index_with(Limits {
        max_watchers: 4,
        ..Limits::default()
    })
    .await;
    let client = &index.client;
    let first = client.watch_providers(FileId([1; 32]), 0).await.unwrap();
    let refused = client
        .watch_providers(FileId([2; 32]), 0)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(refused.reason, Reason::Busy);
    drop(first);
    wait_until("a watcher may join", async || {
        client.watch_providers(FileId([2; 32]), 0).await.is_ok()
    })
    .await;
}
