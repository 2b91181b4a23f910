//! Files of settings for the services.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use potluck_testkit::system::program::Server;

use crate::sandbox::Sandbox;

#[test]
fn a_service_of_the_command_line_reads_a_file() {
    let sandbox = Sandbox::without_index();
    let file = sandbox.work().join("peer.toml");
    fs::write(
        &file,
        "index = \"192.0.2.1:1313\"\nhome = \"/tmp/x\"\nlog = \"debug\"\n",
    )
    .unwrap();
    let mut command = sandbox.command();
    command.env_remove("POTLUCK_INDEX");
    command.args(["peer", "--print-config", "--config", "peer.toml"]);
    let printed = potluck_testkit::system::program::Finished::run(&mut command)
        .expect(0)
        .stdout;
    for line in [
        "index = \"192.0.2.1:1313\" # file",
        "home = \"/tmp/x\" # file",
        "log = \"debug\" # file",
        "listen = \"127.0.0.1:12349\" # default",
    ] {
        assert!(
            printed.lines().any(|printed| printed == line),
            "{line}: {printed}"
        );
    }
    // A flag of the whole command line counts before the file.
    command.args(["--index", "a:1"]);
    let printed = potluck_testkit::system::program::Finished::run(&mut command)
        .expect(0)
        .stdout;
    assert!(printed.contains("index = \"a:1\" # flag"), "{printed}");
}

#[test]
fn a_gateway_reads_a_file_with_options_of_every_command() {
    let sandbox = Sandbox::without_index();
    let text = "\
index = \"192.0.2.1:1313\"
cache-size = \"2GiB\"
oci = [\"a=https://a.example\", \"b=https://b.example\"]
label = [\"zone=a\"]
log = \"debug\"
share-gated = true
";
    fs::write(sandbox.work().join("gateway.toml"), text).unwrap();
    let mut command = sandbox.command();
    command.env_remove("POTLUCK_INDEX");
    command.args(["gateway", "--config", "gateway.toml", "--print-config"]);
    let printed = potluck_testkit::system::program::Finished::run(&mut command)
        .expect(0)
        .stdout;
    for line in text.lines() {
        assert!(printed.contains(&format!("{line} # file")), "{line}: {printed}");
    }
    assert!(
        printed.contains("listen = \"127.0.0.1:8080\" # default"),
        "{printed}"
    );
    // Options that only other commands use are no settings.
    for wrong in ["peer = \"unix:/x\"\n", "json = true\n", "chache-size = 3\n"] {
        fs::write(sandbox.work().join("wrong.toml"), wrong).unwrap();
        let refused = sandbox.run(&["gateway", "--config", "wrong.toml"]).expect(2);
        assert!(refused.stderr.contains("unknown key"), "{}", refused.stderr);
    }
}

#[test]
fn a_hangup_changes_the_cache_of_a_gateway() {
    let sandbox = Sandbox::without_index();
    let file = sandbox.work().join("gateway.toml");
    let settings = |size: &str| {
        let text = format!(
            "listen = \"127.0.0.1:0\"\nhome = \"home\"\nindex = \"none\"\ncache-size = \"{size}\"\n"
        );
        fs::write(&file, text).unwrap();
    };
    settings("1GiB");
    let mut command = sandbox.command();
    command.env_remove("POTLUCK_INDEX");
    command.args(["gateway", "--config", "gateway.toml"]);
    command.stderr(Stdio::piped());
    let mut gateway = Server::start(&mut command);
    let log = BufReader::new(gateway.take_stderr());
    settings("2GiB");
    gateway.signal(rustix::process::Signal::HUP);
    let changed = log
        .lines()
        .map(Result::unwrap)
        .find(|line| line.contains("cache-size"));
    let line = changed.expect("the log names the setting");
    assert!(line.contains("INFO") && line.contains("2GiB"), "{line}");
}

#[test]
fn a_wrong_file_is_a_usage_error_as_json_too() {
    let sandbox = Sandbox::without_index();
    fs::write(sandbox.work().join("index.toml"), "tll = 3\n").unwrap();
    let refused = sandbox
        .run(&["--json", "index", "--config", "index.toml"])
        .expect(2);
    let error: serde_json::Value = serde_json::from_str(refused.stderr.trim()).unwrap();
    assert_eq!(error["error"], "usage");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("line 1: unknown key `tll`: did you mean `ttl`?"),
        "{message}"
    );
}
