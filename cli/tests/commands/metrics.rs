//! `/metrics` of index and peers.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use potluck_testkit::{system::program::Server, wait::wait_until_blocking};

use crate::{health::free_port, sandbox::Sandbox};

/// The metrics of the service whose monitoring endpoint has this port.
fn metrics(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn assert_has(text: &str, line: &str) {
    assert!(text.lines().any(|it| it == line), "no `{line}` in:\n{text}");
}

#[test]
fn metrics_tell_what_was_registered_and_transferred() {
    let sandbox = Sandbox::without_index();
    let (index_port, source_port, sink_port) = (free_port(), free_port(), free_port());
    let mut command = sandbox.command();
    command
        .args(["index", "--listen", "127.0.0.1:0", "--store", "memory", "-q"])
        .args(["--metrics", &index_port.to_string()]);
    let index = Server::start(&mut command);
    let url = index.address.to_string();
    let with_metrics = |home: &str, port: u16| {
        sandbox.peer(home, &["--index", &url, "--metrics", &port.to_string()])
    };
    let source = with_metrics("source", source_port);
    sandbox.file("content.bin", 300_000, 7);
    let (source_control, index_url) = (source.control(), url.as_str());
    let options = ["--peer", &source_control, "--index", index_url];
    sandbox
        .run(&[&options[..], &["share", "content.bin"]].concat())
        .expect(0);
    let sink = with_metrics("sink", sink_port);
    let sink_control = sink.control();
    let options = ["--peer", &sink_control, "--index", index_url];
    sandbox
        .run(&[&options[..], &["get", "content.bin"]].concat())
        .expect(0);

    let text = metrics(index_port);
    assert_has(&text, "potluck_index_files 1.0");
    assert_has(&text, "potluck_index_store_up 1.0");
    assert!(
        text.contains("service=\"IndexService\",method=\"Register\",code=\"OK\"}"),
        "{text}"
    );

    let text = metrics(source_port);
    assert_has(&text, "potluck_peer_sent_bytes_total 300000");
    assert_has(&text, "potluck_peer_shared_files 1.0");
    assert_has(&text, "potluck_peer_registered 1.0");

    let text = metrics(sink_port);
    assert_has(&text, "potluck_peer_received_bytes_total 300000");
    assert_has(&text, "potluck_peer_transfers{state=\"done\"} 1.0");
    assert_has(&text, "potluck_peer_bans_total{reason=\"wrong_bytes\"} 0");
    assert_has(&text, "potluck_peer_disk_queue 0.0");
    assert!(!text.contains("potluck_peer_disk_seconds_count 0"), "{text}");
    assert!(!text.contains("content.bin"), "{text}");
}

#[test]
fn labels_are_shown_and_bytes_are_counted_by_zone() {
    let sandbox = Sandbox::new();
    let (source_port, sink_port) = (free_port().to_string(), free_port().to_string());
    let source = [
        "--metrics",
        &source_port,
        "--label",
        "zone=a",
        "--label",
        "rack=r1",
    ];
    let source = sandbox.peer("source", &source);
    sandbox.file("content.bin", 300_000, 7);
    let (control, url) = (source.control(), sandbox.index_url());
    let at_source = ["--peer", &control, "--index", &url];
    sandbox
        .run(&[&at_source[..], &["share", "content.bin"]].concat())
        .expect(0);
    let shown = sandbox.run(&["status", "--peer", &control]).expect(0).stdout;
    assert!(shown.contains("labels zone=a rack=r1"), "{shown}");

    let sink = sandbox.peer("sink", &["--metrics", &sink_port, "--label", "zone=b"]);
    let control = sink.control();
    let status = sandbox
        .run(&["status", "--peer", &control, "--json"])
        .expect(0)
        .object();
    assert_eq!(
        status["peer"]["labels"],
        serde_json::json!({ "zone": "b", "rack": null })
    );
    sandbox
        .run(&["--peer", &control, "--index", &url, "get", "content.bin"])
        .expect(0);
    let why = ["--peer", &control, "why", "1"];
    let shown = sandbox.run(&why).expect(0).stdout;
    assert!(shown.contains("zone=a rack=r1"), "{shown}");
    let why = sandbox.run(&[&why[..], &["--json"]].concat()).expect(0).object();
    assert_eq!(why["sources"][0]["labels"]["zone"], "a", "{why}");

    let same_zone = |port: &str, what: &str, is: &str| {
        let name = format!("potluck_peer_zone_{what}_bytes_total");
        let text = metrics(port.parse().unwrap());
        assert_has(&text, &format!("{name}{{same_zone=\"{is}\"}} 300000"));
        assert_has(&text, &format!("{name}{{same_zone=\"yes\"}} 0"));
    };
    same_zone(&source_port, "sent", "no");
    same_zone(&sink_port, "received", "no");
    let wrong = sandbox.run(&["peer", "--label", "region=eu"]).expect(2);
    assert!(
        wrong.stderr.contains("zone=NAME or rack=NAME"),
        "{}",
        wrong.stderr
    );
}

#[test]
fn what_waits_to_be_hashed_is_counted() {
    let sandbox = Sandbox::without_index();
    let port = free_port();
    let peer = sandbox.peer("peer", &["--index", "none", "--metrics", &port.to_string()]);
    sandbox.file("content.bin", 8_000_000, 3);
    let control = peer.control();
    sandbox
        .run(&["--peer", &control, "share", "content.bin"])
        .expect(0);
    let nothing = "potluck_peer_hash_backlog_bytes{work=\"check\"} 0.0";
    assert_has(&metrics(port), nothing);
    assert_has(
        &metrics(port),
        "potluck_peer_hash_backlog_bytes{work=\"share\"} 0.0",
    );
    let mut command = sandbox.command();
    command.args(["--peer", &control, "check", "--all", "--rate", "100KiB/s"]);
    let mut check = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_until_blocking("the file waits", || {
        let text = metrics(port);
        text.contains("peer_hash_backlog_bytes") && !text.lines().any(|line| line == nothing)
    });
    check.kill().unwrap();
    check.wait().unwrap();
    wait_until_blocking("it no longer waits", || {
        metrics(port).lines().any(|line| line == nothing)
    });
}
