//! How `share` reports whether the index has registered the files, and when that changes.

use potluck_testkit::{
    content::write_file,
    system::program::{Program, Server, parse},
};

use crate::sandbox::Sandbox;

#[test]
fn a_registered_file_is_found_at_once() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    for n in 0..2000 {
        let content = format!("content {n}");
        write_file(&sandbox.work(), &format!("set/{n}"), content.as_bytes());
    }
    let shared = sandbox
        .run(&["share", "set", "--peer", &peer.control(), "--json"])
        .expect(0)
        .object();
    assert_eq!(shared["registered"], true, "{shared}");
    sandbox.run(&["query", shared["id"].as_str().unwrap()]).expect(0);
    sandbox.run(&["query", "1999"]).expect(0);
    sandbox.file("x", 10, 1);
    let plain = sandbox.run(&["share", "x", "--peer", &peer.control()]).expect(0);
    assert!(
        plain.stderr.contains("registered with the index"),
        "{}",
        plain.stderr
    );
}

#[test]
fn share_reports_that_the_index_is_unreachable() {
    let sandbox = Sandbox::without_index();
    let peer = sandbox.peer("one", &[]);
    sandbox.file("x", 10, 1);
    let share = ["share", "x", "--peer", &peer.control()];
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
        Server::start(command.args(args))
    };
    let mut index = start("127.0.0.1:0");
    let (address, url) = (index.address.to_string(), format!("http://{}", index.address));
    sandbox.file("x", 10, 1);
    let mut command = sandbox.command();
    command.args(["share", "x", "--listen", "127.0.0.1:0", "--json", "--index", &url]);
    let mut sharing = Program::start(&mut command);
    assert_eq!(parse(&sharing.line())["registered"], true);
    index.kill();
    let lost = parse(&sharing.line());
    assert_eq!(
        (&lost["event"], &lost["registered"]),
        (&"registration".into(), &false.into())
    );
    assert_eq!(lost["error"], "unreachable", "{lost}");
    let _index = start(&address);
    let back = parse(&sharing.line());
    assert_eq!(
        (&back["event"], &back["registered"]),
        (&"registration".into(), &true.into())
    );
    assert_eq!(sharing.interrupt().code(), Some(0));
}
