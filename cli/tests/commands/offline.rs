//! Commands that need no network: help, completions, usage errors, `id` and `verify`.

use std::{fs, os::unix::fs::symlink, process::Stdio};

use crate::sandbox::Sandbox;

#[test]
fn help_and_version_go_to_stdout() {
    let sandbox = Sandbox::without_index();
    let help = sandbox.run(&["--help"]).expect(0);
    assert!(help.stdout.contains("Examples:") && help.stdout.contains("Exit codes:"));
    assert!(
        sandbox
            .run(&["get", "--help"])
            .expect(0)
            .stdout
            .contains("sha256:")
    );
    assert!(
        sandbox
            .run(&["--version"])
            .expect(0)
            .stdout
            .starts_with("potluck ")
    );
}

#[test]
fn every_variable_is_in_the_help() {
    let sandbox = Sandbox::without_index();
    let help = |args: &[&str]| {
        let text = sandbox.run(args).expect(0).stdout;
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let commands = help(&["--help"]);
    for name in [
        "POTLUCK_INDEX",
        "POTLUCK_PEER",
        "POTLUCK_PEER_TOKEN_FILE",
        "POTLUCK_PEER_TOKEN",
        "POTLUCK_PEER_HOME",
        "POTLUCK_FULL_IDS",
        "POTLUCK_JSON",
        "POTLUCK_QUIET",
        "POTLUCK_LOG",
    ] {
        assert!(commands.contains(name), "{name}: {commands}");
    }
    let index = help(&["index", "--help"]);
    for name in [
        "LISTEN",
        "DATA_DIR",
        "STORE",
        "STORE_USER",
        "STORE_PASSWORD_FILE",
        "STORE_CA",
        "TTL",
        "ALLOW_HOST",
        "NO_REFLECTION",
        "MAX_FILES_PER_PEER",
        "MAX_PEERS_PER_ADDRESS",
        "MAX_CALLS_PER_SECOND",
        "MAX_WATCHERS",
        "MAX_CONNECTIONS",
        "MAX_MEMORY_MIB",
    ] {
        assert!(
            index.contains(&format!("[env: POTLUCK_INDEX_{name}]")),
            "{name}: {index}"
        );
    }
    let peer = help(&["peer", "--help"]);
    for name in [
        "LISTEN",
        "HOME",
        "SHARE",
        "ADVERTISE",
        "CONTROL",
        "PLAINTEXT",
        "UPLOAD_LIMIT",
        "DOWNLOAD_LIMIT",
        "UPLOAD_SLOTS",
        "MAX_CONNECTIONS",
        "ADDRESS_SHARE",
        "NO_REFLECTION",
        "HASH_THREADS",
        "LEASE",
    ] {
        assert!(
            peer.contains(&format!("[env: POTLUCK_PEER_{name}")),
            "{name}: {peer}"
        );
    }
    for service in [&index, &peer] {
        assert!(
            service.contains("POTLUCK_LOG") && service.contains("RUST_LOG"),
            "{service}"
        );
        // All commands have the short layout.
        assert!(!service.contains("see a summary"), "{service}");
    }
}

#[test]
fn without_a_command_it_prints_the_help_and_fails() {
    let sandbox = Sandbox::without_index();
    let run = sandbox.run(&[]).expect(2);
    assert!(run.stderr.contains("Usage:") && run.stdout.is_empty());
    assert_eq!(sandbox.run(&["--json"]).expect(2).error()["error"], "usage");
}

#[test]
fn usage_errors_are_objects_with_json() {
    let sandbox = Sandbox::without_index();
    for args in [
        &["--json", "get"][..],
        &["frobnicate", "--json"],
        &["--json", "get", "sha256:12"],
        &["--json", "verify", "12", "x"],
        &["--json", "search", "x", "--index", "ftp://a:1"],
        &["--json", "search", "x", "--index", "nonsense"],
        &["--json", "ls", "--peer", "http://x"],
    ] {
        let error = sandbox.run(args).expect(2).error();
        assert!(
            ["usage", "invalid_address"].contains(&error["error"].as_str().unwrap()),
            "{args:?}: {error}"
        );
    }
    assert_eq!(sandbox.run(&["get"]).expect(2).stdout, "");
}

#[test]
fn generates_completions_for_every_shell() {
    let sandbox = Sandbox::without_index();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(
            sandbox
                .run(&["completions", shell])
                .expect(0)
                .stdout
                .contains("potluck"),
            "{shell}"
        );
    }
}

