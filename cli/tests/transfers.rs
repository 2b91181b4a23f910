//! How every view shows the state of a transfer, and what is reported after it has ended.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use serde_json::Value;
use support::*;

fn control(peer: &Service) -> String {
    format!("unix:{}", peer.home.join("control.sock").display())
}

/// Asserts that the transfer is paused, and that no peer of it has a rate or requests in flight.
#[track_caller]
fn assert_at_rest(view: &Value) {
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
    sandbox.file("src/x.bin", 12 << 20, 1);
    let shared = sandbox
        .run(&["share", "src/x.bin", "--peer", &control(&seed), "--json"])
        .expect(0)
        .object();
    let at_peer = control(&peer);
    let ask = |args: &[&str]| {
        let args = [args, &["--peer", &at_peer, "--json"]].concat();
        sandbox.run(&args).expect(0).object()
    };
    let id = shared["id"].as_str().unwrap();
    let get = ["get", id, "--detach", "--limit", "1MiB", "--peer", &at_peer];
    sandbox.run(&get).expect(0);
    wait_until("something has come", || {
        let view = ask(&["why", "1"]);
        view["sources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|peer| peer["bytes"] != 0)
    });
    let paused = ask(&["transfers", "pause", "1"]);
    assert_at_rest(&paused);
    assert!(
        !paused["sources"].as_array().unwrap().is_empty(),
        "the contributions of the peers are kept"
    );
    assert_at_rest(&ask(&["transfers"]));
    let why = ask(&["why", "1"]);
    assert_at_rest(&why);
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
    assert!(plain.contains("0 transfers running, 1 paused"), "{plain}");
}

#[test]
fn a_finished_transfer_cannot_be_changed() {
    let sandbox = Sandbox::new();
    let (seed, peer) = (sandbox.peer("seed", &[]), sandbox.peer("peer", &[]));
    sandbox.file("src/x.bin", 100_000, 1);
    sandbox
        .run(&["share", "src/x.bin", "--peer", &control(&seed)])
        .expect(0);
    let at_peer = control(&peer);
    sandbox.run(&["get", "x.bin", "--peer", &at_peer]).expect(0);
    for action in ["cancel", "pause", "resume"] {
        let run = sandbox.run(&["transfers", action, "1", "--peer", &at_peer, "--json"]);
        assert_eq!(run.expect(1).error()["error"], "already_ended");
    }
    let plain = sandbox
        .run(&["transfers", "cancel", "1", "--peer", &at_peer])
        .expect(1);
    assert!(plain.stderr.contains("is done already"), "{}", plain.stderr);
    assert!(peer.home.join("files/x.bin").exists());
}
