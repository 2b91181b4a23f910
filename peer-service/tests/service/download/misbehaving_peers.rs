//! Misbehaving peers next to an honest one: the downloaded file is correct, and the misbehaving
//! peer is named.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use potluck_core::{FileId, model::Address, proto::v1};
use potluck_testkit::{
    content::{bytes, id_of, manifest, write_file},
    control::Control,
    fakes::peer::{FakePeer, Misbehavior},
    services::{SeededFile, TestPeer},
    transfer::{
        TransferEvents, assert_done, is_waiting, transfer_request_from, until_end, until_units_done,
    },
    wait::wait_until,
};

/// An honest seed and a peer that downloads.
struct World {
    file: SeededFile,
    peer: TestPeer,
}

impl World {
    async fn new() -> Self {
        let file = SeededFile::new(5_000_000, 3).await;
        let peer = file.peer("peer").await;
        Self { file, peer }
    }

    /// The address of the honest seed.
    fn honest(&self) -> &Address {
        &self.file.seed.address
    }

    fn target(&self) -> PathBuf {
        self.file.path("out")
    }

    /// A peer that misbehaves and has the file.
    async fn fake(&self, misbehavior: Misbehavior) -> FakePeer {
        FakePeer::start(misbehavior, &self.file.data).await
    }

    /// A request for the file from these peers.
    fn request(&self, peers: &[&Address]) -> v1::StartTransferRequest {
        slow_request(self.file.id, &self.target(), peers)
    }

    /// Starts a transfer from this peer alone and follows it to the first state that fits.
    async fn start_from_until(
        &self,
        only: &FakePeer,
        state_name: &str,
        fits: impl Fn(&v1::Transfer) -> bool,
    ) -> (TransferEvents, v1::Transfer) {
        let request = transfer_request_from(self.file.id, &self.target(), [&only.address]);
        self.peer
            .control
            .start_transfer_until(state_name, request, fits)
            .await
    }

    /// Asserts that the transfer ends and the file is at the target.
    async fn assert_arrives(&self, events: &mut TransferEvents) {
        assert_done(&until_end(events).await);
        self.file.assert_arrived_at(&self.target());
    }
}

/// A request that is slow enough that every peer gets to send something.
fn slow_request(id: FileId, target: &Path, peers: &[&Address]) -> v1::StartTransferRequest {
    v1::StartTransferRequest {
        max_bytes_per_second: Some(4_000_000),
        ..transfer_request_from(id, target, peers.iter().copied())
    }
}

/// The state of the peer at this address.
fn state_of<'a>(transfer: &'a v1::Transfer, address: &Address) -> Option<&'a v1::TransferPeer> {
    let is_at = |peer: &&v1::TransferPeer| {
        let at = peer.address.as_ref();
        at.is_some_and(|at| at.port == u32::from(address.port))
    };
    transfer.peers.iter().find(is_at)
}

/// Jumps past every delay before a peer is asked again.
async fn skip_backoff() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(45)).await;
    tokio::time::resume();
}

