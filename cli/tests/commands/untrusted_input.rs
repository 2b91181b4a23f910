//! How the command line handles untrusted answers of the index and the peer: hostile names,
//! ambiguous names, and transfers that fail, wait or hang.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Duration,
};

use potluck_core::proto::v1::{Failure, PeerState, Transfer, TransferPeer, TransferState};
use potluck_testkit::system::program::{Finished, Program};

use crate::{
    fakes::{Fakes, Script, address, found, record, transfer},
    sandbox::Sandbox,
};

const SOON: Duration = Duration::from_millis(5);

fn run(sandbox: &Sandbox, fakes: &Fakes, args: &[&str]) -> Finished {
    let mut command = sandbox.command();
    Finished::run(
        command
            .args(args)
            .args(["--index", &fakes.index_url, "--peer", &fakes.peer]),
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
fn search_skips_empty_pages() {
    let sandbox = Sandbox::without_index();
    let script = Script {
        files: vec![found(1, &["fake.bin"])],
        empty_pages: 20,
        ..Script::default()
    };
    let fakes = Fakes::start(sandbox.dir.path(), script);
    let run = run(&sandbox, &fakes, &["search", "fake", "--limit", "3"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.contains("fake.bin"), "{}", run.stdout);
    assert_eq!(fakes.searches(), 21);
}

#[test]
fn search_ends_after_many_empty_pages() {
    let sandbox = Sandbox::without_index();
    let script = Script {
        empty_pages: usize::MAX,
        ..Script::default()
    };
    let fakes = Fakes::start(sandbox.dir.path(), script);
    let run = run(&sandbox, &fakes, &["search", "fake", "--all"]);
    assert_eq!(run.code, Some(3), "{}", run.stderr);
    assert!(run.stderr.contains("--page"), "{}", run.stderr);
    assert_eq!(fakes.searches(), 500);
}

#[test]
fn query_prints_many_files_as_a_table() {
    let sandbox = Sandbox::without_index();
    let script = Script {
        files: (0..100).map(|seed| found(seed, &["same.bin"])).collect(),
        ..Script::default()
    };
    let fakes = Fakes::start(sandbox.dir.path(), script);
    let run = run(&sandbox, &fakes, &["query", "same.bin"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.lines().count() < 210, "{}", run.stdout);
    assert!(!run.stdout.contains("192.0.2."), "{}", run.stdout);
    assert!(run.stderr.contains("potluck query ID"), "{}", run.stderr);
}

#[test]
fn escapes_control_characters_in_names_of_others() {
    let sandbox = Sandbox::without_index();
    let evil = "\x1b]0;owned\x07\x1b[2J\u{9b}31m\u{202e}gpj.exe\r\nfake";
    // An invisible character that is not a control character, so the index accepts the name.
    let sly = "photo_\u{3164}gpj.exe";
    let files = vec![found(1, &[evil, sly]), found(2, &[sly, evil])];
    let script = Script {
        files,
        ..Script::default()
    };
    let fakes = Fakes::start(sandbox.dir.path(), script);
    for args in [
        &["search", "x"][..],
        &["query", "x"],
        &["get", "x"],
        &["status"],
        &["search", "x", "--json"],
        &["query", "x", "--json"],
        &["get", "x", "--json"],
    ] {
        let run = run(&sandbox, &fakes, args);
        for text in [&run.stdout, &run.stderr] {
            let harmless = text
                .chars()
                .all(|c| c == '\n' || !(c.is_control() || matches!(c, '\u{202e}' | '\u{3164}')));
            assert!(harmless, "{args:?}: {text:?}");
        }
    }
    let object = run(&sandbox, &fakes, &["search", "x", "--json"])
        .expect(0)
        .object();
    assert_eq!(
        object["files"][0]["names"].as_array().unwrap().last().unwrap(),
        sly
    );
}

#[test]
fn get_lists_the_files_of_an_ambiguous_name() {
    let sandbox = Sandbox::without_index();
    let script = Script {
        files: vec![found(1, &["x"]), found(2, &["x"])],
        ..Script::default()
    };
    let fakes = Fakes::start(sandbox.dir.path(), script);
    let finished = run(&sandbox, &fakes, &["get", "x", "--json"]).expect(2);
    assert_eq!(finished.error()["error"], "ambiguous_name");
    let ids: Vec<_> = finished.object()["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["id"].clone())
        .collect();
    assert_eq!(
        ids,
        [
            hex::encode(&record(1, 1000).file_id),
            hex::encode(&record(2, 1000).file_id)
        ]
    );
    let plain = run(&sandbox, &fakes, &["get", "x"]).expect(2);
    assert!(
        plain.stdout.contains(&hex::encode(&record(2, 1000).file_id)[..8]),
        "{}",
        plain.stdout
    );
    assert!(!fakes.was_called("start"));
}

#[test]
fn get_reports_the_bytes_of_each_provider() {
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
    let fakes = Fakes::start(
        sandbox.dir.path(),
        play([
            transfer(1, TransferState::Preparing, 0),
            transfer(1, TransferState::Running, 500),
            done,
        ]),
    );
    let objects = run(&sandbox, &fakes, &["get", "fake.bin", "--json"])
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
    assert_eq!(last["id"], hex::encode(&record(1, 1000).file_id));
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

    let plain = run(&sandbox, &fakes, &["get", "fake.bin"]).expect(0);
    assert!(plain.stdout.contains("/tmp/fake.bin"), "{}", plain.stdout);
    assert!(
        plain.stderr.contains("192.0.2.2:12349") && plain.stderr.contains("banned: piece 3"),
        "{}",
        plain.stderr
    );
    let quiet = run(&sandbox, &fakes, &["get", "fake.bin", "-q"]).expect(0);
    assert_eq!(quiet.stderr, "");
    assert_eq!(
        run(&sandbox, &fakes, &["get", "fake.bin", "-q", "--json"])
            .expect(0)
            .objects()
            .len(),
        1
    );
}

#[test]
fn failures_exit_with_the_documented_codes() {
    for (reason, code, word) in [
        ("VERIFICATION_FAILED", 4, "verification_failed"),
        ("DISK_FULL", 1, "disk_full"),
        ("TARGET_EXISTS", 1, "target_exists"),
        ("NO_PROVIDERS", 3, "no_providers"),
        ("SOMETHING_NEW", 1, "internal"),
    ] {
        let sandbox = Sandbox::without_index();
        let failed = with_error(transfer(1, TransferState::Failed, 10), reason, "it \x1b[31mbroke");
        let fakes = Fakes::start(sandbox.dir.path(), play([failed]));
        let run = run(&sandbox, &fakes, &["get", "fake.bin", "--json"]).expect(code);
        assert_eq!(run.error()["error"], word);
    }
}

#[test]
fn get_stops_waiting_after_its_timeout_and_keeps_the_transfer() {
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
    let fakes = Fakes::start(sandbox.dir.path(), script);
    let finished = run(
        &sandbox,
        &fakes,
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
        finished.stderr.contains("no peer has the rest"),
        "{}",
        finished.stderr
    );
    let again = format!(
        "resume with: potluck get fake.bin --from 192.0.2.1:9 --limit 10MiB/s --priority 3 \
         --wait 1s --index {} --peer {}",
        fakes.index_url, fakes.peer
    );
    assert!(finished.stderr.contains(&again), "{}", finished.stderr);
    assert!(
        !fakes.was_called("pause") && !fakes.was_called("cancel"),
        "others may follow it"
    );
}

#[test]
fn get_does_not_wait_for_an_unknown_id() {
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
    let fakes = Fakes::start(sandbox.dir.path(), script);
    let id = hex::encode(&record(1, 1000).file_id);
    let finished = run(&sandbox, &fakes, &["get", &id, "--json"]).expect(3);
    assert_eq!(finished.error()["error"], "not_found");
    let plain = run(&sandbox, &fakes, &["get", &id]).expect(3);
    assert!(
        plain.stderr.contains("potluck transfers cancel 7"),
        "{}",
        plain.stderr
    );
    assert!(
        !fakes.was_called("pause") && !fakes.was_called("cancel"),
        "others may follow it"
    );
}

#[test]
fn get_of_a_present_file_needs_no_index() {
    let sandbox = Sandbox::without_index();
    let mut done = transfer(1, TransferState::Done, 1000);
    done.resumed_bytes = 1000;
    let fakes = Fakes::start(sandbox.dir.path(), play([done]));
    let id = hex::encode(&record(1, 1000).file_id);
    let mut command = sandbox.command();
    let finished = Finished::run(command.args(["get", &id, "--peer", &fakes.peer])).expect(0);
    assert!(finished.stdout.contains("already there"), "{}", finished.stdout);
}

#[test]
fn reports_a_lost_peer_and_how_to_resume() {
    let sandbox = Sandbox::without_index();
    let fakes = Fakes::start(
        sandbox.dir.path(),
        play([transfer(1, TransferState::Running, 400)]),
    );
    let finished = run(&sandbox, &fakes, &["get", "fake.bin"]).expect(5);
    assert!(
        finished.stderr.contains("resume with: potluck get fake.bin"),
        "{}",
        finished.stderr
    );
}

#[test]
fn ctrl_c_leaves_the_transfer_to_the_peer() {
    let sandbox = Sandbox::without_index();
    let script = Script {
        hangs: true,
        ..play([transfer(1, TransferState::Running, 400)])
    };
    let fakes = Fakes::start(sandbox.dir.path(), script);
    let mut command = sandbox.command();
    command.args([
        "get",
        "fake.bin",
        "--json",
        "--index",
        &fakes.index_url,
        "--peer",
        &fakes.peer,
    ]);
    let mut get = Program::start(&mut command);
    assert!(get.line().contains("progress"));
    assert_eq!(get.interrupt().code(), Some(130));
    assert!(!fakes.was_called("pause") && !fakes.was_called("cancel"));
}

#[test]
fn reports_a_transfer_that_another_command_paused() {
    let sandbox = Sandbox::without_index();
    let fakes = Fakes::start(
        sandbox.dir.path(),
        play([
            transfer(1, TransferState::Running, 400),
            transfer(1, TransferState::Paused, 400),
        ]),
    );
    let finished = run(&sandbox, &fakes, &["get", "fake.bin"]).expect(1);
    for text in ["transfer 7 was paused", "potluck transfers resume 7"] {
        assert!(finished.stderr.contains(text), "{}", finished.stderr);
    }
    let finished = run(&sandbox, &fakes, &["get", "fake.bin", "--json"]).expect(1);
    assert_eq!(finished.error()["error"], "cancelled");
}

#[test]
fn a_closed_stdout_does_not_end_the_transfer() {
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
        let fakes = Fakes::start(sandbox.dir.path(), script);
        let mut get = sandbox
            .command()
            .args(["get", "fake.bin", "--json"])
            .args(["--index", &fakes.index_url, "--peer", &fakes.peer])
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
fn get_by_sha256_tries_the_next_file_if_the_first_has_no_provider() {
    for (reason, code) in [("NO_PROVIDERS", 3), ("UNREACHABLE", 5), ("DISK_FULL", 1)] {
        let sandbox = Sandbox::without_index();
        let failed = with_error(transfer(1, TransferState::Failed, 0), reason, "it cannot be had");
        let script = Script {
            files: vec![found(1, &["a"]), found(2, &["b"])],
            ..play([failed])
        };
        let fakes = Fakes::start(sandbox.dir.path(), script);
        let sum = format!("sha256:{}", "ab".repeat(32));
        let finished = run(&sandbox, &fakes, &["get", &sum]).expect(code);
        let another = code != 1;
        assert_eq!(fakes.calls("start"), 1 + usize::from(another), "{reason}");
        assert_eq!(
            finished
                .stderr
                .contains("has no running peer: trying the next file"),
            another,
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn json_from_the_environment_applies_to_usage_errors() {
    let sandbox = Sandbox::without_index();
    let mistyped = |json: &str| {
        Finished::run(sandbox.command().env("POTLUCK_JSON", json).arg("get")).expect(2)
    };
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
    let fakes = Fakes::start(sandbox.dir.path(), script);
    let object = run(&sandbox, &fakes, &["get", "fake.bin", "--detach", "--json"])
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
    let fakes = Fakes::start(sandbox.dir.path(), script);
    let listed = run(&sandbox, &fakes, &["transfers", "--json"]).expect(0);
    let objects = listed.objects().into_iter();
    let numbers: Vec<_> = objects.map(|object| object["transfer"].clone()).collect();
    assert_eq!(numbers, [7, 8, 9]);
}

#[test]
fn transfers_and_why_show_every_detail() {
    let sandbox = Sandbox::without_index();
    let mut running = transfer(1, TransferState::Running, 400);
    running.units_total = 10;
    running.peers = vec![TransferPeer {
        address: Some(address(1)),
        units: 5,
        ..TransferPeer::default()
    }];
    let fakes = Fakes::start(sandbox.dir.path(), play([running]));
    let object = run(&sandbox, &fakes, &["transfers", "--json"]).expect(0).object();
    assert_eq!(
        (&object["transfer"], &object["state"]),
        (&7.into(), &"running".into())
    );
    assert!(
        run(&sandbox, &fakes, &["transfers"])
            .expect(0)
            .stdout
            .contains("40 %")
    );
    for action in ["pause", "resume", "cancel"] {
        run(&sandbox, &fakes, &["transfers", action, "7"]).expect(0);
        assert!(fakes.was_called(action));
    }
    run(&sandbox, &fakes, &["transfers", "pause", &"ab".repeat(32)]).expect(3);
    run(&sandbox, &fakes, &["transfers", "pause", "x"]).expect(2);
    let object = run(&sandbox, &fakes, &["why", "7", "--json"]).expect(0).object();
    assert_eq!(object["missing"][0]["count"], 4);
    assert_eq!(object["findings"][0], "no peer has units 3 to 6");
    let plain = run(&sandbox, &fakes, &["why", &hex::encode(&record(1, 1000).file_id)])
        .expect(0)
        .stdout;
    assert!(plain.contains("3–6") && plain.contains("50 %"), "{plain}");
}

#[test]
fn reports_a_download_that_is_shared_only_until_the_peer_stops() {
    let sandbox = Sandbox::without_index();
    let mut done = transfer(1, TransferState::Done, 1000);
    let message = "it is shared only until the peer stops: the disk of its home is full";
    done.sharing_error = Some(Failure {
        reason: "DISK_FULL".into(),
        message: message.into(),
    });
    let fakes = Fakes::start(sandbox.dir.path(), play([done]));
    let finished = run(&sandbox, &fakes, &["get", "fake.bin"]).expect(0);
    let expected = format!("downloaded, but {message}");
    assert!(finished.stderr.contains(&expected), "{}", finished.stderr);
    let finished = run(&sandbox, &fakes, &["get", "fake.bin", "--json"]).expect(0);
    let last = finished.objects().pop().unwrap();
    assert_eq!(
        (&last["event"], &last["sharing_error"]),
        (&"done".into(), &"disk_full".into())
    );
    assert_eq!(last["sharing_message"], message);
}

#[test]
fn check_names_damaged_files_and_fails() {
    let sandbox = Sandbox::without_index();
    let fakes = Fakes::start(sandbox.dir.path(), Script::default());
    let good = run(&sandbox, &fakes, &["check", "/somewhere/good"]).expect(0);
    assert!(good.stdout.starts_with("good  1 file"), "{}", good.stdout);
    let paths = ["check", "/somewhere/good", "/somewhere/damaged"];
    let bad = run(&sandbox, &fakes, &paths).expect(4);
    let lines: Vec<_> = bad.stdout.lines().collect();
    assert_eq!(lines.len(), 1, "a line for each bad file: {lines:?}");
    assert!(lines[0].starts_with("damaged  /somewhere/damaged: "), "{lines:?}");
    assert!(bad.stderr.contains("1 of 2 files is damaged"), "{}", bad.stderr);
    let objects = run(&sandbox, &fakes, &[&paths[..], &["--json"]].concat()).expect(4);
    let objects = objects.objects();
    assert_eq!(objects[0]["event"], "bad");
    assert_eq!(objects[0]["path"], "/somewhere/damaged");
    assert_eq!(objects[0]["reason"], "verification_failed");
    assert_eq!(objects[1]["bad_files"], 1);
    assert_eq!(objects.len(), 2);
    for wrong in [&["check"][..], &["check", "--all", "/x"]] {
        run(&sandbox, &fakes, wrong).expect(2);
    }
}
