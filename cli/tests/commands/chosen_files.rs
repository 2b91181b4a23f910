//! `get --include` and `--exclude`: some files of a folder, and the rest later.

use std::{fs, path::Path};

use potluck_testkit::{
    content::{MIB, bytes},
    system::{
        disk::names_in,
        program::{Program, parse},
    },
};
use serde_json::Value;

use crate::sandbox::{Peer, Sandbox};

/// The files of the shared folder: path, size and seed. Small ones share units.
const FILES: [(&str, usize, u64); 7] = [
    ("README.md", 900, 1),
    ("config.json", 500, 2),
    ("tokens/a.json", 700, 3),
    ("tokens/b.txt", 800, 4),
    ("weights/1.bin", 3 * MIB, 5),
    ("weights/2.bin", 2 * MIB, 6),
    ("weights/copy.json", 500, 2),
];

fn share(sandbox: &Sandbox, peer: &Peer) -> String {
    for (path, size, seed) in FILES {
        sandbox.file(&format!("src/set/{path}"), size, seed);
    }
    let object = sandbox
        .run(&["share", "src/set", "--peer", &peer.control(), "--json"])
        .expect(0)
        .object();
    let id = object["id"].as_str().unwrap().to_owned();
    sandbox.eventually(&["query", &id]);
    id
}

/// Runs `get --json` and returns the last object.
#[track_caller]
fn get(sandbox: &Sandbox, args: &[&str]) -> Value {
    let finished = sandbox.run(&[&["get"], args, &["--json"]].concat()).expect(0);
    finished.objects().pop().unwrap()
}

/// Bytes that peers sent for a finished download.
fn downloaded(done: &Value) -> u64 {
    let sources = done["sources"].as_array().unwrap().iter();
    sources.map(|source| source["bytes"].as_u64().unwrap()).sum()
}

/// Checks that the folder has exactly these files of [`FILES`].
#[track_caller]
fn assert_files(folder: &Path, expected: &[&str]) {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    found.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned())
                }
            }
        }
    }
    found.sort();
    assert_eq!(found, expected);
    for (path, size, seed) in FILES.iter().filter(|(path, ..)| expected.contains(path)) {
        assert!(
            fs::read(folder.join(path)).unwrap() == bytes(*size, *seed),
            "{path}"
        );
    }
}

const ALL: [&str; 7] = [
    "README.md",
    "config.json",
    "tokens/a.json",
    "tokens/b.txt",
    "weights/1.bin",
    "weights/2.bin",
    "weights/copy.json",
];

#[test]
fn only_chosen_files_are_downloaded_and_the_rest_later() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    let id = share(&sandbox, &peer);
    let done = get(&sandbox, &["set", "--include", "*.json", "--exclude", "weights"]);
    let folder = sandbox.work().join("set");
    assert_files(&folder, &["config.json", "tokens/a.json"]);
    assert_eq!((downloaded(&done), &done["size"]), (1200, &1200.into()));
    assert_eq!(
        (&done["chosen_files"], &done["collection_files"]),
        (&2.into(), &7.into())
    );
    // The same again downloads nothing.
    let again = sandbox
        .run(&["get", "set", "--include", "*.json", "--exclude", "weights"])
        .expect(0);
    assert!(again.stdout.contains("already there"), "{}", again.stdout);
    assert!(again.stderr.contains("2 of 7 files"), "{}", again.stderr);
    // Others are added, and those that are there are not downloaded again.
    let more = get(
        &sandbox,
        &["set", "--include", "tokens", "--include", "weights/1.bin"],
    );
    assert_eq!(downloaded(&more), 800 + 3 * MIB as u64);
    assert_eq!(more["resumed_bytes"], 700);
    assert_files(
        &folder,
        &["config.json", "tokens/a.json", "tokens/b.txt", "weights/1.bin"],
    );
    let rest = get(&sandbox, &[&id]);
    assert_eq!(downloaded(&rest), 900 + 500 + 2 * MIB as u64);
    assert_files(&folder, &ALL);
    sandbox.run(&["verify", &id, "set"]).expect(0);
    assert_eq!(names_in(&sandbox.work()), ["set", "src"]);
}

