//! Discovery with a real index: complete and partial providers are found, and a running download
//! survives the loss of the index.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::{
    damage::{Way, damaging},
    *,
};
use potluck_core::{
    Token,
    model::{Address, FileKind, FileRecord, QueryKey, Registration},
    proto::v1,
};
use potluck_index::StoreConfig;
use potluck_peer::Config;
use tokio::net::TcpListener;

#[tokio::test(flavor = "multi_thread")]
async fn providers_are_found_and_the_finished_file_is_registered() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let index = Index::start().await;
    let data = bytes(6_000_000, 11);
    let path = file(dir.path(), "src/data.bin", &data);
    let mut seeds = Vec::new();
    for n in 0..3 {
        let seed = Peer::start(&dir.path().join(format!("seed{n}")), Some(&index.endpoint)).await;
        seed.share(&path).await;
        seeds.push(seed);
    }
    let id = potluck_core::identity::hash::hash_bytes(&data).id();
    wait_for_providers(&index, id, 3).await;
    let peer = Peer::start(&dir.path().join("peer"), Some(&index.endpoint)).await;
    let target = dir.path().join("out");
    let done = peer.fetch(wish(id, &target)).await;
    assert_done(&done);
    assert_eq!(std::fs::read(&target).unwrap(), data);
    assert!(
        done.peers.iter().all(|peer| peer.peer_id.len() == 32),
        "{done:#?}"
    );
    wait_for_providers(&index, id, 4).await;
}

