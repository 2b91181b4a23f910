//! `get -o -`: verified bytes to standard output, in order.

use std::{
    io::Read as _,
    process::{Command, Stdio},
};

use potluck_testkit::{
    content::{MIB, bytes},
    system::disk::names_in,
};

use sha2::{Digest as _, Sha256};

use crate::sandbox::{Peer, Sandbox};

fn share(sandbox: &Sandbox, peer: &Peer, path: &str) -> String {
    let object = sandbox
        .run(&["share", path, "--peer", &peer.control(), "--json"])
        .expect(0)
        .object();
    let id = object["id"].as_str().unwrap().to_owned();
    sandbox.eventually(&["query", &id]);
    id
}

/// Runs `get ARGS -o -`: its exit code, standard output and standard error.
fn read(sandbox: &Sandbox, args: &[&str]) -> (Option<i32>, Vec<u8>, String) {
    let output = sandbox
        .command()
        .arg("get")
        .args(args)
        .args(["-o", "-"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), output.stdout, stderr)
}

#[test]
fn the_bytes_of_a_file_arrive_in_order_and_nothing_is_kept() {
    const SIZE: usize = 20 * MIB + 12_345;
    let sandbox = Sandbox::new();
    let peers = [sandbox.peer("one", &[]), sandbox.peer("two", &[])];
    sandbox.file("src/x.bin", SIZE, 1);
    for peer in &peers {
        share(&sandbox, peer, "src/x.bin");
    }
    for with_daemon in [false, true] {
        let daemon = with_daemon.then(|| sandbox.peer_in(&sandbox.default_home(), &[]));
        let (code, stdout, stderr) = read(&sandbox, &["x.bin"]);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stdout == bytes(SIZE, 1));
        assert!(stderr.contains("verified"), "{stderr}");
        assert_eq!(names_in(&sandbox.work()), ["src"]);
        if let Some(daemon) = daemon {
            assert!(names_in(&daemon.home.join("files")).is_empty());
            assert_eq!(sandbox.run(&["transfers", "--json"]).expect(0).stdout, "");
            assert_eq!(sandbox.run(&["ls", "--json"]).expect(0).stdout, "");
        }
    }
    // An empty file is complete at once.
    sandbox.file("src/empty", 0, 1);
    let id = share(&sandbox, &peers[0], "src/empty");
    assert_eq!(read(&sandbox, &[&id]).1, b"");
}

#[test]
fn a_shared_file_is_read_from_its_own_copy() {
    let sandbox = Sandbox::without_index();
    let _daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    let path = sandbox.file("x.bin", 3 * MIB, 1);
    let shared = sandbox.run(&["share", "x.bin", "--json"]).expect(0).object();
    let id = shared["id"].as_str().unwrap();
    let (code, stdout, stderr) = read(&sandbox, &[id, "--index", "none", "--from", "127.0.0.1:9"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout == bytes(3 * MIB, 1));
    assert!(path.exists());
}

#[test]
fn a_closed_pipe_ends_it_with_success() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &["--upload-limit", "8MiB"]);
    sandbox.file("src/x.bin", 40 * MIB, 1);
    share(&sandbox, &peer, "src/x.bin");
    let mut command = sandbox.command();
    let mut get = command
        .args(["get", "x.bin", "-o", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = vec![0; MIB];
    get.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert!(
        first == bytes(40 * MIB, 1)[..MIB],
        "in order, before the whole file is there"
    );
    let ended = get.wait_with_output().unwrap();
    assert_eq!(
        ended.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    assert_eq!(ended.stderr, b"");
    assert_eq!(names_in(&sandbox.work()), ["src"]);
}

#[test]
fn a_folder_and_contradictory_options_are_refused() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    sandbox.file("src/set/a", 1000, 1);
    share(&sandbox, &peer, "src/set");
    let (code, stdout, stderr) = read(&sandbox, &["set"]);
    assert_eq!((code, &stdout[..]), (Some(2), &b""[..]));
    assert!(stderr.contains("-o DIR"), "{stderr}");
    for args in [
        &["set", "set2"][..],
        &["set", "--json"],
        &["set", "--include", "a"],
    ] {
        assert_eq!(read(&sandbox, args).0, Some(2), "{args:?}");
    }
    let (code, stdout, _) = read(&sandbox, &["absent"]);
    assert_eq!((code, &stdout[..]), (Some(3), &b""[..]));
}

#[test]
fn a_pipeline_can_use_the_bytes_while_they_arrive() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    sandbox.file("src/x.bin", 9 * MIB, 1);
    let id = share(&sandbox, &peer, "src/x.bin");
    // With a SHA-256, the last piece is held back until all bytes were compared.
    let sum = hex::encode(Sha256::digest(bytes(9 * MIB, 1)));
    let query = format!("sha256:{sum}");
    sandbox.eventually(&["query", &query]);
    let (code, stdout, stderr) = read(&sandbox, &[&query]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout == bytes(9 * MIB, 1));
    let potluck = sandbox.command();
    let program = potluck.get_program().to_str().unwrap().to_owned();
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("{program} get {id} -o - | sha256sum"));
    shell.env_clear().current_dir(sandbox.work());
    for (key, value) in potluck.get_envs() {
        shell.env(key, value.unwrap());
    }
    shell.env("PATH", std::env::var_os("PATH").unwrap());
    let output = shell.output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.starts_with(&sum), "{stdout}");
}
