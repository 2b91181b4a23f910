//! `get --from` with peers that cannot serve the file, and the error reported for each.

use potluck_testkit::{
    background::Background,
    fakes::foreign::{WEB_SERVER, answer_and_close, listen},
    system::program::Finished,
};

use crate::sandbox::{Sandbox, UNREACHABLE};

const ID: &str = "3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a";

/// Runs `get` with and without `--json`; asserts the exit code, the error word, and texts in the
/// message.
#[track_caller]
fn assert_fails(sandbox: &Sandbox, from: &str, code: i32, word: &str, texts: &[&str]) {
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

#[test]
fn reports_why_each_named_peer_cannot_serve() {
    let (unknown, without) = (Sandbox::new(), Sandbox::without_index());
    let peer = unknown.peer("one", &[]);
    let background = Background::start();
    let web = background.run(listen(answer_and_close(WEB_SERVER))).to_string();
    // The result is the same with an index that does not know the file and without an index.
    for sandbox in [&unknown, &without] {
        let refused = [UNREACHABLE, "onnection refused", "check the address"];
        assert_fails(sandbox, UNREACHABLE, 5, "unreachable", &refused);
        let foreign = [
            web.as_str(),
            "is not a Potluck peer",
            "use the address on which the peer listens",
        ];
        assert_fails(sandbox, &web, 5, "not_potluck", &foreign);
        let absent = [peer.address.as_str(), "share the file there"];
        assert_fails(sandbox, &peer.address, 3, "not_found", &absent);
        let all = [UNREACHABLE, "onnection refused", &peer.address, "name another"];
        assert_fails(
            sandbox,
            &format!("{UNREACHABLE},{}", peer.address),
            3,
            "no_providers",
            &all,
        );
    }
}