#[test]
fn a_glob_that_matches_nothing_is_an_error_that_names_similar_paths() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    share(&sandbox, &peer);
    let error = sandbox
        .run(&["get", "set", "--include", "readme.md", "--json"])
        .expect(2)
        .error();
    assert!(
        error["message"].as_str().unwrap().contains("`README.md`"),
        "{error}"
    );
    sandbox.run(&["get", "set", "--include", "a["]).expect(2);
    sandbox
        .run(&["get", "set", "--include", "*.md", "--exclude", "README*"])
        .expect(2);
    assert_eq!(names_in(&sandbox.work()), ["src"]);
    // Globs choose files of a folder.
    sandbox.file("src/plain", 1000, 9);
    sandbox
        .run(&["share", "src/plain", "--peer", &peer.control()])
        .expect(0);
    sandbox.eventually(&["query", "plain"]);
    sandbox.run(&["get", "plain", "--include", "plain"]).expect(2);
}

#[test]
fn a_foreign_or_changed_file_in_the_folder_is_never_replaced() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    share(&sandbox, &peer);
    get(&sandbox, &["set", "--include", "*.md"]);
    let readme = sandbox.work().join("set/README.md");
    fs::write(&readme, [7; 900]).unwrap();
    let error = sandbox.run(&["get", "set", "--json"]).expect(1).error();
    assert_eq!(error["error"], "target_exists");
    assert!(
        error["message"].as_str().unwrap().contains("README.md"),
        "{error}"
    );
    assert_eq!(fs::read(&readme).unwrap(), [7; 900]);
    fs::remove_file(&readme).unwrap();
    fs::write(sandbox.work().join("set/mine"), "precious").unwrap();
    sandbox.run(&["get", "set"]).expect(1);
    fs::remove_file(sandbox.work().join("set/mine")).unwrap();
    get(&sandbox, &["set"]);
    assert_files(&sandbox.work().join("set"), &ALL);
}

#[test]
fn a_chosen_download_resumes_after_a_kill_with_the_same_choice() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &["--upload-limit", "1MiB"]);
    share(&sandbox, &peer);
    let choice = ["set", "--include", "weights/1.bin", "--include", "*.md"];
    let mut daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    sandbox
        .run(&[&["get", "--detach"], &choice[..]].concat())
        .expect(0);
    let done = || {
        let transfer = sandbox.run(&["transfers", "--json"]).expect(0).object();
        // The number is known once the manifest has arrived.
        if transfer["state"] == "preparing" {
            return 0;
        }
        assert_eq!(transfer["chosen_files"], 2, "{transfer}");
        transfer["bytes"].as_u64().unwrap()
    };
    potluck_testkit::wait::wait_until_blocking("part has arrived", || done() > MIB as u64);
    assert!(
        sandbox
            .run(&["transfers"])
            .expect(0)
            .stdout
            .contains("2 of 7 files")
    );
    daemon.server.kill();
    let daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    let done = get(&sandbox, &choice);
    assert!(done["resumed_bytes"].as_u64().unwrap() > 0, "{done}");
    let folder = daemon.home.join("files/set");
    assert_files(&folder, &["README.md", "weights/1.bin"]);
    // A folder with some files is not shared under the name of the whole.
    assert_eq!(sandbox.run(&["ls", "--json"]).expect(0).stdout, "");
    let query = sandbox.run(&["query", "set", "--json"]).expect(0).object();
    assert_eq!(query["files"].as_array().unwrap().len(), 1);
    // Once all files are there, it is.
    get(&sandbox, &["set"]);
    assert_files(&folder, &ALL);
    sandbox.eventually(&["ls", "--json"]);
    assert_eq!(
        sandbox.run(&["ls", "--json"]).expect(0).object()["kind"],
        "collection"
    );
}

#[test]
fn an_interrupted_choice_is_kept_when_another_one_finishes() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &["--upload-limit", "1MiB"]);
    share(&sandbox, &peer);
    let mut command = sandbox.command();
    let mut first =
        Program::start(command.args(["get", "set", "--include", "weights/1.bin", "--json"]));
    loop {
        let event: Value = parse(&first.line());
        if event["bytes"].as_u64().unwrap() > MIB as u64 {
            break;
        }
    }
    assert_eq!(first.interrupt().code(), Some(130));
    get(&sandbox, &["set", "--include", "*.md"]);
    assert_files(&sandbox.work().join("set"), &["README.md"]);
    let done = get(&sandbox, &["set", "--include", "weights/1.bin"]);
    assert!(done["resumed_bytes"].as_u64().unwrap() >= MIB as u64, "{done}");
    assert_files(&sandbox.work().join("set"), &["README.md", "weights/1.bin"]);
    assert_eq!(names_in(&sandbox.work()), ["set", "src"]);
}
