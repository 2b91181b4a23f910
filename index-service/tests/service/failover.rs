//! Clients that are given several indexes.

use potluck_core::{
    Reason,
    index_client::{IndexClient, IndexList},
};
use potluck_testkit::{
    records::{own_address, registration, token},
    services::TestIndex,
    wait::wait_until,
};
use tokio::net::TcpListener;

fn list(addresses: &[std::net::SocketAddr]) -> IndexList {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    IndexList::parse(&addresses.join(","), str::parse).unwrap()
}

/// A port that is free at the moment.
async fn free_address() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_that_do_not_share_a_store_are_refused_as_a_list() {
    let (one, two) = (TestIndex::in_memory().await, TestIndex::in_memory().await);
    let client = IndexClient::new(list(&[one.address, two.address]));
    for _ in 0..2 {
        let problem = client.stats().await.unwrap_err();
        assert_eq!(problem.reason, Reason::IndexesDiffer);
        for address in [one.address, two.address] {
            assert!(problem.message.contains(&address.to_string()), "{problem}");
        }
    }
    // Each of them alone is fine.
    assert!(one.client.stats().await.is_ok() && two.client.stats().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_with_another_store_is_not_used_when_the_first_one_fails() {
    let one = TestIndex::in_memory().await;
    let second = free_address().await;
    let client = IndexClient::new(list(&[one.address, second]));
    client.stats().await.unwrap();
    let two = TestIndex::serve(TcpListener::bind(second).await.unwrap(), Default::default());
    one.stop().await;
    let problem = client.stats().await.unwrap_err();
    assert_eq!(problem.reason, Reason::Unreachable);
    assert!(problem.message.contains("cluster id"), "{problem}");
    two.stop().await;
}

/// The same folder, one index at a time: what a client sees of indexes that share a store.
#[tokio::test(flavor = "multi_thread")]
async fn calls_go_to_the_next_index_and_later_return_to_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (free_address().await, free_address().await);
    let client = IndexClient::new(list(&[first, second]));
    let files = [registration(1, "a.bin")];
    let start =
        async |address| TestIndex::in_folder(TcpListener::bind(address).await.unwrap(), dir.path());

    let problem = client.stats().await.unwrap_err();
    assert_eq!(problem.reason, Reason::Unreachable);
    assert!(problem.message.contains("none of the 2 indexes"), "{problem}");

    let one = start(first).await;
    let (token, address) = (token(1), own_address(1));
    let registered = client.register(&token, &address, &files, None, false);
    assert_eq!(registered.await.unwrap().file_count, 1);
    assert_eq!(client.endpoint(), &one.endpoint);

    one.stop().await;
    let two = start(second).await;
    // The lease is still there, so that the peer need not register again.
    let renewed = client.renew(&token, &address).await.unwrap();
    assert_eq!(renewed.file_count, 1);
    assert_eq!(client.endpoint(), &two.endpoint);

    two.stop().await;
    let one = start(first).await;
    client.renew(&token, &address).await.unwrap();
    assert_eq!(client.endpoint(), &one.endpoint);
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_index_is_used_again_while_the_later_one_works() {
    // Both indexes report one id, because their folders were copied.
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&one, &two] {
        std::fs::write(
            dir.path().join("cluster-id"),
            "00112233445566778899aabbccddeeff\n",
        )
        .unwrap();
    }
    let first = free_address().await;
    let later = TestIndex::in_folder(TcpListener::bind("127.0.0.1:0").await.unwrap(), two.path());
    let client = IndexClient::new(list(&[first, later.address]));
    client.stats().await.unwrap();
    assert_eq!(client.endpoint(), &later.endpoint);
    let earlier = TestIndex::in_folder(TcpListener::bind(first).await.unwrap(), one.path());
    wait_until("the client returns", async || {
        client.stats().await.unwrap();
        client.endpoint() == &earlier.endpoint
    })
    .await;
}
