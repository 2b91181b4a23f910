//! Making a network, joining it, and moving it.

use std::{collections::HashMap, fs, process::Command};

use potluck_testkit::{
    system::program::{Finished, Server},
    wait::wait_until_blocking,
};
use serde_json::Value;

use super::{Host, Machine, files_below, free_port, last_word, serve};

const DOCUMENT: &str = include_str!("../../../../docs/private-networks.md");

/// The commands of README.md and docs/private-networks.md.
#[test]
fn a_network_is_made_joined_and_used_with_the_documented_commands() {
    let (host, laptop, server) = (Machine::new(), Machine::new(), Machine::new());
    let listen = format!("127.0.0.1:{}", free_port());
    let url = format!("https://{listen}");
    let made = host
        .run(&["network", "create", "kitchen", "--index", &url])
        .expect(0);
    assert!(
        made.stdout.contains("Made the network kitchen"),
        "{}",
        made.stdout
    );
    let _index = serve(&host, &listen, &["--store", "memory"]);
    let joined = laptop.run(&["network", "join", &last_word(&made)]).expect(0);
    assert!(
        joined.stdout.contains("joined the network kitchen"),
        "{}",
        joined.stdout
    );
    assert!(joined.stdout.contains("(admin)"), "{}", joined.stdout);
    // An admin invites from its own machine; the code travels in a file.
    let invited = laptop
        .run(&["network", "invite", "--role", "publisher", "--ttl", "10m"])
        .expect(0);
    fs::write(server.path("code"), &invited.stdout).unwrap();
    server.run(&["network", "join", "--code-file", "code"]).expect(0);
    server.file("model.bin", 300_000);
    let _peer = server.peer(&["--share", "model.bin"]);
    laptop.eventually(&["search", "model"]);
    laptop.run(&["get", "model.bin"]).expect(0);
    assert_eq!(
        fs::read(laptop.path("model.bin")).unwrap(),
        fs::read(server.path("model.bin")).unwrap()
    );
    let members = laptop.run(&["network", "members", "--json"]).expect(0).objects();
    let roles: Vec<&Value> = members.iter().map(|member| &member["role"]).collect();
    assert!(
        roles.len() == 2 && roles.contains(&&"admin".into()),
        "{members:?}"
    );
    // Private files are private.
    let config = laptop.credentials();
    for path in files_below(&config)
        .iter()
        .chain(&files_below(&host.path("kitchen")))
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        let is_public = path.extension().is_some_and(|end| end == "crt")
            || path.ends_with("network.json") && path.starts_with(&config);
        assert!(mode == 0o600 || is_public, "{}: {mode:o}", path.display());
    }
}

#[test]
fn a_code_is_used_once_and_errors_say_what_to_do() {
    let host = Host::start();
    let (first, second) = (Machine::new(), Machine::new());
    let code = host.invite("reader");
    first.run(&["network", "join", &code]).expect(0);
    let refused = second
        .run(&["network", "join", &code, "--json"])
        .expect(1)
        .error();
    assert_eq!(refused["error"], "invalid_code");
    assert!(
        refused["message"].as_str().unwrap().contains("network invite"),
        "{refused}"
    );
    let again = first.run(&["network", "join", &code, "--json"]).expect(2).error();
    assert!(
        again["message"]
            .as_str()
            .unwrap()
            .contains("member of the network"),
        "{again}"
    );
    let wrong = if code.ends_with('x') { 'y' } else { 'x' };
    let typed = format!("{}{wrong}", &code[..code.len() - 1]);
    let refused = second
        .run(&["network", "join", &typed, "--json"])
        .expect(1)
        .error();
    assert!(
        refused["message"].as_str().unwrap().contains("paste it again"),
        "{refused}"
    );
    // A stranger learns nothing.
    let bare = host.url.strip_prefix("https://").unwrap();
    let refused = second.run(&["search", "x", "--index", bare, "--json"]);
    assert_ne!(refused.code, Some(0));
    // No secret is in the audit log, or in any other file of the index.
    let secret = code.trim_start_matches("potluck1_");
    for file in files_below(&host.machine.path("kitchen")) {
        assert!(!String::from_utf8_lossy(&fs::read(file).unwrap()).contains(secret));
    }
    assert_eq!(host.audited("joined").len(), 1);
}

#[test]
fn a_peer_joins_with_a_file_and_starts_again_with_it() {
    let host = Host::start();
    let machine = Machine::new();
    fs::write(machine.path("code"), host.invite("publisher")).unwrap();
    for _ in 0..2 {
        let mut peer = machine.peer(&["--join-file", "code"]);
        peer.terminate();
    }
    assert_eq!(host.audited("joined").len(), 1);
    assert_eq!(host.audited("peer_enrolled").len(), 1);
    // A new key is a new peer.
    let rekeyed = machine
        .run(&["network", "rekey", "--home", "home", "--json"])
        .expect(0)
        .object();
    assert_ne!(rekeyed["peer"], rekeyed["old_peer"]);
    let mut peer = machine.peer(&[]);
    peer.terminate();
    assert_eq!(host.audited("peer_enrolled").len(), 2);
}

