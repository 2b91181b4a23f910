//! Settings in a file, and reading it again.

use std::fs;

use potluck_core::Reason;
use potluck_testkit::{
    records::{own_address, registration, token},
    system::program::{Finished, Server},
    wait::wait_until,
};
use rustix::process::Signal;

use crate::{client_of, command};

#[test]
fn prints_its_settings_with_where_they_come_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("index.toml");
    fs::write(&file, "ttl = \"5m\"\nmax-watchers = 3\n").unwrap();
    let mut command = command(dir.path());
    command
        .args(["--print-config", "--max-watchers", "4", "--config"])
        .arg(&file)
        .env("POTLUCK_INDEX_STORE", "memory");
    let printed = Finished::run(&mut command).expect(0).stdout;
    for line in [
        "listen = \"127.0.0.1:0\" # flag",
        "ttl = \"5m\" # file",
        "max-watchers = 4 # flag",
        "store = \"memory\" # environment POTLUCK_INDEX_STORE",
        "max-connections = 10000 # default",
    ] {
        assert!(
            printed.lines().any(|printed| printed == line),
            "{line}: {printed}"
        );
    }
}

#[test]
fn an_unknown_key_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("index.toml");
    fs::write(&file, "max_watchers = 3\n").unwrap();
    let refused = Finished::run(command(dir.path()).arg("--config").arg(&file)).expect(2);
    let message = "index.toml, line 1: unknown key `max_watchers`: did you mean `max-watchers`?";
    assert!(refused.stderr.contains(message), "{}", refused.stderr);
}

#[tokio::test]
async fn a_hangup_makes_it_read_its_file_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("index.toml");
    fs::write(&file, "max-files-per-peer = 1\n").unwrap();
    let mut program = Server::start(command(dir.path()).arg("--config").arg(&file));
    let client = client_of(&program);
    let files = [registration(1, "a"), registration(2, "b")];
    let register = async || {
        client
            .register(&token(1), &own_address(1), &files, None, false)
            .await
    };
    assert_eq!(register().await.unwrap_err().reason, Reason::QuotaExceeded);
    // Whatever is wrong with the file, the index runs on.
    fs::write(&file, "max-files-per-peer = \"many\"\n").unwrap();
    program.signal(Signal::HUP);
    fs::write(&file, "max-files-per-peer = 2\n").unwrap();
    program.signal(Signal::HUP);
    wait_until("the new limit counts", async || register().await.is_ok()).await;
    assert!(program.terminate().success());
}
