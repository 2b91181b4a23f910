//! Sharing, finding and downloading, with daemons and without.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use potluck_testkit::{
    background::Background,
    content::{MIB, bytes},
    fakes::foreign::{WEB_SERVER, answer_and_read_on, listen},
    system::{
        disk::names_in,
        program::{Finished, Program, parse},
    },
    wait::wait_until_blocking,
};
use rustix::process::Signal;

use crate::sandbox::{Peer, Sandbox, UNREACHABLE};

/// File size in bytes: large enough to interrupt the download at the rate that the test sets.
const LARGE: usize = 12 * MIB;

/// Shares a file through a daemon and waits until the index lists it. Returns the id.
#[track_caller]
fn share(sandbox: &Sandbox, peer: &Peer, path: &str) -> String {
    let object = sandbox
        .run(&["share", path, "--peer", &peer.control(), "--json"])
        .expect(0)
        .object();
    let id = object["id"].as_str().unwrap().to_owned();
    sandbox.eventually(&["query", &id]);
    id
}

#[test]
fn a_daemon_shares_a_file_and_others_find_it() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    let path = sandbox.file("My Model-7b.bin", 700_000, 1);
    let object = sandbox
        .run(&["share", "My Model-7b.bin", "--peer", &peer.control(), "--json"])
        .expect(0)
        .object();
    let local = sandbox
        .run(&["id", "My Model-7b.bin", "--json"])
        .expect(0)
        .object();
    for field in ["id", "root", "size", "name", "path", "kind"] {
        assert_eq!(object[field], local[field], "{field}");
    }
    let id = object["id"].as_str().unwrap();
    sandbox.eventually(&["query", id]);

    let query = sandbox
        .run(&["query", "My Model-7b.bin", "--json"])
        .expect(0)
        .object();
    let file = &query["files"][0];
    assert_eq!((&file["id"], &file["size"]), (&object["id"], &700_000.into()));
    assert_eq!(file["names"][0], "My Model-7b.bin");
    assert!(file["sha256"].is_null() || file["sha256"].as_str().unwrap().len() == 64);
    let provider = &file["providers"][0];
    assert_eq!(
        (&provider["address"], &provider["complete"]),
        (&peer.address.as_str().into(), &true.into())
    );
    assert_eq!(provider["peer"].as_str().unwrap().len(), 64);
    assert!(
        sandbox
            .run(&["query", id])
            .expect(0)
            .stdout
            .contains(&peer.address)
    );

    let search = sandbox.run(&["search", "7b", "mod", "--json"]).expect(0).object();
    assert_eq!(search["files"][0]["providers"], 1);
    assert!(search["next_page"].is_null());
    sandbox.run(&["search", "absent", "--json"]).expect(3);
    assert_eq!(
        sandbox
            .run(&["query", "my model-7b.bin", "--json"])
            .expect(3)
            .error()["error"],
        "not_found"
    );

    let item = sandbox
        .run(&["ls", "--peer", &peer.control(), "--json"])
        .expect(0)
        .object();
    assert_eq!(
        (&item["id"], &item["path"]),
        (&object["id"], &path.to_str().unwrap().into())
    );
    let status = sandbox
        .run(&["status", "--peer", &peer.control(), "--json"])
        .expect(0)
        .object();
    assert_eq!(
        (&status["index"]["files"], &status["peer"]["items"]),
        (&1.into(), &1.into())
    );
    assert_eq!(status["peer"]["registered"], true);

    sandbox.run(&["unshare", id, "--peer", &peer.control()]).expect(0);
    assert_eq!(
        sandbox
            .run(&["ls", "--peer", &peer.control(), "--json"])
            .expect(0)
            .stdout,
        ""
    );
    assert_eq!(
        sandbox
            .run(&["unshare", id, "--peer", &peer.control(), "--json"])
            .expect(3)
            .error()["error"],
        "not_found"
    );
    wait_until_blocking("the index has removed it", || {
        sandbox.run(&["query", id]).code == Some(3)
    });
    assert!(path.exists());
}

