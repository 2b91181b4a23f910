//! The gateway as a program: what it refuses at its start, and a kill in the middle of a download.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
};

use potluck_stand_in::{StandIn, fault::FaultQuery, hub};
use potluck_testkit::system::program::{Finished, Server};

use crate::sandbox::Sandbox;

const PATH: &str = "/org/repo/resolve/main/model.safetensors";

fn gateway(sandbox: &Sandbox, hub: &StandIn, args: &[&str]) -> Command {
    let mut command = sandbox.command();
    command
        .args(["gateway", "--home", "home", "--hf", &hub.url("")])
        .args(args);
    command
}

/// The status and the bytes that a client gets, which resumes at `offset` and reads at most `max`.
fn read(address: SocketAddr, offset: usize, max: usize) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {PATH} HTTP/1.1\r\nHost: {address}\r\nRange: bytes={offset}-\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "an answer");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head[9..12].parse().unwrap();
    let mut body = Vec::new();
    // An answer that breaks off is shorter.
    let _ = stream.take(max as u64).read_to_end(&mut body);
    (status, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_gateway_continues_and_its_client_begins_again() {
    let sandbox = Sandbox::new();
    let hub = StandIn::start().await;
    let weights = potluck_testkit::content::bytes(12_000_000, 8);
    let files = BTreeMap::from([("model.safetensors".to_owned(), weights.clone().into())]);
    let repository = hub::Repository {
        commit: "d".repeat(40),
        is_gated: false,
        files,
    };
    hub.shared.hub.put("models", "org/repo", repository);
    hub.shared.faults.set(|_| FaultQuery {
        rate: 1_000_000,
        ..FaultQuery::default()
    });
    let mut first = Server::start(&mut gateway(&sandbox, &hub, &["--listen", "127.0.0.1:0"]));
    let address = first.address;
    let (status, got) = read(address, 0, 6_000_000);
    assert_eq!((status, got.len()), (206, 6_000_000));
    first.kill();
    hub.shared.faults.clear();
    let again = Server::start(&mut gateway(&sandbox, &hub, &["--listen", &address.to_string()]));
    // Bytes that were sent before the kill may be other ones than those that are fetched now.
    let (status, whole) = read(again.address, got.len(), usize::MAX);
    assert_eq!(status, 200);
    assert!(whole == weights);
    let (status, rest) = read(again.address, 9_000_000, usize::MAX);
    assert_eq!(status, 206);
    assert!(rest == weights[9_000_000..]);
    let sent = hub.shared.log.bytes();
    // Six requests of half a MiB were under way; without the rest of the first run it would be 20 MB.
    assert!(sent < 17_000_000, "the hub sent {sent} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_refuses_what_it_cannot_do() {
    let sandbox = Sandbox::new();
    let hub = StandIn::start().await;
    let refused = |args: &[&str], code: i32, words: &str| {
        let finished = Finished::run(&mut gateway(&sandbox, &hub, args)).expect(code);
        assert!(finished.stderr.contains(words), "{args:?}: {}", finished.stderr);
    };
    let free = ["--listen", "127.0.0.1:0"];
    refused(
        &[&free[..], &["--peer", "unix:/x"]].concat(),
        2,
        "a peer of its own",
    );
    refused(&[&free[..], &["--oci", "docker.io"]].concat(), 2, "NAME=URL");
    refused(
        &[&free[..], &["--oci", "a=http://192.0.2.1"]].concat(),
        2,
        "https",
    );
    refused(&[&free[..], &["--https-cert", "x"]].concat(), 2, "--https-key");
    refused(&["--listen", "0.0.0.0:0"], 2, "--https-cert");
    let missing = ["--https-cert", "none.pem", "--https-key", "none.pem"];
    refused(&[&free[..], &missing].concat(), 2, "none.pem");
}
