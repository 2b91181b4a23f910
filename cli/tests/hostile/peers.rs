//! Hostile peers beside an honest one. Every download ends with right bytes, and a peer at fault is
//! banned by name.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use potluck_core::{model::Address, proto::v1};
use potluck_hostile::{
    bystander,
    peer::{ATTACKS, HostilePeer, Outcome, PeerAttack},
    process::{MemoryWatch, connections_to, resident_memory},
    target::{Service, Target},
};
use potluck_testkit::{
    content::{MIB, bytes, id_of, write_file},
    control::Control,
    transfer::transfer_request_from,
    wait::DEADLINE,
};
use tokio_util::sync::CancellationToken;

use crate::world::World;

/// Size of each file.
const SIZE: usize = 2 * MIB;

/// Maximum rate of each download, in bytes per second, so that both peers are asked.
const RATE: u64 = 1_000_000;

/// Maximum growth of the downloader's memory over all attacks, in MiB.
const MAX_GROWTH: u64 = 300;

/// Time within which a hostile peer must have been asked.
const UNTIL_ASKED: Duration = Duration::from_secs(20);

/// Maximum time until the downloader answers an honest client.
const ANSWER: Duration = Duration::from_secs(10);

/// Time within which connections to hostile peers are closed after the downloads: several times that
/// of one that does not read.
const UNTIL_CLOSED: Duration = Duration::from_secs(40);

/// What was seen of a hostile peer in a download.
#[derive(Debug, Default)]
struct Seen {
    /// Its states, each with the reason.
    states: BTreeSet<(&'static str, String)>,
    violations: Vec<String>,
}

/// A download from a hostile peer, and then from an honest one too.
struct Download<'a> {
    world: &'a World,
    honest: &'a Control,
    downloader: &'a Control,
    attack: &'static PeerAttack,
    data: Vec<u8>,
}

impl Download<'_> {
    async fn run(&self, hostile: &HostilePeer) -> Seen {
        let (id, name) = (id_of(&self.data), self.attack.name);
        let target = self.world.path("downloads").join(name);
        let named = self.attack.is_named().then(|| Address::from(hostile.address));
        let request = v1::StartTransferRequest {
            max_bytes_per_second: Some(RATE),
            ..transfer_request_from(id, &target, &named)
        };
        let mut events = self.downloader.start_transfer(request).await;
        let first = events.message().await.unwrap().unwrap().transfer.unwrap();
        let mut seen = Seen::default();
        // First the hostile peer alone, so that it attacks.
        let start = Instant::now();
        while hostile.attacks() == 0 && start.elapsed() < UNTIL_ASKED {
            self.look(first.transfer_id, hostile, &mut seen).await;
        }
        if hostile.attacks() == 0 {
            seen.violations.push("the hostile peer was not asked".to_owned());
        }
        let file = write_file(&self.world.path("files"), name, &self.data);
        self.honest.share(&file).await;
        let mut last = first;
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            tokio::select! {
                event = events.message() => match event.unwrap() {
                    Some(event) => last = event.transfer.unwrap(),
                    None => break,
                },
                () = self.look(last.transfer_id, hostile, &mut seen) => {}
            }
        }
        self.look(last.transfer_id, hostile, &mut seen).await;
        if last.state() != v1::TransferState::Done {
            seen.violations
                .push(format!("the download did not end: {last:?}"));
        } else if fs::read(&target).unwrap() != self.data {
            seen.violations.push("wrong bytes arrived".to_owned());
        }
        self.check_outcome(&mut seen);
        seen
    }

    /// Records the state of the hostile peer.
    async fn look(&self, transfer: u64, hostile: &HostilePeer, seen: &mut Seen) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let explained = self.downloader.explain(transfer).await.transfer.unwrap();
        let is_hostile = |peer: &v1::TransferPeer| {
            let address = peer.address.as_ref();
            address.is_some_and(|address| address.port == u32::from(hostile.address.port()))
        };
        for peer in explained.peers.into_iter().filter(is_hostile) {
            let state = peer.state().as_str_name();
            // Times differ each time.
            let reason = peer.reason.split(" in ").next().unwrap_or_default().to_owned();
            seen.states.insert((state, reason));
        }
    }

    fn check_outcome(&self, seen: &mut Seen) {
        let banned = v1::PeerState::Banned.as_str_name();
        let mut bans = seen.states.iter().filter(|(state, _)| *state == banned);
        let is_right = match self.attack.outcome {
            Outcome::Banned(why) => bans.any(|(_, reason)| reason.contains(why)),
            Outcome::NotBanned(why) => {
                let mut states = seen.states.iter();
                bans.next().is_none() && states.any(|(_, reason)| reason.contains(why))
            }
        };
        if !is_right {
            let expected = self.attack.outcome;
            seen.violations.push(format!("expected {expected:?}"));
        }
    }
}

