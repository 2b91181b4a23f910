//! Misbehaving peers next to an honest one: the downloaded file is correct, and the misbehaving
//! peer is named.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "misbehaving_peers/fake_peer.rs"]
mod fake;

use std::{path::Path, time::Duration};

use common::*;
use fake::{Vice, fake, fake_that_heals};
use potluck_core::{
    FileId,
    collection::{
        manifest::{EntryContent, Manifest, ManifestEntry},
        path::RelPath,
    },
    model::Address,
    proto::v1,
};

struct World {
    dir: tempfile::TempDir,
    data: Vec<u8>,
    id: FileId,
    honest: Peer,
    peer: Peer,
}

async fn world() -> World {
    log();
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(5_000_000, 3);
    let path = file(dir.path(), "src/data.bin", &data);
    let honest = Peer::start(&dir.path().join("honest"), None).await;
    let id = honest.share(&path).await;
    let peer = Peer::start(&dir.path().join("peer"), None).await;
    World {
        dir,
        data,
        id,
        honest,
        peer,
    }
}

fn from(id: FileId, target: &Path, peers: &[&Address]) -> v1::StartTransferRequest {
    let providers = peers.iter().map(|&address| address.into()).collect();
    // Slow enough that every peer gets to send something.
    v1::StartTransferRequest {
        providers,
        max_bytes_per_second: Some(4_000_000),
        ..wish(id, target)
    }
}

/// Starts a fetch and follows it until `holds` is true. The fetch goes on while the returned events
/// are kept.
async fn fetch_until(
    world: &World,
    request: v1::StartTransferRequest,
    holds: impl Fn(&v1::Transfer) -> bool,
) -> (tonic::Streaming<v1::StartTransferResponse>, v1::Transfer) {
    let mut control = world.peer.control.clone();
    let mut events = control.start_transfer(request).await.unwrap().into_inner();
    let follow = async {
        loop {
            let transfer = events.message().await.unwrap().unwrap().transfer.unwrap();
            if holds(&transfer) {
                return transfer;
            }
        }
    };
    let transfer = tokio::time::timeout(PATIENCE, follow).await.unwrap();
    (events, transfer)
}

