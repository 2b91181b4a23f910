//! Settings in a file, reading it again, and the format of the log.

use std::{fs, io::Read as _, process::Stdio};

use potluck_testkit::{
    content::{bytes, write_file},
    control::Control,
    system::program::{Finished, Server},
    wait::wait_until,
};
use rustix::process::Signal;
use serde_json::Value;

use crate::{command, start};

#[tokio::test]
async fn a_hangup_changes_the_limits_that_changed_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (home, file) = (dir.path().join("peer"), dir.path().join("peer.toml"));
    fs::write(&file, "upload-limit = \"1MiB/s\"\nupload-slots = 5\n").unwrap();
    let mut program = Server::start(command(&home).arg("--config").arg(&file));
    let control = Control::in_home(&home).await;
    control.limit_download(7).await;
    fs::write(&file, "upload-limit = \"2MiB/s\"\nupload-slots = 5\n").unwrap();
    program.signal(Signal::HUP);
    wait_until("the new limit counts", async || {
        control.limits().await.upload_bytes_per_second == Some(2 << 20)
    })
    .await;
    // What the owner set at run time stays.
    assert_eq!(control.limits().await.download_bytes_per_second, Some(7));
    assert!(program.terminate().success());
}

#[tokio::test]
async fn a_hangup_changes_the_labels() {
    let dir = tempfile::tempdir().unwrap();
    let (home, file) = (dir.path().join("peer"), dir.path().join("peer.toml"));
    fs::write(&file, "label = [\"zone=a\", \"rack=r1\"]\n").unwrap();
    let mut program = Server::start(command(&home).arg("--config").arg(&file));
    let control = Control::in_home(&home).await;
    let zone = async || control.status().await.labels.unwrap_or_default().zone;
    assert_eq!(zone().await, "a");
    fs::write(&file, "label = [\"zone=b\"]\n").unwrap();
    program.signal(Signal::HUP);
    wait_until("the new zone counts", async || zone().await == "b").await;
    assert!(program.terminate().success());
}

#[test]
fn a_list_in_the_environment_counts_before_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("peer.toml");
    fs::write(&file, "share = [\"/from-file\"]\nlinks = \"skip\"\n").unwrap();
    let print = |environment: &str, flags: &[&str]| {
        let mut command = command(dir.path());
        command
            .arg("--print-config")
            .arg("--config")
            .arg(&file)
            .args(flags);
        if !environment.is_empty() {
            command.env("POTLUCK_PEER_SHARE", environment);
        }
        Finished::run(&mut command).expect(0).stdout
    };
    let has = |printed: String, line: &str| {
        assert!(
            printed.lines().any(|printed| printed == line),
            "{line}: {printed}"
        );
    };
    has(print("", &[]), "share = [\"/from-file\"] # file");
    has(
        print("/a:/b", &[]),
        "share = [\"/a\", \"/b\"] # environment POTLUCK_PEER_SHARE",
    );
    has(
        print("/a", &["--share", "/c"]),
        "share = [\"/c\", \"/a\"] # flag and environment POTLUCK_PEER_SHARE",
    );
    has(print("", &[]), "links = \"skip\" # file");
}

#[tokio::test]
async fn a_log_in_json_has_one_object_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("peer");
    write_file(&home, "files/data.bin", &bytes(1000, 1));
    let mut command = command(&home);
    command.args(["--log-format", "json"]).stderr(Stdio::piped());
    let mut program = Server::start(&mut command);
    let mut log = program.take_stderr();
    assert!(program.terminate().success());
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ready = lines.iter().find(|line| line["message"] == "peer ready").unwrap();
    assert_eq!(ready["level"], "INFO");
    assert_eq!(ready["home"], home.display().to_string());
}

#[test]
fn a_filter_that_is_no_filter_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let refused = Finished::run(command(dir.path()).args(["--log", "potluck_peer=loud"])).expect(2);
    assert!(refused.stderr.contains("give a level"), "{}", refused.stderr);
    drop(start(&dir.path().join("other")));
}
