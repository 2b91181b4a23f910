//! Discovery with a real index: complete and partial providers are found, and a running download
//! survives the loss of the index.

use std::time::Duration;

use potluck_core::{
    FileId, Token,
    identity::hash::hash_bytes,
    model::{Address, FileKind, FileRecord, Registration},
    proto::v1,
};
use potluck_peer::Config;
use potluck_testkit::{
    content::{bytes, id_of, write_file},
    network::{endpoint_at, proxy::damage_nth_id},
    records::own_address,
    services::{TestIndex, TestPeer},
    transfer::{
        assert_done, is_done, transfer_request, transfer_request_from, until_end, until_units_done,
    },
    wait::wait_until,
};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// An index, and a seed of one file that is registered with it.
struct World {
    dir: TempDir,
    index: TestIndex,
    data: Vec<u8>,
    id: FileId,
    seed: TestPeer,
}

impl World {
    async fn new(len: usize, random_seed: u64) -> Self {
        potluck_testkit::log();
        let dir = tempfile::tempdir().unwrap();
        let index = TestIndex::in_memory().await;
        let data = bytes(len, random_seed);
        let path = write_file(dir.path(), "src/data.bin", &data);
        let seed = TestPeer::start(&dir.path().join("seed"), Some(&index.endpoint)).await;
        let id = seed.share(&path).await;
        index.wait_for_providers(id, 1).await;
        Self {
            dir,
            index,
            data,
            id,
            seed,
        }
    }

