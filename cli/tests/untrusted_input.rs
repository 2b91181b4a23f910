//! How the command line handles untrusted answers of the index and the peer: hostile names,
//! ambiguous names, and transfers that fail, wait or hang.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Duration,
};

use potluck_core::proto::v1::{Failure, PeerState, Transfer, TransferPeer, TransferState};
use support::{
    Sandbox,
    fake_services::{Fake, Script, address, found, record, transfer},
    finish,
};

const SOON: Duration = Duration::from_millis(5);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn run(sandbox: &Sandbox, fake: &Fake, args: &[&str]) -> support::Finished {
    let mut command = sandbox.command();
    finish(
        command
            .args(args)
            .args(["--index", &fake.index, "--peer", &fake.peer]),
    )
}

fn play(transfers: impl IntoIterator<Item = Transfer>) -> Script {
    Script {
        files: vec![found(1, &["fake.bin"])],
        transfer: transfers.into_iter().map(|transfer| (SOON, transfer)).collect(),
        ..Script::default()
    }
}

fn with_error(mut transfer: Transfer, reason: &str, message: &str) -> Transfer {
    transfer.error = Some(Failure {
        reason: reason.into(),
        message: message.into(),
    });
    transfer
}

#[test]
fn a_search_continues_past_empty_pages() {
    let sandbox = Sandbox::without_index();
    let script = Script {
        files: vec![found(1, &["fake.bin"])],
        empty_pages: 20,
        ..Script::default()
    };
    let fake = Fake::start(sandbox.dir.path(), script);
    let result = run(&sandbox, &fake, &["search", "fake", "--limit", "3"]);
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    assert!(result.stdout.contains("fake.bin"), "{}", result.stdout);
    assert_eq!(fake.calls("search"), 21);
}

#[test]
fn a_search_of_empty_pages_ends_and_says_how_to_continue() {
    let sandbox = Sandbox::without_index();
    let script = Script {
        empty_pages: usize::MAX,
        ..Script::default()
    };
    let fake = Fake::start(sandbox.dir.path(), script);
    let result = run(&sandbox, &fake, &["search", "fake", "--all"]);
    assert_eq!(result.code, Some(3), "{}", result.stderr);
    assert!(result.stderr.contains("--page"), "{}", result.stderr);
    assert_eq!(fake.calls("search"), 500);
}

#[test]
fn a_query_with_many_files_is_a_table() {
    let sandbox = Sandbox::without_index();
    let script = Script {
        files: (0..100).map(|seed| found(seed, &["same.bin"])).collect(),
        ..Script::default()
    };
    let fake = Fake::start(sandbox.dir.path(), script);
    let result = run(&sandbox, &fake, &["query", "same.bin"]);
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    assert!(result.stdout.lines().count() < 210, "{}", result.stdout);
    assert!(!result.stdout.contains("192.0.2."), "{}", result.stdout);
    assert!(result.stderr.contains("potluck query ID"), "{}", result.stderr);
}

#[test]
fn hostile_names_from_the_network_are_escaped() {
    let sandbox = Sandbox::without_index();
    let evil = "\x1b]0;owned\x07\x1b[2J\u{9b}31m\u{202e}gpj.exe\r\nfake";
    // An invisible character that is not a control character, so the index accepts the name.
    let sly = "photo_\u{3164}gpj.exe";
    let files = vec![found(1, &[evil, sly]), found(2, &[sly, evil])];
    let script = Script {
        files,
        ..Script::default()
    };
    let fake = Fake::start(sandbox.dir.path(), script);
    for args in [
        &["search", "x"][..],
        &["query", "x"],
        &["get", "x"],
        &["status"],
        &["search", "x", "--json"],
        &["query", "x", "--json"],
        &["get", "x", "--json"],
    ] {
        let result = run(&sandbox, &fake, args);
        for text in [&result.stdout, &result.stderr] {
            let harmless = text
                .chars()
                .all(|c| c == '\n' || !(c.is_control() || matches!(c, '\u{202e}' | '\u{3164}')));
            assert!(harmless, "{args:?}: {text:?}");
        }
    }
    let object = run(&sandbox, &fake, &["search", "x", "--json"])
        .expect(0)
        .object();
    assert_eq!(
        object["files"][0]["names"].as_array().unwrap().last().unwrap(),
        sly
    );
}

