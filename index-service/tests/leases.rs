//! Leases over loopback: how they end, and how they go on.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::time::{Duration, Instant};

use common::{DEADLINE, TestIndex, file, here, record, token, wait_until};
use potluck_core::{Reason, index_client::By};

#[tokio::test]
async fn a_lease_that_is_not_renewed_ends() {
    let index = TestIndex::in_memory().await;
    let client = index.client();
    let second = Some(Duration::from_secs(1));
    client
        .register(&token(1), &here(1), &[file(1, "a")], second, false)
        .await
        .unwrap();
    client
        .register(&token(2), &here(2), &[file(1, "a")], None, false)
        .await
        .unwrap();
    wait_until("the lease to run out", || async {
        client.query(&By::Id(record(1).id), 0, None).await.unwrap().files[0].provider_count == 1
    })
    .await;
    let refused = client.renew(&token(1), &here(1)).await.unwrap_err();
    assert_eq!(refused.reason, Reason::LeaseUnknown);
    assert!(client.renew(&token(2), &here(2)).await.is_ok());
    // It comes back as if it had never been there.
    client
        .register(&token(1), &here(1), &[file(1, "a")], None, false)
        .await
        .unwrap();
    assert_eq!(
        client.query(&By::Id(record(1).id), 0, None).await.unwrap().files[0].provider_count,
        2
    );
}

#[tokio::test]
async fn a_renewed_lease_goes_on() {
    let index = TestIndex::in_memory().await;
    let client = index.client();
    let ttl = Duration::from_secs(1);
    let register = || async {
        let files = [file(1, "a")];
        let lease = client
            .register(&token(1), &here(1), &files, Some(ttl), false)
            .await;
        lease.unwrap();
    };
    let mut renewed = Instant::now();
    let (began, mut held) = (renewed, renewed);
    register().await;
    while held.elapsed() < 5 * ttl / 2 {
        tokio::time::sleep(ttl / 5).await;
        let asked = Instant::now();
        match client.renew(&token(1), &here(1)).await {
            Ok(lease) => {
                assert_eq!((lease.ttl, lease.file_count), (ttl, 1));
                renewed = asked;
            }
            // Only where nobody asked in time, as on a machine that stands still: then from the start.
            Err(problem) => {
                assert_eq!(problem.reason, Reason::LeaseUnknown);
                assert!(renewed.elapsed() >= ttl && began.elapsed() < DEADLINE);
                renewed = Instant::now();
                held = renewed;
                register().await;
            }
        }
    }
}
