//! `potluck index check | compact | backup | restore | export`, also killed at any moment.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use potluck_core::index_client::MAX_BATCH;
use potluck_testkit::{
    records::{own_address, registration, token},
    services::TestIndex,
};
use tokio::net::TcpListener;

/// Registrations of the sample: enough that the work on them takes a while.
const FILES: u64 = 20_000;

fn command(arguments: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potluck"));
    command
        .arg("index")
        .args(arguments)
        .arg("--data-dir")
        .arg(dir)
        .env_remove("POTLUCK_INDEX_DATA_DIR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str], dir: &Path) -> Output {
    command(arguments, dir).output().unwrap()
}

/// Runs a command that succeeds with `--json`, and returns a number of its result.
fn number(arguments: &[&str], dir: &Path, field: &str) -> u64 {
    let output = command(arguments, dir).arg("--json").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    result[field].as_u64().unwrap()
}

async fn fill(dir: &Path) {
    let index = TestIndex::in_folder(TcpListener::bind("127.0.0.1:0").await.unwrap(), dir);
    let files: Vec<_> = (0..FILES).map(|n| registration(n, "a file.bin")).collect();
    for files in files.chunks(MAX_BATCH) {
        let (token, address) = (token(1), own_address(1));
        index
            .client
            .register(&token, &address, files, None, false)
            .await
            .unwrap();
    }
    index.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_is_killed_leaves_whole_registrations() {
    let dir = tempfile::tempdir().unwrap();
    let (data, target) = (dir.path().join("data"), dir.path().join("target"));
    let backup = dir.path().join("backup");
    fill(&data).await;
    let file = backup.to_str().unwrap();
    let began = Instant::now();
    assert_eq!(number(&["backup", file], &data, "registrations"), FILES);
    assert_eq!(number(&["restore", file], &target, "registrations"), FILES);
    let took = began.elapsed();
    let other = dir.path().join("other").to_str().unwrap().to_owned();
    let kinds: [&[&str]; 3] = [&["restore", file, "--replace"], &["compact"], &["backup", &other]];
    for round in 0..12_u32 {
        let mut child = command(kinds[round as usize % 3], &target).spawn().unwrap();
        // Spread over the time that the work takes.
        std::thread::sleep(took.mul_f64(f64::from(round) / 12.0).min(Duration::from_secs(5)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(
            number(&["check"], &target, "registrations"),
            FILES,
            "round {round}"
        );
        if Path::new(&other).exists() {
            // It has its name only if it is whole.
            let copy = dir.path().join(format!("copy{round}"));
            assert_eq!(number(&["restore", &other], &copy, "registrations"), FILES);
            std::fs::remove_file(&other).unwrap();
        }
    }
    // The index opens it, and moves nothing aside.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let index = TestIndex::in_folder(listener, &target);
    assert_eq!(index.client.stats().await.unwrap().registrations, FILES);
    index.stop().await;
    let names = std::fs::read_dir(&target).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        !names
            .iter()
            .any(|name| name.to_string_lossy().contains("damaged")),
        "{names:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn results_and_refusals_are_as_documented() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    assert_eq!(run(&["check"], &data).status.code(), Some(3), "nothing is stored");
    fill(&data).await;
    let exported = run(&["export"], &data);
    assert_eq!(
        exported.stdout.iter().filter(|&&byte| byte == b'\n').count() as u64,
        FILES
    );
    let first = exported.stdout.split(|&byte| byte == b'\n').next().unwrap();
    let first: serde_json::Value = serde_json::from_slice(first).unwrap();
    assert_eq!(first["names"][0], "a file.bin");
    assert_eq!(first["complete"], true);
    let before = number(&["check"], &data, "bytes");
    // sled takes whole segments of 512 KiB from the disk, and one more while it writes.
    let slack = 1 << 20;
    assert!(number(&["compact"], &data, "bytes") <= before + slack);
    let file = dir.path().join("backup");
    std::fs::write(&file, "not a backup").unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(run(&["backup", file], &data).status.code(), Some(1), "it exists");
    let refused = run(&["restore", file], &dir.path().join("new"));
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
}
