//! `get --from` with peers that cannot serve the file, and the error reported for each.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

use support::{Finished, Sandbox};

const ID: &str = "3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a";

/// Runs `get` with and without `--json`; asserts the exit code, the error word, and texts in the
/// message.
#[track_caller]
fn both(sandbox: &Sandbox, from: &str, code: i32, word: &str, texts: &[&str]) {
    let get = |more: &[&str]| -> Finished {
        let args = ["get", ID, "--from", from, "--wait", "1"];
        sandbox.run(&[&args, more].concat()).expect(code)
    };
    let object = get(&["--json", "-q"]).error();
    assert_eq!(object["error"], word, "{object}");
    let plain = get(&["-q"]).stderr;
    for text in texts {
        assert!(
            object["message"].as_str().unwrap().contains(text),
            "{text}: {object}"
        );
        assert!(plain.contains(text), "{text}: {plain}");
    }
}

/// An address that never listens. A free port could be taken by another process during the test.
const UNUSED: &str = "127.0.0.1:1";

/// Starts a web server and returns its address.
fn web_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    address
}

#[test]
fn each_failure_says_why_and_what_to_do() {
    let (unknown, without) = (Sandbox::new(), Sandbox::without_index());
    let peer = unknown.peer("one", &[]);
    let web = web_server();
    // The result is the same with an index that does not know the file and without an index.
    for sandbox in [&unknown, &without] {
        let refused = [UNUSED, "onnection refused", "see that the address is right"];
        both(sandbox, UNUSED, 5, "unreachable", &refused);
        let foreign = [
            web.as_str(),
            "is not a Potluck peer",
            "give the address on which a peer listens",
        ];
        both(sandbox, &web, 5, "not_potluck", &foreign);
        let absent = [peer.address.as_str(), "share the file there"];
        both(sandbox, &peer.address, 3, "not_found", &absent);
        let all = [UNUSED, "onnection refused", &peer.address, "name another"];
        both(
            sandbox,
            &format!("{UNUSED},{}", peer.address),
            3,
            "no_providers",
            &all,
        );
    }
}
