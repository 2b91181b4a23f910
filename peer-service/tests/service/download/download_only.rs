//! A peer that only downloads: it listens nowhere and registers nothing.

use potluck_core::proto::v1;
use potluck_peer::Config;
use potluck_testkit::{
    content::{bytes, write_file},
    services::{TestIndex, TestPeer},
    wait::wait_until,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_download_only_peer_gets_a_file_from_all_others() {
    let (index, dir) = (TestIndex::in_memory().await, tempfile::tempdir().unwrap());
    let home = |name: &str| dir.path().join(name);
    let file = write_file(dir.path(), "large.bin", &bytes(24 << 20, 1));
    let sharers = [
        TestPeer::start(&home("a"), Some(&index.endpoint)).await,
        TestPeer::start(&home("b"), Some(&index.endpoint)).await,
    ];
    let id = sharers[0].share(&file).await;
    sharers[1].share(&file).await;
    index.wait_for_providers(id, 2).await;
    let config = Config {
        index: Some(index.endpoint.clone().into()),
        ..Config::new(home("c"))
    };
    let peer = TestPeer::serve(None, config).await;
    let request = v1::StartTransferRequest {
        file_id: id.to_bytes(),
        ..Default::default()
    };
    let transfer = peer.download(request).await;
    assert_eq!(transfer.state(), v1::TransferState::Done, "{transfer:?}");
    assert_eq!(
        std::fs::read(&transfer.path).unwrap(),
        std::fs::read(&file).unwrap()
    );
    for sharer in &sharers {
        let from = transfer
            .peers
            .iter()
            .find(|row| row.address == Some((&sharer.address).into()));
        let sent = from.map_or(0, |row| row.bytes);
        // Nobody who serves is punished less than another: each sends about a half.
        assert!(sent > 24 << 18, "{} sent only {sent}", sharer.address);
    }

    let status = peer.control.status().await;
    assert!(status.download_only && !status.registered && status.listening.is_none());
    let providers = index.query(id).await.unwrap().provider_count;
    assert_eq!(providers, 2, "the download-only peer registered");
    let request = v1::ShareRequest {
        paths: vec![file.to_str().unwrap().to_owned()],
        ..Default::default()
    };
    let refused = peer.control.client.clone().share(request).await.unwrap_err();
    assert!(refused.message().contains("--download-only"), "{refused}");
    wait_until("the sharers are reachable", async || {
        let status = sharers[0].control.status().await;
        status.reachability() == v1::Reachability::Reachable
    })
    .await;
    peer.stop().await;
}
