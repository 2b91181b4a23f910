//! A revoked member is out, with everything that it has open.

use std::{process::Stdio, thread, time::Duration};

use potluck_core::{
    Reason,
    network::{
        credentials::Credentials,
        tls::{TlsContext, TlsMaterial},
    },
};
use potluck_testkit::wait::wait_until_blocking;

use super::Host;

#[test]
fn a_revoked_member_is_out_at_once() {
    let host = Host::start();
    let (admin, reader) = (host.member("admin"), host.member("reader"));
    admin.file("model.bin", 50_000);
    let _peer = admin.peer(&["--share", "model.bin"]);
    reader.eventually(&["search", "model"]);
    let _reader_peer = reader.peer(&[]);
    let control = format!("unix:{}", reader.path("home/control.sock").display());
    let revoked = admin
        .run(&["network", "revoke", "reader", "--json"])
        .expect(0)
        .object();
    assert_eq!(revoked["name"], "reader");
    let refused = reader.run(&["search", "model", "--json"]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert_eq!(refused.error()["error"], "revoked");
    // The peer that is running loses its index, and other peers refuse it.
    let got = reader.run(&["get", "model.bin", "--peer", &control, "--json"]);
    assert_ne!(got.code, Some(0), "{}", got.stdout);
    // It joins again only with a new code.
    reader.run(&["network", "leave", "--json"]).expect(0);
    let code = host.invite("reader");
    reader.run(&["network", "join", &code]).expect(0);
    reader.run(&["search", "model"]).expect(0);
}

#[test]
fn a_running_download_ends_when_its_member_is_revoked() {
    let host = Host::start();
    let (admin, reader) = (host.member("admin"), host.member("reader"));
    admin.file("model.bin", 20_000_000);
    let _peer = admin.peer(&["--share", "model.bin", "--upload-limit", "1MiB", "--lease", "3s"]);
    reader.eventually(&["search", "model"]);
    let control = format!("unix:{}", admin.path("home/control.sock").display());
    let uploaded = || {
        let status = admin
            .run(&["status", "--json", "--peer", &control])
            .expect(0)
            .object();
        status["peer"]["uploaded_bytes"].as_u64().unwrap()
    };
    let mut get = reader.command();
    get.args(["get", "model.bin", "-q"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut get = get.spawn().unwrap();
    wait_until_blocking("the download runs", || uploaded() > 1_000_000);
    admin.run(&["network", "revoke", "reader"]).expect(0);
    // Eight pieces a second arrive while the connection is open.
    let mut before = uploaded();
    wait_until_blocking("the upload has ended", || {
        thread::sleep(Duration::from_secs(1));
        let now = uploaded();
        std::mem::replace(&mut before, now) == now
    });
    assert!(before < 19_000_000, "{before}");
    // The download may wait for another peer.
    _ = get.kill();
    get.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_leaves_receives_the_answer_before_its_connection_is_closed() {
    let host = Host::start();
    for _ in 0..6 {
        let reader = host.member("reader");
        let credentials = Credentials::load(&reader.credentials()).unwrap();
        let material = TlsMaterial::member(&credentials, credentials.member()).unwrap();
        let client = host.client(&TlsContext::new(material).unwrap());
        client.leave().await.unwrap();
        // The open connection is of no more use.
        let refused = client.stats().await.unwrap_err();
        assert_eq!(refused.reason, Reason::Revoked, "{refused}");
    }
}