/// Waits until a transfer shows that the bad peer was asked, for at most a second.
async fn wait_until_asked(control: &Control, bad: &Address) {
    for _ in 0..40 {
        for transfer in control.transfers().await {
            // The list shows only peers that sent something or are banned.
            let transfer = control.explain(transfer.transfer_id).await.transfer.unwrap();
            let peer = state_of(&transfer, bad).map(v1::TransferPeer::state);
            let has_answered = peer.is_some_and(|state| {
                !matches!(
                    state,
                    v1::PeerState::Connecting | v1::PeerState::Idle | v1::PeerState::Active
                )
            });
            if has_answered {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Downloads from an honest peer and a bad peer; returns the final state of the bad one.
async fn download_beside(misbehavior: Misbehavior) -> v1::TransferPeer {
    let world = World::new().await;
    let bad = world.fake(misbehavior).await;
    // The honest peer sends almost nothing until the bad one was asked.
    let honest = &world.file.seed.control;
    honest.limit_upload(1).await;
    let meanwhile = async {
        wait_until_asked(&world.peer.control, &bad.address).await;
        honest.limit_upload(0).await;
    };
    let request = world.request(&[world.honest(), &bad.address]);
    let (done, ()) = tokio::join!(world.peer.download(request), meanwhile);
    assert_done(&done);
    world.file.assert_arrived_at(&world.target());
    let bad = state_of(&done, &bad.address);
    bad.expect("the bad peer is listed").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn bans_and_names_peers_that_violate_the_protocol() {
    for misbehavior in [
        Misbehavior::CorruptsData,
        Misbehavior::SendsTooMuch,
        Misbehavior::ReordersChunks,
        Misbehavior::SendsEmptyChunks,
    ] {
        let peer = download_beside(misbehavior).await;
        assert_eq!(peer.state(), v1::PeerState::Banned, "{misbehavior:?}: {peer:?}");
        assert!(!peer.reason.is_empty(), "{misbehavior:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn does_not_ban_peers_that_fail() {
    for misbehavior in [
        Misbehavior::Stalls,
        Misbehavior::Disconnects,
        Misbehavior::IsBusy,
        Misbehavior::HasNothing,
        Misbehavior::IsSilent,
    ] {
        let peer = download_beside(misbehavior).await;
        assert_ne!(peer.state(), v1::PeerState::Banned, "{misbehavior:?}: {peer:?}");
    }
}

/// One false record that calls a folder a file must not ban every peer that counts the folder's
/// units.
#[tokio::test(flavor = "multi_thread")]
async fn ignores_peers_that_count_other_units_without_a_ban() {
    let peer = download_beside(Misbehavior::ClaimsWrongUnits).await;
    assert_ne!(peer.state(), v1::PeerState::Banned, "{peer:?}");
    assert!(peer.reason.contains("units"), "{peer:?}");
    assert_eq!(peer.bytes, 0);
}

/// A peer's claims about the file are checked before they are used: only the honest peer is
/// believed, whenever it comes.
#[tokio::test(flavor = "multi_thread")]
async fn checks_claims_about_the_file() {
    for misbehavior in [
        Misbehavior::SendsWrongHashes,
        Misbehavior::SendsEndlessHashes,
        Misbehavior::ClaimsWrongSize,
    ] {
        let world = World::new().await;
        let bad = world.fake(misbehavior).await;
        // First with the misbehaving peer alone.
        let request = v1::StartTransferRequest {
            detach: true,
            ..world.request(&[&bad.address])
        };
        let waits_without_data = |transfer: &v1::Transfer| {
            assert_eq!(transfer.bytes_done, 0, "{transfer:?}");
            is_waiting(transfer)
        };
        let control = &world.peer.control;
        let states = control.start_transfer_until(
            "it waits for an honest peer",
            request,
            waits_without_data,
        );
        let (_events, waiting) = states.await;
        assert!(!world.target().exists());
        control.pause(waiting.transfer_id).await;
        // Then with the honest peer too: the same transfer resumes.
        let request = world.request(&[&bad.address, world.honest()]);
        assert_done(&world.peer.download(request).await);
        world.file.assert_arrived_at(&world.target());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_a_file_that_a_peer_calls_a_collection() {
    let world = World::new().await;
    let bad = world.fake(Misbehavior::ClaimsCollection).await;
    let request = transfer_request_from(world.file.id, &world.target(), [&bad.address]);
    let done = world.peer.download(request).await;
    assert_done(&done);
    assert_eq!(done.kind(), v1::FileKind::File);
    world.file.assert_arrived_at(&world.target());
}

/// Shares a folder from the honest peer; returns its id and its manifest.
async fn share_folder(world: &World) -> (FileId, Vec<u8>) {
    let path = world.file.path("folder");
    let names: Vec<_> = (0..100).map(|n| format!("{n:03}")).collect();
    let files = names.iter().zip(0..).map(|(name, n)| {
        let data = bytes(100_000, n);
        write_file(&path, name, &data);
        (name.as_str(), id_of(&data), data.len() as u64)
    });
    let manifest = manifest(files).bytes().to_vec();
    let id = world.file.seed.share(&path).await;
    assert_eq!(id_of(&manifest), id);
    (id, manifest)
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_a_collection_that_a_peer_calls_a_file() {
    let world = World::new().await;
    let (id, manifest) = share_folder(&world).await;
    // The bad peer can serve the file that it claims, until the bytes turn out to be a manifest.
    let bad = FakePeer::start(Misbehavior::ClaimsFile, &manifest).await;
    let request = |peers: &[&Address]| v1::StartTransferRequest {
        detach: true,
        ..slow_request(id, &world.target(), peers)
    };
    let is_folder = |transfer: &v1::Transfer| transfer.kind() == v1::FileKind::Collection;
    let control = &world.peer.control;
    let states =
        control.start_transfer_until("the manifest is found", request(&[&bad.address]), is_folder);
    let (_events, _) = states.await;
    assert!(!world.target().exists());
    let done = world
        .peer
        .download(request(&[&bad.address, world.honest()]))
        .await;
    assert_done(&done);
    assert_eq!(
        std::fs::read(world.target().join("042")).unwrap(),
        bytes(100_000, 42)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_unit_count_reveals_a_collection() {
    let world = World::new().await;
    let (id, manifest) = share_folder(&world).await;
    // The bad peer has nothing of the file that it claims.
    let bad = FakePeer::start(Misbehavior::HasNothing, &manifest).await;
    let request = |peers: &[&Address]| v1::StartTransferRequest {
        detach: true,
        ..slow_request(id, &world.target(), peers)
    };
    let is_file = |transfer: &v1::Transfer| {
        transfer.kind() == v1::FileKind::File && transfer.state() != v1::TransferState::Preparing
    };
    let control = &world.peer.control;
    let states =
        control.start_transfer_until("it counts as a file", request(&[&bad.address]), is_file);
    let (_events, _) = states.await;
    let done = world
        .peer
        .download(request(&[&bad.address, world.honest()]))
        .await;
    assert_done(&done);
    assert_eq!(done.kind(), v1::FileKind::Collection);
    assert_eq!(
        std::fs::read(world.target().join("042")).unwrap(),
        bytes(100_000, 42)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_keeps_the_name_that_it_began_with() {
    let world = World::new().await;
    let bad = world.fake(Misbehavior::HasNothing).await;
    let no_target = Path::new("");
    let request =
        |peers: &[&Address]| transfer_request_from(world.file.id, no_target, peers.iter().copied());
    let is_named = |transfer: &v1::Transfer| !transfer.path.is_empty();
    let control = &world.peer.control;
    let states = control.start_transfer_until("it has a name", request(&[&bad.address]), is_named);
    let (_events, before) = states.await;
    control.pause(before.transfer_id).await;
    let done = world
        .peer
        .download(request(&[&bad.address, world.honest()]))
        .await;
    assert_done(&done);
    assert_eq!((done.transfer_id, &done.path), (before.transfer_id, &before.path));
    assert_eq!(Path::new(&done.path).file_name().unwrap(), "another.bin");
}

/// Several peers on one host that accept connections and never answer.
#[tokio::test(flavor = "multi_thread")]
async fn silent_peers_of_one_host_do_not_delay_an_honest_peer() {
    let world = World::new().await;
    let silent = || {
        // Where this system has only one loopback address, they share it with the honest peer.
        let listener =
            TcpListener::bind("127.0.0.2:0").or_else(|_| TcpListener::bind("127.0.0.1:0"));
        let listener = listener.unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    };
    let silent: Vec<_> = (0..90).map(|_| silent()).collect();
    let addresses = silent
        .iter()
        .map(|listener| listener.local_addr().unwrap().into());
    let addresses: Vec<Address> = addresses.collect();
    let providers = addresses.iter().chain([world.honest()]);
    let request = transfer_request_from(world.file.id, &world.target(), providers);
    assert_done(&world.peer.download(request).await);
    world.file.assert_arrived_at(&world.target());
    let dialled = silent.iter().filter(|listener| listener.accept().is_ok()).count();
    assert!(
        dialled < silent.len(),
        "all silent peers were tried before the honest one was used"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_if_every_peer_is_banned() {
    let world = World::new().await;
    let one = world.fake(Misbehavior::CorruptsData).await;
    let two = world.fake(Misbehavior::CorruptsData).await;
    let all_are_banned = |transfer: &v1::Transfer| {
        let is_banned = |peer: &v1::TransferPeer| peer.state() == v1::PeerState::Banned;
        is_waiting(transfer) && transfer.peers.iter().all(is_banned)
    };
    let request = world.request(&[&one.address, &two.address]);
    let states =
        world
            .peer
            .control
            .start_transfer_until("both are banned", request, all_are_banned);
    let (_events, transfer) = states.await;
    assert_eq!(transfer.bytes_done, 0);
    assert_eq!(transfer.error.unwrap().reason, "NO_PROVIDERS");
    assert!(!world.target().exists());
}

/// As if the link had damaged its data for a while.
#[tokio::test]
async fn retries_the_only_provider_after_its_ban() {
    let world = World::new().await;
    let provider = world.fake(Misbehavior::CorruptsData).await;
    let is_banned_for_now = |transfer: &v1::Transfer| {
        let mut peers = transfer.peers.iter();
        let is_banned_for_now = peers.any(|peer| {
            peer.state() == v1::PeerState::Banned
                && peer.reason.contains("because no other peer serves it")
        });
        is_waiting(transfer) && is_banned_for_now
    };
    let states = world.start_from_until(&provider, "it is banned for now", is_banned_for_now);
    let (mut events, waiting) = states.await;
    let message = waiting.error.unwrap().message;
    assert!(message.contains("tried again in"), "{message}");
    assert_eq!(waiting.bytes_done, 0);
    provider.heal();
    skip_backoff().await;
    world.assert_arrives(&mut events).await;
}

/// A single snapshot that was damaged in transit must not decide.
#[tokio::test]
async fn asks_the_only_provider_again_for_its_availability() {
    let world = World::new().await;
    let provider = world.fake(Misbehavior::ClaimsNothing).await;
    let has_nothing = |transfer: &v1::Transfer| {
        let error = transfer.error.as_ref();
        error.is_some_and(|error| error.message.contains("no connected provider has any"))
    };
    let states = world.start_from_until(&provider, "the provider has nothing", has_nothing);
    let (mut events, _) = states.await;
    provider.heal();
    skip_backoff().await;
    world.assert_arrives(&mut events).await;
}

/// As if the peer hashed the file again: its availability does not change, so it sends no change.
#[tokio::test(flavor = "multi_thread")]
async fn retries_the_only_provider_after_a_refusal() {
    let world = World::new().await;
    let provider = world.fake(Misbehavior::ReportsChange).await;
    let states = world.start_from_until(&provider, "it waits", is_waiting);
    let (mut events, waiting) = states.await;
    let message = waiting.error.unwrap().message;
    assert!(
        message.contains("the file is not what it was") && message.contains("asked again"),
        "{message}"
    );
    provider.heal();
    world.assert_arrives(&mut events).await;
}

/// `touch`, `chmod` and `ln` have this effect: the file is refused once, hashed again, and keeps
/// its id.
#[tokio::test(flavor = "multi_thread")]
async fn downloads_a_file_whose_times_changed() {
    let world = World::new().await;
    let seed = &world.file.seed;
    let data = &world.file.data[..500_000];
    for (n, age) in [0, 1100, 1100, 1100].into_iter().enumerate() {
        let data = [data, &[n as u8]].concat();
        let path = write_file(world.file.dir.path(), &format!("touched/{n}"), &data);
        let id = seed.share(&path).await;
        let shared = std::fs::File::options().write(true).open(&path).unwrap();
        shared.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let touched = std::time::Instant::now();
        wait_until("the change is old enough", async || {
            touched.elapsed() >= Duration::from_millis(age)
        })
        .await;
        let target = world.file.path(&format!("out/{n}"));
        let request = transfer_request_from(id, &target, [&seed.address]);
        assert_done(&world.peer.download(request).await);
        assert_eq!(std::fs::read(&target).unwrap(), data);
    }
}

/// Shares the file from a second peer and starts to download it from both.
async fn fetch_from_two_seeds(world: &World, path: &Path) -> (TestPeer, TransferEvents) {
    let second = world.file.peer("second").await;
    second.share(path).await;
    let request = v1::StartTransferRequest {
        max_bytes_per_second: Some(1_500_000),
        ..world.request(&[world.honest(), &second.address])
    };
    let mut events = world.peer.control.start_transfer(request).await;
    until_units_done(&mut events, 3).await;
    (second, events)
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_the_loss_of_a_seed() {
    let world = World::new().await;
    let shared = world.file.path("src/data.bin");
    let (second, mut events) = fetch_from_two_seeds(&world, &shared).await;
    second.stop().await;
    let last = until_end(&mut events).await;
    assert_done(&last);
    // The bytes from the lost peer still count as its own.
    let sent: u64 = last.peers.iter().map(|peer| peer.bytes).sum();
    assert_eq!(sent, last.bytes_total);
    world.file.assert_arrived_at(&world.target());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_at_a_seed_arrives_unchanged() {
    let world = World::new().await;
    let copy = write_file(world.file.dir.path(), "second-src/data.bin", &world.file.data);
    let (_second, mut events) = fetch_from_two_seeds(&world, &copy).await;
    let mut changed = world.file.data.clone();
    changed.iter_mut().step_by(1000).for_each(|byte| *byte ^= 1);
    std::fs::write(&copy, changed).unwrap();
    world.assert_arrives(&mut events).await;
}
