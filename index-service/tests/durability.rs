//! Checks durability by the program's system calls, and recovery from a full disk without a
//! restart.
//!
//! These tests run `strace`, or mount a small file system as root. If that is not possible, they
//! print a message and check nothing.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use common::{file, here, token, wait_until};
use potluck_core::{Reason, grpc::transport::Endpoint, index_client::IndexClient, model::QueryKey};

/// A program that ends with the test.
struct Running {
    child: Child,
    endpoint: Endpoint,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .env_remove("POTLUCK_LOG")
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .strip_prefix("listening on ")
            .expect("the line with the address");
        let endpoint = address.trim().parse().unwrap();
        Self { child, endpoint }
    }

    fn client(&self) -> IndexClient {
        IndexClient::new(self.endpoint.clone())
    }

    /// Asks the program to shut down.
    fn terminate(mut self, pid: &str) {
        assert!(
            Command::new("kill")
                .args(["-TERM", pid])
                .status()
                .unwrap()
                .success()
        );
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_potluck-index");

fn arguments(dir: &Path) -> Vec<String> {
    ["--listen", "127.0.0.1:0", "--data-dir", dir.to_str().unwrap()]
        .map(str::to_owned)
        .to_vec()
}

/// Whether `strace` works here.
fn can_trace() -> bool {
    let traced = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .stderr(Stdio::null())
        .status();
    let can = traced.is_ok_and(|status| status.success());
    if !can {
        eprintln!("skipped: strace is missing (Debian package strace), or may not trace");
    }
    can
}

/// Starts the program under `strace`, which writes the given system calls to a file.
fn traced(dir: &Path, trace: &Path, calls: &str) -> Running {
    Running::start(
        Command::new("strace")
            .args(["-f", "-y", "-x", "-s", "65536", "-e"])
            .arg(format!("trace={calls}"))
            .arg("-o")
            .arg(trace)
            .arg(PROGRAM)
            .args(arguments(dir)),
    )
}

/// The process that holds the lock of the data folder.
fn pid_of_index(dir: &Path) -> String {
    fs::read_to_string(dir.join("index.lock"))
        .unwrap()
        .trim()
        .to_owned()
}

/// Positions in a trace at which this call on this path returned successfully.
fn returned(trace: &[&str], call: &str, path: &str) -> Vec<usize> {
    let mut found = Vec::new();
    for (at, line) in trace.iter().enumerate() {
        if !line.contains(&format!(" {call}(")) || !line.contains(path) {
            continue;
        }
        if line.contains("<unfinished") {
            let thread = line.split_whitespace().next().unwrap();
            let end = trace[at..]
                .iter()
                .position(|line| line.starts_with(thread) && line.contains(&format!("<... {call} resumed>")));
            if let Some(end) = end.filter(|end| trace[at + end].trim_end().ends_with("= 0")) {
                found.push(at + end);
            }
        } else if line.trim_end().ends_with("= 0") {
            found.push(at);
        }
    }
    found
}

#[tokio::test]
async fn a_change_is_synced_before_its_answer_is_sent() {
    if !can_trace() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = tempfile::NamedTempFile::new().unwrap();
    let calls = "pwrite64,fdatasync,fsync,write,writev,sendto,sendmsg";
    let program = traced(dir.path(), trace.path(), calls);
    let client = program.client();
    let token = token(7);
    client
        .register(&token, &here(1), &[file(1, "a name")], None, false)
        .await
        .unwrap();
    program.terminate(&pid_of_index(dir.path()));
    let trace = fs::read_to_string(trace.path()).unwrap();
    let trace: Vec<&str> = trace.lines().collect();
    // The peer's id occurs in the answer but not in the request.
    let id: String = token
        .peer_id()
        .as_bytes()
        .iter()
        .map(|byte| format!("\\x{byte:02x}"))
        .collect();
    let is_answer = |line: &&str| line.contains(&id) && !line.contains("pwrite64(");
    let answered = trace.iter().position(is_answer).expect("an answer");
    let written = trace[..answered]
        .iter()
        .rposition(|line| line.contains("pwrite64(") && line.contains("/sled/db>"))
        .expect("the registration is written");
    let synced = returned(&trace, "fdatasync", "/sled/db>");
    assert!(
        synced.iter().any(|at| (written..answered).contains(at)),
        "written in line {written}, answered in line {answered}, synced in lines {synced:?}"
    );
}

#[tokio::test]
async fn a_new_folder_and_one_moved_aside_are_synced_before_the_index_listens() {
    if !can_trace() {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("index");
    let calls = "rename,renameat,renameat2,mkdir,fsync,fdatasync,write";
    for round in ["new", "damaged"] {
        let trace = tempfile::NamedTempFile::new().unwrap();
        let program = traced(&dir, trace.path(), calls);
        program.terminate(&pid_of_index(&dir));
        let trace = fs::read_to_string(trace.path()).unwrap();
        let trace: Vec<&str> = trace.lines().collect();
        let listens = trace
            .iter()
            .position(|line| line.contains("listening on"))
            .expect("the index listens");
        let synced_after = |from: usize, path: &str| {
            returned(&trace, "fsync", path)
                .iter()
                .any(|at| (from..listens).contains(at))
        };
        if round == "new" {
            for path in ["/index>", "/index/sled>", "/index/sled/conf>", "/index/sled/db>"] {
                assert!(synced_after(0, path), "{path}");
            }
            let parent_folder = format!("<{}>", parent.path().display());
            assert!(synced_after(0, &parent_folder), "{parent_folder}");
            fs::write(dir.join("sled/conf"), vec![0xa5; 70_000]).unwrap();
        } else {
            let moved = trace
                .iter()
                .position(|line| line.contains("sled.damaged-"))
                .expect("the store is moved aside");
            assert!(synced_after(moved, "/index>"));
        }
    }
}

/// A small file system, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(dir));
        }
        eprintln!("skipped: only root can mount a small file system");
        None
    }

    fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }

    /// Fills the disk completely.
    fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).unwrap();
        let block = vec![1; 4096];
        while std::io::Write::write_all(&mut filler, &block).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn an_index_recovers_from_a_full_disk_without_a_restart() {
    let Some(disk) = SmallDisk::mount("16m") else {
        return;
    };
    let dir = disk.0.path().join("index");
    let program = Running::start(Command::new(PROGRAM).args(arguments(&dir)));
    let client = program.client();
    let first: Vec<_> = (0..2_000).map(|n| file(n, "first")).collect();
    client
        .register(&token(1), &here(1), &first, None, false)
        .await
        .unwrap();
    disk.fill();
    // The first changes may still succeed, as long as they fit the space that sled has allocated.
    let mut accepted = Vec::new();
    let mut refused = None;
    for n in 10..200u64 {
        let files: Vec<_> = (0..2_000).map(|at| file(n * 10_000 + at, "second")).collect();
        match client.register(&token(2), &here(2), &files, None, false).await {
            Ok(_) => accepted.extend(files),
            Err(problem) => {
                refused = Some(problem);
                break;
            }
        }
    }
    assert_eq!(
        refused.expect("the disk is full").reason,
        Reason::StoreUnavailable
    );
    let endpoint = program.endpoint.clone();
    wait_until("the index to report its failure", || async {
        !endpoint.is_serving().await.unwrap()
    })
    .await;
    // Existing peers can renew and are found.
    client.renew(&token(1), &here(1)).await.unwrap();
    let found = client
        .query(&QueryKey::Id(first[5].file.id), 0, None)
        .await
        .unwrap();
    assert_eq!(found.files.len(), 1);
    fs::remove_file(disk.filler()).unwrap();
    wait_until("the index to recover", || async {
        endpoint.is_serving().await.unwrap()
    })
    .await;
    let last = [file(7_777_777, "last")];
    client
        .register(&token(3), &here(3), &last, None, false)
        .await
        .unwrap();
    assert_eq!(client.renew(&token(1), &here(1)).await.unwrap().file_count, 2_000);
    drop(program);
    // After `kill -9`, the store contains exactly the acknowledged files.
    let program = Running::start(Command::new(PROGRAM).args(arguments(&dir)));
    let stats = program.client().stats().await.unwrap();
    assert_eq!(stats.registrations, 2_000 + accepted.len() as u64 + 1);
    for one in first.iter().chain(&accepted).chain(&last).step_by(97) {
        let page = program.client().query(&QueryKey::Id(one.file.id), 0, None).await;
        assert_eq!(page.unwrap().files.len(), 1);
    }
}
