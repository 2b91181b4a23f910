//! Commands that run at the same time on one machine: several followers of a transfer, a locked
//! home, and sockets that are not a peer's.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::{fs, os::unix::net::UnixListener};

use support::{Sandbox, Service, bytes};

fn control(peer: &Service) -> String {
    format!("unix:{}", peer.home.join("control.sock").display())
}

/// Waits until a `get --json` has part of the file.
#[track_caller]
fn has_some(get: &Service) {
    loop {
        let event: serde_json::Value = serde_json::from_str(&get.line()).unwrap();
        assert_eq!(event["event"], "progress", "{event}");
        if event["bytes"].as_u64().unwrap() > 0 {
            return;
        }
    }
}

#[test]
fn ctrl_c_in_one_get_does_not_stop_the_other() {
    const SIZE: usize = 12 << 20;
    let sandbox = Sandbox::new();
    let seed = sandbox.peer("seed", &["--upload-limit", "4MiB"]);
    sandbox.file("x.bin", SIZE, 1);
    sandbox
        .run(&["share", "x.bin", "--peer", &control(&seed)])
        .expect(0);
    sandbox.eventually(&["query", "x.bin"]);
    let daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    let get = || {
        let mut command = sandbox.command();
        let get = Service::start(command.args(["get", "x.bin", "--json"]));
        has_some(&get);
        get
    };
    let mut other = get();
    assert_eq!(get().interrupt().code(), Some(130));
    let running = sandbox.run(&["transfers", "--json"]).expect(0).object();
    assert_eq!(running["state"], "running");
    assert!(other.wait().success());
    assert!(fs::read(daemon.home.join("files/x.bin")).unwrap() == bytes(SIZE, 1));
}

#[test]
fn a_get_that_times_out_leaves_no_transfer() {
    let sandbox = Sandbox::without_index();
    let id = "3f".repeat(32);
    sandbox
        .run(&["get", &id, "--from", "127.0.0.1:1", "--wait", "1"])
        .expect(5);
    let _daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    assert_eq!(sandbox.run(&["transfers", "--json"]).expect(0).stdout, "");
}

#[test]
fn the_resume_command_repeats_every_flag() {
    let sandbox = Sandbox::new();
    let seed = sandbox.peer("seed", &["--upload-limit", "1MiB"]);
    sandbox.file("src/x.bin", 12 << 20, 1);
    let shared = sandbox
        .run(&["share", "src/x.bin", "--peer", &control(&seed), "--json"])
        .expect(0)
        .object();
    let id = shared["id"].as_str().unwrap();
    let index = "http://127.0.0.1:1";
    let get = ["get", id, "--from", &seed.address, "--index", index];
    let mut command = sandbox.command();
    let stderr = sandbox.dir.path().join("stderr");
    command
        .args(get)
        .args(["-o", "a b", "--limit", "1MiB"])
        .stderr(fs::File::create(&stderr).unwrap());
    let mut get = Service::start(&mut command);
    support::wait_until("it fetches", || fs::read_dir(sandbox.work()).unwrap().count() > 1);
    assert_eq!(get.interrupt().code(), Some(130));
    let stderr = fs::read_to_string(stderr).unwrap();
    let again = format!(
        "potluck get {id} -o 'a b' --from {} --limit 1MiB/s --index {index}",
        seed.address
    );
    assert!(stderr.contains(&again), "{stderr}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_share_that_uses_the_home_is_reported() {
    let sandbox = Sandbox::new();
    sandbox.file("x.bin", 1000, 1);
    let mut command = sandbox.command();
    let mut sharing = Service::start(command.args(["share", "x.bin", "--json", "--listen", "127.0.0.1:0"]));
    sharing.line();
    for (args, code) in [
        (&["ls"][..], 1),
        (&["unshare", "x.bin"], 1),
        (&["transfers"], 5),
        (&["limits"], 5),
        (&["why", "1"], 5),
    ] {
        let stderr = sandbox.run(args).expect(code).stderr;
        assert!(
            stderr.contains("`potluck share` (process") && stderr.contains("stop it first"),
            "{args:?}: {stderr}"
        );
        assert!(!stderr.contains("--home"), "{args:?}: {stderr}");
    }
    let status = sandbox.run(&["status"]).expect(0).stdout;
    assert!(status.contains("`potluck share` (process"), "{status}");
    assert!(sharing.interrupt().success());
    let stderr = sandbox.run(&["transfers"]).expect(5).stderr;
    assert!(stderr.contains("no peer is running"), "{stderr}");
}

#[test]
fn ctrl_c_works_while_a_peer_does_not_answer() {
    for args in [&["ls"][..], &["unshare", "x"], &["share", "x"], &["get", "x"]] {
        let sandbox = Sandbox::without_index();
        let home = sandbox.default_home();
        fs::create_dir_all(&home).unwrap();
        // The system accepts connections, but nothing ever answers.
        let silent = UnixListener::bind(home.join("control.sock")).unwrap();
        let mut command = sandbox.command();
        let mut started = Service::start(command.args(args));
        let _looks = silent.accept().unwrap();
        let begun = std::time::Instant::now();
        assert_eq!(started.interrupt().code(), Some(130), "{args:?}");
        // Without the signal, the command times out after 15 seconds.
        assert!(begun.elapsed().as_secs() < 10, "{args:?}");
    }
}

#[test]
fn the_port_for_other_peers_is_not_the_control_service() {
    let sandbox = Sandbox::without_index();
    let peer = sandbox.peer("one", &[]);
    let url = format!("http://{}", peer.address);
    let error = sandbox.run(&["ls", "--peer", &url, "--json"]).expect(5).error();
    assert_eq!(error["error"], "not_potluck");
    let message = error["message"].as_str().unwrap();
    for text in ["is not a peer's control service", "control.sock", &url] {
        assert!(message.contains(text), "{message}");
    }
}

#[test]
fn an_unreadable_token_file_is_not_reported_as_missing() {
    let sandbox = Sandbox::without_index();
    let peer = sandbox.peer("one", &[]);
    let with = |file: &str, code: i32| {
        let args = [
            "ls",
            "--json",
            "--peer",
            &control(&peer),
            "--peer-token-file",
            file,
        ];
        sandbox.run(&args).expect(code).error()["error"].clone()
    };
    assert_eq!(with("nowhere", 3), "not_found");
    // `.` is a folder.
    assert_eq!(with(".", 2), "invalid_argument");
}
