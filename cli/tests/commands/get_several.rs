//! `get` with several arguments: each has its own result.

use std::fs;

use potluck_testkit::{content::bytes, system::program::Finished};

use crate::sandbox::{Peer, Sandbox};

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

/// The paths of the `done` objects, sorted.
fn done_paths(finished: &Finished) -> Vec<String> {
    let objects = finished.objects().into_iter();
    let mut paths: Vec<_> = objects
        .filter(|object| object["event"] == "done")
        .map(|object| object["path"].as_str().unwrap().to_owned())
        .collect();
    paths.sort();
    paths
}

#[test]
fn several_files_arrive_in_one_folder() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    let mut ids = Vec::new();
    for (name, seed) in [("a.bin", 1), ("b.bin", 2), ("c.bin", 3)] {
        let path = format!("src/{name}");
        sandbox.file(&path, 300_000, seed);
        ids.push(share(&sandbox, &peer, &path));
    }
    // A name, the whole id, the first digits of an id, and two of them again.
    let get = ["get", "a.bin", &ids[1], &ids[2][..8], "a.bin", &ids[0]];
    let finished = sandbox
        .run(&[&get[..], &["-o", "new/", "--json"]].concat())
        .expect(0);
    let folder = sandbox.work().join("new");
    let expected = ["a.bin", "b.bin", "c.bin"].map(|name| folder.join(name));
    assert_eq!(
        done_paths(&finished),
        expected.each_ref().map(|path| path.to_str().unwrap())
    );
    for (path, seed) in expected.iter().zip(1..) {
        assert!(
            fs::read(path).unwrap() == bytes(300_000, seed),
            "{}",
            path.display()
        );
    }
    let again = sandbox.run(&["get", "a.bin", "b.bin", "-o", "new"]).expect(0);
    assert_eq!(
        again.stdout.matches("already there").count(),
        2,
        "{}",
        again.stdout
    );
    assert!(
        again.stderr.contains("2 of 2 done, 585.94 KiB"),
        "{}",
        again.stderr
    );
}

#[test]
fn a_target_that_fails_does_not_stop_the_others() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    sandbox.file("src/a.bin", 300_000, 1);
    sandbox.file("src/b.bin", 300_000, 2);
    share(&sandbox, &peer, "src/a.bin");
    share(&sandbox, &peer, "src/b.bin");
    fs::write(sandbox.work().join("b.bin"), "precious").unwrap();
    let finished = sandbox
        .run(&["get", "none", "a.bin", "b.bin", "--json"])
        .expect(3);
    assert_eq!(done_paths(&finished).len(), 1);
    let mut errors: Vec<_> = finished
        .stderr
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|error| (error["target"].to_string(), error["error"].to_string()))
        .collect();
    errors.sort();
    let expected = [("\"b.bin\"", "\"target_exists\""), ("\"none\"", "\"not_found\"")];
    let expected = expected.map(|(target, word)| (target.to_owned(), word.to_owned()));
    assert_eq!(errors, expected);
    assert!(fs::read(sandbox.work().join("a.bin")).unwrap() == bytes(300_000, 1));
    // The first failure in the order of the arguments sets the exit code.
    let plain = sandbox.run(&["get", "b.bin", "a.bin", "none"]).expect(1);
    assert!(
        plain.stderr.contains("error: none: no running peer"),
        "{}",
        plain.stderr
    );
    sandbox.run(&["get", "none", "nothing"]).expect(3);
}

#[test]
fn several_files_need_a_folder() {
    let sandbox = Sandbox::without_index();
    let finished = sandbox.run(&["get", "a", "b", "-o", "absent"]).expect(2);
    assert!(finished.stderr.contains("-o absent/"), "{}", finished.stderr);
    sandbox.file("file", 1, 1);
    sandbox.run(&["get", "a", "b", "-o", "file"]).expect(2);
}

#[test]
fn a_running_peer_downloads_several_in_the_background() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    let daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    for (name, seed) in [("a.bin", 1), ("b.bin", 2)] {
        let path = format!("src/{name}");
        sandbox.file(&path, 300_000, seed);
        share(&sandbox, &peer, &path);
    }
    let finished = sandbox.run(&["get", "a.bin", "b.bin", "--detach"]).expect(0);
    assert_eq!(finished.stdout.lines().count(), 2, "{}", finished.stdout);
    let get = ["get", "a.bin", "b.bin", "--json"];
    let files = daemon.home.join("files");
    assert_eq!(
        done_paths(&sandbox.run(&get).expect(0)),
        ["a.bin", "b.bin"].map(|name| files.join(name).to_str().unwrap().to_owned())
    );
}