#[test]
fn the_files_of_an_ambiguous_name_are_listed_and_none_is_downloaded() {
    let sandbox = Sandbox::without_index();
    let script = Script {
        files: vec![found(1, &["x"]), found(2, &["x"])],
        ..Script::default()
    };
    let fake = Fake::start(sandbox.dir.path(), script);
    let result = run(&sandbox, &fake, &["get", "x", "--json"]).expect(2);
    assert_eq!(result.error()["error"], "ambiguous_name");
    let ids: Vec<_> = result.object()["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["id"].clone())
        .collect();
    assert_eq!(
        ids,
        [hex(&record(1, 1000).file_id), hex(&record(2, 1000).file_id)]
    );
    let plain = run(&sandbox, &fake, &["get", "x"]).expect(2);
    assert!(
        plain.stdout.contains(&hex(&record(2, 1000).file_id)[..8]),
        "{}",
        plain.stdout
    );
    assert!(!fake.was_called("start"));
}

#[test]
fn a_finished_download_lists_its_peers() {
    let sandbox = Sandbox::without_index();
    let mut done = transfer(1, TransferState::Done, 1000);
    let peer = |last, state: PeerState, bytes, reason: &str| TransferPeer {
        peer_id: vec![last; 32].into(),
        address: Some(address(last)),
        state: state.into(),
        bytes,
        reason: reason.into(),
        ..TransferPeer::default()
    };
    done.peers = vec![
        peer(1, PeerState::Active, 900, ""),
        peer(2, PeerState::Banned, 100, "piece 3 failed verification"),
    ];
    done.elapsed_ms = 500;
    done.resumed_bytes = 250;
    let fake = Fake::start(
        sandbox.dir.path(),
        play([
            transfer(1, TransferState::Preparing, 0),
            transfer(1, TransferState::Running, 500),
            done,
        ]),
    );
    let objects = run(&sandbox, &fake, &["get", "fake.bin", "--json"])
        .expect(0)
        .objects();
    let (last, progress) = objects.split_last().unwrap();
    assert!(!progress.is_empty());
    for event in progress {
        assert_eq!(event["event"], "progress");
        for field in ["bytes", "unverified_bytes", "total", "bytes_per_second", "peers"] {
            assert!(event[field].is_u64(), "{field} of {event}");
        }
    }
    assert_eq!(last["event"], "done");
    assert_eq!(last["id"], hex(&record(1, 1000).file_id));
    assert_eq!(last["path"], "/tmp/fake.bin");
    assert_eq!(
        (&last["size"], &last["resumed_bytes"]),
        (&1000.into(), &250.into())
    );
    assert_eq!(last["seconds"], 0.5);
    let banned = &last["sources"][1];
    assert_eq!(banned["peer"], "02".repeat(32));
    assert_eq!(banned["address"], "192.0.2.2:12349");
    assert_eq!(
        (&banned["bytes"], &banned["state"]),
        (&100.into(), &"banned".into())
    );
    assert_eq!(banned["reason"], "piece 3 failed verification");
    assert!(last["sources"][0]["reason"].is_null());

    let plain = run(&sandbox, &fake, &["get", "fake.bin"]).expect(0);
    assert!(plain.stdout.contains("/tmp/fake.bin"), "{}", plain.stdout);
    assert!(
        plain.stderr.contains("192.0.2.2:12349") && plain.stderr.contains("banned: piece 3"),
        "{}",
        plain.stderr
    );
    let quiet = run(&sandbox, &fake, &["get", "fake.bin", "-q"]).expect(0);
    assert_eq!(quiet.stderr, "");
    assert_eq!(
        run(&sandbox, &fake, &["get", "fake.bin", "-q", "--json"])
            .expect(0)
            .objects()
            .len(),
        1
    );
}

#[test]
fn failures_exit_with_their_documented_codes() {
    for (reason, code, word) in [
        ("VERIFICATION_FAILED", 4, "verification_failed"),
        ("DISK_FULL", 1, "disk_full"),
        ("TARGET_EXISTS", 1, "target_exists"),
        ("NO_PROVIDERS", 3, "no_providers"),
        ("SOMETHING_NEW", 1, "internal"),
    ] {
        let sandbox = Sandbox::without_index();
        let failed = with_error(transfer(1, TransferState::Failed, 10), reason, "it \x1b[31mbroke");
        let fake = Fake::start(sandbox.dir.path(), play([failed]));
        let result = run(&sandbox, &fake, &["get", "fake.bin", "--json"]).expect(code);
        assert_eq!(result.error()["error"], word);
    }
}

#[test]
fn a_wait_without_peers_times_out_and_keeps_the_verified_pieces() {
    let sandbox = Sandbox::without_index();
    let waiting = with_error(
        transfer(1, TransferState::Waiting, 400),
        "NO_PROVIDERS",
        "no peer has the rest",
    );
    let script = Script {
        hangs: true,
        ..play([transfer(1, TransferState::Running, 400), waiting])
    };
    let fake = Fake::start(sandbox.dir.path(), script);
    let result = run(
        &sandbox,
        &fake,
        &[
            "get",
            "fake.bin",
            "--wait",
            "1",
            "--limit",
            "10MiB",
            "--priority",
            "3",
            "--from",
            "192.0.2.1:9",
        ],
    )
    .expect(3);
    assert!(
        result.stderr.contains("no peer has the rest"),
        "{}",
        result.stderr
    );
    let again = format!(
        "resume with: potluck get fake.bin --from 192.0.2.1:9 --limit 10MiB/s --priority 3 \
         --wait 1s --index {} --peer {}",
        fake.index, fake.peer
    );
    assert!(result.stderr.contains(&again), "{}", result.stderr);
    assert!(
        !fake.was_called("pause") && !fake.was_called("cancel"),
        "others may follow it"
    );
}

#[test]
fn a_get_does_not_wait_for_an_id_without_providers() {
    let sandbox = Sandbox::without_index();
    let waiting = with_error(
        transfer(1, TransferState::Waiting, 0),
        "NO_PROVIDERS",
        "no peer has it",
    );
    let script = Script {
        files: Vec::new(),
        hangs: true,
        ..play([waiting])
    };
    let fake = Fake::start(sandbox.dir.path(), script);
    let id = hex(&record(1, 1000).file_id);
    let result = run(&sandbox, &fake, &["get", &id, "--json"]).expect(3);
    assert_eq!(result.error()["error"], "not_found");
    let plain = run(&sandbox, &fake, &["get", &id]).expect(3);
    assert!(
        plain.stderr.contains("potluck transfers cancel 7"),
        "{}",
        plain.stderr
    );
    assert!(
        !fake.was_called("pause") && !fake.was_called("cancel"),
        "others may follow it"
    );
}

#[test]
fn an_id_that_is_saved_already_needs_no_index() {
    let sandbox = Sandbox::without_index();
    let mut done = transfer(1, TransferState::Done, 1000);
    done.resumed_bytes = 1000;
    let fake = Fake::start(sandbox.dir.path(), play([done]));
    let id = hex(&record(1, 1000).file_id);
    let mut command = sandbox.command();
    let result = finish(command.args(["get", &id, "--peer", &fake.peer])).expect(0);
    assert!(result.stdout.contains("already there"), "{}", result.stdout);
}

#[test]
fn a_peer_that_disconnects_is_reported_with_the_resume_command() {
    let sandbox = Sandbox::without_index();
    let fake = Fake::start(
        sandbox.dir.path(),
        play([transfer(1, TransferState::Running, 400)]),
    );
    let result = run(&sandbox, &fake, &["get", "fake.bin"]).expect(5);
    assert!(
        result.stderr.contains("resume with: potluck get fake.bin"),
        "{}",
        result.stderr
    );
}

#[test]
fn ctrl_c_leaves_the_transfer_to_the_peer() {
    let sandbox = Sandbox::without_index();
    let script = Script {
        hangs: true,
        ..play([transfer(1, TransferState::Running, 400)])
    };
    let fake = Fake::start(sandbox.dir.path(), script);
    let mut command = sandbox.command();
    command.args([
        "get",
        "fake.bin",
        "--json",
        "--index",
        &fake.index,
        "--peer",
        &fake.peer,
    ]);
    let mut get = support::Service::start(&mut command);
    assert!(get.line().contains("progress"));
    assert_eq!(get.interrupt().code(), Some(130));
    assert!(!fake.was_called("pause") && !fake.was_called("cancel"));
}

#[test]
fn a_transfer_paused_by_another_command_is_reported_as_paused() {
    let sandbox = Sandbox::without_index();
    let fake = Fake::start(
        sandbox.dir.path(),
        play([
            transfer(1, TransferState::Running, 400),
            transfer(1, TransferState::Paused, 400),
        ]),
    );
    let result = run(&sandbox, &fake, &["get", "fake.bin"]).expect(1);
    for text in ["transfer 7 was paused", "potluck transfers resume 7"] {
        assert!(result.stderr.contains(text), "{}", result.stderr);
    }
    let result = run(&sandbox, &fake, &["get", "fake.bin", "--json"]).expect(1);
    assert_eq!(result.error()["error"], "cancelled");
}

#[test]
fn a_closed_pipe_does_not_end_the_download() {
    let late = Duration::from_millis(400);
    for (state, code) in [(TransferState::Done, 0), (TransferState::Failed, 4)] {
        let sandbox = Sandbox::without_index();
        let last = transfer(1, state, 1000);
        let last = match state {
            TransferState::Failed => with_error(last, "VERIFICATION_FAILED", "it broke"),
            _ => last,
        };
        let running = |done| transfer(1, TransferState::Running, done);
        let script = Script {
            transfer: vec![(SOON, running(100)), (late, running(500)), (late, last)],
            ..play([])
        };
        let fake = Fake::start(sandbox.dir.path(), script);
        let mut get = sandbox
            .command()
            .args([
                "get",
                "fake.bin",
                "--json",
                "--index",
                &fake.index,
                "--peer",
                &fake.peer,
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(get.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("progress"), "{line}");
        assert_eq!(get.wait().unwrap().code(), Some(code));
    }
}

#[test]
fn a_sha256_tries_the_next_file_if_the_first_has_no_provider() {
    for (reason, code) in [("NO_PROVIDERS", 3), ("UNREACHABLE", 5), ("DISK_FULL", 1)] {
        let sandbox = Sandbox::without_index();
        let failed = with_error(transfer(1, TransferState::Failed, 0), reason, "it cannot be had");
        let script = Script {
            files: vec![found(1, &["a"]), found(2, &["b"])],
            ..play([failed])
        };
        let fake = Fake::start(sandbox.dir.path(), script);
        let sum = format!("sha256:{}", "ab".repeat(32));
        let result = run(&sandbox, &fake, &["get", &sum]).expect(code);
        let another = code != 1;
        assert_eq!(fake.calls("start"), 1 + usize::from(another), "{reason}");
        assert_eq!(
            result
                .stderr
                .contains("has no running peer: trying the next file"),
            another,
            "{}",
            result.stderr
        );
    }
}

#[test]
fn usage_errors_are_objects_if_the_environment_sets_json() {
    let sandbox = Sandbox::without_index();
    let mistyped = |json: &str| finish(sandbox.command().env("POTLUCK_JSON", json).arg("get")).expect(2);
    assert_eq!(mistyped("1").error()["error"], "usage");
    assert!(mistyped("0").stderr.contains("Usage:"));
}

#[test]
fn a_detached_get_returns_at_once() {
    let sandbox = Sandbox::without_index();
    let script = Script {
        hangs: true,
        ..play([transfer(1, TransferState::Running, 400)])
    };
    let fake = Fake::start(sandbox.dir.path(), script);
    let object = run(&sandbox, &fake, &["get", "fake.bin", "--detach", "--json"])
        .expect(0)
        .objects()
        .pop()
        .unwrap();
    assert_eq!(
        (&object["event"], &object["transfer"]),
        (&"detached".into(), &7.into())
    );
    sandbox.run(&["get", "fake.bin", "--detach"]).expect(2);
}

#[test]
fn transfers_lists_every_page() {
    let sandbox = Sandbox::without_index();
    let script = Script {
        more_transfers: 2,
        ..play([transfer(1, TransferState::Running, 2)])
    };
    let fake = Fake::start(sandbox.dir.path(), script);
    let listed = run(&sandbox, &fake, &["transfers", "--json"]).expect(0);
    let numbers: Vec<_> = listed
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["transfer"].clone())
        .collect();
    assert_eq!(numbers, [7, 8, 9]);
}

#[test]
fn transfers_and_why_show_a_transfer_and_its_missing_pieces() {
    let sandbox = Sandbox::without_index();
    let mut running = transfer(1, TransferState::Running, 400);
    running.units_total = 10;
    running.peers = vec![TransferPeer {
        address: Some(address(1)),
        units: 5,
        ..TransferPeer::default()
    }];
    let fake = Fake::start(sandbox.dir.path(), play([running]));
    let object = run(&sandbox, &fake, &["transfers", "--json"]).expect(0).object();
    assert_eq!(
        (&object["transfer"], &object["state"]),
        (&7.into(), &"running".into())
    );
    assert!(
        run(&sandbox, &fake, &["transfers"])
            .expect(0)
            .stdout
            .contains("40 %")
    );
    for action in ["pause", "resume", "cancel"] {
        run(&sandbox, &fake, &["transfers", action, "7"]).expect(0);
        assert!(fake.was_called(action));
    }
    run(&sandbox, &fake, &["transfers", "pause", &"ab".repeat(32)]).expect(3);
    run(&sandbox, &fake, &["transfers", "pause", "x"]).expect(2);
    let object = run(&sandbox, &fake, &["why", "7", "--json"]).expect(0).object();
    assert_eq!(object["missing"][0]["count"], 4);
    assert_eq!(object["findings"][0], "no peer has units 3 to 6");
    let plain = run(&sandbox, &fake, &["why", &hex(&record(1, 1000).file_id)])
        .expect(0)
        .stdout;
    assert!(plain.contains("3–6") && plain.contains("50 %"), "{plain}");
}

#[test]
fn a_download_that_is_shared_only_until_the_peer_stops_says_so() {
    let sandbox = Sandbox::without_index();
    let mut done = transfer(1, TransferState::Done, 1000);
    let message = "it is shared only until the peer stops: the disk of its home is full";
    done.sharing_error = Some(Failure {
        reason: "DISK_FULL".into(),
        message: message.into(),
    });
    let fake = Fake::start(sandbox.dir.path(), play([done]));
    let result = run(&sandbox, &fake, &["get", "fake.bin"]).expect(0);
    let expected = format!("downloaded, but {message}");
    assert!(result.stderr.contains(&expected), "{}", result.stderr);
    let result = run(&sandbox, &fake, &["get", "fake.bin", "--json"]).expect(0);
    let last = result.objects().pop().unwrap();
    assert_eq!(
        (&last["event"], &last["sharing_error"]),
        (&"done".into(), &"disk_full".into())
    );
    assert_eq!(last["sharing_message"], message);
}

#[test]
fn a_check_lists_damaged_files_and_fails() {
    let sandbox = Sandbox::without_index();
    let fake = Fake::start(sandbox.dir.path(), Script::default());
    let good = run(&sandbox, &fake, &["check", "/somewhere/good"]).expect(0);
    assert!(good.stdout.starts_with("good  1 file"), "{}", good.stdout);
    let paths = ["check", "/somewhere/good", "/somewhere/damaged"];
    let bad = run(&sandbox, &fake, &paths).expect(4);
    let lines: Vec<_> = bad.stdout.lines().collect();
    assert_eq!(lines.len(), 1, "a line for each bad file: {lines:?}");
    assert!(lines[0].starts_with("damaged  /somewhere/damaged: "), "{lines:?}");
    assert!(bad.stderr.contains("1 of 2 files is damaged"), "{}", bad.stderr);
    let objects = run(&sandbox, &fake, &[&paths[..], &["--json"]].concat()).expect(4);
    let objects: Vec<serde_json::Value> = objects
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(objects[0]["event"], "bad");
    assert_eq!(objects[0]["path"], "/somewhere/damaged");
    assert_eq!(objects[0]["reason"], "verification_failed");
    assert_eq!(objects[1]["bad_files"], 1);
    assert_eq!(objects.len(), 2);
    for wrong in [&["check"][..], &["check", "--all", "/x"]] {
        run(&sandbox, &fake, wrong).expect(2);
    }
}
