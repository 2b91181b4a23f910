//! Files of settings for `potluck index` and `potluck peer`.

use std::fs;

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
