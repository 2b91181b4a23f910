//! Limits of a peer and of its transfers: how they are shown, changed while running, and saved.

use potluck_testkit::wait::wait_until_blocking;
use serde_json::json;

use crate::sandbox::Sandbox;

#[test]
fn shows_and_changes_each_limit_until_the_peer_stops() {
    let sandbox = Sandbox::without_index();
    sandbox.run(&["limits"]).expect(5);
    let home = sandbox.dir.path().join("p");
    let flags = ["--upload-limit", "1MiB"];
    let mut peer = sandbox.peer_in(&home, &flags);
    let at = peer.control();
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
    assert_eq!(again.control(), at);
    assert_eq!(limits(&[]), object(1 << 20, 0, 256), "as set by its flags");
}

#[test]
fn an_adjusted_transfer_keeps_its_limits_after_a_restart() {
    let sandbox = Sandbox::new();
    let seed = sandbox.peer("seed", &[]);
    sandbox.file("large.bin", 8 << 20, 3);
    let shared = sandbox
        .run(&["share", "large.bin", "--peer", &seed.control(), "--json"])
        .expect(0)
        .object();
    let id = shared["id"].as_str().unwrap();
    sandbox.eventually(&["query", id]);

    let home = sandbox.dir.path().join("p");
    let mut peer = sandbox.peer_in(&home, &[]);
    let at = peer.control();
    let run = |args: &[&str]| sandbox.run(&[args, &["--peer", &at]].concat());
    let transfer = || run(&["transfers", "--json"]).expect(0).object();
    run(&["get", id, "--detach", "--limit", "100KiB"]).expect(0);
    let started = transfer();
    let created = started["created_unix_seconds"].as_u64().unwrap();
    assert!(created > 1_700_000_000, "{started}");
    assert_eq!(
        (&started["max_bytes_per_second"], &started["priority"]),
        (&(100 << 10).into(), &10.into())
    );
    let adjusted = run(&["transfers", "adjust", id, "--priority", "20"]).expect(0);
    assert!(
        adjusted.stdout.contains("priority 20, at most 100.00 KiB/s"),
        "{}",
        adjusted.stdout
    );
    let number = started["transfer"].to_string();
    let adjusted = run(&["transfers", "adjust", &number, "--limit", "120KiB", "--json"])
        .expect(0)
        .object();
    let assert_adjusted = |transfer: &serde_json::Value| {
        assert_eq!(
            (&transfer["max_bytes_per_second"], &transfer["priority"]),
            (&(120 << 10).into(), &20.into())
        );
    };
    assert_adjusted(&adjusted);
    // A second `get` joins the transfer; without flags it changes no limit.
    run(&["get", id, "--detach"]).expect(0);
    assert_adjusted(&transfer());
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
    assert_adjusted(&transfer());
    assert_eq!(transfer()["created_unix_seconds"], created);
    let table = run(&["transfers"]).expect(0).stdout;
    assert!(
        table.contains(" AGE ") && table.contains("files/large.bin"),
        "{table}"
    );
    run(&["transfers", "adjust", &number, "--limit", "0"]).expect(0);
    wait_until_blocking("it is done, which would take a minute at its old limit", || {
        transfer()["state"] == "done"
    });
    let done = run(&["transfers", "adjust", &number, "--limit", "1MiB", "--json"])
        .expect(0)
        .object();
    assert_eq!(
        done["max_bytes_per_second"], 0,
        "a transfer that is done is not adjusted"
    );
}
