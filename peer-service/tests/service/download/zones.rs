//! Peers with labels prefer those of their own zone.

use std::path::Path;

use potluck_core::model::Labels;
use potluck_peer::{Config, LimitSettings, locality::Locality};
use potluck_testkit::{
    content::{bytes, write_file},
    services::TestPeer,
    transfer::{assert_done, transfer_request_from},
};

/// Enough for many units, and for a second at [`RATE`].
const SIZE: usize = 16_000_000;
const RATE: u64 = 16_000_000;

fn in_zone(zone: &str, home: &Path) -> Config {
    let labels = Labels::of(&[format!("zone={zone}").parse().unwrap()]);
    Config {
        locality: Locality::new(labels.unwrap()),
        ..Config::new(home)
    }
}

/// The bytes that a peer of zone b gets from a seed in its zone and from one in zone a.
async fn download(near: LimitSettings) -> (u64, u64) {
    potluck_testkit::log();
    let dir = tempfile::tempdir().unwrap();
    let path = write_file(dir.path(), "data.bin", &bytes(SIZE, 1));
    let near = Config {
        limits: near,
        ..in_zone("b", &dir.path().join("near"))
    };
    let near = TestPeer::with_config(near).await;
    let far = TestPeer::with_config(in_zone("a", &dir.path().join("far"))).await;
    let id = near.share(&path).await;
    assert_eq!(far.share(&path).await, id);
    let peer = TestPeer::with_config(in_zone("b", &dir.path().join("peer"))).await;
    let target = dir.path().join("out.bin");
    let mut request = transfer_request_from(id, &target, [&near.address, &far.address]);
    request.max_bytes_per_second = Some(RATE);
    let done = peer.download(request).await;
    assert_done(&done);
    let from = |zone: &str| {
        let is_in = |labels: &potluck_core::proto::v1::Labels| labels.zone == zone;
        let mut peers = done.peers.iter();
        let row = peers.find(|row| row.labels.as_ref().is_some_and(is_in));
        row.map_or(0, |row| row.bytes)
    };
    (from("b"), from("a"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_comes_from_its_own_zone() {
    let (near, far) = download(LimitSettings::default()).await;
    assert_eq!(near + far, SIZE as u64);
    // The other seed may have answered first.
    assert!(far < SIZE as u64 / 4, "{far} bytes from the other zone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_zone_does_not_delay_a_download() {
    let slow = LimitSettings {
        upload_bytes_per_second: 20_000,
        ..LimitSettings::default()
    };
    let started = std::time::Instant::now();
    let (_, far) = download(slow).await;
    let took = started.elapsed().as_secs();
    assert!(far > SIZE as u64 / 2 && took < 30, "{far} bytes, {took} s");
}
