//! Commands that run at the same time on one machine: several followers of a transfer, a locked
//! home, and sockets that are not a peer's.

use std::{
    fs,
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use potluck_testkit::{
    content::MIB,
    system::program::{Program, parse},
    wait::wait_until_blocking,
};

use crate::sandbox::{Sandbox, UNREACHABLE, UNREACHABLE_URL};

/// Waits until a `get --json` has part of the file.
#[track_caller]
fn wait_for_bytes(get: &Program) {
    loop {
        let event = parse(&get.line());
        assert_eq!(event["event"], "progress", "{event}");
        if event["bytes"].as_u64().unwrap() > 0 {
            return;
        }
    }
}

#[test]
fn ctrl_c_in_one_get_leaves_the_transfer_to_the_other() {
    const SIZE: usize = 12 * MIB;
    let sandbox = Sandbox::new();
    let seed = sandbox.peer("seed", &["--upload-limit", "4MiB"]);
    sandbox.file("x.bin", SIZE, 1);
    sandbox
        .run(&["share", "x.bin", "--peer", &seed.control()])
        .expect(0);
    sandbox.eventually(&["query", "x.bin"]);
    let daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    let get = || {
        let mut command = sandbox.command();
        let get = Program::start(command.args(["get", "x.bin", "--json"]));
        wait_for_bytes(&get);
        get
    };
    let mut other = get();
    assert_eq!(get().interrupt().code(), Some(130));
    let running = sandbox.run(&["transfers", "--json"]).expect(0).object();
    assert_eq!(running["state"], "running");
    assert!(other.wait().success());
    let downloaded = fs::read(daemon.home.join("files/x.bin")).unwrap();
    assert!(downloaded == fs::read(sandbox.work().join("x.bin")).unwrap());
}

#[test]
fn a_get_that_gives_up_leaves_no_transfer() {
    let sandbox = Sandbox::without_index();
    let id = "3f".repeat(32);
    sandbox
        .run(&["get", &id, "--from", UNREACHABLE, "--wait", "1"])
        .expect(5);
    let _daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    assert_eq!(sandbox.run(&["transfers", "--json"]).expect(0).stdout, "");
}

#[test]
fn the_command_to_resume_repeats_every_flag() {
    let sandbox = Sandbox::new();
    let seed = sandbox.peer("seed", &["--upload-limit", "1MiB"]);
    sandbox.file("src/x.bin", 12 << 20, 1);
    let shared = sandbox
        .run(&["share", "src/x.bin", "--peer", &seed.control(), "--json"])
        .expect(0)
        .object();
    let id = shared["id"].as_str().unwrap();
    let index = UNREACHABLE_URL;
    let get = ["get", id, "--from", &seed.address, "--index", index];
    let mut command = sandbox.command();
    let stderr = sandbox.dir.path().join("stderr");
    command
        .args(get)
        .args(["-o", "a b", "--limit", "1MiB"])
        .stderr(fs::File::create(&stderr).unwrap());
    let mut get = Program::start(&mut command);
    wait_until_blocking("the download begins", || {
        fs::read_dir(sandbox.work()).unwrap().count() > 1
    });
    assert_eq!(get.interrupt().code(), Some(130));
    let messages = fs::read_to_string(stderr).unwrap();
    let again = format!(
        "potluck get {id} -o 'a b' --from {} --limit 1MiB/s --index {index}",
        seed.address
    );
    assert!(messages.contains(&again), "{messages}");
}

#[test]
#[cfg(target_os = "linux")]
fn names_a_share_that_holds_the_home() {
    let sandbox = Sandbox::new();
    sandbox.file("x.bin", 1000, 1);
    let mut command = sandbox.command();
    let mut sharing =
        Program::start(command.args(["share", "x.bin", "--json", "--listen", "127.0.0.1:0"]));
    sharing.line();
    for (args, code) in [
        (&["ls"][..], 1),
        (&["unshare", "x.bin"], 1),
        (&["transfers"], 5),
        (&["limits"], 5),
        (&["why", "1"], 5),
    ] {
        let messages = sandbox.run(args).expect(code).stderr;
        assert!(
            messages.contains("`potluck share` (process") && messages.contains("stop it first"),
            "{args:?}: {messages}"
        );
        assert!(!messages.contains("--home"), "{args:?}: {messages}");
    }
    let status = sandbox.run(&["status"]).expect(0).stdout;
    assert!(status.contains("`potluck share` (process"), "{status}");
    assert!(sharing.interrupt().success());
    let messages = sandbox.run(&["transfers"]).expect(5).stderr;
    assert!(messages.contains("no peer is running"), "{messages}");
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
        let mut started = Program::start(command.args(args));
        let _connection = silent.accept().unwrap();
        let start = Instant::now();
        assert_eq!(started.interrupt().code(), Some(130), "{args:?}");
        // Without the signal, the command times out after 15 seconds.
        assert!(start.elapsed() < Duration::from_secs(10), "{args:?}");
    }
}

#[test]
fn rejects_the_open_port_as_a_control_service() {
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
fn tells_an_unreadable_token_file_from_a_missing_one() {
    let sandbox = Sandbox::without_index();
    let peer = sandbox.peer("one", &[]);
    let with = |file: &str, code: i32| {
        let args = [
            "ls",
            "--json",
            "--peer",
            &peer.control(),
            "--peer-token-file",
            file,
        ];
        sandbox.run(&args).expect(code).error()["error"].clone()
    };
    assert_eq!(with("nowhere", 3), "not_found");
    // `.` is a folder.
    assert_eq!(with(".", 2), "invalid_argument");
}
