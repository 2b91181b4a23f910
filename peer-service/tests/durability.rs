//! Durability after a power loss: the order of the real program's system calls, recorded with
//! strace.
//!
//! A power loss loses data that was written and not flushed, and each name whose folder was not
//! flushed. `kill -9` does not show this.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use common::*;
use potluck_core::{
    grpc::transport::Endpoint,
    proto::v1::{self, control_service_client::ControlServiceClient},
};
use tonic::transport::Channel;

/// Delay added to every flush, in microseconds: a report before the end of the flush becomes
/// measurable.
const FLUSH_DELAY: u32 = 30_000;

const TRACED: &str = "fsync,fdatasync,syncfs,rename,renameat,renameat2,openat,pwrite64";

/// The program under strace; ended when dropped.
struct Traced {
    strace: Child,
    home: PathBuf,
    log: PathBuf,
}

/// A system call that succeeded.
#[derive(Debug)]
struct Call {
    name: String,
    /// The text between its parentheses; open files are shown with their paths.
    arguments: String,
    /// In seconds since 1970.
    begins: f64,
    ends: f64,
}

impl Call {
    /// Parses a line of strace: `1700000000.123456 fsync(3</path>) = 0 <0.000012>`.
    fn parse(line: &str) -> Option<Self> {
        let (begins, rest) = line.split_once(' ')?;
        let (name, rest) = rest.split_once('(')?;
        let (arguments, result) = rest.rsplit_once(") = ")?;
        let took = result.rsplit_once('<')?.1.strip_suffix('>')?;
        let begins: f64 = begins.parse().ok()?;
        let took: f64 = took.parse().ok()?;
        // Some versions of strace do not include the delay.
        let took = match name {
            "fsync" | "fdatasync" => took.max(f64::from(FLUSH_DELAY) / 1e6),
            _ => took,
        };
        (!result.starts_with('-')).then_some(Self {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
            begins,
            ends: begins + took,
        })
    }

    fn is_flush_of(&self, path: &Path) -> bool {
        let of = format!("<{}>", path.display());
        matches!(&*self.name, "fsync" | "fdatasync") && self.arguments.ends_with(&of)
    }

    fn is_rename(&self, from: &Path, to: &Path) -> bool {
        let (from, to) = (format!("\"{}\"", from.display()), format!("\"{}\"", to.display()));
        let both = self.arguments.find(&from).zip(self.arguments.find(&to));
        self.name.starts_with("rename") && both.is_some_and(|(from, to)| from < to)
    }

    fn creates(&self, path: &Path) -> bool {
        let path = format!("\"{}\"", path.display());
        self.name == "openat" && self.arguments.contains(&path) && self.arguments.contains("O_CREAT")
    }

    fn writes_to(&self, path: &Path) -> bool {
        self.name == "pwrite64" && self.arguments.contains(&format!("<{}>", path.display()))
    }
}

impl Traced {
    /// `None`, with a note on the output, if tracing is not possible.
    fn start(home: &Path, log: &Path) -> Option<Self> {
        let can_trace = Command::new("strace")
            .args(["-o", "/dev/null", "true"])
            .stderr(Stdio::null())
            .status();
        if !can_trace.is_ok_and(|status| status.success()) {
            println!("skipped: nothing can be traced here (it takes strace, of the package `strace`)");
            return None;
        }
        std::fs::create_dir_all(log).unwrap();
        let mut strace = Command::new("strace")
            .args(["-ff", "-y", "-ttt", "-T", "-s", "4096", "-e"])
            .arg(format!("trace={TRACED}"))
            .arg("-e")
            .arg(format!("inject=fsync,fdatasync:delay_exit={FLUSH_DELAY}"))
            .arg("-o")
            .arg(log.join("call"))
            .arg(env!("CARGO_BIN_EXE_potluck-peer"))
            .args(["--listen", "127.0.0.1:0", "--index", "none", "--home"])
            .arg(home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(strace.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.starts_with("listening on "), "{line}");
        Some(Self {
            strace,
            home: home.to_owned(),
            log: log.to_owned(),
        })
    }

    async fn control(&self) -> ControlServiceClient<Channel> {
        let endpoint = Endpoint::Unix(self.home.join("control.sock"));
        ControlServiceClient::new(endpoint.connect().await.unwrap())
    }

    /// Ends the program, not strace: strace ends with the program and writes its whole log first.
    fn kill(&mut self) {
        let Ok(pid) = std::fs::read_to_string(self.home.join("state/lock")) else {
            return;
        };
        let pid = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.strace.wait();
    }

    /// Ends the program; returns its system calls in order.
    fn calls(mut self) -> Vec<Call> {
        self.kill();
        let mut calls = Vec::new();
        for file in std::fs::read_dir(&self.log).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            calls.extend(text.lines().filter_map(Call::parse));
        }
        calls.sort_by(|a, b| a.begins.total_cmp(&b.begins));
        calls
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if let Ok(None) = self.strace.try_wait() {
            self.kill();
        }
    }
}

