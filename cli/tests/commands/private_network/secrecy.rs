//! What outsiders and observers see, and where secrets are.

use std::{fs, path::Path, process::Command, time::SystemTime};

use potluck_core::{
    Problem, Reason,
    grpc::transport::Endpoint,
    index_client::IndexClient,
    model::QueryKey,
    network::{
        folder::NetworkFolder,
        join_code::{JoinCode, JoinSecret},
        key::IdentityKey,
        tls::{ServerIdentity, TlsContext, TlsMaterial},
    },
};
use potluck_testkit::{
    system::program::{Finished, Server},
    wait::wait_until_blocking,
};
use rustix::process::Signal;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use super::{Host, Machine, contains, events, files_below, free_port, last_word, wire::Wire};

/// A name, in which nothing else in the traffic could agree by chance.
const SHARED: &str = "salaries-of-2026.txt";

/// What an observer must not find, and what each is.
type Sought = Vec<(&'static str, Vec<u8>)>;

/// The id of the shared file, as text and as bytes.
fn ids_of(machine: &Machine) -> Sought {
    let id = machine.id(SHARED);
    let raw = hex::decode(&id).unwrap();
    vec![("the id", id.into_bytes()), ("the id as bytes", raw)]
}

/// The parts that a capture contains.
fn found<'a>(captured: &[u8], sought: &'a Sought) -> Vec<&'a str> {
    let is_there = |(what, part): &&'a (&'static str, Vec<u8>)| {
        assert!(part.len() >= 5, "{what} could be there by chance");
        contains(captured, part)
    };
    sought.iter().filter(is_there).map(|(what, _)| *what).collect()
}

/// Shares a file at an address that observes, and downloads it on another machine.
fn share_and_get(publisher: &Machine, reader: &Machine, index: &str) -> (Server, Vec<u8>) {
    let port = free_port();
    let wire = Wire::to(([127, 0, 0, 1], port).into());
    let mut peer = publisher.command();
    peer.args(["peer", "-q", "--home", "home", "--share", SHARED])
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["--advertise", &wire.address.to_string()])
        .args(["--index", index]);
    let peer = Server::start(&mut peer);
    reader.eventually(&["search", "salaries", "--index", index]);
    reader.run(&["get", SHARED, "--index", index]).expect(0);
    let captured = wire.captured.lock().unwrap().clone();
    assert!(captured.len() > 50_000, "{} bytes", captured.len());
    (peer, captured)
}

#[test]
fn an_observer_sees_no_name_no_id_no_secret_and_no_content() {
    let host = Host::start();
    let wire = Wire::to(host.index.address);
    let url = format!("https://{}", wire.address);
    host.machine
        .run(&["network", "set-index", &url, "--dir", "kitchen"])
        .expect(0);
    // The observer is there from the enrolment on.
    let codes = [host.invite("publisher"), host.invite("reader")];
    let (publisher, reader) = (Machine::new(), Machine::new());
    for (machine, code) in [&publisher, &reader].into_iter().zip(&codes) {
        let name = format!("member-{}", machine.dir.path().file_name().unwrap().display());
        machine.run(&["network", "join", code, "--name", &name]).expect(0);
    }
    let content = publisher.file(SHARED, 50_000);
    let (_peer, between_peers) = share_and_get(&publisher, &reader, &url);
    let mut sought = ids_of(&publisher);
    let content = fs::read(content).unwrap();
    sought.extend([
        ("the name", SHARED.as_bytes().to_vec()),
        ("a word of the name", b"salaries".to_vec()),
        ("the content", content[20_000..20_016].to_vec()),
        ("a member", b"member-".to_vec()),
        ("the network", b"kitchen".to_vec()),
        ("a method", b"potluck.v1".to_vec()),
        ("gRPC", b"application/grpc".to_vec()),
    ]);
    for code in &codes {
        let secret = code.parse::<JoinCode>().unwrap().secret;
        sought.push(("a code", code.trim_start_matches("potluck1_").as_bytes().to_vec()));
        sought.push(("the secret of a code", secret.expose().to_vec()));
    }
    for folder in [host.machine.path("kitchen"), publisher.path(""), reader.path("")] {
        let secrets = secrets_below(&folder).into_iter();
        sought.extend(secrets.map(|secret| ("a key", secret)));
    }
    assert!(sought.len() > 18, "{}", sought.len());
    let with_index = wire.captured.lock().unwrap().clone();
    assert!(with_index.len() > 5_000, "{} bytes", with_index.len());
    assert_eq!(found(&with_index, &sought), [""; 0]);
    assert_eq!(found(&between_peers, &sought), [""; 0]);
}

