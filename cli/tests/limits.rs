//! Limits of a peer and of its transfers: how they are shown, changed while running, and saved.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use serde_json::json;
use support::{Sandbox, Service, wait_until};

fn control(peer: &Service) -> String {
    format!("unix:{}", peer.home.join("control.sock").display())
}

#[test]
fn limits_are_changed_one_by_one_until_the_peer_stops() {
    let sandbox = Sandbox::without_index();
    sandbox.run(&["limits"]).expect(5);
    let home = sandbox.dir.path().join("p");
    let flags = ["--upload-limit", "1MiB"];
    let mut peer = sandbox.peer_in(&home, &flags);
    let at = control(&peer);
    let limits = |args: &[&str]| {
        let line = [&["limits", "--peer", &at, "--json"], args].concat();
        sandbox.run(&line).expect(0).object()
    };
    let object = |upload: u64, download: u64, slots: u32| {
        json!({
            "upload_bytes_per_second": upload,
            "download_bytes_per_second": download,
            "upload_slots": slots,
        })
    };
    assert_eq!(limits(&[]), object(1 << 20, 0, 256));
    assert_eq!(
        limits(&["--download", "10.00 MiB/s", "--slots", "64"]),
        object(1 << 20, 10 << 20, 64)
    );
    assert_eq!(limits(&["--upload", "0"]), object(0, 10 << 20, 64));
    assert_eq!(limits(&["--slots", "0"]), object(0, 10 << 20, 0));
    let plain = sandbox.run(&["limits", "--peer", &at]).expect(0);
    assert_eq!(
        plain.stdout,
        "upload    no limit\ndownload  at most 10.00 MiB/s\nslots     no limit\n"
    );
    let stderr = sandbox
        .run(&["limits", "--peer", &at, "--upload", "fast"])
        .expect(2)
        .stderr;
    assert!(stderr.contains("as in 10MiB/s"), "{stderr}");
    let changed = sandbox.run(&["limits", "--peer", &at, "--upload", "0"]).expect(0);
    assert!(
        changed.stderr.contains("until the peer stops"),
        "{}",
        changed.stderr
    );
    assert!(peer.interrupt().success());
    let again = sandbox.peer_in(&home, &flags);
    assert_eq!(control(&again), at);
    assert_eq!(limits(&[]), object(1 << 20, 0, 256), "as set by its flags");
}

#[test]
fn a_running_transfer_is_adjusted_and_keeps_its_limits_over_a_restart() {
    let sandbox = Sandbox::new();
    let seed = sandbox.peer("seed", &[]);
    sandbox.file("large.bin", 8 << 20, 3);
    let shared = sandbox
        .run(&["share", "large.bin", "--peer", &control(&seed), "--json"])
        .expect(0)
        .object();
    let id = shared["id"].as_str().unwrap();
    sandbox.eventually(&["query", id]);

    let home = sandbox.dir.path().join("p");
    let mut peer = sandbox.peer_in(&home, &[]);
    let at = control(&peer);
    let run = |args: &[&str]| sandbox.run(&[args, &["--peer", &at]].concat());
    let transfer = || run(&["transfers", "--json"]).expect(0).object();
    run(&["get", id, "--detach", "--limit", "100KiB"]).expect(0);
    let begun = transfer();
    let created = begun["created_unix_seconds"].as_u64().unwrap();
    assert!(created > 1_700_000_000, "{begun}");
    assert_eq!(
        (&begun["max_bytes_per_second"], &begun["priority"]),
        (&(100 << 10).into(), &10.into())
    );
    let adjust = run(&["transfers", "adjust", id, "--priority", "20"]).expect(0);
    assert!(
        adjust.stdout.contains("priority 20, at most 100.00 KiB/s"),
        "{}",
        adjust.stdout
    );
    let number = begun["transfer"].to_string();
    let adjusted = run(&["transfers", "adjust", &number, "--limit", "120KiB", "--json"])
        .expect(0)
        .object();
    let holds = |transfer: &serde_json::Value| {
        assert_eq!(
            (&transfer["max_bytes_per_second"], &transfer["priority"]),
            (&(120 << 10).into(), &20.into())
        );
    };
    holds(&adjusted);
    // A second `get` joins the transfer; without flags it changes no limit.
    run(&["get", id, "--detach"]).expect(0);
    holds(&transfer());
    assert!(run(&["why", &number]).expect(0).stdout.contains("priority 20"));

    for wrong in [
        &["transfers", "adjust", &number][..],
        &["transfers", "adjust", &number, "--priority", "0"],
        &["transfers", "adjust", &number, "--priority", "101"],
        &["transfers", "adjust", "--limit", "1MiB"],
        &["get", id, "--priority", "0"],
    ] {
        run(wrong).expect(2);
    }
    run(&["transfers", "adjust", "99", "--limit", "1MiB"]).expect(3);

    peer.kill();
    let _peer = sandbox.peer_in(&home, &[]);
    holds(&transfer());
    assert_eq!(transfer()["created_unix_seconds"], created);
    let table = run(&["transfers"]).expect(0).stdout;
    assert!(
        table.contains(" AGE ") && table.contains("files/large.bin"),
        "{table}"
    );
    run(&["transfers", "adjust", &number, "--limit", "0"]).expect(0);
    wait_until("it is done: at its old limit it would take a minute", || {
        transfer()["state"] == "done"
    });
    let done = run(&["transfers", "adjust", &number, "--limit", "1MiB", "--json"])
        .expect(0)
        .object();
    assert_eq!(
        done["max_bytes_per_second"], 0,
        "a finished transfer does not change"
    );
}