#[test]
fn without_a_daemon_get_saves_into_the_current_folder() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    sandbox.file("src/x.bin", 3_000_000, 1);
    let id = share(&sandbox, &peer, "src/x.bin");
    let objects = sandbox.run(&["get", "x.bin", "--json"]).expect(0).objects();
    let done = objects.last().unwrap();
    assert_eq!(
        (&done["event"], &done["id"], &done["size"]),
        (&"done".into(), &id.as_str().into(), &3_000_000.into())
    );
    assert_eq!(done["path"], sandbox.work().join("x.bin").to_str().unwrap());
    assert_eq!(done["resumed_bytes"], 0);
    assert_eq!(done["sources"][0]["address"], peer.address.as_str());
    assert_eq!(done["sources"][0]["bytes"], 3_000_000);
    assert!(done["sources"][0]["reason"].is_null());
    assert!(fs::read(sandbox.work().join("x.bin")).unwrap() == bytes(3_000_000, 1));
    // The second download leaves the complete file as it is.
    assert!(
        sandbox
            .run(&["get", &id])
            .expect(0)
            .stdout
            .contains("already there")
    );
    // A different file with the same name is never overwritten.
    fs::write(sandbox.work().join("x.bin"), "precious").unwrap();
    assert_eq!(
        sandbox.run(&["get", &id, "--json"]).expect(1).error()["error"],
        "target_exists"
    );
    assert_eq!(fs::read(sandbox.work().join("x.bin")).unwrap(), b"precious");
    // Other targets work: a new path, and a folder that is created.
    sandbox.run(&["get", &id, "-o", "y.bin"]).expect(0);
    sandbox.run(&["get", &id, "-o", "new/"]).expect(0);
    for copy in ["y.bin", "new/x.bin"] {
        assert!(
            fs::read(sandbox.work().join(copy)).unwrap() == bytes(3_000_000, 1),
            "{copy}"
        );
    }
}

#[test]
fn with_a_daemon_get_saves_into_its_files_folder() {
    let sandbox = Sandbox::new();
    let source = sandbox.peer("one", &[]);
    let daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    sandbox.file("x.bin", 300_000, 1);
    let id = share(&sandbox, &source, "x.bin");
    // The peer is found by its socket in the default home, without `--peer`.
    sandbox.run(&["get", &id]).expect(0);
    assert!(fs::read(daemon.home.join("files/x.bin")).unwrap() == bytes(300_000, 1));
    let transfer = sandbox.run(&["transfers", "--json"]).expect(0).object();
    assert_eq!(
        (&transfer["id"], &transfer["state"]),
        (&id.as_str().into(), &"done".into())
    );
    assert_eq!(
        sandbox.run(&["why", &id, "--json"]).expect(0).object()["state"],
        "done"
    );
}

#[test]
fn get_lists_the_files_of_an_ambiguous_name() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    sandbox.file("a/x.bin", 1000, 1);
    sandbox.file("b/x.bin", 2000, 2);
    let ids = [
        share(&sandbox, &peer, "a/x.bin"),
        share(&sandbox, &peer, "b/x.bin"),
    ];
    let finished = sandbox.run(&["get", "x.bin", "--json"]).expect(2);
    assert_eq!(finished.error()["error"], "ambiguous_name");
    assert_eq!(finished.object()["files"].as_array().unwrap().len(), 2);
    assert!(!sandbox.work().join("x.bin").exists());
    let plain = sandbox.run(&["get", "x.bin"]).expect(2).stdout;
    assert!(ids.iter().all(|id| plain.contains(&id[..8])), "{plain}");
    sandbox.run(&["get", &ids[1]]).expect(0);
    assert_eq!(fs::metadata(sandbox.work().join("x.bin")).unwrap().len(), 2000);
}

#[test]
fn get_finds_a_file_by_its_sha256() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    sandbox.file("a/x.bin", 100_000, 1);
    let id = share(&sandbox, &peer, "a/x.bin");
    let mut sum = String::new();
    wait_until_blocking("the SHA-256 is known", || {
        let file = sandbox.run(&["query", &id, "--json"]).expect(0).object()["files"][0].clone();
        file["sha256"]
            .as_str()
            .map(|text| text.clone_into(&mut sum))
            .is_some()
    });
    sandbox
        .run(&["get", &format!("sha256:{sum}"), "-o", "copy"])
        .expect(0);
    assert!(fs::read(sandbox.work().join("copy")).unwrap() == bytes(100_000, 1));
    sandbox
        .run(&["get", &format!("sha256:{}", "00".repeat(32))])
        .expect(3);
}

