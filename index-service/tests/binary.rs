//! Runs the real program: recovery after `kill -9`, shutdown, and errors at start.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use common::{DEADLINE, file, here, record, token};
use potluck_core::{index_client::IndexClient, model::QueryKey};

struct Program {
    child: Child,
    address: SocketAddr,
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potluck-index"));
    command
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir)
        .env_remove("POTLUCK_LOG")
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Program {
    fn start(dir: &Path) -> Self {
        Self::run(command(dir).stderr(Stdio::null()))
    }

    fn run(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .strip_prefix("listening on ")
            .expect("the line with the address")
            .trim()
            .parse()
            .unwrap();
        Self { child, address }
    }

    fn client(&self) -> IndexClient {
        IndexClient::new(self.address.to_string().parse().unwrap())
    }

    /// Sends SIGKILL.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn terminate(mut self) -> ExitStatus {
        self.signal("-TERM");
        self.child.wait().unwrap()
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(sent.unwrap().success());
    }
}

/// Ends the program if a test fails.
impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn acknowledged_registrations_survive_twenty_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..20u64 {
        let program = Program::start(dir.path());
        let client = program.client();
        let stats = client.stats().await.unwrap();
        assert_eq!(
            stats.registrations,
            acknowledged.len() as u64,
            "before round {round}"
        );
        // Concurrent peers share a flush; the program is killed right after the last answer.
        let mut tasks = tokio::task::JoinSet::new();
        for peer in 0..4u8 {
            let client = client.clone();
            tasks.spawn(async move {
                let files: Vec<_> = (0..5 + round * 3)
                    .map(|n| file(round * 10_000 + u64::from(peer) * 1000 + n, "a name.bin"))
                    .collect();
                client
                    .register(&token(peer), &here(1), &files, None, false)
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
    let program = Program::start(dir.path());
    let client = program.client();
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
async fn removed_registrations_stay_removed_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(dir.path());
    let client = program.client();
    client
        .register(&token(1), &here(1), &[file(1, "a"), file(2, "b")], None, false)
        .await
        .unwrap();
    client
        .register(&token(2), &here(1), &[file(1, "a")], None, false)
        .await
        .unwrap();
    client.unregister(&token(1), Some(&[record(1).id])).await.unwrap();
    client.unregister(&token(2), None).await.unwrap();
    program.kill();
    let program = Program::start(dir.path());
    let stats = program.client().stats().await.unwrap();
    assert_eq!((stats.peers, stats.registrations), (1, 1));
    assert!(program.terminate().success());
}

#[tokio::test]
async fn a_hangup_shuts_down_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::start(dir.path());
    program.signal("-HUP");
    assert!(program.child.wait().unwrap().success());
}

#[tokio::test]
async fn a_hangup_is_ignored_if_the_parent_ignores_it() {
    if !Path::new("/proc/self/status").exists() {
        println!("skipped: only Linux reports which signals are ignored");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_potluck-index"))
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let program = Program::run(&mut shell);
    program.signal("-HUP");
    program.client().stats().await.unwrap();
    assert!(program.terminate().success());
}

fn error_of(command: &mut Command) -> String {
    let mut child = command.spawn().unwrap();
    let began = std::time::Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("the program did not end");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    assert!(!status.success());
    let (mut output, mut message) = (String::new(), String::new());
    child.stdout.unwrap().read_to_string(&mut output).unwrap();
    child.stderr.unwrap().read_to_string(&mut message).unwrap();
    assert_eq!(output, "", "the program printed no address");
    message
}

#[tokio::test]
async fn a_second_index_names_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(dir.path());
    let message = error_of(&mut command(dir.path()));
    assert!(
        message.contains("in use by another index") && message.contains(&program.child.id().to_string()),
        "{message}"
    );
    program.client().stats().await.unwrap();
    assert!(program.terminate().success());
}

#[test]
fn a_port_in_use_is_reported() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let message = error_of(
        Command::new(env!("CARGO_BIN_EXE_potluck-index"))
            .env("POTLUCK_INDEX_LISTEN", &address)
            .args(["--store", "memory"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    assert!(
        message.contains(&format!("{address} is in use by another program")),
        "{message}"
    );
}

#[test]
fn invalid_flags_are_explained() {
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
        let message = error_of(
            Command::new(env!("CARGO_BIN_EXE_potluck-index"))
                .args([flag, value])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        );
        assert!(message.contains(expected), "{flag} {value}: {message}");
    }
}
