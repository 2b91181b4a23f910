//! Tests the limits on callers over loopback.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::time::Duration;

use common::{TestIndex, file, here, token};
use potluck_core::{FileId, Reason, index_client::MAX_BATCH};
use potluck_index::{Config, Limits};
use tokio::net::TcpStream;

#[tokio::test]
async fn files_per_peer_and_peers_per_address_are_limited() {
    let limits = Limits {
        max_files_per_peer: 10,
        max_peers_per_address: 2,
        ..Limits::default()
    };
    let index = TestIndex::start(Config {
        limits,
        ..Config::default()
    })
    .await;
    let client = index.client();
    let files: Vec<_> = (0..11).map(|n| file(n, "a")).collect();
    let refused = client
        .register(&token(1), &here(1), &files, None, false)
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::QuotaExceeded);
    assert_eq!(
        client.stats().await.unwrap().peers,
        0,
        "no part of a refused request is applied"
    );
    client
        .register(&token(1), &here(1), &files[..10], None, false)
        .await
        .unwrap();
    client
        .register(&token(1), &here(1), &files[..10], None, false)
        .await
        .unwrap();
    let refused = client
        .register(&token(1), &here(1), &files[10..], None, false)
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::QuotaExceeded);
    client
        .register(&token(1), &here(1), &files[1..], None, true)
        .await
        .unwrap();
    client
        .register(&token(2), &here(2), &[], None, false)
        .await
        .unwrap();
    let refused = client
        .register(&token(3), &here(3), &[], None, false)
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::QuotaExceeded);
    client.unregister(&token(2), None).await.unwrap();
    client
        .register(&token(3), &here(3), &[], None, false)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_full_index_refuses_more_and_stays_usable() {
    let limits = Limits {
        max_memory_mib: 1,
        ..Limits::default()
    };
    let index = TestIndex::start(Config {
        limits,
        ..Config::default()
    })
    .await;
    let client = index.client();
    let files: Vec<_> = (0..MAX_BATCH as u64).map(|n| file(n, "the same name")).collect();
    let refused = client
        .register(&token(1), &here(1), &files, None, false)
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::QuotaExceeded);
    client
        .register(&token(1), &here(1), &files[..100], None, false)
        .await
        .unwrap();
    assert_eq!(client.stats().await.unwrap().registrations, 100);
}

#[tokio::test]
async fn too_many_calls_are_refused_with_a_retry_delay() {
    let limits = Limits {
        max_calls_per_second: 1,
        ..Limits::default()
    };
    let index = TestIndex::start(Config {
        limits,
        ..Config::default()
    })
    .await;
    let client = index.client();
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
async fn connections_are_limited() {
    let limits = Limits {
        max_connections: 2,
        ..Limits::default()
    };
    let index = TestIndex::start(Config {
        limits,
        ..Config::default()
    })
    .await;
    let one = index.client();
    one.stats().await.unwrap();
    let idle = TcpStream::connect(index.address).await.unwrap();
    let other = index.client();
    assert!(other.stats().await.is_err(), "no connection is left");
    assert!(one.stats().await.is_ok());
    drop(idle);
    common::wait_until("a connection to be released", || async {
        other.stats().await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn watchers_are_limited() {
    let limits = Limits {
        max_watchers: 4,
        ..Limits::default()
    };
    let index = TestIndex::start(Config {
        limits,
        ..Config::default()
    })
    .await;
    let client = index.client();
    let first = client.watch_providers(FileId([1; 32]), 0).await.unwrap();
    let refused = client
        .watch_providers(FileId([2; 32]), 0)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(refused.reason, Reason::Busy);
    drop(first);
    common::wait_until("the permit to be released", || async {
        client.watch_providers(FileId([2; 32]), 0).await.is_ok()
    })
    .await;
}
