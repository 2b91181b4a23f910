//! What each role may do.

use potluck_core::{
    Reason, grpc::transport::Endpoint, model::Registration, network::tls::ServerIdentity,
};
use potluck_testkit::{
    records::{own_address, registration},
    system::program::Server,
    wait::wait_until_blocking,
};

use super::{Host, says};

#[test]
fn a_reader_shares_by_id_but_may_not_name_files() {
    let host = Host::start();
    let (reader, admin) = (host.member("reader"), host.member("admin"));
    reader.file("secret-plan.txt", 5_000);
    let _peer = reader.peer(&["--share", "secret-plan.txt"]);
    let id = reader
        .run(&["id", "secret-plan.txt", "--json"])
        .expect(0)
        .object();
    let id = id["id"].as_str().unwrap().to_owned();
    admin.eventually(&["query", &id]);
    admin.run(&["search", "secret"]).expect(3);
    admin.run(&["get", &id, "-o", "plan.txt"]).expect(0);
    // Nor may it do what an admin does.
    for args in [
        &["network", "invite", "--json"][..],
        &["network", "revoke", "admin", "--json"],
    ] {
        let refused = reader.run(args).expect(1).error();
        assert_eq!(refused["error"], "role_required", "{refused}");
        assert!(
            refused["message"].as_str().unwrap().contains("role admin"),
            "{refused}"
        );
    }
    assert!(!host.audited("refused").is_empty());
}