#[test]
fn get_restores_a_folder() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    sandbox.file("set/a.bin", 5_000_000, 1);
    let tool = sandbox.file("set/bin/tool", 10, 2);
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(sandbox.work().join("set/empty")).unwrap();
    symlink("../a.bin", sandbox.work().join("set/bin/link")).unwrap();
    for i in 0..50 {
        sandbox.file(&format!("set/many/{i}"), 100 + i, i as u64);
    }
    let id = share(&sandbox, &peer, "set");
    let done = sandbox
        .run(&["get", "set", "-o", "copies/", "--json"])
        .expect(0)
        .objects()
        .pop()
        .unwrap();
    assert_eq!(done["kind"], "collection");
    sandbox.run(&["verify", &id, "copies/set"]).expect(0);
    let mode = fs::metadata(sandbox.work().join("copies/set/bin/tool"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o100, 0o100);
    assert_eq!(
        fs::read_link(sandbox.work().join("copies/set/bin/link")).unwrap(),
        Path::new("../a.bin")
    );
}

#[test]
fn share_and_get_work_without_a_daemon() {
    let sandbox = Sandbox::new();
    sandbox.file("src/x.bin", 1_000_000, 1);
    let mut command = sandbox.command();
    let mut sharing =
        Program::start(command.args(["share", "src/x.bin", "--json", "--listen", "127.0.0.1:0"]));
    let object: serde_json::Value = parse(&sharing.line());
    let id = object["id"].as_str().unwrap();
    sandbox.eventually(&["query", id]);
    // The default home is locked, so this command's peer uses a temporary home.
    sandbox.run(&["get", id]).expect(0);
    assert!(fs::read(sandbox.work().join("x.bin")).unwrap() == bytes(1_000_000, 1));
    // Other commands do not mistake the sharing command for a daemon, and do not open its library.
    assert_eq!(
        sandbox.run(&["transfers", "--json"]).expect(5).error()["error"],
        "unreachable"
    );
    assert_eq!(
        sandbox.run(&["ls", "--json"]).expect(1).error()["error"],
        "home_locked"
    );
    assert_eq!(sharing.interrupt().code(), Some(0), "Ctrl-C is how sharing ends");
    sandbox.run(&["query", id]).expect(3);
    // The library persists: it can be listed and changed after the command.
    assert_eq!(sandbox.run(&["ls", "--json"]).expect(0).object()["id"], id);
    sandbox.run(&["unshare", "src/x.bin"]).expect(0);
    assert_eq!(sandbox.run(&["ls", "--json"]).expect(0).stdout, "");
    let mut leftovers = names_in(sandbox.dir.path());
    leftovers.retain(|name| name.starts_with("potluck"));
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

#[test]
fn share_names_paths_that_fail_and_shares_the_others() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    sandbox.file("a", 10, 1);
    let finished = sandbox
        .run(&["share", "none", "a", "--json", "--peer", &peer.control()])
        .expect(1);
    assert_eq!(finished.object()["name"], "a");
    assert_eq!(finished.error()["error"], "not_found");
    let plain = sandbox
        .run(&["share", "none", "--peer", &peer.control()])
        .expect(3);
    assert!(plain.stderr.contains("none"), "{}", plain.stderr);
    sandbox.run(&["share", "none"]).expect(3);
    sandbox.run(&["share", "none", "nothing"]).expect(1);
}

#[test]
fn get_resumes_after_ctrl_c() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &["--upload-limit", "4MiB"]);
    sandbox.file("src/x.bin", LARGE, 1);
    let id = share(&sandbox, &peer, "src/x.bin");
    let mut get = begin_get(&sandbox, &id);
    assert_eq!(get.interrupt().code(), Some(130));
    assert!(!sandbox.work().join("x.bin").exists());
    let done = sandbox
        .run(&["get", &id, "--json"])
        .expect(0)
        .objects()
        .pop()
        .unwrap();
    assert!(done["resumed_bytes"].as_u64().unwrap() > 0, "{done}");
    assert!(fs::read(sandbox.work().join("x.bin")).unwrap() == bytes(LARGE, 1));
}

