//! Completion in real shells, and the answers that their scripts read.

use std::{fs, net::TcpListener, path::Path, process::Command, time::Instant};

use potluck_testkit::system::program::Finished;

use crate::sandbox::{Peer, Sandbox};

/// Names that would run a command, expand, or redirect if a shell read them unquoted.
const HOSTILE: [&str; 10] = [
    "$(touch ran)",
    "`touch ran`",
    "a;touch ran",
    "b&touch ran",
    "c|touch ran",
    "d>ran",
    "e'; touch ran; '",
    "f\"; touch ran; \"",
    "*",
    "~root !x {y,z} #w",
];

/// A sandbox whose peer shares files with these names.
fn sharing(names: &[&str]) -> (Sandbox, Peer) {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer_in(&sandbox.default_home(), &[]);
    fs::create_dir(sandbox.dir.path().join("shared")).unwrap();
    for (name, seed) in names.iter().zip(0..) {
        let file = sandbox.file("new", 100, seed);
        let path = sandbox.dir.path().join("shared").join(name);
        fs::rename(file, &path).unwrap();
        sandbox.run(&["share", path.to_str().unwrap()]).expect(0);
    }
    (sandbox, peer)
}

/// Runs a script in bash, with the program on its path and its completion loaded.
fn bash(sandbox: &Sandbox, script: &str) -> Finished {
    let program = sandbox.command();
    let folder = Path::new(program.get_program()).parent().unwrap();
    let mut command = Command::new("bash");
    for (name, value) in program.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let path = format!("{}:/usr/bin:/bin", folder.display());
    command.env("PATH", path).current_dir(sandbox.work());
    let setup = r#"
        source <(potluck completions bash)
        complete_line() {
            COMP_LINE=$1 COMP_POINT=${#1}
            _potluck potluck "$2" ""
        }
    "#;
    Finished::run(command.args(["--norc", "-c", &format!("{setup}\n{script}")]))
}

#[test]
fn bash_completes_names_so_that_nothing_runs() {
    let (sandbox, _peer) = sharing(&HOSTILE);
    let shown = bash(
        &sandbox,
        r#"
        complete_line "potluck get " ""
        for candidate in "${COMPREPLY[@]}"; do
            eval "words=($candidate)"
            echo "${#words[@]} ${words[0]}"
        done
        "#,
    );
    let mut read: Vec<_> = shown.expect(0).stdout.lines().map(ToOwned::to_owned).collect();
    let mut expected: Vec<_> = HOSTILE.iter().map(|name| format!("1 {name}")).collect();
    read.sort();
    expected.sort();
    assert_eq!(read, expected);
    assert_eq!(fs::read_dir(sandbox.work()).unwrap().count(), 0, "a name ran");
}

#[test]
fn bash_gets_the_rest_of_a_word_that_is_typed_in_part() {
    let (sandbox, _peer) = sharing(&["my file.bin", "my film.bin", "a:b.bin"]);
    let complete = |line: &str, word: &str| {
        let line = line.replace('\'', r"'\''");
        let word = word.replace('\'', r"'\''");
        let script =
            format!("complete_line '{line}' '{word}'; printf '%s\\n' \"${{COMPREPLY[@]}}\" | sort");
        bash(&sandbox, &script).expect(0).stdout.trim().to_owned()
    };
    assert_eq!(complete("potluck get my", "my"), "my\\ file.bin\nmy\\ film.bin");
    assert_eq!(
        complete(r"potluck get my\ fil", r"my\ fil"),
        "my\\ file.bin\nmy\\ film.bin"
    );
    assert_eq!(complete("potluck get 'my file", "my file"), "my file.bin");
    assert_eq!(complete("potluck query a:", ""), "b.bin");
    assert_eq!(complete("potluck sta", "sta"), "status");
    assert_eq!(complete("potluck --index 127.0.0.1:1 get my", "my"), "");
}

#[test]
fn other_shells_get_descriptions_and_ids() {
    let (sandbox, peer) = sharing(&["my file.bin"]);
    let id = sandbox.run(&["ls", "--json"]).expect(0).objects()[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for shell in ["zsh", "fish"] {
        let lines = |words: &[&str]| {
            let arguments = [&["complete", shell, "--", "potluck"], words].concat();
            sandbox.run(&arguments).expect(0).stdout
        };
        assert_eq!(lines(&["get", "my"]), "words\nmy file.bin\t100 B, 1 peer\n");
        assert_eq!(
            lines(&["get", &id[..8]]),
            format!("words\n{id}\tmy file.bin, 100 B, 1 peer\n")
        );
        assert_eq!(
            lines(&["verify", &id[..3]]),
            format!("words\n{id}\tmy file.bin, 100 B\n")
        );
        let path = sandbox.dir.path().join("shared/my file.bin");
        let path = path.to_str().unwrap();
        assert_eq!(lines(&["unshare", &path[..5]]), format!("words\n{path}\t100 B\n"));
        assert_eq!(lines(&["share", ""]), "files\n");
        assert_eq!(
            lines(&["--peer", &peer.control(), "transfers", "pause", "1"]),
            "words\n"
        );
    }
}

#[test]
fn an_index_that_hangs_delays_completion_only_shortly() {
    let sandbox = Sandbox::without_index();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let started = Instant::now();
    let arguments = [
        "complete", "zsh", "--", "potluck", "--index", &address, "get", "x",
    ];
    let finished = sandbox.run(&arguments).expect(0);
    assert_eq!(
        (finished.stdout.as_str(), finished.stderr.as_str()),
        ("words\n", "")
    );
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
}