/// Attacks at once.
const AT_ONCE: usize = 14;

/// Runs all attacks on one downloader.
async fn survives(is_private: bool) {
    let world = World::start(is_private);
    let (honest, downloader) = (world.peer("seed", &[]), world.peer("downloader", &[]));
    let honest_control = Control::in_home(&honest.home).await;
    let control = Control::in_home(&downloader.home).await;
    let attacker = world.attacker();
    fs::create_dir(world.path("downloads")).unwrap();
    // Another client downloads from the downloader meanwhile.
    let shared = bytes(MIB, 99);
    let path = write_file(&world.path("files"), "shared.bin", &shared);
    control.share(&path).await;
    let target = Target::new(downloader.address, Service::Peer, attacker.tls().unwrap(), shared);
    let (before, memory) = (
        resident_memory(downloader.id()).unwrap_or(0),
        MemoryWatch::start(downloader.id()),
    );
    let attacks = ATTACKS.iter().filter(|attack| is_private || !attack.needs_tls());
    let downloads = attacks.zip(0..).map(|(attack, seed)| Download {
        world: &world,
        honest: &honest_control,
        downloader: &control,
        attack,
        data: bytes(SIZE, seed),
    });
    let downloads: Vec<_> = downloads.collect();
    let url = world.index_url();
    let hostile = downloads.iter().map(|download| {
        let (attack, data) = (download.attack, download.data.clone().into());
        HostilePeer::start(attack, &attacker, &url, data, attack.name)
    });
    let hostile: Vec<_> = join_all(hostile).await.into_iter().map(Result::unwrap).collect();
    let over = CancellationToken::new();
    let all = async {
        let mut seen = Vec::new();
        let runs: Vec<_> = downloads.iter().zip(&hostile).collect();
        for runs in runs.chunks(AT_ONCE) {
            let runs = runs.iter().map(|(download, hostile)| download.run(hostile));
            seen.extend(join_all(runs).await);
        }
        over.cancel();
        seen
    };
    let bystander = async {
        let mut all = Vec::new();
        while !over.is_cancelled() {
            let soon = tokio::time::Instant::now();
            all.push(bystander::ask(&target, soon, ANSWER).await.unwrap());
        }
        all
    };
    let (seen, served) = tokio::join!(all, bystander);
    let growth = memory.peak().saturating_sub(before) / 1024;
    let mut violations = Vec::new();
    for (download, seen) in downloads.iter().zip(seen) {
        let name = download.attack.name;
        println!("{name}: {:?}", seen.states);
        violations.extend(seen.violations.into_iter().map(|what| format!("{name}: {what}")));
    }
    let slowest = served.iter().map(|served| served.slowest).max().unwrap();
    println!("TLS: {is_private}: grew by {growth} MiB, slowest answer {slowest:?}");
    assert!(violations.is_empty(), "TLS: {is_private}: {violations:#?}");
    assert!(growth < MAX_GROWTH, "grew by {growth} MiB");
    assert!(slowest <= ANSWER, "{served:?}");
    // Also those on which the hostile peer reads nothing.
    let ended = Instant::now();
    let still_open = || -> Vec<&str> {
        let all = downloads.iter().zip(&hostile);
        let open = all.filter(|(_, hostile)| connections_to(hostile.address) > 0);
        open.map(|(download, _)| download.attack.name).collect()
    };
    while !still_open().is_empty() && ended.elapsed() < UNTIL_CLOSED {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!(
        "TLS: {is_private}: connections are closed after {:?}",
        ended.elapsed()
    );
    assert_eq!(still_open(), [""; 0], "TLS: {is_private}: connections stay open");
    drop(hostile);
    downloader.assert_ends_well();
    honest.assert_ends_well();
    world.index.assert_ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_survive_hostile_peers() {
    survives(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_survive_hostile_members() {
    survives(true).await;
}
