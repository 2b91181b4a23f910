//! Durability after a power loss: the order of the real program's system calls, recorded with
//! strace.
//!
//! A power loss loses data that was written and not flushed, and each name whose folder was not
//! flushed. `kill -9` does not show this.

use std::{path::Path, time::Duration};

use potluck_core::proto::v1;
use potluck_testkit::{
    content::{bytes, id_of, write_file},
    control::Control,
    services::TestPeer,
    system::trace::{TraceOptions, TracedServer, now},
    transfer::{assert_done, next_state, transfer_request, transfer_request_from, until_end},
};
use rustix::process::Signal;

use crate::command;

/// Delay added to every flush: long enough that a report before the end of the flush is seen.
const FLUSH_DELAY: Duration = Duration::from_millis(30);

/// Starts the program with this home under strace; `None`, with a note, if that is not possible.
fn start_traced(home: &Path) -> Option<TracedServer> {
    let options = TraceOptions {
        calls: "fsync,fdatasync,syncfs,rename,renameat,renameat2,openat,pwrite64",
        string_len: 4096,
        flush_delay: FLUSH_DELAY,
    };
    TracedServer::start(&command(home), &home.join("state/lock"), options)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_home_is_on_the_disk_before_the_peer_listens() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let home = root.join("deep/home");
    let Some(traced) = start_traced(&home) else {
        return;
    };
    let ready = now();
    let trace = traced.end(Signal::KILL);
    let state = home.join("state");
    for folder in [&root, &root.join("deep"), &home] {
        let flush = trace.next(0.0, "the flush of a folder", |call| call.is_flush_of(folder));
        assert!(flush.ends <= ready);
    }
    assert!(trace.replaced(0.0, &state.join("token")) <= ready);
    let database = state.join("potluck.redb");
    let created = trace.next(0.0, "the database", |call| call.creates(&database));
    let flush = trace.next(created.ends, "its flush", |call| call.is_flush_of(&database));
    let folder = trace.next(flush.ends, "its folder's", |call| call.is_flush_of(&state));
    assert!(folder.ends <= ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_on_the_disk_before_it_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    write_file(&root, "set/a", &bytes(100_000, 1));
    write_file(&root, "set/b", &bytes(300_000, 2));
    let home = root.join("home");
    let Some(traced) = start_traced(&home) else {
        return;
    };
    let control = Control::in_home(&home).await;
    let database = home.join("state/potluck.redb");
    let mut answers = Vec::new();
    let started = now();
    let shared = control.shared_item(&root.join("set")).await;
    answers.push(("share", started, now()));
    let (started, shared_at) = (now(), now());
    let request = v1::StartTransferRequest {
        detach: true,
        ..transfer_request(id_of(b"no peer has this"), &root.join("out"))
    };
    let mut events = control.start_transfer(request).await;
    let transfer_id = next_state(&mut events).await.transfer_id;
    answers.push(("get --detach", started, now()));
    let started = now();
    control.pause(transfer_id).await;
    answers.push(("pause", started, now()));
    let started = now();
    let request = v1::AdjustTransferRequest {
        transfer_id,
        max_bytes_per_second: Some(1000),
        priority: None,
    };
    control.adjust(request).await.unwrap();
    answers.push(("adjust", started, now()));
    let started = now();
    control.resume(transfer_id).await;
    answers.push(("resume", started, now()));
    let started = now();
    control.cancel(transfer_id).await;
    answers.push(("cancel", started, now()));
    let started = now();
    let id = shared.file.unwrap().file_id;
    let target = v1::unshare_request::Target::FileId(id.clone());
    control.try_unshare(target).await.unwrap();
    answers.push(("unshare", started, now()));
    let trace = traced.end(Signal::KILL);
    for (command, started, answered) in answers {
        let flush = trace.next(started, command, |call| call.is_flush_of(&database));
        assert!(
            flush.ends <= answered,
            "{command} is answered before it is on the disk: {flush:?}"
        );
    }
    let manifest = home.join("state/manifests").join(hex::encode(&id));
    assert!(trace.replaced(0.0, &manifest) <= shared_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_is_on_the_disk_before_it_gets_its_name_and_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let source = write_file(&root, "src/data.bin", &bytes(3_000_000, 5));
    let seed = TestPeer::start(&root.join("seed"), None).await;
    let id = seed.share(&source).await;
    let home = root.join("home");
    let Some(traced) = start_traced(&home) else {
        return;
    };
    let target = root.join("new/out");
    let request = v1::StartTransferRequest {
        // Slow enough for several resume states.
        max_bytes_per_second: Some(1_000_000),
        ..transfer_request_from(id, &target, [&seed.address])
    };
    let control = Control::in_home(&home).await;
    let mut events = control.start_transfer(request).await;
    let last = until_end(&mut events).await;
    let done = now();
    assert_done(&last);
    let trace = traced.end(Signal::KILL);
    let (part, state) = (root.join("new/out.part"), root.join("new/out.part.state"));
    let beside = root.join("new/out.part.state.new");
    // Each resume state, except the first one without any data, describes flushed data.
    let states: Vec<_> = trace
        .calls
        .iter()
        .filter(|call| call.is_rename(&beside, &state))
        .collect();
    assert!(states.len() > 1, "{trace:#?}");
    for (before, this) in states.iter().zip(&states[1..]) {
        let flush = trace.next(before.ends, "a flush of the data", |call| call.is_flush_of(&part));
        let opened = trace.next(before.ends, "the state", |call| call.creates(&beside));
        assert!(
            flush.ends <= opened.begins && opened.ends <= this.begins,
            "{trace:#?}"
        );
        assert!(trace.replaced(before.ends, &state) <= done);
    }
    // First the data, then the name, then the flush of the folder, then the report that it is done.
    let named = trace.next(0.0, "the name", |call| call.is_rename(&part, &target));
    let written = trace.last("a write of data", |call| call.writes_to(&part));
    let flush = trace.next(written.ends, "the last flush", |call| call.is_flush_of(&part));
    assert!(flush.ends <= named.begins, "{flush:?} {named:?}");
    let folder = trace.next(named.ends, "the flush of the folder", |call| {
        call.is_flush_of(target.parent().unwrap())
    });
    assert!(
        folder.ends <= done,
        "done is reported before the name is on the disk: {folder:?}"
    );
    // The folder was created for the download.
    trace.next(0.0, "the flush of the folder above", |call| {
        call.is_flush_of(&root)
    });
}
