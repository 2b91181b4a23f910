//! Certificates that are renewed, that expire, and that are not valid yet.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use potluck_core::network::{
    authority::{Authority, DEFAULT_VALIDITY, Grant},
    certificate::CertificateInfo,
    credentials::Credentials,
    identity::Role,
    key::SigningRequest,
    stored_identity::StoredIdentity,
};
use potluck_testkit::wait::wait_until_blocking;

use super::{Host, Machine, says};

/// The certificate of `NAME.key` in a folder.
#[track_caller]
fn certificate(folder: &Path, name: &str) -> CertificateInfo {
    StoredIdentity::load(folder, name)
        .unwrap()
        .info()
        .unwrap()
        .clone()
}

fn wait_for(time: SystemTime) {
    wait_until_blocking("the time has come", || SystemTime::now() >= time);
}

#[test]
fn certificates_are_renewed_at_half_of_their_validity_without_a_restart() {
    let host = Host::start_with(&["--store", "memory", "--certificate-lifetime", "20s"]);
    let (publisher, reader) = (host.member("publisher"), host.member("reader"));
    publisher.file("model.bin", 50_000);
    let mut peer = publisher.peer(&["--share", "model.bin"]);
    let state = publisher.path("home/state");
    let first = [
        certificate(&state, "peer"),
        certificate(&publisher.credentials(), "member"),
    ];
    let renewed = || {
        [
            certificate(&state, "peer"),
            certificate(&publisher.credentials(), "member"),
        ]
    };
    wait_until_blocking("both certificates are renewed", || {
        let now = renewed();
        now[0].not_after > first[0].not_after && now[1].not_after > first[1].not_after
    });
    assert!(
        SystemTime::now() < first[0].not_after,
        "before the first one ends"
    );
    assert_eq!(renewed()[0].public_key, first[0].public_key, "the key stays");
    // Connections with the first certificate are closed at its end, and opened with the new one.
    wait_for(first[0].not_after + Duration::from_secs(2));
    assert!(peer.is_running());
    reader.eventually(&["search", "model"]);
    reader.run(&["get", "model.bin"]).expect(0);
    assert!(host.audited("renewed").len() >= 2);
}

#[test]
fn a_command_renews_an_expired_certificate_without_a_running_peer() {
    let host = Host::start_with(&["--store", "memory", "--certificate-lifetime", "10s"]);
    let machine = host.member("publisher");
    machine.file("model.bin", 5_000);
    // Its own peer gets a certificate, too.
    machine.run(&["network", "rekey"]).expect(0);
    let home = machine.path(".local/share/potluck/peer-12349/state");
    let before = certificate(&home, "peer");
    wait_for(before.not_after + Duration::from_secs(1));
    assert_eq!(host.members()[0]["state"], "expired");
    let mut share = machine.command();
    share.args(["share", "model.bin", "--json"]);
    let share = potluck_testkit::system::program::Program::start(&mut share);
    assert!(share.line().contains("model.bin"));
    machine.eventually(&["search", "model"]);
    assert_eq!(host.members()[0]["state"], "active");
    assert_eq!(certificate(&home, "peer").public_key, before.public_key);
}

#[test]
fn while_the_index_is_away_messages_say_what_to_do() {
    let mut host = Host::start_with(&["--data-dir", "data", "--certificate-lifetime", "10s"]);
    let (publisher, reader) = (host.member("publisher"), host.member("reader"));
    publisher.file("model.bin", 50_000);
    let mut peer = publisher.peer(&["--share", "model.bin"]);
    reader.eventually(&["search", "model"]);
    host.index.terminate();
    let ends = [
        certificate(&publisher.path("home/state"), "peer").not_after,
        certificate(&reader.credentials(), "member").not_after,
    ];
    wait_for(ends.into_iter().max().unwrap() + Duration::from_secs(1));
    let error = reader.refused(&["search", "model"]);
    assert_eq!(error["error"], "unreachable");
    says(
        &error,
        &["expired", "renewed by itself as soon as the index can be reached"],
    );
    // What needs no network works.
    reader.file("other.bin", 100);
    reader.run(&["id", "other.bin"]).expect(0);
    host.start_again();
    reader.eventually(&["query", "model.bin"]);
    reader.run(&["get", "model.bin"]).expect(0);
    assert!(peer.is_running());
}

/// Makes credentials of a member, and of its peer in `home`, that are valid from this time on.
fn join_at(host: &Host, machine: &Machine, now: SystemTime) {
    let authority = Authority::load(&host.machine.path("kitchen")).unwrap();
    let issue = |identity: &StoredIdentity| {
        let request = SigningRequest::parse(&identity.key().signing_request().unwrap()).unwrap();
        let grant = Grant::Member {
            member: request.member_id(),
            name: "ann",
            role: Role::Reader,
        };
        authority
            .issue(&request, grant, DEFAULT_VALIDITY, now)
            .unwrap()
            .to_vec()
    };
    let member = Credentials::prepare(&machine.credentials()).unwrap();
    let certificate = issue(&member);
    Credentials::create(
        &machine.credentials(),
        authority.certificate(),
        &certificate,
        vec![host.url.clone()],
        now,
    )
    .unwrap();
}

#[test]
fn errors_of_certificates_say_what_to_do() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let host = Host::start();
    // A clock that is behind.
    let early = Machine::new();
    join_at(&host, &early, SystemTime::now() + DAY);
    let error = early.refused(&["search", "x"]);
    says(&error, &["not valid yet", "clock"]);
    // A machine that was off for two months.
    let late = Machine::new();
    join_at(&host, &late, SystemTime::now() - 60 * DAY);
    let error = late.refused(&["search", "x"]);
    says(&error, &["expired", "network invite"]);
    // Credentials of another network.
    let other = Host::start();
    let stranger = other.member("reader");
    let error = stranger.refused(&["search", "x", "--index", &host.url]);
    says(&error, &["another network", "--credentials"]);
    let peer = host.member("publisher").peer(&[]);
    let url = format!("https://{}", peer.address);
    let error = stranger.refused(&["health", &url]);
    says(&error, &["another network"]);
    // Nothing is damaged by that: the first network still works for its own.
    host.member("reader").run(&["search", "x"]).expect(3);
    fs::remove_dir_all(early.credentials()).unwrap();
    says(
        &early.refused(&["search", "x", "--index", &host.url]),
        &["network join"],
    );
}
