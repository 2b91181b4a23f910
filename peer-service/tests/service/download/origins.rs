//! Downloads from an origin, alone and in a crowd, with right and wrong bytes.

use std::path::Path;

use potluck_core::{
    FileId, Sha256,
    identity::hash::hash_bytes,
    model::{Address, QueryKey},
    proto::v1,
};
use potluck_stand_in::{StandIn, content::sha256_hex};
use potluck_testkit::{
    content::bytes,
    fakes::peer::{FakePeer, Misbehavior},
    services::{TestIndex, TestPeer},
    transfer::{assert_done, failure_reason, until_units_done},
    wait::wait_until,
};
use tempfile::TempDir;

/// An origin with one file, an index, and a folder for peers.
struct World {
    origin: StandIn,
    index: TestIndex,
    dir: TempDir,
    data: Vec<u8>,
}

impl World {
    async fn new(len: usize) -> Self {
        potluck_testkit::log();
        let origin = StandIn::start().await;
        let data = bytes(len, 11);
        origin.shared.files.put("a.bin", data.clone());
        Self {
            origin,
            index: TestIndex::in_memory().await,
            dir: tempfile::tempdir().unwrap(),
            data,
        }
    }

    fn sha256(&self) -> Sha256 {
        sha256_hex(&self.data).parse().unwrap()
    }

    fn provisional_id(&self) -> FileId {
        FileId::provisional(self.data.len() as u64, &self.sha256())
    }

    fn real_id(&self) -> FileId {
        hash_bytes(&self.data).id()
    }

    async fn peer(&self, name: &str) -> TestPeer {
        TestPeer::start(&self.dir.path().join(name), Some(&self.index.endpoint)).await
    }

    fn target(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(format!("{name}.out"))
    }