/// Shows that the observer above would see what there is to see.
#[test]
fn an_observer_sees_everything_without_a_network() {
    let machine = Machine::new();
    let index = Server::start(machine.command().args([
        "index",
        "--listen",
        "127.0.0.1:0",
        "--store",
        "memory",
    ]));
    let wire = Wire::to(index.address);
    let url = format!("http://{}", wire.address);
    let (publisher, reader) = (Machine::new(), Machine::new());
    let content = publisher.file(SHARED, 50_000);
    let (_peer, between_peers) = share_and_get(&publisher, &reader, &url);
    let ids = ids_of(&publisher);
    let name = vec![("the name", SHARED.as_bytes().to_vec())];
    let tokens = secrets_below(&publisher.path("home"))
        .into_iter()
        .filter(|secret| secret.len() == 32)
        .map(|secret| ("a token", secret))
        .collect();
    let content = vec![("the content", fs::read(content).unwrap()[20_000..20_016].to_vec())];
    let with_index = wire.captured.lock().unwrap().clone();
    assert_eq!(found(&with_index, &name), ["the name"]);
    assert!(!found(&with_index, &ids).is_empty());
    assert!(found(&with_index, &tokens).contains(&"a token"));
    assert_eq!(found(&between_peers, &content), ["the content"]);
}

/// A client without a certificate.
fn stranger(host: &Host) -> (IndexClient, Endpoint) {
    let folder = NetworkFolder::open(&host.machine.path("kitchen"), SystemTime::now()).unwrap();
    let material = TlsMaterial::anonymous(folder.authority().certificate());
    let tls = TlsContext::new(material).unwrap();
    let endpoint = Endpoint::parse_secured(&host.url, &tls, ServerIdentity::Any).unwrap();
    (host.client(&tls), endpoint)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outsider_can_enrol_and_nothing_else() {
    let host = Host::start();
    let publisher = host.member("publisher");
    publisher.file("model.bin", 5_000);
    let peer = publisher.peer(&["--share", "model.bin"]);
    publisher.eventually(&["search", "model"]);
    let (client, endpoint) = stranger(&host);
    let id = publisher.id("model.bin").parse().unwrap();
    let key = QueryKey::Id(id);
    let terms = "model";
    for (call, problem) in [
        ("Query", client.query(&key, 1, None).await.err()),
        ("Search", client.search(terms, 10, None).await.err()),
        ("GetStats", client.stats().await.err()),
        ("ListMembers", client.members().await.err()),
        ("Leave", client.leave().await.err()),
        ("RemoveBindings", client.remove_bindings(id, None).await.err()),
        ("Health", endpoint.is_serving().await.err()),
    ] {
        let problem = problem.unwrap_or_else(|| panic!("{call} is answered"));
        assert_eq!(problem.reason, Reason::NotAMember, "{call}: {problem}");
        assert!(problem.message.contains("network join CODE"), "{problem}");
    }
    // Reflection would name the services.
    let mut reflection = ServerReflectionClient::new(endpoint.open().await.unwrap());
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let refused = reflection
        .server_reflection_info(tokio_stream::once(list))
        .await
        .unwrap_err();
    assert_eq!(Problem::from(refused).reason, Reason::NotAMember);
    // Enrolment is checked by its code.
    let key = IdentityKey::generate().unwrap();
    let secret = JoinSecret::try_from(&[7; 16][..]).unwrap();
    let refused = client
        .enroll(&secret, key.signing_request().unwrap(), "eve")
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidCode);
    // A peer ends the handshake.
    let folder = NetworkFolder::open(&host.machine.path("kitchen"), SystemTime::now()).unwrap();
    let tls = TlsContext::new(TlsMaterial::anonymous(folder.authority().certificate())).unwrap();
    let at_peer =
        Endpoint::parse_secured(&peer.address.to_string(), &tls, ServerIdentity::AnyPeer).unwrap();
    let refused = at_peer.is_serving().await.unwrap_err();
    assert_eq!(refused.reason, Reason::NotAMember, "{refused}");
    let refused = host.audited("refused");
    assert!(refused.len() >= 9, "{refused:?}");
}

