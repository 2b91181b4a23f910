//! `potluck status` in situations that its reader has to tell apart.

use potluck_testkit::{
    system::program::{Finished, Program},
    wait::wait_until_blocking,
};

use crate::sandbox::Sandbox;

#[test]
fn an_index_that_is_down_is_reported_once() {
    let mut sandbox = Sandbox::new();
    let peer = sandbox.peer("peer", &["--lease", "1s"]);
    let url = sandbox.index_url();
    sandbox.kill_index();
    let status = || {
        sandbox
            .run(&["status", "--peer", &peer.control(), "--index", &url])
            .expect(5)
    };
    wait_until_blocking("the peer notices", || {
        status().stdout.contains("not registered while the index is down")
    });
    let shown = status();
    assert_eq!(shown.stdout.matches(&url).count(), 1, "{}", shown.stdout);
    assert_eq!(
        shown.stdout.matches("cannot be reached").count(),
        1,
        "{}",
        shown.stdout
    );
    assert_eq!(shown.stderr, "");
}

#[test]
fn a_peer_without_an_index_is_up() {
    let sandbox = Sandbox::without_index();
    let peer = sandbox.peer("peer", &["--index", "none"]);
    let mut command = sandbox.command();
    command.env_remove("POTLUCK_INDEX");
    let shown = Finished::run(command.args(["status", "--peer", &peer.control()]))
        .expect(0)
        .stdout;
    assert!(
        shown.contains("index  none") && shown.contains("runs without an index"),
        "{shown}"
    );
    let status = sandbox.run(&["status", "--peer", &peer.control(), "--index", "none", "--json"]);
    assert!(status.expect(0).object()["index"].is_null());
}

#[test]
fn a_peer_that_cannot_be_reached_is_told_what_to_do() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("peer", &["--advertise", "127.0.0.1:1"]);
    let control = peer.control();
    wait_until_blocking("the index has checked", || {
        let status = sandbox
            .run(&["status", "--peer", &control, "--json"])
            .expect(0)
            .object();
        status["peer"]["reachability"] == "unreachable" && status["peer"]["reachable"] == false
    });
    let shown = sandbox.run(&["status", "--peer", &control]).expect(0).stdout;
    let advice = "not reachable: open TCP port 1 in the firewall, or start with --download-only";
    assert!(shown.contains(advice), "{shown}");
}

#[test]
fn a_download_only_peer_downloads_but_does_not_share() {
    let sandbox = Sandbox::new();
    let seed = sandbox.peer("seed", &[]);
    let file = sandbox.file("x.bin", 3_000_000, 1);
    let path = file.to_str().unwrap();
    sandbox.run(&["share", path, "--peer", &seed.control()]).expect(0);
    let home = sandbox.default_home();
    let mut command = sandbox.command();
    command.args(["peer", "--download-only", "-q"]);
    let mut peer = Program::start(&mut command);
    assert_eq!(peer.line(), "ready to download");
    assert!(home.join("control.sock").exists(), "it uses the default home");

    sandbox.run(&["get", "x.bin"]).expect(0);
    let refused = sandbox.run(&["share", path, "--json"]).expect(1).error();
    assert_eq!(refused["error"], "download_only");
    let status = sandbox.run(&["status", "--json"]).expect(0).object();
    let peer_status = &status["peer"];
    assert_eq!(
        (
            &peer_status["download_only"],
            &peer_status["listening"],
            &peer_status["registered"]
        ),
        (&true.into(), &serde_json::Value::Null, &false.into())
    );
    let shown = sandbox.run(&["status"]).expect(0).stdout;
    assert!(
        shown.contains("accepts no connections and registers nothing"),
        "{shown}"
    );
    let found = sandbox.run(&["query", "x.bin", "--json"]).expect(0).object();
    assert_eq!(
        found["files"][0]["providers"].as_array().unwrap().len(),
        1,
        "{found}"
    );
    assert!(peer.interrupt().success());

    let conflict = sandbox
        .run(&["peer", "--download-only", "--share", path])
        .expect(2);
    assert!(conflict.stderr.contains("--share"), "{}", conflict.stderr);
}
