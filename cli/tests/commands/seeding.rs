//! `get --seed`: how long a finished download is served.

use std::{
    fs,
    time::{Duration, Instant},
};

use potluck_testkit::{
    content::bytes,
    system::program::{Program, parse},
    wait::wait_until_blocking,
};
use rustix::process::Signal;

use crate::sandbox::{Peer, Sandbox};

const SIZE: usize = 300_000;

fn share(sandbox: &Sandbox, peer: &Peer) -> String {
    sandbox.file("src/x.bin", SIZE, 1);
    let object = sandbox
        .run(&["share", "src/x.bin", "--peer", &peer.control(), "--json"])
        .expect(0)
        .object();
    let id = object["id"].as_str().unwrap().to_owned();
    sandbox.eventually(&["query", &id]);
    id
}

/// Number of peers that the index lists for the file.
fn providers(sandbox: &Sandbox, id: &str) -> usize {
    let query = sandbox.run(&["query", id, "--json"]);
    match query.code {
        Some(0) => query.object()["files"][0]["providers"].as_array().unwrap().len(),
        _ => 0,
    }
}

#[test]
fn a_download_that_is_not_seeded_is_never_shared() {
    let sandbox = Sandbox::new();
    let source = sandbox.peer("one", &["--upload-limit", "200KiB"]);
    let daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    let id = share(&sandbox, &source);
    sandbox.run(&["get", &id, "--seed", "no", "--detach"]).expect(0);
    let mut most = 0;
    wait_until_blocking("the download is done", || {
        most = most.max(providers(&sandbox, &id));
        let transfer = sandbox.run(&["transfers", "--json"]).expect(0).object();
        transfer["state"] == "done"
    });
    assert_eq!(most, 1);
    let file = daemon.home.join("files/x.bin");
    assert!(fs::read(&file).unwrap() == bytes(SIZE, 1));
    // The file is there already, and still not shared.
    sandbox.run(&["get", &id, "--seed", "no"]).expect(0);
    assert_eq!(sandbox.run(&["ls", "--json"]).expect(0).stdout, "");
    assert_eq!(providers(&sandbox, &id), 1);
    // Without the flag it is shared, as usual.
    sandbox.run(&["get", &id]).expect(0);
    wait_until_blocking("it is shared", || providers(&sandbox, &id) == 2);
}

#[test]
fn a_daemon_stops_sharing_after_the_time_and_after_a_restart() {
    let sandbox = Sandbox::new();
    let source = sandbox.peer("one", &[]);
    let mut daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    let id = share(&sandbox, &source);
    let began = Instant::now();
    sandbox.run(&["get", &id, "--seed", "6s"]).expect(0);
    let seeding = || {
        let transfer = sandbox.run(&["transfers", "--json"]).expect(0).object();
        transfer["seeding"] == true
    };
    assert!(seeding());
    assert!(sandbox.run(&["transfers"]).expect(0).stdout.contains("seeding"));
    daemon.server.kill();
    let daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    assert!(seeding(), "the limit survives a restart");
    wait_until_blocking("the peer stops sharing it", || !seeding());
    assert!(began.elapsed() >= Duration::from_secs(5));
    assert_eq!(sandbox.run(&["ls", "--json"]).expect(0).stdout, "");
    assert!(daemon.home.join("files/x.bin").exists());
    wait_until_blocking("the index knows", || providers(&sandbox, &id) == 1);
}

#[test]
fn without_a_daemon_the_command_serves_until_the_ratio_is_reached() {
    let sandbox = Sandbox::new();
    let source = sandbox.peer("one", &[]);
    let id = share(&sandbox, &source);
    let mut command = sandbox.command();
    let mut seeder = Program::start(command.args([
        "get",
        &id,
        "--seed",
        "2",
        "--json",
        "--listen",
        "127.0.0.1:0",
    ]));
    while parse(&seeder.line())["event"] != "done" {}
    wait_until_blocking("it is announced", || providers(&sandbox, &id) == 2);
    // From now on, it is the only provider.
    sandbox
        .run(&["unshare", &id, "--peer", &source.control()])
        .expect(0);
    wait_until_blocking("the source is gone", || providers(&sandbox, &id) == 1);
    for copy in ["a", "b"] {
        assert!(seeder.is_running(), "before the copy {copy}");
        sandbox.run(&["get", &id, "-o", copy, "--seed", "no"]).expect(0);
    }
    assert!(seeder.wait().success());
    assert_eq!(providers(&sandbox, &id), 0);
}

#[test]
fn ctrl_c_while_seeding_is_success() {
    let sandbox = Sandbox::new();
    let source = sandbox.peer("one", &[]);
    let id = share(&sandbox, &source);
    let mut command = sandbox.command();
    let mut seeder = Program::start(command.args(["get", &id, "--seed", "1h", "--json"]));
    while parse(&seeder.line())["event"] != "done" {}
    seeder.signal(Signal::INT);
    assert!(seeder.wait().success());
}

#[test]
fn a_file_that_its_owner_shares_stays_shared() {
    let sandbox = Sandbox::new();
    let source = sandbox.peer("one", &[]);
    let daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    let id = share(&sandbox, &source);
    sandbox.run(&["get", &id, "--seed", "2s"]).expect(0);
    let file = daemon.home.join("files/x.bin");
    sandbox.run(&["share", file.to_str().unwrap()]).expect(0);
    wait_until_blocking("the limit is reached", || {
        sandbox.run(&["transfers", "--json"]).expect(0).object()["seeding"] == false
    });
    assert_eq!(
        sandbox.run(&["ls", "--json"]).expect(0).object()["id"],
        id.as_str()
    );
}