#[test]
fn a_gateway_joins_with_a_file() {
    let host = Host::start();
    let machine = Machine::new();
    fs::write(machine.path("code"), host.invite("reader")).unwrap();
    for _ in 0..2 {
        let mut command = machine.command();
        command.args(["gateway", "--listen", "127.0.0.1:0", "--home", "home"]);
        let mut gateway = Server::start(command.args(["--join-file", "code"]));
        gateway.terminate();
    }
    assert_eq!(host.audited("joined").len(), 1);
    assert_eq!(host.audited("peer_enrolled").len(), 1);
}

#[test]
fn a_network_moves_to_another_machine_with_its_copy() {
    let mut host = Host::start();
    let reader = host.member("reader");
    host.machine
        .run(&["network", "backup", "copy", "--dir", "kitchen"])
        .expect(0);
    host.machine
        .run(&["network", "backup", "copy", "--dir", "kitchen"])
        .expect(1);
    host.index.terminate();
    let other = Machine::new();
    fs::copy(host.machine.path("copy"), other.path("copy")).unwrap();
    other
        .run(&["network", "restore", "copy", "--dir", "kitchen"])
        .expect(0);
    let index = serve(&other, "127.0.0.1:0", &["--store", "memory"]);
    let url = format!("https://{}", index.address);
    reader.run(&["network", "set-index", &url]).expect(0);
    let members = reader.run(&["network", "members", "--json"]).expect(0).object();
    assert_eq!(members["name"], "reader");
}

#[test]
fn a_machine_that_joins_again_shares_as_another_peer() {
    let host = Host::start();
    let (machine, other) = (host.member("reader"), host.member("reader"));
    machine.file("notes.txt", 1_000);
    let mut peer = machine.peer(&["--share", "notes.txt"]);
    let id = machine.id("notes.txt");
    let provider = || {
        let object = other.eventually(&["query", &id, "--json"]).object();
        object["files"][0]["providers"][0]["peer"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let before = provider();
    peer.terminate();
    machine.run(&["network", "leave"]).expect(0);
    let code = host.invite("publisher");
    machine.run(&["network", "join", &code]).expect(0);
    let _peer = machine.peer(&["--share", "notes.txt"]);
    other.eventually(&["query", "notes.txt"]);
    assert_ne!(
        provider(),
        before,
        "the keys of a member that left are not used again"
    );
}

/// A shell on a machine, in which `potluck` is this program.
fn shell(machine: &Machine, line: &str) -> Command {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_potluck"));
    let folder = program.parent().unwrap().display();
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", line])
        .env_clear()
        .env("HOME", machine.path(""))
        .env("PATH", format!("{folder}:/usr/bin:/bin"))
        .current_dir(machine.path(""));
    command
}

/// Whether an output has these words. `…` stands for any part of a word, and 8 digits for any id.
fn matches(output: &str, expected: &str) -> bool {
    let is_id = |word: &str| word.len() == 8 && word.bytes().all(|c| c.is_ascii_hexdigit());
    let same = |(word, expected): (&str, &str)| match expected.split_once('…') {
        Some((start, end)) => word.starts_with(start) && word.ends_with(end),
        None => word == expected || is_id(word) && is_id(expected),
    };
    let (words, wanted) = (output.split_whitespace(), expected.split_whitespace());
    words.clone().count() == wanted.clone().count() && words.zip(wanted).all(same)
}

#[test]
fn the_recorded_session_is_what_happens() {
    let (index, peer) = (free_port(), free_port());
    let session = DOCUMENT
        .split("```console")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let session = session
        .replace("index.example", "127.0.0.1")
        .replace("192.0.2.7", "127.0.0.1")
        .replace(":1313", &format!(":{index}"))
        .replace(":12349", &format!(":{peer}"));
    let names = ["index", "laptop", "server"];
    let machines: HashMap<_, _> = names.map(|name| (name, Machine::new())).into();
    machines["server"].file("model.bin", 3_000_000);
    let mut steps: Vec<(&Machine, String, String)> = Vec::new();
    for line in session.lines().filter(|line| !line.is_empty()) {
        match line
            .split_once("$ ")
            .and_then(|(name, rest)| Some((machines.get(name)?, rest)))
        {
            Some((machine, command)) => {
                // Tests stay on loopback.
                steps.push((machine, command.replace("0.0.0.0", "127.0.0.1"), String::new()));
            }
            None => steps.last_mut().unwrap().2 += &format!("{line}\n"),
        }
    }
    assert_eq!(steps.len(), 11);
    let (mut running, mut code) = (Vec::new(), String::new());
    for (machine, command, expected) in &steps {
        let command = command.replace("CODE", &code);
        if let Some(command) = command.strip_suffix(" &") {
            // The shell becomes the program, so that the test ends it.
            let server = Server::start(&mut shell(machine, &format!("exec {command} -q")));
            let listening = format!("listening on 0.0.0.0:{}\n", server.address.port());
            assert_eq!(listening, *expected);
            running.push(server);
            continue;
        }
        let mut output = String::new();
        // What a peer shares appears after a moment.
        wait_until_blocking(&format!("`{command}` prints: {expected}"), || {
            let finished = Finished::run(&mut shell(machine, &command));
            output = format!("{}{}", finished.stdout, finished.stderr);
            let is_right = matches(&output, expected);
            assert!(is_right || command.contains("search"), "{command}\n{output}");
            is_right
        });
        code = output
            .split_whitespace()
            .next_back()
            .unwrap_or_default()
            .to_owned();
    }
}