#[test]
fn guesses_of_a_code_are_limited() {
    let host = Host::start();
    let machine = Machine::new();
    let folder = NetworkFolder::open(&host.machine.path("kitchen"), SystemTime::now()).unwrap();
    let mut refusals = Vec::new();
    wait_until_blocking("an attempt is refused", || {
        let guess = JoinCode::generate(&host.url, folder.authority().hash()).unwrap();
        let error = machine.refused(&["network", "join", &guess.expose()]);
        let is_limited = error["error"] == "rate_limited";
        refusals.push(error);
        is_limited
    });
    // A burst of 50 attempts, where a wrong code counts as 10.
    assert!((3..30).contains(&refusals.len()), "{refusals:?}");
    // A right code works after a while.
    let code = host.invite("reader");
    machine.eventually(&["network", "join", &code]);
}

/// The secrets in files of this folder: the lines of private keys, and tokens as bytes and as text.
fn secrets_below(folder: &Path) -> Vec<Vec<u8>> {
    let mut secrets = Vec::new();
    for path in files_below(folder) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".key") {
            let text = fs::read_to_string(&path).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with("-----"));
            secrets.extend(lines.map(|line| line.as_bytes().to_vec()));
        } else if name.contains("token") {
            let text = fs::read_to_string(&path).unwrap();
            secrets.extend(hex::decode(text.trim()).ok());
            secrets.push(text.trim().as_bytes().to_vec());
        }
    }
    secrets
}

/// What other users may read of a process: its arguments and its environment.
fn listed(server: &Server) -> Vec<u8> {
    let file = |name: &str| fs::read(format!("/proc/{}/{name}", server.id())).unwrap_or_default();
    [file("cmdline"), file("environ")].concat()
}

#[test]
fn no_secret_is_in_logs_messages_arguments_or_the_environment() {
    let host = Machine::new();
    let listen = format!("127.0.0.1:{}", free_port());
    let url = format!("https://{listen}");
    let made = host
        .run(&["network", "create", "kitchen", "--index", &url])
        .expect(0);
    let mut codes = vec![last_word(&made)];
    let control = format!("127.0.0.1:{}", free_port());
    let log = |machine: &Machine, name: &str| fs::File::create(machine.path(name)).unwrap();
    let mut index = host.command();
    index
        .args(["index", "--listen", &listen, "-vvv", "--network", "kitchen"])
        .args(["--data-dir", "data"])
        .stderr(log(&host, "index.log"));
    let index = Server::start(index.env("POTLUCK_LOG", "trace"));
    // The peer joins with a file, fails once with a used code, and exchanges a file.
    let (admin, member) = (Machine::new(), Machine::new());
    fs::write(admin.path("code"), &made.stdout).unwrap();
    let mut messages = Vec::new();
    let mut keep = |finished: Finished| {
        messages.push(finished.stdout.clone());
        messages.push(finished.stderr.clone());
        finished
    };
    keep(admin.run(&["-vvv", "network", "join", "--code-file", "code"])).expect(0);
    let again = Machine::new();
    fs::write(again.path("code"), &made.stdout).unwrap();
    keep(again.run(&["-vvv", "network", "join", "--code-file", "code"])).expect(1);
    keep(again.run(&["-vvv", "network", "join", "--code-file", "code", "--json"])).expect(1);
    // Only this answer may have a secret.
    let invited = admin.run(&["network", "invite"]).expect(0);
    codes.push(last_word(&invited));
    fs::write(member.path("code"), &invited.stdout).unwrap();
    member.file("model.bin", 300_000);
    let mut peer = member.command();
    peer.args(["peer", "--listen", "127.0.0.1:0", "-vvv", "--home", "home"])
        .args(["--join-file", "code", "--share", "model.bin"])
        .args(["--control", &control])
        .stderr(log(&member, "peer.log"));
    let peer = Server::start(peer.env("POTLUCK_LOG", "trace"));
    admin.eventually(&["search", "model"]);
    keep(admin.run(&["-vvv", "get", "model.bin"])).expect(0);
    keep(admin.run(&["-vvv", "network", "members", "--json"])).expect(0);
    let token = ["--peer-token-file", "home/state/control-token"];
    keep(member.run(&[&["-vvv", "ls", "--peer", &control][..], &token].concat())).expect(0);

    let mut secrets: Vec<Vec<u8>> = codes
        .iter()
        .map(|code| code.trim_start_matches("potluck1_").as_bytes().to_vec())
        .collect();
    for folder in [host.path("kitchen"), admin.path(""), member.path("")] {
        secrets.extend(secrets_below(&folder));
    }
    for code in &codes {
        let secret = code.parse::<JoinCode>().unwrap().secret;
        secrets.push(secret.expose().to_vec());
        secrets.push(hex::encode(secret.expose()).into_bytes());
    }
    assert!(secrets.len() > 12, "{}", secrets.len());
    let logs = [
        host.path("index.log"),
        member.path("peer.log"),
        host.path("kitchen/audit.log"),
    ];
    let mut seen: Vec<(String, Vec<u8>)> = logs
        .iter()
        .map(|path| (path.display().to_string(), fs::read(path).unwrap()))
        .collect();
    for (place, text) in &seen {
        assert!(text.len() > 150, "{place} has only {} bytes", text.len());
    }
    seen.extend(
        messages
            .into_iter()
            .map(|text| ("a message".to_owned(), text.into_bytes())),
    );
    seen.push(("the index's process".to_owned(), listed(&index)));
    seen.push(("the peer's process".to_owned(), listed(&peer)));
    for (place, text) in &seen {
        for secret in &secrets {
            assert!(
                !contains(text, secret),
                "{place} has the secret {}",
                String::from_utf8_lossy(secret)
            );
        }
    }
}