#[test]
fn prints_the_id_that_the_contract_defines() {
    let sandbox = Sandbox::without_index();
    sandbox.file("empty", 0, 0);
    let object = sandbox.run(&["id", "--json", "empty"]).expect(0).object();
    // The SHA-256 of no bytes.
    assert_eq!(
        object["root"],
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    assert_eq!(object["size"], 0);
    assert_eq!(object["name"], "empty");
    assert_eq!(object["kind"], "file");
    assert_eq!(object["path"], sandbox.work().join("empty").to_str().unwrap());
    let plain = sandbox.run(&["id", "empty"]).expect(0).stdout;
    assert_eq!(plain, format!("{}  empty\n", object["id"].as_str().unwrap()));
}

#[test]
fn id_continues_after_a_path_that_fails() {
    let sandbox = Sandbox::without_index();
    sandbox.file("a", 10, 1);
    sandbox.file("b", 20, 2);
    let run = sandbox.run(&["id", "--json", "a", "none", "b"]).expect(1);
    assert_eq!(run.objects().len(), 2);
    assert_eq!(run.error()["error"], "not_found");
    assert_eq!(
        sandbox.run(&["id", "--json", "none"]).expect(3).error()["error"],
        "not_found"
    );
}

#[test]
fn verify_detects_a_changed_file() {
    let sandbox = Sandbox::without_index();
    let path = sandbox.file("big", 3_000_000, 3);
    let id = sandbox.run(&["id", "--json", "big"]).expect(0).object()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let object = sandbox.run(&["verify", &id, "big", "--json"]).expect(0).object();
    assert_eq!(object["verified"], true);
    let mut bytes = fs::read(&path).unwrap();
    bytes[2_000_000] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(
        sandbox.run(&["verify", &id, "big", "--json"]).expect(4).error()["error"],
        "verification_failed"
    );
    sandbox.run(&["verify", &id, "gone"]).expect(3);
}

#[test]
fn verify_detects_a_missing_folder_of_a_collection() {
    let sandbox = Sandbox::without_index();
    sandbox.file("set/a.bin", 5000, 1);
    sandbox.file("set/deep/er/b.bin", 70_000, 2);
    fs::create_dir_all(sandbox.work().join("set/empty")).unwrap();
    symlink("a.bin", sandbox.work().join("set/link")).unwrap();
    let object = sandbox.run(&["id", "--json", "set"]).expect(0).object();
    assert_eq!(
        (&object["kind"], &object["file_count"]),
        (&"collection".into(), &2.into())
    );
    let id = object["id"].as_str().unwrap();
    sandbox.run(&["verify", id, "set"]).expect(0);
    fs::remove_dir(sandbox.work().join("set/empty")).unwrap();
    sandbox.run(&["verify", id, "set"]).expect(4);
}

#[test]
fn skips_and_names_a_link_that_leads_out_of_the_folder() {
    let sandbox = Sandbox::without_index();
    sandbox.file("set/a", 1, 1);
    symlink("/etc/passwd", sandbox.work().join("set/out")).unwrap();
    let run = sandbox.run(&["id", "set"]).expect(0);
    assert!(
        run.stderr.contains("skipped 1 link") && run.stderr.contains("out"),
        "{}",
        run.stderr
    );
    let run = sandbox.run(&["id", "set", "--strict"]).expect(1);
    assert!(run.stderr.contains("set/out"), "{}", run.stderr);
}

#[test]
fn escapes_control_characters_in_local_names() {
    let sandbox = Sandbox::without_index();
    let name = "evil\x1b[2J\u{202e}name";
    sandbox.file(name, 1, 1);
    let plain = sandbox.run(&["id", name]).expect(0).stdout;
    assert!(
        !plain.contains('\x1b') && plain.contains("\\u{1b}[2J\\u{202e}"),
        "{plain}"
    );
    assert_eq!(
        sandbox.run(&["id", name, "--json"]).expect(0).object()["name"],
        name
    );
}

#[test]
fn a_closed_stdout_is_no_error() {
    let sandbox = Sandbox::without_index();
    sandbox.file("a", 10, 1);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = sandbox
        .command()
        .args(["id", "a"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert_eq!(stderr, "");
}