/// Waits until a download shows the state of the bad peer, for at most a second.
async fn asked(by: &Peer, bad: &Address) {
    for _ in 0..40 {
        let mut control = by.control.clone();
        let list = control.list_transfers(v1::ListTransfersRequest::default());
        let transfers = list.await.unwrap().into_inner().transfers;
        let mut all = Vec::new();
        for transfer in transfers {
            // `ListTransfers` shows only peers that sent something or are banned.
            let target = v1::explain_transfer_request::Target::TransferId(transfer.transfer_id);
            let target = Some(target);
            let told = control
                .explain_transfer(v1::ExplainTransferRequest { target })
                .await;
            all.extend(told.unwrap().into_inner().transfer);
        }
        let mut peers = all.iter().flat_map(|transfer| &transfer.peers);
        let shown = peers.any(|peer| {
            let here = peer
                .address
                .as_ref()
                .is_some_and(|at| at.port == u32::from(bad.port));
            here && !matches!(
                peer.state(),
                v1::PeerState::Connecting | v1::PeerState::Idle | v1::PeerState::Active
            )
        });
        if shown {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Fetches from one honest peer and one bad peer; returns the final state of the bad one.
async fn next_to(vice: Vice) -> v1::TransferPeer {
    let world = world().await;
    let bad = fake(vice, &world.data).await;
    let target = world.dir.path().join("out");
    // The honest peer sends almost nothing until the bad one was asked.
    world.honest.limit_upload(1).await;
    let meanwhile = async {
        asked(&world.peer, &bad).await;
        world.honest.limit_upload(0).await;
    };
    let request = from(world.id, &target, &[&world.honest.address, &bad]);
    let (done, ()) = tokio::join!(world.peer.fetch(request), meanwhile);
    assert_done(&done);
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
    done.peers
        .into_iter()
        .find(|peer| {
            peer.address
                .as_ref()
                .is_some_and(|at| at.port == u32::from(bad.port))
        })
        .expect("the bad one is listed")
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_send_what_is_false_are_banned_and_named() {
    let vices = [
        Vice::Corrupts,
        Vice::SendsTooMuch,
        Vice::Disorder,
        Vice::EmptyChunks,
    ];
    for vice in vices {
        let peer = next_to(vice).await;
        assert_eq!(peer.state(), v1::PeerState::Banned, "{vice:?}: {peer:?}");
        assert!(!peer.reason.is_empty(), "{vice:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_fail_cost_little() {
    for vice in [
        Vice::Stalls,
        Vice::Disconnects,
        Vice::Busy,
        Vice::Empty,
        Vice::Silent,
    ] {
        let peer = next_to(vice).await;
        assert_ne!(peer.state(), v1::PeerState::Banned, "{vice:?}: {peer:?}");
    }
}

/// One false record that calls a folder a file must not ban every peer that counts the folder's
/// units.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_count_other_units_are_left_out_and_not_banned() {
    let peer = next_to(Vice::WrongUnits).await;
    assert_ne!(peer.state(), v1::PeerState::Banned, "{peer:?}");
    assert!(peer.reason.contains("units"), "{peer:?}");
    assert_eq!(peer.bytes, 0);
}

/// A peer's claims about the file are checked before they are used: only the honest peer is
/// believed, whenever it comes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_the_file_is_checked() {
    for vice in [Vice::WrongHashes, Vice::EndlessHashes, Vice::LiesAboutSize] {
        let world = world().await;
        let bad = fake(vice, &world.data).await;
        let target = world.dir.path().join("out");
        // First with the misbehaving peer alone.
        let request = v1::StartTransferRequest {
            detach: true,
            ..from(world.id, &target, &[&bad])
        };
        let mut events = world
            .peer
            .control
            .clone()
            .start_transfer(request)
            .await
            .unwrap()
            .into_inner();
        let stuck = async {
            loop {
                let transfer = events.message().await.unwrap().unwrap().transfer.unwrap();
                assert_eq!(transfer.bytes_done, 0, "{transfer:?}");
                if transfer.state() == v1::TransferState::Waiting {
                    break transfer;
                }
            }
        };
        tokio::time::timeout(PATIENCE, stuck)
            .await
            .expect("it waits for somebody honest");
        assert!(std::fs::metadata(&target).is_err());
        let number = world
            .peer
            .control
            .clone()
            .list_transfers(v1::ListTransfersRequest::default())
            .await
            .unwrap();
        let number = number.into_inner().transfers[0].transfer_id;
        world
            .peer
            .control
            .clone()
            .pause_transfer(v1::PauseTransferRequest { transfer_id: number })
            .await
            .unwrap();
        // Then with the honest peer too: the download goes on from where it was.
        let done = world
            .peer
            .fetch(from(world.id, &target, &[&bad, &world.honest.address]))
            .await;
        assert_done(&done);
        assert_eq!(std::fs::read(&target).unwrap(), world.data, "{vice:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_said_to_be_a_collection_is_fetched_as_a_file() {
    let world = world().await;
    let bad = fake(Vice::SaysCollection, &world.data).await;
    let target = world.dir.path().join("out");
    let done = world.peer.fetch(wish_from(&world, &target, &bad)).await;
    assert_done(&done);
    assert_eq!(done.kind(), v1::FileKind::File);
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
}

/// Shares a folder from an honest peer; returns its id and manifest.
async fn folder(world: &World) -> (FileId, Vec<u8>) {
    let path = world.dir.path().join("folder");
    let mut entries = Vec::new();
    for n in 0..100 {
        let name = format!("{n:03}");
        let data = bytes(100_000, n);
        file(&path, &name, &data);
        entries.push((name, potluck_core::identity::hash::hash_bytes(&data)));
    }
    let entries = entries.iter().map(|(name, tree)| ManifestEntry {
        path: RelPath::parse(name).unwrap(),
        content: EntryContent::File {
            id: tree.id(),
            size: tree.size,
            executable: false,
        },
    });
    let manifest = Manifest::new(entries).unwrap().bytes().to_vec();
    let id = world.honest.share(&path).await;
    assert_eq!(potluck_core::identity::hash::hash_bytes(&manifest).id(), id);
    (id, manifest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_said_to_be_a_file_is_fetched_as_a_folder() {
    let world = world().await;
    let (id, manifest) = folder(&world).await;
    let target = world.dir.path().join("out");
    // The bad peer can serve the file that it claims, until the bytes turn out to be a manifest.
    let bad = fake(Vice::SaysFile, &manifest).await;
    let spec = |peers: &[&Address]| v1::StartTransferRequest {
        detach: true,
        ..from(id, &target, peers)
    };
    let is_folder = |transfer: &v1::Transfer| transfer.kind() == v1::FileKind::Collection;
    let (_events, _) = fetch_until(&world, spec(&[&bad]), is_folder).await;
    assert!(!target.exists());
    let done = world.peer.fetch(spec(&[&bad, &world.honest.address])).await;
    assert_done(&done);
    assert_eq!(std::fs::read(target.join("042")).unwrap(), bytes(100_000, 42));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_counts_the_units_otherwise_puts_in_doubt_that_it_is_a_file() {
    let world = world().await;
    let (id, manifest) = folder(&world).await;
    let target = world.dir.path().join("out");
    // The bad peer has nothing of the file that it claims.
    let bad = fake(Vice::Empty, &manifest).await;
    let spec = |peers: &[&Address]| v1::StartTransferRequest {
        detach: true,
        ..from(id, &target, peers)
    };
    let is_file = |transfer: &v1::Transfer| {
        transfer.kind() == v1::FileKind::File && transfer.state() != v1::TransferState::Preparing
    };
    let (_events, _) = fetch_until(&world, spec(&[&bad]), is_file).await;
    let done = world.peer.fetch(spec(&[&bad, &world.honest.address])).await;
    assert_done(&done);
    assert_eq!(done.kind(), v1::FileKind::Collection);
    assert_eq!(std::fs::read(target.join("042")).unwrap(), bytes(100_000, 42));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_keeps_its_name_whatever_others_call_the_file() {
    let world = world().await;
    let bad = fake(Vice::Empty, &world.data).await;
    let spec = |peers: &[&Address]| v1::StartTransferRequest {
        file_id: world.id.to_bytes(),
        providers: peers.iter().map(|&address| address.into()).collect(),
        ..Default::default()
    };
    let is_named = |transfer: &v1::Transfer| !transfer.path.is_empty();
    let (_events, before) = fetch_until(&world, spec(&[&bad]), is_named).await;
    let request = v1::PauseTransferRequest {
        transfer_id: before.transfer_id,
    };
    world.peer.control.clone().pause_transfer(request).await.unwrap();
    let done = world.peer.fetch(spec(&[&bad, &world.honest.address])).await;
    assert_done(&done);
    assert_eq!((done.transfer_id, &done.path), (before.transfer_id, &before.path));
    assert_eq!(Path::new(&done.path).file_name().unwrap(), "another.bin");
}

fn wish_from(world: &World, target: &Path, address: &Address) -> v1::StartTransferRequest {
    v1::StartTransferRequest {
        providers: vec![address.into()],
        ..wish(world.id, target)
    }
}

/// Several peers on one host that accept connections and never answer.
#[tokio::test(flavor = "multi_thread")]
async fn black_holes_of_one_host_do_not_keep_an_honest_peer_waiting() {
    let world = world().await;
    let hole = || {
        let hole = std::net::TcpListener::bind("127.0.0.2:0")
            .or_else(|_| std::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        hole.set_nonblocking(true).unwrap();
        hole
    };
    let holes: Vec<_> = (0..90).map(|_| hole()).collect();
    let addresses: Vec<Address> = holes
        .iter()
        .map(|hole| hole.local_addr().unwrap().into())
        .collect();
    let target = world.dir.path().join("out");
    let all = addresses.iter().chain([&world.honest.address]);
    let request = v1::StartTransferRequest {
        providers: all.map(Into::into).collect(),
        ..wish(world.id, &target)
    };
    assert_done(&world.peer.fetch(request).await);
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
    let dialled = holes.iter().filter(|hole| hole.accept().is_ok()).count();
    assert!(
        dialled < holes.len(),
        "all were tried before the one that answers was used"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_liars_means_waiting_and_no_file() {
    let world = world().await;
    let (one, two) = (
        fake(Vice::Corrupts, &world.data).await,
        fake(Vice::Corrupts, &world.data).await,
    );
    let target = world.dir.path().join("out");
    let is_waiting = |transfer: &v1::Transfer| {
        let banned = |peer: &v1::TransferPeer| peer.state() == v1::PeerState::Banned;
        transfer.state() == v1::TransferState::Waiting && transfer.peers.iter().all(banned)
    };
    let request = from(world.id, &target, &[&one, &two]);
    let (_events, transfer) = fetch_until(&world, request, is_waiting).await;
    assert_eq!(transfer.bytes_done, 0);
    assert_eq!(transfer.error.unwrap().reason, "NO_PROVIDERS");
    assert!(!target.exists());
}

/// As if the link had damaged its data for a while.
#[tokio::test]
async fn a_sole_source_that_was_banned_is_tried_again() {
    let world = world().await;
    let (source, healed) = fake_that_heals(Vice::Corrupts, &world.data).await;
    let target = world.dir.path().join("out");
    let told = |transfer: &v1::Transfer| {
        let mut peers = transfer.peers.iter();
        let is_told = peers.any(|peer| {
            peer.state() == v1::PeerState::Banned && peer.reason.contains("because no other peer serves it")
        });
        transfer.state() == v1::TransferState::Waiting && is_told
    };
    let request = from(world.id, &target, &[&source]);
    let (mut events, waiting) = fetch_until(&world, request, told).await;
    let message = waiting.error.unwrap().message;
    assert!(message.contains("tried again in"), "{message}");
    assert_eq!(waiting.bytes_done, 0);
    healed.store(true, std::sync::atomic::Ordering::Relaxed);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(45)).await;
    tokio::time::resume();
    let mut last = None;
    let follow = async {
        while let Some(event) = events.message().await.unwrap() {
            last = event.transfer;
        }
    };
    tokio::time::timeout(PATIENCE, follow).await.unwrap();
    assert_done(&last.unwrap());
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
}

/// A single snapshot that was damaged in transit must not decide.
#[tokio::test]
async fn a_sole_source_that_told_of_nothing_is_asked_anew_what_it_has() {
    let world = world().await;
    let (source, healed) = fake_that_heals(Vice::TellsNothing, &world.data).await;
    let target = world.dir.path().join("out");
    let waits = |transfer: &v1::Transfer| {
        let error = transfer.error.as_ref();
        error.is_some_and(|error| error.message.contains("no connected provider has any"))
    };
    let request = wish_from(&world, &target, &source);
    let (mut events, _) = fetch_until(&world, request, waits).await;
    healed.store(true, std::sync::atomic::Ordering::Relaxed);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(45)).await;
    tokio::time::resume();
    let mut last = None;
    let follow = async {
        while let Some(event) = events.message().await.unwrap() {
            last = event.transfer;
        }
    };
    tokio::time::timeout(PATIENCE, follow).await.unwrap();
    assert_done(&last.unwrap());
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
}

/// As if the peer hashed the file again: its availability does not change, so it sends no change.
#[tokio::test(flavor = "multi_thread")]
async fn a_sole_source_that_refused_for_a_while_is_asked_again() {
    let world = world().await;
    let (source, healed) = fake_that_heals(Vice::Changed, &world.data).await;
    let target = world.dir.path().join("out");
    let request = wish_from(&world, &target, &source);
    let told = |transfer: &v1::Transfer| transfer.state() == v1::TransferState::Waiting;
    let (mut events, waiting) = fetch_until(&world, request, told).await;
    let message = waiting.error.unwrap().message;
    assert!(
        message.contains("the file is not what it was") && message.contains("asked again"),
        "{message}"
    );
    healed.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut last = None;
    let follow = async {
        while let Some(event) = events.message().await.unwrap() {
            last = event.transfer;
        }
    };
    tokio::time::timeout(PATIENCE, follow).await.unwrap();
    assert_done(&last.unwrap());
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
}

/// `touch`, `chmod` and `ln` have this effect: the file is refused once, hashed again, and keeps
/// its id.
#[tokio::test(flavor = "multi_thread")]
async fn a_sole_source_whose_file_was_touched_serves_it() {
    let world = world().await;
    let data = &world.data[..500_000];
    for (n, age) in [0, 1100, 1100, 1100].into_iter().enumerate() {
        let path = file(
            world.dir.path(),
            &format!("touched/{n}"),
            &[data, &[n as u8]].concat(),
        );
        let id = world.honest.share(&path).await;
        let shared = std::fs::File::options().write(true).open(&path).unwrap();
        shared.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let touched = std::time::Instant::now();
        wait_until("it was touched a while ago", || async {
            touched.elapsed() >= Duration::from_millis(age)
        })
        .await;
        let target = world.dir.path().join(format!("out/{n}"));
        let request = v1::StartTransferRequest {
            providers: vec![(&world.honest.address).into()],
            ..wish(id, &target)
        };
        assert_done(&world.peer.fetch(request).await);
        assert_eq!(std::fs::read(&target).unwrap(), std::fs::read(&path).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_dies_is_done_without() {
    let world = world().await;
    let second = Peer::start(&world.dir.path().join("second"), None).await;
    second.share(&world.dir.path().join("src/data.bin")).await;
    let target = world.dir.path().join("out");
    let request = from(world.id, &target, &[&world.honest.address, &second.address]);
    let request = v1::StartTransferRequest {
        max_bytes_per_second: Some(1_500_000),
        ..request
    };
    let mut events = world
        .peer
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
        < 3
    {}
    second.stop().await;
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.transfer;
    }
    let last = last.unwrap();
    assert_done(&last);
    // The bytes from the dead peer still count as its own.
    let given: u64 = last.peers.iter().map(|peer| peer.bytes).sum();
    assert_eq!(given, last.bytes_total);
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_under_a_seed_is_never_served_wrong() {
    let world = world().await;
    let own = file(world.dir.path(), "second-src/data.bin", &world.data);
    let second = Peer::start(&world.dir.path().join("second"), None).await;
    second.share(&own).await;
    let target = world.dir.path().join("out");
    let request = from(world.id, &target, &[&world.honest.address, &second.address]);
    let request = v1::StartTransferRequest {
        max_bytes_per_second: Some(1_500_000),
        ..request
    };
    let mut events = world
        .peer
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
        < 3
    {}
    let mut changed = world.data.clone();
    changed.iter_mut().step_by(1000).for_each(|byte| *byte ^= 1);
    std::fs::write(&own, changed).unwrap();
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.transfer;
    }
    assert_done(&last.unwrap());
    assert_eq!(std::fs::read(&target).unwrap(), world.data);
}
