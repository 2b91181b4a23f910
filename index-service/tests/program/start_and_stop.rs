//! Recovery after `kill -9`, shutdown, and errors at start.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use potluck_core::{
    Reason,
    index_client::IndexClient,
    model::QueryKey,
    network::{identity::Role, tls::ServerIdentity},
};
use potluck_testkit::{
    network::endpoint_at,
    records::{own_address, record, registration, token},
    services::{TestNetwork, member_tls},
    system::program::{Finished, Server},
};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::{PROGRAM, client_of, command, start};

#[tokio::test]
async fn twenty_kills_lose_no_acknowledged_registration() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..20u64 {
        let mut program = start(dir.path());
        let client = client_of(&program);
        let stats = client.stats().await.unwrap();
        assert_eq!(
            stats.registrations,
            acknowledged.len() as u64,
            "before round {round}"
        );
        // Concurrent peers share a flush; the program is killed right after the last answer.
        let mut tasks = JoinSet::new();
        for peer in 0..4u8 {
            let client = client.clone();
            tasks.spawn(async move {
                let files: Vec<_> = (0..5 + round * 3)
                    .map(|n| {
                        registration(round * 10_000 + u64::from(peer) * 1000 + n, "a name.bin")
                    })
                    .collect();
                client
                    .register(&token(peer), &own_address(1), &files, None, false)
                    .await
                    .unwrap();
                files
            });
        }
        while let Some(files) = tasks.join_next().await {
            acknowledged.extend(files.unwrap());
        }
        program.kill();
    }
    let mut program = start(dir.path());
    let client = client_of(&program);
    for registration in &acknowledged {
        let page = client
            .query(&QueryKey::Id(registration.file.id), 0, None)
            .await
            .unwrap();
        assert_eq!(page.files.len(), 1, "{} is lost", registration.file.id);
    }
    assert_eq!(
        client.stats().await.unwrap().registrations,
        acknowledged.len() as u64
    );
    assert!(program.terminate().success());
}

#[tokio::test]
async fn unregistered_files_stay_so_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = start(dir.path());
    let client = client_of(&program);
    client
        .register(
            &token(1),
            &own_address(1),
            &[registration(1, "a"), registration(2, "b")],
            None,
            false,
        )
        .await
        .unwrap();
    client
        .register(&token(2), &own_address(1), &[registration(1, "a")], None, false)
        .await
        .unwrap();
    client.unregister(&token(1), Some(&[record(1).id])).await.unwrap();
    client.unregister(&token(2), None).await.unwrap();
    program.kill();
    let mut program = start(dir.path());
    let stats = client_of(&program).stats().await.unwrap();
    assert_eq!((stats.peers, stats.registrations), (1, 1));
    assert!(program.terminate().success());
}

#[tokio::test]
async fn a_hangup_that_the_caller_ignores_is_ignored() {
    if !Path::new("/proc/self/status").exists() {
        println!("skipped: only Linux tells which signals are ignored");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(PROGRAM)
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path())
        .stderr(Stdio::null());
    let mut program = Server::start(&mut shell);
    program.signal(Signal::HUP);
    client_of(&program).stats().await.unwrap();
    assert!(program.terminate().success());
}

/// Runs a command that must fail before it listens; returns its messages.
#[track_caller]
fn failure_messages(command: &mut Command) -> String {
    let finished = Finished::run(command);
    assert!(finished.code.is_some_and(|code| code > 0), "{finished:?}");
    assert_eq!(finished.stdout, "", "it does not listen");
    finished.stderr
}

#[tokio::test]
async fn names_a_data_folder_that_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = start(dir.path());
    let messages = failure_messages(&mut command(dir.path()));
    assert!(
        messages.contains("in use by another index")
            && messages.contains(&program.id().to_string()),
        "{messages}"
    );
    client_of(&program).stats().await.unwrap();
    assert!(program.terminate().success());
}

#[test]
fn names_a_port_that_is_in_use() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let messages = failure_messages(
        Command::new(PROGRAM)
            .env("POTLUCK_INDEX_LISTEN", &address)
            .args(["--store", "memory"]),
    );
    assert!(
        messages.contains(&format!("{address} is in use by another program")),
        "{messages}"
    );
}

#[test]
fn explains_invalid_flags() {
    for (flag, value, expected) in [
        ("--ttl", "1ms", "a lease lasts from 1s to 1h"),
        ("--ttl", "soon", "give a time"),
        ("--allow-host", "10.0.0.0/99", "neither a network"),
        ("--listen", "nowhere", "give an IP address with a port"),
        (
            "--listen",
            "[fe80::1%nowhere]:1",
            "no network interface `nowhere`",
        ),
    ] {
        let messages = failure_messages(Command::new(PROGRAM).args([flag, value]));
        assert!(messages.contains(expected), "{flag} {value}: {messages}");
    }
}

#[test]
fn refuses_to_serve_other_machines_without_encryption() {
    let beyond = || {
        let mut command = Command::new(PROGRAM);
        command.args(["--store", "memory", "--listen", "0.0.0.0:0"]);
        command
    };
    let messages = failure_messages(&mut beyond());
    for word in [
        "without encryption",
        "potluck network create",
        "POTLUCK_INDEX_PLAINTEXT",
    ] {
        assert!(messages.contains(word), "{messages}");
    }
    Server::start(beyond().env("POTLUCK_INDEX_PLAINTEXT", "1").stderr(Stdio::null()));
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_a_private_network() {
    let network = TestNetwork::create("kitchen");
    let mut command = Command::new(PROGRAM);
    command
        .args(["--store", "memory", "--listen", "127.0.0.1:0", "--network"])
        .arg(network.folder.path())
        .stderr(Stdio::null());
    let program = Server::start(&mut command);
    let tls = member_tls(&network.join("ann", Role::Admin));
    let endpoint = endpoint_at(program.address).secured(&tls, ServerIdentity::Index);
    // The connection is encrypted and the certificate is valid, but nobody of this name joined.
    let refused = IndexClient::new(endpoint.unwrap()).stats().await.unwrap_err();
    assert_eq!(refused.reason, Reason::NotAMember);
    let messages = failure_messages(Command::new(PROGRAM).args([
        "--store",
        "memory",
        "--network",
        "/nowhere",
    ]));
    assert!(messages.contains("potluck network create"), "{messages}");
}
