//! The list of peers.

use std::time::Duration;

use potluck_core::{
    Reason,
    model::ListedPeer,
    proto::v1::{self, index_service_client::IndexServiceClient},
};
use potluck_testkit::{
    records::{own_address, registration, token},
    services::TestIndex,
};

/// All peers, read in pages of this size, ordered by their ports.
async fn peers(index: &TestIndex, page_size: u32) -> Vec<ListedPeer> {
    let mut peers = Vec::new();
    let mut page = None;
    loop {
        let answer = index.client.list_peers(page_size, page).await.unwrap();
        assert!(answer.peers.len() <= page_size as usize);
        peers.extend(answer.peers);
        page = answer.next;
        if page.is_none() {
            peers.sort_by_key(|peer| peer.address.port);
            return peers;
        }
    }
}

#[tokio::test]
async fn every_peer_with_a_lease_is_listed_once() {
    let index = TestIndex::in_memory().await;
    assert_eq!(peers(&index, 10).await, []);
    for n in 1..=5_u8 {
        let files: Vec<_> = (0..u64::from(n)).map(|file| registration(file, "a")).collect();
        index.register(n, &files).await;
    }
    for page_size in [1, 2, 5, 100] {
        let listed = peers(&index, page_size).await;
        let facts: Vec<_> = listed
            .iter()
            .map(|peer| (peer.peer, peer.address.port, peer.file_count))
            .collect();
        let expected: Vec<_> = (1..=5_u8)
            .map(|n| (token(n).peer_id(), u16::from(n), u64::from(n)))
            .collect();
        assert_eq!(facts, expected, "in pages of {page_size}");
        assert!(
            listed
                .iter()
                .all(|peer| peer.version == env!("CARGO_PKG_VERSION"))
        );
        assert!(listed.iter().all(|peer| peer.last_seen < Duration::from_secs(60)));
    }
    index.client.unregister(&token(3), None).await.unwrap();
    assert_eq!(peers(&index, 2).await.len(), 4);
}

#[tokio::test]
async fn a_version_that_is_not_one_is_not_shown() {
    let index = TestIndex::in_memory().await;
    let mut client = IndexServiceClient::new(index.client.endpoint().connect().await.unwrap());
    for (version, shown) in [
        ("1.2.3-rc.1+g0a1b2c3", "1.2.3-rc.1+g0a1b2c3"),
        ("<b>\u{202e}", ""),
        ("1.0 beta", ""),
        (&"1".repeat(33), ""),
    ] {
        let request = v1::RegisterRequest {
            token: token(1).expose().to_vec().into(),
            address: Some((&own_address(1)).into()),
            version: version.to_owned(),
            ..Default::default()
        };
        client.register(request).await.unwrap();
        assert_eq!(peers(&index, 1).await[0].version, shown, "{version}");
    }
}

#[tokio::test]
async fn a_page_token_of_another_list_is_refused() {
    let index = TestIndex::in_memory().await;
    for n in 1..=2 {
        index.register(n, &[registration(n.into(), "a")]).await;
    }
    let search = index.client.search("a", 1, None).await.unwrap();
    let refused = index.client.list_peers(1, search.next).await.unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidPageToken);
}
