//! How the program starts and ends, what it refuses, and its messages.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use potluck_core::proto::v1;
use potluck_testkit::{
    content::{bytes, id_of, sparse_file, write_file},
    control::Control,
    services::{SeededFile, TestIndex},
    system::{
        memory::bytes_read,
        program::{Finished, Program, Server},
    },
    transfer::{assert_done, transfer_request},
    wait::wait_until,
};

use crate::{PROGRAM, command, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_closes_ends_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let index = TestIndex::in_memory().await;
    let home = dir.path().join("peer");
    write_file(&home, "files/data.bin", &bytes(1000, 1));
    // `script` (util-linux) gives the program a terminal, which closes when `script` ends.
    let line = format!(
        "exec {PROGRAM} --listen 127.0.0.1:0 --home {} --index {} 2>/dev/null",
        home.display(),
        index.endpoint
    );
    let mut terminal = Command::new("script");
    let mut terminal = Program::start(terminal.args(["-qfc", &line, "/dev/null"]));
    assert!(terminal.line().starts_with("listening on "));
    wait_until("the file is registered", async || {
        index.client.stats().await.unwrap().registrations == 1
    })
    .await;
    terminal.kill();
    wait_until("the peer left", async || {
        index.client.stats().await.unwrap().peers == 0
    })
    .await;
}

#[test]
fn refuses_remote_control_without_a_flag_that_allows_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(&dir.path().join("peer"));
    let refused = Finished::run(command.args(["--control", "0.0.0.0:0"])).expect(1);
    assert!(refused.stderr.contains("--plaintext"), "{}", refused.stderr);
}

#[test]
fn refuses_to_serve_other_machines_without_encryption() {
    let dir = tempfile::tempdir().unwrap();
    let beyond = || {
        let mut command = Command::new(PROGRAM);
        command
            .args([
                "--listen",
                "0.0.0.0:0",
                "--index",
                "none",
                "--no-network",
                "--home",
            ])
            .arg(dir.path().join("peer"));
        command
    };
    let refused = Finished::run(&mut beyond()).expect(1);
    for word in [
        "without encryption",
        "potluck network create",
        "POTLUCK_PEER_PLAINTEXT",
    ] {
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    Server::start(beyond().env("POTLUCK_PEER_PLAINTEXT", "1").stderr(Stdio::null()));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_a_home_and_a_port_that_are_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("peer");
    let program = start(&home);
    // A second program with the same home.
    let message = Finished::run(&mut command(&home)).expect(1).stderr;
    assert!(
        message.contains("in use by another peer") && message.contains(&program.id().to_string()),
        "{message}"
    );
    // The same port.
    let mut same_port = Command::new(PROGRAM);
    same_port
        .args([
            "--listen",
            &program.address.to_string(),
            "--index",
            "none",
            "--home",
        ])
        .arg(dir.path().join("other"));
    let message = Finished::run(&mut same_port).expect(1).stderr;
    assert!(
        message.contains("in use by another program") && message.contains("--listen"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_socket_is_private_and_removed_at_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("peer");
    let mut program = start(&home);
    let socket = home.join("control.sock");
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(program.terminate().code(), Some(0));
    assert!(!socket.exists());
    // A socket that a killed program left behind is replaced.
    start(&home).kill();
    assert!(socket.exists());
    let _program = start(&home);
    Control::in_home(&home).await.status().await;
}

/// Ends the program; asserts that it takes no longer than its grace period for blocking work.
#[track_caller]
fn assert_stops_soon(program: &mut Server, work: &str) {
    let start = Instant::now();
    assert_eq!(program.terminate().code(), Some(0));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(6), "{work}: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_within_seconds_while_it_hashes_a_large_file() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    // Minutes of hashing.
    sparse_file(&large, 100 << 30);
    // Shared by a caller that waits for the result.
    let home = dir.path().join("peer");
    let mut program = start(&home);
    let mut events = Control::in_home(&home).await.begin_share(&large).await;
    let event = events.message().await.unwrap().unwrap().event.unwrap();
    assert!(
        matches!(event, v1::share_response::Event::Progress(_)),
        "{event:?}"
    );
    assert_stops_soon(&mut program, "a share");
    // Found in the files folder.
    let found = home.join("files/found");
    sparse_file(&found, 100 << 30);
    let mut program = start(&home);
    wait_until("it hashes", async || bytes_read(program.id()) > 10_000_000).await;
    assert_stops_soon(&mut program, "the files folder");
    fs::remove_file(found).unwrap();
    // Hashed because it is at the target path of a download.
    let mut program = start(&home);
    let request = transfer_request(id_of(b"other"), &large);
    let _events = Control::in_home(&home).await.start_transfer(request).await;
    wait_until("it hashes", async || bytes_read(program.id()) > 10_000_000).await;
    assert_stops_soon(&mut program, "a target");
}

#[tokio::test(flavor = "multi_thread")]
async fn works_although_its_messages_cannot_be_written() {
    let file = SeededFile::new(3_000_000, 7).await;
    let (home, target) = (file.path("peer"), file.path("out"));
    let mut command = command(&home);
    let mut program = Server::start(command.env("POTLUCK_LOG", "debug").stderr(Stdio::piped()));
    program.close_stderr();
    let done = Control::in_home(&home)
        .await
        .download(file.request(&target))
        .await;
    assert_done(&done);
    file.assert_arrived_at(&target);
    assert_stops_soon(&mut program, "a closed stderr");
    assert!(!home.join("control.sock").exists());
    // Errors still lead to the same exit code.
    let _other = start(&home);
    let mut second = Program::start(command.stderr(Stdio::piped()));
    second.close_stderr();
    assert_eq!(second.wait().code(), Some(1));
}