    async fn peer(&self, name: &str) -> TestPeer {
        TestPeer::start(&self.dir.path().join(name), Some(&self.index.endpoint)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finds_providers_and_registers_the_finished_file() {
    potluck_testkit::log();
    let dir = tempfile::tempdir().unwrap();
    let index = TestIndex::in_memory().await;
    let data = bytes(6_000_000, 11);
    let path = write_file(dir.path(), "src/data.bin", &data);
    let mut seeds = Vec::new();
    for n in 0..3 {
        let seed =
            TestPeer::start(&dir.path().join(format!("seed{n}")), Some(&index.endpoint)).await;
        seed.share(&path).await;
        seeds.push(seed);
    }
    let id = id_of(&data);
    index.wait_for_providers(id, 3).await;
    let peer = TestPeer::start(&dir.path().join("peer"), Some(&index.endpoint)).await;
    let target = dir.path().join("out");
    let done = peer.download(transfer_request(id, &target)).await;
    assert_done(&done);
    assert_eq!(std::fs::read(&target).unwrap(), data);
    assert!(
        done.peers.iter().all(|peer| peer.peer_id.len() == 32),
        "{done:#?}"
    );
    index.wait_for_providers(id, 4).await;
}

/// The id is damaged in one request, to the index or to the only source. Whatever the answer, the
/// request is repeated or another answer replaces it.
#[tokio::test(flavor = "multi_thread")]
async fn one_damaged_request_stalls_no_download() {
    let world = World::new(500_000, 13).await;
    let index: Address = world.index.address.into();
    let id = world.id;
    let mut fetches = Vec::new();
    // About two requests with the id go to the index, about five to the provider.
    for nth in 0..7 {
        let data = world.data.clone();
        let home = world.dir.path().join(format!("home{nth}"));
        let target = world.dir.path().join(format!("out{nth}"));
        let (index, provider) = (index.clone(), world.seed.address.clone());
        fetches.push(tokio::spawn(async move {
            let (endpoint, named) = match nth {
                0 | 1 => {
                    let proxy = damage_nth_id(&index, id, nth).await;
                    (Some(endpoint_at(proxy)), None)
                }
                _ => (None, Some(damage_nth_id(&provider, id, nth - 2).await)),
            };
            let peer = TestPeer::start(&home, endpoint.as_ref()).await;
            let done = peer.download(transfer_request_from(id, &target, &named)).await;
            assert!(is_done(&done), "damaged {nth}: {done:#?}");
            assert_eq!(std::fs::read(&target).unwrap(), data);
            peer.stop().await;
        }));
    }
    for fetch in fetches {
        fetch.await.unwrap();
    }
}

/// On a machine with several addresses, a connection from another address than the listening one is
/// refused: the index sees an unknown address.
#[tokio::test(flavor = "multi_thread")]
async fn connects_from_the_address_on_which_it_listens() {
    potluck_testkit::log();
    let Ok(listener) = TcpListener::bind("127.0.0.10:0").await else {
        println!(
            "skipped: this system has no 127.0.0.10; on macOS `ifconfig lo0 alias 127.0.0.10` makes it"
        );
        return;
    };
    let world = World::new(3_000_000, 13).await;
    let config = Config {
        index: Some(world.index.endpoint.clone().into()),
        ..Config::new(world.dir.path().join("peer"))
    };
    let peer = TestPeer::serve(listener, config).await;
    let request = transfer_request(world.id, &world.dir.path().join("out"));
    assert_done(&peer.download(request).await);
    world.index.wait_for_providers(world.id, 2).await;
    let found = world.index.query(world.id).await.unwrap();
    let providers = found.providers.iter();
    let hosts: Vec<_> = providers.map(|provider| &*provider.address.host).collect();
    assert!(hosts.contains(&"127.0.0.10"), "{hosts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_lost_does_not_stop_a_download() {
    let world = World::new(6_000_000, 12).await;
    let peer = world.peer("peer").await;
    let target = world.dir.path().join("out");
    let request = v1::StartTransferRequest {
        max_bytes_per_second: Some(2_000_000),
        ..transfer_request(world.id, &target)
    };
    let mut events = peer.control.start_transfer(request).await;
    until_units_done(&mut events, 2).await;
    // The downloading peer is already a provider.
    world.index.wait_for_providers(world.id, 2).await;
    world.index.stop().await;
    assert_done(&until_end(&mut events).await);
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_the_files_folder_without_an_index() {
    potluck_testkit::log();
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("peer");
    let index = TestIndex::in_memory().await;
    let endpoint = index.endpoint.clone();
    let peer = TestPeer::start(&home, Some(&endpoint)).await;
    peer.share(&write_file(dir.path(), "before", b"1")).await;
    peer.stop().await;
    index.stop().await;
    write_file(&home.join("files"), "meanwhile", b"2");
    let peer = TestPeer::start(&home, Some(&endpoint)).await;
    wait_until("both are shared", async || peer.control.status().await.items == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registers_everything_again_after_the_index_restarts() {
    potluck_testkit::log();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("index");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut index = TestIndex::in_folder(listener, &folder);
    let peer = TestPeer::with_config(Config {
        index: Some(index.endpoint.clone().into()),
        // Renewed about once a second.
        lease: Some(Duration::from_secs(3)),
        ..Config::new(dir.path().join("peer"))
    })
    .await;
    let shared = dir.path().join("folder");
    for n in 0..50 {
        write_file(&shared, &n.to_string(), &bytes(1000 + n, 40));
    }
    let collection = peer.share(&shared).await;
    let single = peer
        .share(&write_file(dir.path(), "single", &bytes(300_000, 41)))
        .await;
    let member = id_of(&bytes(1049, 40));
    for (round, wiped) in [false, true].into_iter().enumerate() {
        for id in [collection, single, member] {
            index.wait_for_providers(id, 1).await;
        }
        index.stop().await;
        if wiped {
            std::fs::remove_dir_all(&folder).unwrap();
        }
        // Shared while the index was down.
        let late = write_file(
            dir.path(),
            &format!("late{round}"),
            &bytes(5000, 50 + round as u64),
        );
        let late = peer.share(&late).await;
        let listener = TcpListener::bind(address).await.unwrap();
        index = TestIndex::in_folder(listener, &folder);
        for id in [collection, single, member, late] {
            index.wait_for_providers(id, 1).await;
        }
    }
    peer.stop().await;
    // The peer revoked its lease.
    wait_until("it has no provider", async || {
        index.provider_count(single).await == 0
    })
    .await;
}

/// Most providers register the file as a folder. Reading its first bytes shows what it is, without
/// a second copy.
#[tokio::test(flavor = "multi_thread")]
async fn downloads_a_file_once_that_most_providers_call_a_collection() {
    let world = World::new(6_000_000, 13).await;
    for liar in 0..3 {
        let false_record = Registration {
            file: FileRecord {
                id: world.id,
                size: world.data.len() as u64,
                root: hash_bytes(&world.data).root,
                sha256: None,
                kind: FileKind::Collection,
            },
            names: vec!["data.bin".to_owned()],
            is_complete: true,
        };
        let token = Token::generate();
        let client = &world.index.client;
        client
            .register(&token, &own_address(1 + liar), &[false_record], None, false)
            .await
            .unwrap();
    }
    world.index.wait_for_providers(world.id, 4).await;
    let found = world.index.query(world.id).await.unwrap();
    assert_eq!(found.file.kind, FileKind::Collection, "the index believes them");
    let peer = world.peer("peer").await;
    let target = world.dir.path().join("out");
    let done = peer.download(transfer_request(world.id, &target)).await;
    assert_done(&done);
    assert_eq!(done.kind(), v1::FileKind::File);
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
    let uploaded = world.seed.control.status().await.uploaded_bytes;
    assert!(uploaded < 6_500_000, "{uploaded} bytes for 6,000,000");
}

/// Other peers must not learn the target path of a download.
#[tokio::test(flavor = "multi_thread")]
async fn never_announces_the_name_of_the_target() {
    let dir = tempfile::tempdir().unwrap();
    let index = TestIndex::in_memory().await;
    let source = write_file(dir.path(), "src/shared.bin", &bytes(700_000, 5));
    let folder = dir.path().join("src/set");
    write_file(&folder, "inner", &bytes(300_000, 6));
    let giver = TestPeer::start(&dir.path().join("giver"), Some(&index.endpoint)).await;
    let home = dir.path().join("taker");
    let mut taker = TestPeer::start(&home, Some(&index.endpoint)).await;
    for (path, name) in [(&source, "shared.bin"), (&folder, "set")] {
        let id = giver.share(path).await;
        index.wait_for_providers(id, 1).await;
        let target = dir.path().join(format!("private {name}"));
        assert_done(&taker.download(transfer_request(id, &target)).await);
        index.wait_for_providers(id, 2).await;
        assert_eq!(index.query(id).await.unwrap().names, [name]);
        // Nor when it is the only provider, after a restart, or after another check.
        giver.control.unshare(id).await;
        let only_provider = async |taker: &TestPeer| {
            wait_until("the taker is the only provider", async || {
                let found = index.query(id).await;
                found.is_some_and(|found| {
                    found.provider_count == 1 && found.providers[0].address == taker.address
                })
            })
            .await;
            assert_eq!(index.query(id).await.unwrap().names, [name]);
        };
        only_provider(&taker).await;
        taker.stop().await;
        taker = TestPeer::start(&home, Some(&index.endpoint)).await;
        only_provider(&taker).await;
        assert_done(&taker.download(transfer_request(id, &target)).await);
        only_provider(&taker).await;
    }
    taker.stop().await;
    giver.stop().await;
    index.stop().await;
}
