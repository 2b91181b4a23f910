//! The real program: how it starts, what it refuses, and that `kill -9` at any moment loses little.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use common::*;
use potluck_core::{
    grpc::transport::Endpoint,
    proto::v1::{self, control_service_client::ControlServiceClient},
};

/// The running program; killed when dropped.
struct Program {
    child: Child,
    address: String,
}

fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potluck-peer"));
    command
        .args(["--listen", "127.0.0.1:0", "--home"])
        .arg(home)
        .env("POTLUCK_INDEX", "none");
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .stdin(Stdio::null());
    command
}

impl Program {
    fn start(home: &Path) -> Self {
        Self::run(command(home).stderr(Stdio::null()))
    }

    fn run(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.strip_prefix("listening on ").expect(&line).trim().to_owned();
        Self { child, address }
    }

    /// Bytes read since its start, as counted by Linux.
    fn has_read(&self) -> u64 {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.child.id())).unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
        line.parse().unwrap()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn control(home: &Path) -> ControlServiceClient<tonic::transport::Channel> {
    let endpoint = Endpoint::Unix(home.join("control.sock"));
    ControlServiceClient::new(endpoint.connect().await.unwrap())
}

/// Runs the program until it exits; returns its exit code and its output.
fn refused(mut command: Command) -> (Option<i32>, String) {
    let mut child = command.spawn().unwrap();
    let status = child.wait().unwrap();
    let mut text = String::new();
    child.stderr.unwrap().read_to_string(&mut text).unwrap();
    (status.code(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_three_times_it_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(24_000_000, 5);
    let source = file(dir.path(), "src/data.bin", &data);
    let seed = Peer::start(&dir.path().join("seed"), None).await;
    let id = seed.share(&source).await;
    let (home, target) = (dir.path().join("peer"), dir.path().join("out"));
    let request = v1::StartTransferRequest {
        providers: vec![(&seed.address).into()],
        max_bytes_per_second: Some(6_000_000),
        detach: true,
        ..wish(id, &target)
    };
    let mut resumed = 0;
    for round in 1..=3u64 {
        let program = Program::start(&home);
        let mut events = control(&home)
            .await
            .start_transfer(request.clone())
            .await
            .unwrap()
            .into_inner();
        // Far enough past the last start that a checkpoint was written in between.
        loop {
            let transfer = events.message().await.unwrap().unwrap().transfer.unwrap();
            assert_ne!(transfer.state(), v1::TransferState::Failed, "{transfer:?}");
            if transfer.bytes_done >= round * 6_000_000 {
                assert!(
                    round == 1 || transfer.resumed_bytes > resumed,
                    "{round}: {transfer:?}"
                );
                resumed = transfer.resumed_bytes;
                break;
            }
        }
        program.kill();
        assert!(!target.exists());
    }
    let _program = Program::start(&home);
    let mut events = control(&home)
        .await
        .start_transfer(request)
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.transfer;
    }
    let last = last.unwrap();
    assert_done(&last);
    assert!(last.resumed_bytes > resumed, "{last:?}");
    assert_eq!(std::fs::read(&target).unwrap(), data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_ends_it_and_takes_back_what_the_index_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let index = Index::start().await;
    let home = dir.path().join("peer");
    file(&home, "files/data.bin", &bytes(1000, 1));
    let mut command = command(&home);
    command.stderr(Stdio::null());
    command.args(["--index", &index.endpoint.to_string()]);
    let mut program = Program::run(&mut command);
    wait_until("it is registered", || async {
        index.client.stats().await.unwrap().registrations == 1
    })
    .await;
    let pid = rustix::process::Pid::from_child(&program.child);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    assert_eq!(program.child.wait().unwrap().code(), Some(0));
    assert_eq!(index.client.stats().await.unwrap().peers, 0);
}

#[test]
fn control_beyond_this_machine_is_refused_without_the_owners_word() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(&dir.path().join("peer"));
    command.args(["--control", "0.0.0.0:0"]);
    let (code, said) = refused(command);
    assert_eq!(code, Some(1));
    assert!(said.contains("--plaintext"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_transfer_goes_on_by_itself_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(8_000_000, 6);
    let source = file(dir.path(), "src/data.bin", &data);
    let seed = Peer::start(&dir.path().join("seed"), None).await;
    let id = seed.share(&source).await;
    let (home, target) = (dir.path().join("peer"), dir.path().join("out"));
    let request = v1::StartTransferRequest {
        providers: vec![(&seed.address).into()],
        max_bytes_per_second: Some(3_000_000),
        detach: true,
        ..wish(id, &target)
    };
    let program = Program::start(&home);
    let mut events = control(&home)
        .await
        .start_transfer(request)
        .await
        .unwrap()
        .into_inner();
    while events
        .message()
        .await
        .unwrap()
        .unwrap()
        .transfer
        .unwrap()
        .units_done
        < 2
    {}
    program.kill();
    let _program = Program::start(&home);
    wait_until("it is there", || async { target.exists() }).await;
    assert_eq!(std::fs::read(&target).unwrap(), data);
}

async fn transfers(home: &Path) -> Vec<v1::Transfer> {
    let request = v1::ListTransfersRequest::default();
    let answer = control(home).await.list_transfers(request).await.unwrap();
    answer.into_inner().transfers
}

async fn shared_paths(home: &Path) -> Vec<String> {
    let request = v1::ListLibraryRequest::default();
    let answer = control(home).await.list_library(request).await.unwrap();
    let items = answer.into_inner().items.into_iter();
    items.map(|item| item.path).collect()
}

/// Rounds of each command, with a kill at each answer.
const KILLS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_the_answer_it_has_kept_what_it_answered() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("peer");
    let mut program = Program::start(&home);
    for round in 0..KILLS {
        let id = potluck_core::identity::hash::hash_bytes(&[round as u8; 10]).id();
        let request = v1::StartTransferRequest {
            detach: true,
            ..wish(id, &dir.path().join(format!("out {round}")))
        };
        let mut events = control(&home)
            .await
            .start_transfer(request)
            .await
            .unwrap()
            .into_inner();
        let event = events.message().await.unwrap().unwrap();
        program.kill();
        program = Program::start(&home);
        let number = event.transfer.unwrap().transfer_id;
        let now = async || {
            let transfers = transfers(&home).await;
            transfers
                .into_iter()
                .find(|transfer| transfer.transfer_id == number)
        };
        assert!(now().await.is_some(), "round {round}: get --detach");

        let request = v1::PauseTransferRequest { transfer_id: number };
        control(&home).await.pause_transfer(request).await.unwrap();
        program.kill();
        program = Program::start(&home);
        let state = now().await.unwrap().state();
        assert_eq!(state, v1::TransferState::Paused, "round {round}: pause");

        let request = v1::AdjustTransferRequest {
            transfer_id: number,
            max_bytes_per_second: Some(1000),
            priority: Some(3),
        };
        control(&home).await.adjust_transfer(request).await.unwrap();
        program.kill();
        program = Program::start(&home);
        let transfer = now().await.unwrap();
        assert_eq!(
            (transfer.max_bytes_per_second, transfer.priority),
            (1000, 3),
            "adjust"
        );
        assert_eq!(
            transfer.state(),
            v1::TransferState::Paused,
            "round {round}: adjust"
        );

        let request = v1::ResumeTransferRequest { transfer_id: number };
        control(&home).await.resume_transfer(request).await.unwrap();
        program.kill();
        program = Program::start(&home);
        let state = now().await.unwrap().state();
        assert_ne!(state, v1::TransferState::Paused, "round {round}: resume");

        let request = v1::CancelTransferRequest { transfer_id: number };
        control(&home).await.cancel_transfer(request).await.unwrap();
        program.kill();
        program = Program::start(&home);
        assert!(now().await.is_none(), "round {round}: cancel");

        let path = file(dir.path(), &format!("shared {round}"), &bytes(1000, round as u64));
        let path = path.canonicalize().unwrap().to_str().unwrap().to_owned();
        let request = v1::ShareRequest {
            paths: vec![path.clone()],
        };
        let mut events = control(&home).await.share(request).await.unwrap().into_inner();
        while let Some(event) = events.message().await.unwrap() {
            if matches!(event.event.unwrap(), v1::share_response::Event::Shared(_)) {
                break;
            }
        }
        program.kill();
        program = Program::start(&home);
        assert!(shared_paths(&home).await.contains(&path), "round {round}: share");

        let target = Some(v1::unshare_request::Target::Path(path.clone()));
        let request = v1::UnshareRequest { target };
        control(&home).await.unshare(request).await.unwrap();
        program.kill();
        program = Program::start(&home);
        assert!(
            !shared_paths(&home).await.contains(&path),
            "round {round}: unshare"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_damaged_database_it_starts_and_shares_what_it_can_find() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("peer");
    for n in 0..20 {
        file(&home, &format!("files/{n}"), &bytes(1000, n));
    }
    let program = Program::start(&home);
    wait_until("all is shared", || async {
        shared_paths(&home).await.len() == 20
    })
    .await;
    program.kill();
    let database = home.join("state/potluck.redb");
    let whole = std::fs::read(&database).unwrap();
    for seed in 1..=8 {
        let noise = bytes(96, seed);
        let mut damaged = whole.clone();
        for place in noise.chunks(4) {
            let at = u32::from_le_bytes(place.try_into().unwrap()) as usize;
            damaged[at % whole.len()] ^= place[0] | 1;
        }
        std::fs::write(&database, damaged).unwrap();
        let program = Program::start(&home);
        wait_until("all is shared again", || async {
            shared_paths(&home).await.len() == 20
        })
        .await;
        let request = v1::GetStatusRequest {};
        let status = control(&home)
            .await
            .get_status(request)
            .await
            .unwrap()
            .into_inner();
        let files = std::fs::read_dir(home.join("state")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let aside: Vec<_> = names.filter(|name| name.contains("damaged")).collect();
        assert_eq!(
            aside.is_empty(),
            status.warnings.is_empty(),
            "{aside:?} {status:?}"
        );
        for name in aside {
            assert!(status.warnings[0].contains(&name), "{status:?}");
            std::fs::remove_file(home.join("state").join(name)).unwrap();
        }
        program.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_cannot_do_it_says_and_what_to_do_instead() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("peer");
    let program = Program::start(&home);
    // A second program with the same home.
    let (code, said) = refused(command(&home));
    assert_eq!(code, Some(1));
    assert!(
        said.contains("in use by another peer") && said.contains(&program.child.id().to_string()),
        "{said}"
    );
    // The same port.
    let mut taken = Command::new(env!("CARGO_BIN_EXE_potluck-peer"));
    taken
        .args(["--listen", &program.address, "--index", "none", "--home"])
        .arg(dir.path().join("other"));
    taken.stdout(Stdio::piped()).stderr(Stdio::piped());
    let (code, said) = refused(taken);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("in use by another program") && said.contains("--listen"),
        "{said}"
    );
    // Only the owner may use the socket, and it is removed at shutdown.
    let socket = home.join("control.sock");
    assert_eq!(
        std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let mut program = program;
    let pid = rustix::process::Pid::from_child(&program.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(program.child.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
    // A socket that a killed program left behind is replaced.
    Program::start(&home).kill();
    assert!(socket.exists());
    let _again = Program::start(&home);
    control(&home)
        .await
        .get_status(v1::GetStatusRequest {})
        .await
        .unwrap();
}

/// Creates a sparse file of this size: slow to hash, but without disk usage.
fn holes(path: &Path, bytes: u64) {
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

/// Sends the program the signal to stop; returns how long that took.
fn stop(program: &mut Program) -> std::time::Duration {
    let pid = rustix::process::Pid::from_child(&program.child);
    let start = std::time::Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(program.child.wait().unwrap().code(), Some(0));
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stops_within_seconds_while_a_large_file_is_hashed() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    // Minutes of hashing.
    holes(&large, 100 << 30);
    let limit = std::time::Duration::from_secs(6);
    // Shared by a caller that waits for the result.
    let home = dir.path().join("peer");
    let mut program = Program::start(&home);
    let request = v1::ShareRequest {
        paths: vec![large.to_str().unwrap().to_owned()],
    };
    let mut events = control(&home)
        .await
        .share(request.clone())
        .await
        .unwrap()
        .into_inner();
    let hashing = events.message().await.unwrap().unwrap().event.unwrap();
    assert!(
        matches!(hashing, v1::share_response::Event::Progress(_)),
        "{hashing:?}"
    );
    let took = stop(&mut program);
    assert!(took < limit, "a share: {took:?}");
    // Found in the files folder.
    let dropped = home.join("files/dropped");
    holes(&dropped, 100 << 30);
    let mut program = Program::start(&home);
    wait_until("it hashes", || async { program.has_read() > 10_000_000 }).await;
    let took = stop(&mut program);
    assert!(took < limit, "the files folder: {took:?}");
    std::fs::remove_file(dropped).unwrap();
    // Hashed because it is at the target path of a download.
    let mut program = Program::start(&home);
    let request = v1::StartTransferRequest {
        ..wish(potluck_core::identity::hash::hash_bytes(b"other").id(), &large)
    };
    let _events = control(&home)
        .await
        .start_transfer(request)
        .await
        .unwrap()
        .into_inner();
    wait_until("it hashes", || async { program.has_read() > 10_000_000 }).await;
    let took = stop(&mut program);
    assert!(took < limit, "a target: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_and_ends_properly_although_nobody_reads_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(3_000_000, 7);
    let source = file(dir.path(), "src/data.bin", &data);
    let seed = Peer::start(&dir.path().join("seed"), None).await;
    let id = seed.share(&source).await;
    let (home, target) = (dir.path().join("peer"), dir.path().join("out"));
    let mut program = Program::run(command(&home).env("POTLUCK_LOG", "debug"));
    drop(program.child.stderr.take());
    let request = v1::StartTransferRequest {
        providers: vec![(&seed.address).into()],
        ..wish(id, &target)
    };
    let mut events = control(&home)
        .await
        .start_transfer(request)
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.transfer;
    }
    assert_done(&last.unwrap());
    assert_eq!(std::fs::read(&target).unwrap(), data);
    stop(&mut program);
    assert!(!home.join("control.sock").exists());
    // Errors still lead to the same exit code.
    let _other = Program::start(&home);
    let mut second = command(&home).spawn().unwrap();
    drop(second.stderr.take());
    assert_eq!(second.wait().unwrap().code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_whose_caller_goes_stops_hashing() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    holes(&large, 100 << 30);
    let peer = Peer::start(&dir.path().join("peer"), None).await;
    let request = v1::ShareRequest {
        paths: vec![large.to_str().unwrap().to_owned()],
    };
    let mut events = peer.control.clone().share(request).await.unwrap().into_inner();
    events.message().await.unwrap().unwrap();
    drop(events);
    // The runtime ends only after the hashing has ended: otherwise this test would hang.
}

/// Connections that another program holds open. Each has sent the first bytes of HTTP/2.
fn hold_connections(address: &str, count: usize) -> Vec<std::net::TcpStream> {
    use std::io::Write as _;
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .unwrap();
        held.push(stream);
    }
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_file_descriptor_left_a_share_waits_for_one_and_then_says_what_is_missing() {
    const LIMIT: usize = 64;
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("peer");
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -n {LIMIT}; exec \"$0\" \"$@\"")])
        .arg(env!("CARGO_BIN_EXE_potluck-peer"))
        .args(["--listen", "127.0.0.1:0", "--index", "none", "--home"])
        .arg(&home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let program = Program::run(&mut command);
    let mut control = control(&home).await;
    control.get_status(v1::GetStatusRequest {}).await.unwrap();
    let open_files = || {
        let folder = format!("/proc/{}/fd", program.child.id());
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    };
    let path = file(dir.path(), "file", &bytes(1000, 1));
    let mut share = async || {
        let request = v1::ShareRequest {
            paths: vec![path.to_str().unwrap().to_owned()],
        };
        let mut events = control.share(request).await.unwrap().into_inner();
        loop {
            match events.message().await.unwrap().unwrap().event.unwrap() {
                v1::share_response::Event::Shared(_) => return None,
                v1::share_response::Event::Failed(failed) => return failed.failure,
                v1::share_response::Event::Progress(_) => {}
            }
        }
    };
    let held = hold_connections(&program.address, LIMIT);
    wait_until("no descriptor is left", || async { open_files() >= LIMIT }).await;
    let failure = share().await.expect("there is none");
    assert_eq!(failure.reason, "TOO_MANY_OPEN_FILES");
    assert!(failure.message.contains("ulimit -n"), "{failure:?}");
    {
        let mut sharing = std::pin::pin!(share());
        let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut sharing).await;
        assert!(early.is_err(), "it waits");
        drop(held);
        assert_eq!(sharing.await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_the_size_of_files_is_waited_at_as_a_full_disk_is() {
    let dir = tempfile::tempdir().unwrap();
    let source = file(dir.path(), "src/data.bin", &bytes(24_000_000, 9));
    let seed = Peer::start(&dir.path().join("seed"), None).await;
    let id = seed.share(&source).await;
    let (home, target) = (dir.path().join("peer"), dir.path().join("out"));
    // 10,000 blocks of 512 or 1,024 bytes.
    let line = "ulimit -f 10000 && exec \"$0\" --listen 127.0.0.1:0 --index none --home \"$1\"";
    let mut limited = Command::new("sh");
    limited
        .args(["-c", line])
        .arg(env!("CARGO_BIN_EXE_potluck-peer"))
        .arg(&home)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .stdin(Stdio::null());
    let mut program = Program::run(&mut limited);
    let request = v1::StartTransferRequest {
        providers: vec![(&seed.address).into()],
        ..wish(id, &target)
    };
    let mut events = control(&home)
        .await
        .start_transfer(request)
        .await
        .unwrap()
        .into_inner();
    let waiting = loop {
        let event = events.message().await.expect("the program lives");
        let transfer = event.unwrap().transfer.unwrap();
        match transfer.state() {
            v1::TransferState::Waiting => break transfer.error.unwrap(),
            v1::TransferState::Failed => panic!("{transfer:?}"),
            _ => {}
        }
    };
    assert_eq!(waiting.reason, "DISK_FULL");
    assert!(waiting.message.contains("ulimit -f"), "{}", waiting.message);
    assert!(program.child.try_wait().unwrap().is_none());
}
