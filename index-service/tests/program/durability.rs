//! Checks durability by the program's system calls, and recovery from a full disk without a
//! restart.
//!
//! These tests run `strace`, or mount a small file system as root. If that is not possible, they
//! print a message and check nothing.

use std::{fs, path::Path, time::Duration};

use potluck_core::{Reason, index_client::IndexClient, model::QueryKey};
use potluck_testkit::{
    content::MIB,
    network::endpoint_at,
    records::{own_address, registration, token},
    system::{
        disk::SmallDisk,
        trace::{TraceOptions, TracedServer},
    },
    wait::wait_until,
};
use rustix::process::Signal;

use crate::{client_of, command, start};

/// Starts the program with this data folder under strace, which records these system calls; `None`,
/// with a note, if that is not possible.
fn start_traced(dir: &Path, calls: &str) -> Option<TracedServer> {
    let options = TraceOptions {
        calls,
        string_len: 65_536,
        flush_delay: Duration::ZERO,
    };
    TracedServer::start(&command(dir), &dir.join("index.lock"), options)
}

#[tokio::test]
async fn a_registration_is_synced_before_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let calls = "pwrite64,fdatasync,fsync,write,writev,sendto,sendmsg";
    let Some(traced) = start_traced(&dir, calls) else {
        return;
    };
    let client = IndexClient::new(endpoint_at(traced.address()));
    let token = token(7);
    client
        .register(&token, &own_address(1), &[registration(1, "a name")], None, false)
        .await
        .unwrap();
    let trace = traced.end(Signal::TERM);
    // The peer's id occurs in the answer but not in the request.
    let id = token.peer_id();
    let id: String = id
        .as_bytes()
        .iter()
        .map(|byte| format!("\\x{byte:02x}"))
        .collect();
    let answer = trace.next(0.0, "the answer", |call| {
        call.name != "pwrite64" && call.arguments.contains(&id)
    });
    let database = dir.join("sled/db");
    let written = trace.last("the write of the registration", |call| {
        call.writes_to(&database) && call.begins < answer.begins
    });
    let synced = trace.next(written.ends, "the flush of the registration", |call| {
        call.is_flush_of(&database)
    });
    assert!(synced.ends <= answer.begins, "{written:?} {synced:?} {answer:?}");
}

#[tokio::test]
async fn a_new_folder_and_one_moved_aside_are_synced_before_it_listens() {
    let parent = tempfile::tempdir().unwrap();
    let parent = parent.path().canonicalize().unwrap();
    let dir = parent.join("index");
    let calls = "rename,renameat,renameat2,mkdir,fsync,fdatasync,write";
    for round in ["new", "damaged"] {
        let Some(traced) = start_traced(&dir, calls) else {
            return;
        };
        let trace = traced.end(Signal::TERM);
        let listens = trace.next(0.0, "the line with the address", |call| {
            call.name == "write" && call.arguments.contains("listening on")
        });
        let assert_synced_after = |since: f64, path: &Path| {
            let flush = trace.next(since, "the flush of a folder", |call| call.is_flush_of(path));
            assert!(flush.ends <= listens.begins, "{}", path.display());
        };
        if round == "new" {
            for path in ["sled", "sled/conf", "sled/db"] {
                assert_synced_after(0.0, &dir.join(path));
            }
            assert_synced_after(0.0, &dir);
            assert_synced_after(0.0, &parent);
            fs::write(dir.join("sled/conf"), vec![0xa5; 70_000]).unwrap();
        } else {
            let moved = trace.next(0.0, "the rename of the damaged store", |call| {
                call.name.starts_with("rename") && call.arguments.contains("sled.damaged-")
            });
            assert_synced_after(moved.ends, &dir);
        }
    }
}

#[tokio::test]
async fn recovers_by_itself_from_a_full_disk() {
    let Some(disk) = SmallDisk::mount(16 * MIB) else {
        return;
    };
    let dir = disk.path("index");
    let program = start(&dir);
    let client = client_of(&program);
    let first: Vec<_> = (0..2_000).map(|n| registration(n, "first")).collect();
    client
        .register(&token(1), &own_address(1), &first, None, false)
        .await
        .unwrap();
    let filler = disk.fill();
    // The first changes may still succeed, as long as they fit the space that sled has allocated.
    let mut accepted = Vec::new();
    let mut refused = None;
    for n in 10..200u64 {
        let files: Vec<_> = (0..2_000)
            .map(|at| registration(n * 10_000 + at, "second"))
            .collect();
        match client
            .register(&token(2), &own_address(2), &files, None, false)
            .await
        {
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
    let endpoint = endpoint_at(program.address);
    wait_until("its health reports the full disk", async || {
        !endpoint.is_serving().await.unwrap()
    })
    .await;
    // Existing peers can renew and are found.
    client.renew(&token(1), &own_address(1)).await.unwrap();
    let found = client
        .query(&QueryKey::Id(first[5].file.id), 0, None)
        .await
        .unwrap();
    assert_eq!(found.files.len(), 1);
    fs::remove_file(filler).unwrap();
    wait_until("it recovers by itself", async || {
        endpoint.is_serving().await.unwrap()
    })
    .await;
    let last = [registration(7_777_777, "last")];
    client
        .register(&token(3), &own_address(3), &last, None, false)
        .await
        .unwrap();
    assert_eq!(
        client.renew(&token(1), &own_address(1)).await.unwrap().file_count,
        2_000
    );
    drop(program);
    // After `kill -9`, the store contains exactly the acknowledged files.
    let program = start(&dir);
    let stats = client_of(&program).stats().await.unwrap();
    assert_eq!(stats.registrations, 2_000 + accepted.len() as u64 + 1);
    for one in first.iter().chain(&accepted).chain(&last).step_by(97) {
        let page = client_of(&program)
            .query(&QueryKey::Id(one.file.id), 0, None)
            .await;
        assert_eq!(page.unwrap().files.len(), 1);
    }
}