#[test]
fn a_name_outlives_the_publisher_until_it_is_removed() {
    let host = Host::start();
    let (publisher, other) = (host.member("publisher"), host.member("reader"));
    publisher.file("weights.bin", 200_000);
    let mut peer = publisher.peer(&["--share", "weights.bin"]);
    other.eventually(&["search", "weights"]);
    let _other_peer = other.peer(&[]);
    let control = format!("unix:{}", other.path("home/control.sock").display());
    other.run(&["get", "weights.bin", "--peer", &control]).expect(0);
    peer.terminate();
    wait_until_blocking("only the reader provides the file", || {
        let found = other.run(&["query", "weights.bin", "--json"]);
        found.code == Some(0) && {
            let object = found.object();
            object["files"][0]["providers"]
                .as_array()
                .is_some_and(|list| list.len() == 1)
        }
    });
    publisher.run(&["network", "unbind", "weights.bin"]).expect(0);
    other.run(&["query", "weights.bin"]).expect(3);
    assert_eq!(host.audited("bindings_removed").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_refuses_the_names_of_a_reader() {
    let host = Host::start();
    let reader = host.member("reader");
    reader.file("file", 5_000);
    let mut peer = reader.peer(&["--share", "file"]);
    peer.terminate();
    // A program of the reader's own, with the certificate of its peer.
    let client = host.client(&reader.peer_tls());
    let (address, named) = (own_address(1), registration(1, "plan.txt"));
    let nameless = Registration {
        names: Vec::new(),
        ..named.clone()
    };
    let refused = client
        .register(None, &address, &[named], None, false)
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::RoleRequired, "{refused}");
    assert!(refused.message.contains("--role publisher"), "{refused}");
    client
        .register(None, &address, &[nameless], None, false)
        .await
        .unwrap();
    reader.run(&["search", "plan"]).expect(3);
    let refusal = &host.audited("refused")[0];
    assert_eq!(refusal["call"], "IndexService/Register", "{refusal}");
    assert_eq!(refusal["reason"], "role_required");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_cannot_pose_as_another_peer_or_as_the_index() {
    let host = Host::start();
    let (victim, impostor, user) = (
        host.member("publisher"),
        host.member("admin"),
        host.member("reader"),
    );
    victim.file("model.bin", 5_000);
    let mut peer = victim.peer(&["--share", "model.bin"]);
    user.eventually(&["search", "model"]);
    let id = victim.id("model.bin");
    let found = user.run(&["query", &id, "--json"]).expect(0).object();
    let peer_id = found["files"][0]["providers"][0]["peer"]
        .as_str()
        .unwrap()
        .to_owned();
    // The impostor takes the victim's address.
    peer.kill();
    impostor.file("model.bin", 5_000);
    let mut command = impostor.command();
    command.args([
        "peer",
        "-q",
        "--home",
        "home",
        "--index",
        "none",
        "--share",
        "model.bin",
    ]);
    command.args(["--listen", &peer.address.to_string()]);
    // The home needs a certificate first, which only an index issues.
    impostor.peer(&[]).terminate();
    let impostor_peer = Server::start(&mut command);
    _ = user.peer(&[]).terminate();
    let tls = user.peer_tls();
    let at = |expected| {
        Endpoint::parse_secured(&impostor_peer.address.to_string(), &tls, expected).unwrap()
    };
    let as_victim = ServerIdentity::Peer(peer_id.parse().unwrap());
    let refused = at(as_victim).is_serving().await.unwrap_err();
    assert_eq!(refused.reason, Reason::Unauthenticated, "{refused}");
    assert!(
        refused.message.contains("not that of the expected server"),
        "{refused}"
    );
    assert!(at(ServerIdentity::AnyPeer).is_serving().await.unwrap());
    let url = format!("https://{}", impostor_peer.address);
    let error = user.refused(&["search", "model", "--index", &url]);
    says(&error, &["not that of the expected server", "network set-index"]);
    // A certificate of a peer does not make it an index either: it asks for what only the index has.
    let error = user.refused(&["network", "members", "--index", &url]);
    says(&error, &["not that of the expected server"]);
}

#[test]
fn names_and_their_removal_outlive_the_index() {
    let mut host = Host::start_with(&["--data-dir", "data"]);
    let (publisher, other) = (host.member("publisher"), host.member("reader"));
    publisher.file("weights.bin", 200_000);
    publisher.file("notes.txt", 1_000);
    let mut peer = publisher.peer(&["--share", "weights.bin", "--share", "notes.txt"]);
    let _other_peer = other.peer(&["--lease", "2s"]);
    for name in ["weights.bin", "notes.txt"] {
        other.eventually(&["query", name]);
        other.run(&["get", name, "--peer", &other.control()]).expect(0);
    }
    peer.terminate();
    publisher.run(&["network", "unbind", "notes.txt"]).expect(0);
    for _ in 0..2 {
        host.index.terminate();
        host.start_again();
        other.eventually(&["query", "weights.bin"]);
        other.run(&["search", "weights"]).expect(0);
        other.run(&["query", "notes.txt"]).expect(3);
    }
}

#[test]
fn an_admin_removes_what_others_registered() {
    let host = Host::start();
    let (admin, publisher) = (host.member("admin"), host.member("publisher"));
    publisher.file("model.bin", 5_000);
    let mut peer = publisher.peer(&["--share", "model.bin"]);
    admin.eventually(&["search", "model"]);
    let found = admin.run(&["query", "model.bin", "--json"]).expect(0).object();
    let provider = found["files"][0]["providers"][0]["peer"]
        .as_str()
        .unwrap()
        .to_owned();
    // A peer that runs would register it again.
    peer.kill();
    let args = ["network", "unregister", "model.bin", "--provider", &provider[..8]];
    let refused = publisher.refused(&args);
    assert_eq!(refused["error"], "role_required");
    says(&refused, &["role admin"]);
    let removed = admin.run(&[&args[..], &["--json"]].concat()).expect(0).object();
    assert_eq!(
        (&removed["removed"], &removed["peer"]),
        (&1.into(), &provider.as_str().into())
    );
    admin.run(&["query", "model.bin"]).expect(3);
    admin.run(&args).expect(3);
    let entry = &host.audited("registrations_removed")[0];
    assert_eq!(entry["removed"], 1, "{entry}");
    // All of a peer, which then registers again.
    let _peer = publisher.peer(&["--share", "model.bin", "--lease", "2s"]);
    let found = admin.eventually(&["query", "model.bin", "--json"]).object();
    let provider = found["files"][0]["providers"][0]["peer"].as_str().unwrap();
    let done = admin
        .run(&["network", "unregister", "--provider", provider])
        .expect(0);
    assert!(done.stdout.contains("registers it again"), "{}", done.stdout);
    admin.eventually(&["query", "model.bin"]);
}
