//! Certificates of a PKI of one's own, instead of a private network.

use potluck_core::network::own_pki::OwnPki;
use potluck_testkit::{services::OwnCa, system::program::Server};

use super::{Machine, events, says};

/// The flags for these files.
fn flags(files: &OwnPki) -> Vec<String> {
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let pairs = [
        ("--tls-cert", &files.certificate),
        ("--tls-key", &files.key),
        ("--tls-ca", &files.ca),
    ];
    let words = pairs.map(|(flag, path)| [flag.to_owned(), text(path)]);
    words.concat()
}

#[test]
fn the_index_gives_roles_to_names_in_certificates() {
    let ca = OwnCa::create();
    let host = Machine::new();
    std::fs::write(
        host.path("roles"),
        "# who may do what\nadmin ops\npublisher builder\n",
    )
    .unwrap();
    let mut command = host.command();
    command
        .args([
            "index",
            "--listen",
            "127.0.0.1:0",
            "-q",
            "--data-dir",
            "data",
            "--roles",
            "roles",
        ])
        .args(flags(&ca.issue("127.0.0.1")));
    let index = Server::start(&mut command);
    let url = format!("https://{}", index.address);
    let machine = Machine::new();
    let identity = |name: &str| {
        let mut words = vec!["--index".to_owned(), url.clone()];
        words.extend(flags(&ca.issue(name)));
        words
    };
    let (ops, builder, reader) = (identity("ops"), identity("builder"), identity("reader"));
    let as_ = |identity: &[String], args: &[&str]| {
        let words = args
            .iter()
            .map(|&arg| arg.to_owned())
            .chain(identity.iter().cloned());
        let words: Vec<String> = words.collect();
        words
    };
    let run = |identity: &[String], args: &[&str]| {
        let words = as_(identity, args);
        machine.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let eventually = |identity: &[String], args: &[&str]| {
        let words = as_(identity, args);
        machine.eventually(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let peer = |identity: &[String], home: &str, file: &str| {
        let mut command = machine.command();
        command
            .args([
                "peer",
                "--listen",
                "127.0.0.1:0",
                "-q",
                "--home",
                home,
                "--share",
                file,
            ])
            .args(identity);
        Server::start(&mut command)
    };
    machine.file("model.bin", 50_000);
    potluck_testkit::content::write_file(&machine.path(""), "plan.txt", b"secret");
    let mut builder_peer = peer(&builder, "builder", "model.bin");
    let _reader_peer = peer(&reader, "reader", "plan.txt");
    eventually(&reader, &["search", "model"]);
    // A reader's files have no names, although its peer does not know its role at its start.
    eventually(&reader, &["query", &machine.id("plan.txt")]);
    run(&reader, &["search", "plan"]).expect(3);
    run(&ops, &["get", "model.bin", "-o", "copy.bin"]).expect(0);
    // Only an admin removes what others registered.
    let remove = ["network", "unregister", "plan.txt", "--json"];
    let id = machine.id("plan.txt");
    let remove_by_id = ["network", "unregister", &id, "--json"];
    assert_eq!(
        run(&builder, &remove_by_id).expect(1).error()["error"],
        "role_required"
    );
    assert_eq!(run(&ops, &remove).expect(3).error()["error"], "not_found");
    assert_eq!(run(&ops, &remove_by_id).expect(0).object()["removed"], 1);
    // A name stays when its publisher goes, until it is removed.
    builder_peer.terminate();
    let model = machine.id("model.bin");
    let unbind = ["network", "unbind", "model.bin", "--id", &model, "--json"];
    let error = run(&reader, &unbind).expect(1).error();
    assert_eq!(error["error"], "role_required");
    assert_eq!(run(&builder, &unbind).expect(0).object()["removed"], 1);
    // Members are the business of the PKI.
    let error = run(&ops, &["network", "members", "--json"]);
    assert_ne!(error.code, Some(0), "{}", error.stdout);
    // A stranger's certificate is refused.
    let other_ca = OwnCa::create();
    let other = flags(&other_ca.issue("ops"));
    let mut words = vec!["search", "model", "--json", "--index", &url];
    words.extend(other.iter().map(String::as_str));
    let refused = machine.run(&words);
    assert_ne!(refused.code, Some(0));
    says(&refused.error(), &["network"]);
    // The audit log is beside the store.
    let log = host.path("data/audit.log");
    assert!(!events(&log, "registered").is_empty());
    assert_eq!(events(&log, "registrations_removed").len(), 1);
    let refused = events(&log, "refused");
    assert!(
        refused
            .iter()
            .any(|line| line["call"] == "NetworkService/RemoveRegistrations"),
        "{refused:?}"
    );
}
