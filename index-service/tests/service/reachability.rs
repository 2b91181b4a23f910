//! The index connects to a peer that asks whether it can be reached.

use std::time::{Duration, Instant};

use potluck_core::{
    Reason,
    model::{Address, Reachability},
};
use potluck_index::{AllowedHost, Config};
use potluck_testkit::{
    records::{own_address, token},
    services::{TestIndex, TestPeer},
    wait::wait_until,
};
use tokio::net::TcpListener;

/// Registers peer `n` on this port, and lets the index check it.
async fn check(index: &TestIndex, n: u8, port: u16) -> Reachability {
    let client = index.new_client();
    client
        .register(&token(n), &own_address(port), &[], None, false)
        .await
        .unwrap();
    client.check_reachability(&token(n)).await.unwrap()
}

/// What the status of a peer says.
async fn reported(peer: &TestPeer) -> Option<Reachability> {
    Reachability::from_message(peer.control.status().await.reachability())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_listens_is_reachable() {
    let (index, home) = (TestIndex::in_memory().await, tempfile::tempdir().unwrap());
    let peer = TestPeer::start(home.path(), Some(&index.endpoint)).await;
    wait_until("the peer reports that it is reachable", async || {
        reported(&peer).await == Some(Reachability::Reachable)
    })
    .await;
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_on_the_indexs_machine_learns_nothing_about_other_ports() {
    let (index, home) = (TestIndex::in_memory().await, tempfile::tempdir().unwrap());
    let other = TestPeer::start(home.path(), None).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ports = [
        closed.local_addr().unwrap().port(),
        silent.local_addr().unwrap().port(),
        index.address.port(),
        other.address.port,
    ];
    drop(closed);
    let started = Instant::now();
    let checks = (1..).zip(ports).map(|(n, port)| {
        let index = &index;
        async move { (check(index, n, port).await, started.elapsed()) }
    });
    for (found, took) in futures_util::future::join_all(checks).await {
        assert_eq!(found, Reachability::Unreachable);
        // A closed port must not answer faster than an open one.
        assert!(took >= Duration::from_secs(3), "{took:?}");
    }
    other.stop().await;
}

#[tokio::test]
async fn one_peer_is_checked_once_at_a_time_and_an_address_not_often() {
    let index = TestIndex::in_memory().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let both = tokio::join!(check(&index, 1, port), async {
        let connected = silent.accept().await.unwrap();
        let refused = index.client.check_reachability(&token(1)).await.unwrap_err();
        drop(connected);
        refused
    });
    assert_eq!(both.0, Reachability::Unreachable);
    assert_eq!(both.1.reason, Reason::RateLimited);
    let mut checks = Vec::new();
    for n in 2..40 {
        index.register(n, &[]).await;
        let client = index.client.clone();
        checks.push(tokio::spawn(
            async move { client.check_reachability(&token(n)).await },
        ));
    }
    let answers = futures_util::future::join_all(checks).await;
    let refused = answers
        .iter()
        .filter_map(|answer| answer.as_ref().unwrap().as_ref().err());
    let delays: Vec<_> = refused.map(|problem| problem.retry_after).collect();
    assert!(
        delays.len() >= 10 && delays.iter().all(Option::is_some),
        "{delays:?}"
    );
}

#[tokio::test]
async fn a_registered_host_that_is_not_the_callers_is_not_checked() {
    let allowed_hosts = vec!["127.0.0.2".parse::<AllowedHost>().unwrap()];
    let index = TestIndex::start(Config {
        allowed_hosts,
        ..Config::default()
    })
    .await;
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let address = Address::from(listener.local_addr().unwrap());
    let client = &index.client;
    client
        .register(&token(1), &address, &[], None, false)
        .await
        .unwrap();
    let found = client.check_reachability(&token(1)).await.unwrap();
    assert_eq!(found, Reachability::NotChecked);
    let unconnected = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
    assert!(unconnected.is_err(), "the index connected");
}

#[tokio::test]
async fn checks_need_a_lease_and_can_be_turned_off() {
    let index = TestIndex::start(Config {
        reachability_checks: false,
        ..Config::default()
    })
    .await;
    let unknown = index.client.check_reachability(&token(1)).await.unwrap_err();
    assert_eq!(unknown.reason, Reason::LeaseUnknown);
    assert_eq!(
        check(&index, 1, index.address.port()).await,
        Reachability::NotChecked
    );
}
