//! One file, from many peers at once, over real services.

mod common;

use common::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_from_three_peers_named_by_address() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(20_000_000, 1);
    let mut seeds = Vec::new();
    let mut id = None;
    for n in 0..3 {
        let path = file(dir.path(), &format!("src{n}/data.bin"), &data);
        let seed = Peer::start(&dir.path().join(format!("seed{n}")), None).await;
        id = Some(seed.share(&path).await);
        seeds.push(seed);
    }
    let peer = Peer::start(&dir.path().join("peer"), None).await;
    let target = dir.path().join("out.bin");
    let request = potluck_core::proto::v1::FetchRequest {
        providers: seeds.iter().map(|seed| (&seed.address).into()).collect(),
        ..wish(id.unwrap(), &target)
    };
    let done = peer.fetch(request).await;
    assert_done(&done);
    assert_eq!(std::fs::read(&target).unwrap(), data);
    assert_eq!(done.bytes_done, data.len() as u64);
    assert_eq!(done.peers.iter().filter(|peer| peer.bytes > 0).count(), 3, "{done:#?}");
    assert_eq!(done.peers.iter().map(|peer| peer.bytes).sum::<u64>(), data.len() as u64);
    assert!(!target.with_file_name("out.bin.part").exists());
    assert!(!target.with_file_name("out.bin.part.state").exists());
    for seed in seeds {
        seed.stop().await;
    }
    peer.stop().await;
}