/// The current time in the format of strace.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

/// The first call after `since` that matches; panics with `what` if there is none.
#[track_caller]
fn next<'a>(calls: &'a [Call], since: f64, what: &str, holds: impl Fn(&Call) -> bool) -> &'a Call {
    let found = calls.iter().find(|call| call.begins >= since && holds(call));
    found.unwrap_or_else(|| panic!("{what} is missing after {since}: {calls:#?}"))
}

/// Checks that a file was replaced as a whole: flushed under another name, renamed, and its folder
/// flushed. Returns when that was complete.
#[track_caller]
fn replaced(calls: &[Call], since: f64, path: &Path) -> f64 {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let flush = next(calls, since, "the flush before the rename", |call| {
        call.is_flush_of(&beside)
    });
    let rename = next(calls, flush.ends, "the rename", |call| {
        call.is_rename(&beside, path)
    });
    let folder = path.parent().unwrap();
    next(calls, rename.ends, "the flush of the folder", |call| {
        call.is_flush_of(folder)
    })
    .ends
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_new_peer_makes_is_on_the_disk_before_it_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let home = root.join("deep/home");
    let Some(traced) = Traced::start(&home, &root.join("log")) else {
        return;
    };
    let ready = now();
    let calls = traced.calls();
    let state = home.join("state");
    for folder in [&root, &root.join("deep"), &home] {
        let flush = next(&calls, 0.0, "the flush of a folder", |call| {
            call.is_flush_of(folder)
        });
        assert!(flush.ends <= ready);
    }
    assert!(replaced(&calls, 0.0, &state.join("token")) <= ready);
    let database = state.join("potluck.redb");
    let made = next(&calls, 0.0, "the database", |call| call.creates(&database));
    let flush = next(&calls, made.ends, "its flush", |call| call.is_flush_of(&database));
    let folder = next(&calls, flush.ends, "its folder's", |call| {
        call.is_flush_of(&state)
    });
    assert!(folder.ends <= ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shared_or_asked_for_is_on_the_disk_before_that_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    file(&root, "set/a", &bytes(100_000, 1));
    file(&root, "set/b", &bytes(300_000, 2));
    let home = root.join("home");
    let Some(traced) = Traced::start(&home, &root.join("log")) else {
        return;
    };
    let mut control = traced.control().await;
    let database = home.join("state/potluck.redb");
    let mut answers = Vec::new();
    let begun = now();
    let request = v1::ShareRequest {
        paths: vec![root.join("set").to_str().unwrap().to_owned()],
    };
    let mut events = control.share(request).await.unwrap().into_inner();
    let shared = loop {
        if let v1::share_response::Event::Shared(item) =
            events.message().await.unwrap().unwrap().event.unwrap()
        {
            break item;
        }
    };
    answers.push(("share", begun, now()));
    let (begun, shared_at) = (now(), now());
    let id = potluck_core::identity::hash::hash_bytes(b"nobody has this").id();
    let request = v1::StartTransferRequest {
        detach: true,
        ..wish(id, &root.join("out"))
    };
    let mut events = control.start_transfer(request).await.unwrap().into_inner();
    let transfer_id = events
        .message()
        .await
        .unwrap()
        .unwrap()
        .transfer
        .unwrap()
        .transfer_id;
    answers.push(("get --detach", begun, now()));
    let begun = now();
    let request = v1::PauseTransferRequest { transfer_id };
    control.pause_transfer(request).await.unwrap();
    answers.push(("pause", begun, now()));
    let begun = now();
    let request = v1::AdjustTransferRequest {
        transfer_id,
        max_bytes_per_second: Some(1000),
        priority: None,
    };
    control.adjust_transfer(request).await.unwrap();
    answers.push(("adjust", begun, now()));
    let begun = now();
    let request = v1::ResumeTransferRequest { transfer_id };
    control.resume_transfer(request).await.unwrap();
    answers.push(("resume", begun, now()));
    let begun = now();
    let request = v1::CancelTransferRequest { transfer_id };
    control.cancel_transfer(request).await.unwrap();
    answers.push(("cancel", begun, now()));
    let begun = now();
    let id = shared.file.unwrap().file_id;
    let request = v1::UnshareRequest {
        target: Some(v1::unshare_request::Target::FileId(id.clone())),
    };
    control.unshare(request).await.unwrap();
    answers.push(("unshare", begun, now()));
    let calls = traced.calls();
    for (what, begun, answered) in answers {
        let flush = next(&calls, begun, what, |call| call.is_flush_of(&database));
        assert!(
            flush.ends <= answered,
            "{what} is answered before it is on the disk: {flush:?}"
        );
    }
    let manifest = home.join("state/manifests").join(hex(&id));
    assert!(replaced(&calls, 0.0, &manifest) <= shared_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_is_on_the_disk_before_it_has_its_name_and_its_name_before_it_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let source = file(&root, "src/data.bin", &bytes(3_000_000, 5));
    let seed = Peer::start(&root.join("seed"), None).await;
    let id = seed.share(&source).await;
    let home = root.join("home");
    let Some(traced) = Traced::start(&home, &root.join("log")) else {
        return;
    };
    let target = root.join("new/out");
    let request = v1::StartTransferRequest {
        providers: vec![(&seed.address).into()],
        // Slow enough for several resume states.
        max_bytes_per_second: Some(1_000_000),
        ..wish(id, &target)
    };
    let mut control = traced.control().await;
    let mut events = control.start_transfer(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.transfer;
    }
    let done = now();
    assert_done(&last.unwrap());
    let calls = traced.calls();
    let (part, state) = (root.join("new/out.part"), root.join("new/out.part.state"));
    let beside = root.join("new/out.part.state.new");
    // Each resume state, except the first one without any data, describes flushed data.
    let states: Vec<_> = calls
        .iter()
        .filter(|call| call.is_rename(&beside, &state))
        .collect();
    assert!(states.len() > 1, "{calls:#?}");
    for (before, this) in states.iter().zip(&states[1..]) {
        let flush = next(&calls, before.ends, "a flush of the data", |call| {
            call.is_flush_of(&part)
        });
        let opened = next(&calls, before.ends, "the state", |call| call.creates(&beside));
        assert!(
            flush.ends <= opened.begins && opened.ends <= this.begins,
            "{calls:#?}"
        );
        assert!(replaced(&calls, before.ends, &state) <= done);
    }
    // First the data, then the name, then the flush of the folder, then the report that it is done.
    let named = next(&calls, 0.0, "the name", |call| call.is_rename(&part, &target));
    let written = calls.iter().rev().find(|call| call.writes_to(&part)).unwrap();
    let flush = next(&calls, written.ends, "the last flush", |call| {
        call.is_flush_of(&part)
    });
    assert!(flush.ends <= named.begins, "{flush:?} {named:?}");
    let folder = next(&calls, named.ends, "the flush of the folder", |call| {
        call.is_flush_of(target.parent().unwrap())
    });
    assert!(
        folder.ends <= done,
        "done is said before the name is on the disk: {folder:?}"
    );
    // The folder was created for the download.
    next(&calls, 0.0, "the flush of the folder above", |call| {
        call.is_flush_of(&root)
    });
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
