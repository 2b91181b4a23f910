//! Tests leases over loopback: expiry, renewal and conflicts.

use std::time::{Duration, Instant};

use potluck_core::{
    Reason, SetDigest,
    index_client::IndexClient,
    model::{Address, QueryKey, Registration},
};
use potluck_testkit::{
    records::{own_address, record, registration, token},
    services::TestIndex,
    wait::{DEADLINE, wait_until},
};

#[tokio::test]
async fn a_lease_expires_without_renewal() {
    let index = TestIndex::in_memory().await;
    let client = &index.client;
    let second = Some(Duration::from_secs(1));
    client
        .register(&token(1), &own_address(1), &[registration(1, "a")], second, false)
        .await
        .unwrap();
    index.register(2, &[registration(1, "a")]).await;
    wait_until("the lease expires", async || {
        index.provider_count(record(1).id).await == 1
    })
    .await;
    let refused = client.renew(&token(1), &own_address(1)).await.unwrap_err();
    assert_eq!(refused.reason, Reason::LeaseUnknown);
    assert!(client.renew(&token(2), &own_address(2)).await.is_ok());
    // The peer registers again like a new one.
    index.register(1, &[registration(1, "a")]).await;
    assert_eq!(index.provider_count(record(1).id).await, 2);
}

#[tokio::test]
async fn a_renewed_lease_does_not_expire() {
    let index = TestIndex::in_memory().await;
    let client = &index.client;
    let ttl = Duration::from_secs(1);
    let register = || async {
        let files = [registration(1, "a")];
        let lease = client
            .register(&token(1), &own_address(1), &files, Some(ttl), false)
            .await;
        lease.unwrap();
    };
    let mut renewed = Instant::now();
    let (started, mut held_since) = (renewed, renewed);
    register().await;
    while held_since.elapsed() < 5 * ttl / 2 {
        tokio::time::sleep(ttl / 5).await;
        let called = Instant::now();
        match client.renew(&token(1), &own_address(1)).await {
            Ok(lease) => {
                assert_eq!((lease.ttl, lease.file_count), (ttl, 1));
                renewed = called;
            }
            // Only if the test was too slow to renew in time, as on a stalled machine: start over.
            Err(problem) => {
                assert_eq!(problem.reason, Reason::LeaseUnknown);
                assert!(renewed.elapsed() >= ttl && started.elapsed() < DEADLINE);
                renewed = Instant::now();
                held_since = renewed;
                register().await;
            }
        }
    }
}

#[tokio::test]
async fn reports_two_processes_with_one_token() {
    let index = TestIndex::in_memory().await;
    let one = index.new_client().with_instance([1; 16]);
    let two = index.new_client().with_instance([2; 16]);
    let files = [registration(1, "a")];
    let register = async |client: &IndexClient, port| {
        client
            .register(&token(1), &own_address(port), &files, None, false)
            .await
    };
    assert_eq!(register(&one, 1).await.unwrap().conflicting_address, None);
    assert_eq!(register(&two, 2).await.unwrap().conflicting_address, None);
    let refused = one.renew(&token(1), &own_address(1)).await.unwrap_err();
    assert_eq!(refused.reason, Reason::LeaseUnknown);
    assert_eq!(register(&one, 1).await.unwrap().conflicting_address, None);
    let refused = register(&two, 2).await.unwrap_err();
    assert_eq!(refused.reason, Reason::IdentityInUse);
    assert!(refused.message.contains("127.0.0.1:1"), "{refused}");
    let second_address = Address {
        host: "127.0.0.1".to_owned(),
        port: 2,
    };
    let lease = one.renew(&token(1), &own_address(1)).await.unwrap();
    assert_eq!(lease.conflicting_address, Some(second_address.clone()));
    assert_eq!(
        register(&one, 1).await.unwrap().conflicting_address,
        Some(second_address)
    );
    // The holder's files keep its address.
    let found = provider_ports(&two).await;
    assert_eq!(found, [1]);
    // The refused process stops, and must not remove the holder's registrations.
    assert_eq!(two.unregister(&token(1), None).await.unwrap(), 0);
    let refused = two.unregister(&token(1), Some(&[record(1).id])).await;
    assert_eq!(refused.unwrap_err().reason, Reason::LeaseUnknown);
    assert_eq!(provider_ports(&two).await, [1]);
    // The holder stops, and the other process gets the lease.
    one.unregister(&token(1), None).await.unwrap();
    assert_eq!(register(&two, 2).await.unwrap().conflicting_address, None);
    assert_eq!(provider_ports(&two).await, [2]);
}

/// The ports of the providers of the first file.
async fn provider_ports(client: &IndexClient) -> Vec<u16> {
    let page = client.query(&QueryKey::Id(record(1).id), 0, None).await.unwrap();
    page.files[0]
        .providers
        .iter()
        .map(|provider| provider.address.port)
        .collect()
}

#[tokio::test]
async fn returns_the_digest_of_the_registrations() {
    let index = TestIndex::in_memory().await;
    let client = &index.client;
    let files: Vec<_> = (0..200)
        .map(|n| registration(n, &format!("name {}", n % 7)))
        .collect();
    let lease = index.register(1, &files).await;
    assert_eq!(lease.digest, Some(SetDigest::from_iter(&files)));
    client
        .unregister(&token(1), Some(&[files[0].file.id]))
        .await
        .unwrap();
    let renewed = [Registration {
        is_complete: false,
        ..registration(7, "another")
    }];
    index.register(1, &renewed).await;
    let mut expected = files[1..].to_vec();
    expected[6] = renewed[0].clone();
    let lease = client.renew(&token(1), &own_address(1)).await.unwrap();
    assert_eq!(lease.digest, Some(SetDigest::from_iter(&expected)));
}