#[test]
fn a_code_may_come_from_standard_input() {
    let host = Host::start();
    for args in [
        &["network", "join", "-"][..],
        &["network", "join", "--code-file", "-"],
    ] {
        let machine = Machine::new();
        fs::write(machine.path("code"), host.invite("reader")).unwrap();
        let input = fs::File::open(machine.path("code")).unwrap();
        let output = machine.command().args(args).stdin(input).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        machine.run(&["network", "members"]).expect(0);
    }
}

/// Whether a server leaves a core dump when it is aborted.
#[cfg(target_os = "linux")]
fn dumps_core(command: &Command) -> bool {
    use std::os::unix::process::ExitStatusExt as _;

    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "ulimit -c unlimited 2>/dev/null; exec \"$0\" \"$@\""]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.current_dir(command.get_current_dir().unwrap()).env_clear();
    shell.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut server = Server::start(&mut shell);
    server.end(Signal::ABORT).core_dumped()
}

#[cfg(target_os = "linux")]
#[test]
fn a_program_that_holds_a_key_leaves_no_core_dump() {
    let host = Host::start();
    let member = host.member("publisher");
    let without_key = {
        let machine = Machine::new();
        let mut command = machine.command();
        command.args(["index", "--listen", "127.0.0.1:0", "-q", "--store", "memory"]);
        dumps_core(&command)
    };
    if !without_key {
        println!("this machine writes no core dumps: nothing to compare with");
    }
    let mut index = host.machine.command();
    index.args(["index", "--listen", "127.0.0.1:0", "-q", "--store", "memory"]);
    assert!(!dumps_core(index.args(["--network", "kitchen"])));
    let mut peer = member.command();
    peer.args(["peer", "--listen", "127.0.0.1:0", "-q", "--home", "home"]);
    assert!(!dumps_core(&peer));
}

#[test]
fn the_operators_entries_are_in_the_log_that_the_index_was_given() {
    let host = Host::start_with(&["--store", "memory", "--audit-log", "index-audit"]);
    host.member("reader");
    let log = host.machine.path("index-audit");
    assert_eq!(events(&log, "invited").len(), 1);
    assert_eq!(events(&log, "joined").len(), 1);
}
