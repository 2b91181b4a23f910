//! Hostile clients of an index and of a peer.

use std::time::{Duration, Instant};

use potluck_core::model::Address;
use potluck_hostile::{
    client::{self, Limits},
    process::resident_memory,
    target::{Service, Target},
};
use potluck_testkit::{
    content::{MIB, bytes, write_file},
    wait::wait_until,
};

use crate::world::World;

/// Time for each attack.
const TIME: Duration = Duration::from_millis(400);

/// Maximum growth of a program's memory in all attacks together, in MiB. What an attack leaves must
/// not add up.
const MAX_GROWTH: u64 = 250;

/// Runs all attacks on one program.
async fn withstands(service: Service, is_private: bool) {
    let world = World::start(is_private);
    let data = bytes(4 * MIB, 5);
    let file = write_file(&world.path("files"), "shared.bin", &data);
    let peer = world.peer("peer", &["--share", file.to_str().unwrap()]);
    let attacker = world.attacker();
    let index = Target::new(
        world.index.address,
        Service::Index,
        attacker.tls().unwrap(),
        data.clone(),
    );
    wait_until("the index knows the file", async || {
        let soon = tokio::time::Instant::now();
        let asked = potluck_hostile::bystander::ask(&index, soon, Duration::ZERO);
        asked.await.unwrap().answers > 0
    })
    .await;
    let (target, victim) = match service {
        Service::Index => (index, &world.index),
        Service::Peer => {
            let tls = attacker.tls().unwrap();
            (Target::new(peer.address, service, tls, data), &peer)
        }
    };
    let before = resident_memory(victim.id());
    if service == Service::Index {
        let bait = attacker.new_peer(&world.index_url()).await.unwrap();
        let nowhere = Address {
            host: String::new(),
            port: 9,
        };
        bait.register(&nowhere, client::bait()).await.unwrap();
    }
    let (limits, mut violations) = (Limits::default(), Vec::new());

    for attack in client::attacks().filter(|attack| attack.fits(&target)) {
        let started = Instant::now();
        let report = client::run(attack, &target, victim.id(), TIME, &limits)
            .await
            .unwrap();
        println!(
            "{service:?}{} {report}  ({} ms)",
            if is_private { ", TLS " } else { "" },
            started.elapsed().as_millis()
        );
        violations.extend(report.violations(&limits).into_iter().map(|what| {
            let name = attack.name;
            format!("{name} on {service:?}, TLS: {is_private}: {what}")
        }));
    }
    assert!(violations.is_empty(), "{violations:#?}");
    if let (Some(before), Some(after)) = (before, resident_memory(victim.id())) {
        let growth = after.saturating_sub(before) / 1024;
        println!("grew by {growth} MiB in all");
        assert!(growth < MAX_GROWTH, "grew by {growth} MiB in all");
    }
    peer.assert_ends_well();
    world.index.assert_ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_withstands_hostile_clients() {
    tokio::join!(
        withstands(Service::Index, false),
        withstands(Service::Index, true)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_withstands_hostile_clients() {
    tokio::join!(withstands(Service::Peer, false), withstands(Service::Peer, true));
}
