//! Limits of the operating system on the program: open files, and the size of a file.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use potluck_core::proto::v1;
use potluck_testkit::{
    content::{bytes, write_file},
    control::Control,
    services::SeededFile,
    system::{memory::open_files, program::Server},
    transfer::{is_waiting, until},
    wait::wait_until,
};

use crate::PROGRAM;

/// Starts the program under a limit of the shell, such as `ulimit -n 64`.
fn start_under(limit: &str, home: &Path) -> Server {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("{limit} && exec \"$0\" \"$@\"")])
        .arg(PROGRAM)
        .args(["--listen", "127.0.0.1:0", "--index", "none", "--home"])
        .arg(home)
        .stderr(Stdio::null());
    Server::start(&mut shell)
}

/// Connections that another program holds open. Each has sent the first bytes of HTTP/2.
fn hold_connections(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = || {
        let mut stream = TcpStream::connect(address).unwrap();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        stream.write_all(preface).unwrap();
        stream
    };
    (0..count).map(|_| connect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_free_file_descriptor_a_share_waits_and_then_fails() {
    const LIMIT: usize = 64;
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("peer");
    let program = start_under(&format!("ulimit -n {LIMIT}"), &home);
    let control = Control::in_home(&home).await;
    control.status().await;
    let path = write_file(dir.path(), "file", &bytes(1000, 1));
    let held = hold_connections(program.address, LIMIT);
    wait_until("no descriptor is free", async || {
        open_files(program.id()) >= LIMIT
    })
    .await;
    let failure = control.try_share(&path).await.unwrap_err();
    assert_eq!(failure.reason, "TOO_MANY_OPEN_FILES");
    assert!(failure.message.contains("ulimit -n"), "{failure:?}");
    {
        let mut sharing = std::pin::pin!(control.try_share(&path));
        let early = tokio::time::timeout(Duration::from_millis(300), &mut sharing).await;
        assert!(early.is_err(), "it waits");
        drop(held);
        sharing.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_the_size_of_files_counts_as_a_full_disk() {
    let file = SeededFile::new(24_000_000, 9).await;
    let (home, target) = (file.path("peer"), file.path("out"));
    // 10,000 blocks of 512 or 1,024 bytes.
    let mut program = start_under("ulimit -f 10000", &home);
    let mut events = Control::in_home(&home)
        .await
        .start_transfer(file.request(&target))
        .await;
    let waits = |transfer: &v1::Transfer| {
        assert_ne!(transfer.state(), v1::TransferState::Failed, "{transfer:?}");
        is_waiting(transfer)
    };
    let waiting = until("it waits", &mut events, waits).await.error.unwrap();
    assert_eq!(waiting.reason, "DISK_FULL");
    assert!(waiting.message.contains("ulimit -f"), "{}", waiting.message);
    assert!(program.is_running());
}