    /// A request for the file under its provisional id; `query` makes the origin misbehave.
    fn request(&self, target: &Path, query: &str) -> v1::StartTransferRequest {
        v1::StartTransferRequest {
            file_id: self.provisional_id().to_bytes(),
            target: target.to_str().unwrap().to_owned(),
            sha256: self.sha256().to_bytes(),
            origin: Some(v1::TransferOrigin {
                url: self.origin.url(&format!("/files/a.bin?{query}")),
                size: self.data.len() as u64,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Copies of the file that the origin sent.
    fn copies(&self) -> f64 {
        self.origin.shared.log.bytes() as f64 / self.data.len() as f64
    }

    #[track_caller]
    fn assert_arrived(&self, target: &Path) {
        assert!(
            std::fs::read(target).unwrap() == self.data,
            "{}",
            target.display()
        );
    }
}

fn origin_bytes(transfer: &v1::Transfer) -> u64 {
    let origins = transfer.peers.iter().filter(|peer| !peer.origin.is_empty());
    origins.map(|peer| peer.bytes).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_peer_gets_everything_from_the_origin_once() {
    for len in [1, 128 * 1024, 3_000_001] {
        let world = World::new(len).await;
        let peer = world.peer("peer").await;
        let target = world.target("peer");
        let done = peer.download(world.request(&target, "")).await;
        assert_done(&done);
        world.assert_arrived(&target);
        assert_eq!(done.file_id, world.real_id().to_bytes(), "the real id at the end");
        assert_eq!(origin_bytes(&done), len as u64);
        assert_eq!(world.origin.shared.log.bytes(), len as u64);
        world.index.wait_for_providers(world.real_id(), 1).await;
        let key = QueryKey::Sha256(world.sha256());
        let found = world.index.client.query(&key, 10, None).await.unwrap();
        let real = found.files.iter().find(|found| found.file.id == world.real_id());
        assert_eq!(real.unwrap().file.sha256, Some(world.sha256()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_peers_that_start_together_cost_the_origin_about_one_copy() {
    let world = World::new(32 << 20).await;
    let mut peers = Vec::new();
    for n in 0..8 {
        peers.push((
            world.peer(&format!("peer{n}")).await,
            world.target(&n.to_string()),
        ));
    }
    let downloads = peers.iter().map(|(peer, target)| {
        // Slow enough that the peers find each other.
        peer.download(world.request(target, "rate=200000"))
    });
    for done in futures_util::future::join_all(downloads).await {
        assert_done(&done);
        assert!(
            done.peers.iter().filter(|peer| peer.bytes > 0).count() > 4,
            "{done:#?}"
        );
    }
    for (_, target) in &peers {
        world.assert_arrived(target);
    }
    // The simulator holds the bound. On a busy machine, peers learn late what others chose.
    assert!(world.copies() < 1.2, "{} copies", world.copies());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_lies_is_banned_by_name_and_the_file_is_right() {
    for misbehavior in [Misbehavior::CorruptsData, Misbehavior::CorruptsLastPiece] {
        let world = World::new(4 << 20).await;
        let liar = FakePeer::start(misbehavior, &world.data).await;
        let peer = world.peer("peer").await;
        let target = world.target("peer");
        let request = v1::StartTransferRequest {
            providers: vec![(&liar.address).into()],
            ..world.request(&target, "rate=300000")
        };
        let done = peer.download(request).await;
        assert_done(&done);
        world.assert_arrived(&target);
        let row = done.peers.iter().find(|row| is_at(row, &liar.address)).unwrap();
        assert_eq!(row.state(), v1::PeerState::Banned, "{misbehavior:?}: {done:#?}");
        assert!(row.reason.contains("differs from the origin"), "{row:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_piece_is_found_with_the_layer_of_a_peer_that_has_the_file() {
    let world = World::new(8 << 20).await;
    let first = world.peer("first").await;
    assert_done(&first.download(world.request(&world.target("first"), "")).await);
    world.index.wait_for_providers(world.real_id(), 1).await;
    let liar = FakePeer::start(Misbehavior::CorruptsLastPiece, &world.data).await;
    let peer = world.peer("peer").await;
    // Whoever is asked for the last piece is a matter of chance.
    for attempt in 0..20 {
        let target = world.target(&format!("attempt {attempt}"));
        let request = v1::StartTransferRequest {
            providers: vec![(&liar.address).into()],
            // Not shared, so that the next attempt does not find it here.
            seed: Some(v1::SeedLimit {
                limit: Some(v1::seed_limit::Limit::Seconds(0)),
            }),
            ..world.request(&target, "")
        };
        let done = peer.download(request).await;
        assert_done(&done);
        world.assert_arrived(&target);
        let row = done.peers.iter().find(|row| is_at(row, &liar.address));
        if row.is_some_and(|row| row.state() == v1::PeerState::Banned) {
            let again = origin_bytes(&done) as f64 / world.data.len() as f64;
            assert!(again < 0.1, "the origin sent {again} of the file again");
            return;
        }
    }
    panic!("the liar was never asked for its wrong piece");
}

fn is_at(row: &v1::TransferPeer, address: &Address) -> bool {
    let own = row.address.clone().unwrap_or_default();
    own.host == address.host && own.port == u32::from(address.port)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_the_origin_never_get_the_name() {
    let world = World::new(1 << 20).await;
    let peer = world.peer("peer").await;
    let target = world.target("peer");
    let failed = peer
        .download(world.request(&target, "fault=damaged&at=700000"))
        .await;
    assert_eq!(failure_reason(&failed), "VERIFICATION_FAILED");
    assert!(!target.exists());
    assert_eq!(world.index.provider_count(world.real_id()).await, 0);
    // The same download from an origin with the right bytes.
    let done = peer.download(world.request(&target, "")).await;
    assert_done(&done);
    world.assert_arrived(&target);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_fails_for_good_fails_the_download() {
    for (fault, reason) in [
        ("denied", "ORIGIN_DENIED"),
        ("gzip", "ORIGIN_INVALID"),
        ("other-range", "ORIGIN_INVALID"),
        ("other-size", "ORIGIN_CHANGED"),
    ] {
        let world = World::new(1 << 20).await;
        let peer = world.peer("peer").await;
        let target = world.target("peer");
        let failed = peer
            .download(world.request(&target, &format!("fault={fault}")))
            .await;
        assert_eq!(failure_reason(&failed), reason, "{fault}");
        assert!(!target.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_resumes_where_it_was() {
    let world = World::new(4 << 20).await;
    let peer = world.peer("peer").await;
    let target = world.target("peer");
    let mut events = peer
        .control
        .start_transfer(world.request(&target, "rate=200000"))
        .await;
    until_units_done(&mut events, 10).await;
    let part = target.with_file_name("peer.out.part.state");
    wait_until("a checkpoint is written", async || part.exists()).await;
    drop(events);
    peer.stop().await;
    let peer = world.peer("peer").await;
    let done = peer.download(world.request(&target, "")).await;
    assert_done(&done);
    world.assert_arrived(&target);
    assert!(done.resumed_bytes > 0, "{done:#?}");
    assert!(world.copies() < 1.5, "{}", world.copies());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_there_already_is_left_alone() {
    let world = World::new(1 << 20).await;
    let peer = world.peer("peer").await;
    let target = world.target("peer");
    std::fs::write(&target, "precious").unwrap();
    let failed = peer.download(world.request(&target, "")).await;
    assert_eq!(failure_reason(&failed), "TARGET_EXISTS");
    std::fs::write(&target, &world.data).unwrap();
    let done = peer.download(world.request(&target, "")).await;
    assert_done(&done);
    assert_eq!(done.file_id, world.real_id().to_bytes());
    assert_eq!(world.origin.shared.log.bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_needs_credentials_is_not_announced() {
    let world = World::new(1 << 20).await;
    let peer = world.peer("peer").await;
    let target = world.target("peer");
    let mut request = world.request(&target, "");
    if let Some(origin) = &mut request.origin {
        origin.authorization = "Bearer secret".into();
    }
    let done = peer.download(request).await;
    assert_done(&done);
    let log = world.origin.shared.log.entries();
    assert!(!log.is_empty() && log.iter().all(|entry| entry.has_credentials));
    // Something else is announced, so the registrations have arrived.
    let other = potluck_testkit::content::write_file(world.dir.path(), "other", b"other");
    let other = peer.share(&other).await;
    world.index.wait_for_providers(other, 1).await;
    for id in [world.real_id(), world.provisional_id()] {
        assert_eq!(world.index.provider_count(id).await, 0);
    }
}