#[test]
fn get_resumes_after_a_kill() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &["--upload-limit", "4MiB"]);
    sandbox.file("src/x.bin", LARGE, 1);
    let id = share(&sandbox, &peer, "src/x.bin");
    begin_get(&sandbox, &id).kill();
    let done = sandbox
        .run(&["get", &id, "--json"])
        .expect(0)
        .objects()
        .pop()
        .unwrap();
    assert!(done["resumed_bytes"].as_u64().unwrap() > 0, "{done}");
    assert!(fs::read(sandbox.work().join("x.bin")).unwrap() == bytes(LARGE, 1));
}

/// Starts a `get`, and returns when it has part of the file.
fn begin_get(sandbox: &Sandbox, id: &str) -> Program {
    let mut command = sandbox.command();
    let get = Program::start(command.args(["get", id, "--json"]));
    loop {
        let event: serde_json::Value = parse(&get.line());
        assert_eq!(event["event"], "progress", "{event}");
        if event["bytes"].as_u64().unwrap() > 5 << 20 {
            return get;
        }
    }
}

#[test]
fn names_an_unreachable_index_or_peer() {
    let sandbox = Sandbox::without_index();
    for args in [
        &["search", "x", "--json"][..],
        &["query", "x", "--json"],
        &["get", "x", "--json"],
        &["status", "--json"],
    ] {
        let error = sandbox.run(args).expect(5).error();
        assert_eq!(error["error"], "unreachable", "{args:?}");
        assert!(
            error["message"].as_str().unwrap().contains(UNREACHABLE),
            "{error}"
        );
    }
    for args in [
        &["transfers"][..],
        &["why", "1"],
        &["ls"],
        &["share", "x"],
        &["get", "x"],
    ] {
        let run = sandbox
            .run(&[args, &["--peer", "unix:/nonexistent/control.sock", "--json"]].concat())
            .expect(5);
        assert_eq!(run.error()["error"], "unreachable", "{args:?}");
    }
}

#[test]
fn rejects_a_server_that_is_not_potluck() {
    let sandbox = Sandbox::without_index();
    let background = Background::start();
    let url = format!(
        "http://{}",
        background.run(listen(answer_and_read_on(WEB_SERVER)))
    );
    let error = sandbox
        .run(&["search", "x", "--index", &url, "--json"])
        .expect(5)
        .error();
    // If the server closes the connection before it reads a request, the client cannot tell what
    // kind of server it is.
    assert!(
        ["not_potluck", "unreachable"].contains(&error["error"].as_str().unwrap()),
        "{error}"
    );
    sandbox.run(&["transfers", "--peer", &url, "--json"]).expect(5);
}

#[test]
fn control_over_tcp_requires_its_token() {
    let sandbox = Sandbox::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let peer = sandbox.peer("one", &["--control", &port.to_string()]);
    let url = format!("http://{port}");
    let refused = sandbox.run(&["ls", "--peer", &url, "--json"]).expect(1).error();
    assert_eq!(refused["error"], "unauthenticated");
    let file = peer.home.join("state/control-token");
    sandbox
        .run(&["ls", "--peer", &url, "--peer-token-file", file.to_str().unwrap()])
        .expect(0);
    let mut command = sandbox.command();
    command.env("POTLUCK_PEER_TOKEN", fs::read_to_string(&file).unwrap().trim());
    Finished::run(command.args(["ls", "--peer", &url])).expect(0);
}

#[test]
fn services_print_their_address_and_stop_on_a_signal() {
    let sandbox = Sandbox::new();
    let mut peer = sandbox.peer("one", &[]);
    assert_eq!(peer.interrupt().code(), Some(0));
    let mut command = sandbox.command();
    let mut index = Program::start(command.args(["index", "--listen", "127.0.0.1:0", "-q"]));
    assert!(index.line().starts_with("listening on 127.0.0.1:"));
    index.signal(Signal::TERM);
    assert_eq!(index.wait().code(), Some(0));
    let second = sandbox.peer("one", &[]);
    let refused = Finished::run(
        sandbox
            .command()
            .args(["peer", "--json", "--listen", "127.0.0.1:0", "--home"])
            .arg(&second.home),
    );
    assert_eq!(refused.expect(1).error()["error"], "home_locked");
}
