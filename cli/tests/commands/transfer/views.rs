//! How every view shows the state of a transfer, and what is reported after it has ended.

use potluck_testkit::{content::MIB, wait::wait_until_blocking};
use serde_json::Value;

use crate::sandbox::Sandbox;

/// Asserts that the transfer is paused, and that no peer of it has a rate or requests in flight.
#[track_caller]
fn assert_paused(view: &Value) {
    assert_eq!(view["state"], "paused", "{view}");
    assert_eq!(
        (&view["bytes_per_second"], &view["unverified_bytes"]),
        (&0.into(), &0.into())
    );
    for peer in view["sources"].as_array().unwrap() {
        assert_eq!(peer["state"], "idle", "{view}");
        assert_eq!(
            (&peer["bytes_per_second"], &peer["requests"]),
            (&0.into(), &0.into()),
            "{view}"
        );
    }
}

#[test]
fn a_paused_transfer_is_paused_in_every_view() {
    let sandbox = Sandbox::new();
    let (seed, peer) = (sandbox.peer("seed", &[]), sandbox.peer("peer", &[]));
    sandbox.file("src/x.bin", 12 * MIB, 1);
    let shared = sandbox
        .run(&["share", "src/x.bin", "--peer", &seed.control(), "--json"])
        .expect(0)
        .object();
    let at_peer = peer.control();
    let run = |args: &[&str]| {
        let args = [args, &["--peer", &at_peer, "--json"]].concat();
        sandbox.run(&args).expect(0).object()
    };
    let id = shared["id"].as_str().unwrap();
    let get = ["get", id, "--detach", "--limit", "1MiB", "--peer", &at_peer];
    sandbox.run(&get).expect(0);
    wait_until_blocking("a peer has sent something", || {
        let view = run(&["why", "1"]);
        view["sources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|peer| peer["bytes"] != 0)
    });
    let paused = run(&["transfers", "pause", "1"]);
    assert_paused(&paused);
    assert!(
        !paused["sources"].as_array().unwrap().is_empty(),
        "the peers stay in the list"
    );
    assert_paused(&run(&["transfers"]));
    let why = run(&["why", "1"]);
    assert_paused(&why);
    assert_eq!(why["findings"].as_array().unwrap().len(), 0, "{why}");
    assert!(
        why["missing"]
            .as_array()
            .unwrap()
            .iter()
            .all(|run| run["in_flight"] == 0),
        "{why}"
    );
    let status = sandbox
        .run(&["status", "--peer", &at_peer, "--json"])
        .expect(0)
        .object();
    assert_eq!(status["peer"]["paused_transfers"], 1, "{status}");
    let plain = sandbox.run(&["status", "--peer", &at_peer]).expect(0).stdout;
    assert!(plain.contains("1 transfer paused"), "{plain}");
}

#[test]
fn a_transfer_that_is_done_cannot_be_cancelled() {
    let sandbox = Sandbox::new();
    let (seed, peer) = (sandbox.peer("seed", &[]), sandbox.peer("peer", &[]));
    sandbox.file("src/x.bin", 100_000, 1);
    sandbox
        .run(&["share", "src/x.bin", "--peer", &seed.control()])
        .expect(0);
    let at_peer = peer.control();
    sandbox.run(&["get", "x.bin", "--peer", &at_peer]).expect(0);
    for action in ["cancel", "pause", "resume"] {
        let refused = sandbox.run(&["transfers", action, "1", "--peer", &at_peer, "--json"]);
        assert_eq!(refused.expect(1).error()["error"], "already_ended");
    }
    let plain = sandbox
        .run(&["transfers", "cancel", "1", "--peer", &at_peer])
        .expect(1);
    assert!(plain.stderr.contains("is done already"), "{}", plain.stderr);
    assert!(peer.home.join("files/x.bin").exists());
}