/// The id is damaged in one request, to the index or to the only source. Whatever the answer, the
/// request is repeated or another answer replaces it.
#[tokio::test(flavor = "multi_thread")]
async fn one_damaged_request_stalls_no_download() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let index = Index::start().await;
    let data = bytes(500_000, 13);
    let path = file(dir.path(), "src/data.bin", &data);
    let seed = Peer::start(&dir.path().join("seed"), Some(&index.endpoint)).await;
    let id = seed.share(&path).await;
    wait_for_providers(&index, id, 1).await;
    let at: Address = index.address.into();
    let mut fetches = Vec::new();
    // About two requests with the id go to the index, about five to the source.
    for nth in 0..7 {
        let (data, home, target) = (
            data.clone(),
            dir.path().join(format!("home{nth}")),
            dir.path().join(format!("out{nth}")),
        );
        let (at, source) = (at.clone(), seed.address.clone());
        fetches.push(tokio::spawn(async move {
            let (endpoint, named) = match nth {
                0 | 1 => {
                    let proxy = damaging(&at, id, Way::Requests, nth).await;
                    (Some(proxy.to_string().parse().unwrap()), None)
                }
                _ => (None, Some(damaging(&source, id, Way::Requests, nth - 2).await)),
            };
            let peer = Peer::start(&home, endpoint.as_ref()).await;
            let request = v1::StartTransferRequest {
                providers: named.iter().map(Into::into).collect(),
                ..wish(id, &target)
            };
            let done = peer.fetch(request).await;
            assert_eq!(done.state(), v1::TransferState::Done, "damaged {nth}: {done:#?}");
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
async fn connections_leave_from_the_address_that_is_listened_on() {
    log();
    let Ok(listener) = TcpListener::bind("127.0.0.10:0").await else {
        println!("skipped: this system has no 127.0.0.10; on macOS `ifconfig lo0 alias 127.0.0.10` makes it");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let index = Index::start().await;
    let data = bytes(3_000_000, 13);
    let path = file(dir.path(), "src/data.bin", &data);
    let seed = Peer::start(&dir.path().join("seed"), Some(&index.endpoint)).await;
    let id = seed.share(&path).await;
    let config = Config {
        index: Some(index.endpoint.clone()),
        ..Config::new(dir.path().join("peer"))
    };
    let peer = Peer::on(listener, config).await;
    wait_for_providers(&index, id, 1).await;
    let done = peer.fetch(wish(id, &dir.path().join("out"))).await;
    assert_done(&done);
    wait_for_providers(&index, id, 2).await;
    let page = index.client.query(&QueryKey::Id(id), 0, None).await.unwrap();
    let hosts: Vec<_> = page.files[0]
        .providers
        .iter()
        .map(|provider| &*provider.address.host)
        .collect();
    assert!(hosts.contains(&"127.0.0.10"), "{hosts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_lost_does_not_stop_a_download() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let index = Index::start().await;
    let data = bytes(6_000_000, 12);
    let path = file(dir.path(), "src/data.bin", &data);
    let seed = Peer::start(&dir.path().join("seed"), Some(&index.endpoint)).await;
    let id = seed.share(&path).await;
    wait_for_providers(&index, id, 1).await;
    let peer = Peer::start(&dir.path().join("peer"), Some(&index.endpoint)).await;
    let target = dir.path().join("out");
    let request = v1::StartTransferRequest {
        max_bytes_per_second: Some(2_000_000),
        ..wish(id, &target)
    };
    let mut events = peer
        .control
        .clone()
        .start_transfer(request)
        .await
        .unwrap()
        .into_inner();
    while events
        .message()
        .await
        .unwrap()
        .unwrap()
        .transfer
        .unwrap()
        .units_done
        < 2
    {}
    // The downloading peer is already a provider.
    wait_for_providers(&index, id, 2).await;
    index.stop().await;
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.transfer;
    }
    assert_done(&last.unwrap());
    assert_eq!(std::fs::read(&target).unwrap(), data);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_dropped_in_meanwhile_is_shared_although_the_index_is_gone() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("peer");
    let index = Index::start().await;
    let endpoint = index.endpoint.clone();
    let peer = Peer::start(&home, Some(&endpoint)).await;
    peer.share(&file(dir.path(), "before", b"1")).await;
    peer.stop().await;
    index.stop().await;
    file(&home.join("files"), "meanwhile", b"2");
    let peer = Peer::start(&home, Some(&endpoint)).await;
    wait_until("both are shared", || async {
        let status = peer.control.clone().get_status(v1::GetStatusRequest {}).await;
        status.unwrap().into_inner().items == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_restarts_or_has_lost_its_data_knows_everything_again() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("index");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut index = Index::with_store(listener, StoreConfig::Sled(data.clone())).await;
    let peer = Peer::with(Config {
        index: Some(index.endpoint.clone()),
        // Renewed about once a second.
        lease: Some(Duration::from_secs(3)),
        ..Config::new(dir.path().join("peer"))
    })
    .await;
    let folder = dir.path().join("folder");
    for n in 0..50 {
        file(&folder, &n.to_string(), &bytes(1000 + n, 40));
    }
    let collection = peer.share(&folder).await;
    let single = peer.share(&file(dir.path(), "single", &bytes(300_000, 41))).await;
    let member = potluck_core::identity::hash::hash_bytes(&bytes(1049, 40)).id();
    for (round, wiped) in [false, true].into_iter().enumerate() {
        for id in [collection, single, member] {
            wait_for_providers(&index, id, 1).await;
        }
        index.stop().await;
        if wiped {
            std::fs::remove_dir_all(&data).unwrap();
        }
        // Shared while the index was down.
        let late = file(
            dir.path(),
            &format!("late{round}"),
            &bytes(5000, 50 + round as u64),
        );
        let late = peer.share(&late).await;
        let listener = TcpListener::bind(address).await.unwrap();
        index = Index::with_store(listener, StoreConfig::Sled(data.clone())).await;
        for id in [collection, single, member, late] {
            wait_for_providers(&index, id, 1).await;
        }
    }
    peer.stop().await;
    // The peer revoked its lease.
    wait_until("nobody has it", || async {
        let by = potluck_core::model::QueryKey::Id(single);
        let page = index.client.query(&by, 10, None).await.unwrap();
        page.files.first().is_none_or(|found| found.provider_count == 0)
    })
    .await;
}

/// Most providers register the file as a folder. Reading its first bytes shows what it is, without
/// a second copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_most_call_a_collection_is_fetched_once() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let index = Index::start().await;
    let data = bytes(6_000_000, 13);
    let path = file(dir.path(), "src/data.bin", &data);
    let seed = Peer::start(&dir.path().join("seed"), Some(&index.endpoint)).await;
    let id = seed.share(&path).await;
    let root = potluck_core::identity::hash::hash_bytes(&data).root;
    for liar in 0..3 {
        let lie = Registration {
            file: FileRecord {
                id,
                size: data.len() as u64,
                root,
                sha256: None,
                kind: FileKind::Collection,
            },
            names: vec!["data.bin".into()],
            is_complete: true,
        };
        let address = Address {
            host: String::new(),
            port: 1 + liar,
        };
        let (token, lies) = (Token::generate(), [lie]);
        let told = index.client.register(&token, &address, &lies, None, false);
        told.await.unwrap();
    }
    wait_for_providers(&index, id, 4).await;
    let by = potluck_core::model::QueryKey::Id(id);
    let page = index.client.query(&by, 1, None).await.unwrap();
    assert_eq!(
        page.files[0].file.kind,
        FileKind::Collection,
        "the index believes them"
    );
    let peer = Peer::start(&dir.path().join("peer"), Some(&index.endpoint)).await;
    let target = dir.path().join("out");
    let done = peer.fetch(wish(id, &target)).await;
    assert_done(&done);
    assert_eq!(done.kind(), v1::FileKind::File);
    assert_eq!(std::fs::read(&target).unwrap(), data);
    let status = seed.control.clone().get_status(v1::GetStatusRequest {}).await;
    let uploaded = status.unwrap().into_inner().uploaded_bytes;
    assert!(uploaded < 6_500_000, "{uploaded} bytes for 6,000,000");
}

/// Other peers must not learn the target path of a download.
#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_the_target_is_not_told_to_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let index = Index::start().await;
    let source = file(dir.path(), "src/shared.bin", &bytes(700_000, 5));
    let folder = dir.path().join("src/set");
    file(&folder, "inner", &bytes(300_000, 6));
    let giver = Peer::start(&dir.path().join("giver"), Some(&index.endpoint)).await;
    let home = dir.path().join("taker");
    let mut taker = Peer::start(&home, Some(&index.endpoint)).await;
    let names = async |id| {
        let page = index.client.query(&QueryKey::Id(id), 10, None).await.unwrap();
        page.files
            .into_iter()
            .next()
            .map(|found| found.names)
            .unwrap_or_default()
    };
    for (path, name) in [(&source, "shared.bin"), (&folder, "set")] {
        let id = giver.share(path).await;
        wait_for_providers(&index, id, 1).await;
        let target = dir.path().join(format!("private {name}"));
        assert_done(&taker.fetch(wish(id, &target)).await);
        wait_for_providers(&index, id, 2).await;
        assert_eq!(names(id).await, [name]);
        // Nor when it is the only provider, after a restart, or after another check.
        let target_id = v1::unshare_request::Target::FileId(id.to_bytes());
        let request = v1::UnshareRequest {
            target: Some(target_id),
        };
        giver.control.clone().unshare(request).await.unwrap();
        let only = async |taker: &Peer| {
            wait_until("the taker alone has it", || async {
                let page = index.client.query(&QueryKey::Id(id), 10, None).await.unwrap();
                let found = page.files.into_iter().next();
                let at = taker.address.clone();
                found.is_some_and(|found| found.provider_count == 1 && found.providers[0].address == at)
            })
            .await;
            assert_eq!(names(id).await, [name]);
        };
        only(&taker).await;
        taker.stop().await;
        taker = Peer::start(&home, Some(&index.endpoint)).await;
        only(&taker).await;
        assert_done(&taker.fetch(wish(id, &target)).await);
        only(&taker).await;
    }
    taker.stop().await;
    giver.stop().await;
    index.stop().await;
}
