//! How `share` reports whether the index has registered the files, and when that changes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use serde_json::Value;
use support::*;

fn control(peer: &Service) -> String {
    format!("unix:{}", peer.home.join("control.sock").display())
}

fn object(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn a_registered_file_is_found_at_once() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    for n in 0..2000 {
        std::fs::create_dir_all(sandbox.work().join("set")).unwrap();
        std::fs::write(sandbox.work().join(format!("set/{n}")), format!("content {n}")).unwrap();
    }
    let shared = sandbox
        .run(&["share", "set", "--peer", &control(&peer), "--json"])
        .expect(0)
        .object();
    assert_eq!(shared["registered"], true, "{shared}");
    sandbox.run(&["query", shared["id"].as_str().unwrap()]).expect(0);
    sandbox.run(&["query", "1999"]).expect(0);
    sandbox.file("x", 10, 1);
    let plain = sandbox.run(&["share", "x", "--peer", &control(&peer)]).expect(0);
    assert!(
        plain.stderr.contains("registered with the index"),
        "{}",
        plain.stderr
    );
}

#[test]
fn share_warns_if_the_index_is_down() {
    let sandbox = Sandbox::without_index();
    let peer = sandbox.peer("one", &[]);
    sandbox.file("x", 10, 1);
    let share = ["share", "x", "--peer", &control(&peer)];
    let plain = sandbox.run(&share).expect(0);
    assert!(
        plain.stderr.contains("others cannot find the files yet"),
        "{}",
        plain.stderr
    );
    let shared = sandbox
        .run(&[&share[..], &["--json"]].concat())
        .expect(0)
        .object();
    assert_eq!(shared["registered"], false, "{shared}");
}

#[test]
fn a_running_share_reports_when_the_index_is_lost_and_back() {
    let sandbox = Sandbox::without_index();
    let start = |listen: &str| {
        let mut command = sandbox.command();
        let args = [
            "index", "--listen", listen, "--store", "memory", "--ttl", "2s", "-q",
        ];
        let mut index = Service::start(command.args(args));
        let line = index.line();
        index.address = line.strip_prefix("listening on ").unwrap().to_owned();
        index
    };
    let mut index = start("127.0.0.1:0");
    let (address, url) = (index.address.clone(), format!("http://{}", index.address));
    sandbox.file("x", 10, 1);
    let mut command = sandbox.command();
    command.args(["share", "x", "--listen", "127.0.0.1:0", "--json", "--index", &url]);
    let mut sharing = Service::start(&mut command);
    assert_eq!(object(&sharing.line())["registered"], true);
    index.kill();
    let lost = object(&sharing.line());
    assert_eq!(
        (&lost["event"], &lost["registered"]),
        (&"registration".into(), &false.into())
    );
    assert_eq!(lost["error"], "unreachable", "{lost}");
    let _index = start(&address);
    let back = object(&sharing.line());
    assert_eq!(
        (&back["event"], &back["registered"]),
        (&"registration".into(), &true.into())
    );
    assert_eq!(sharing.interrupt().code(), Some(0));
}
