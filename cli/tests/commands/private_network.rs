//! A private network from its creation on: the index on one machine, members on others, each with a
//! user's folders of its own.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use potluck_testkit::{
    content::{bytes, write_file},
    system::program::{Finished, Server, parse},
    wait::wait_until_blocking,
};
use serde_json::Value;
use tempfile::TempDir;

/// A machine with a user's folders.
struct Machine {
    dir: TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pl").tempdir().unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_potluck"));
        command
            .env_clear()
            .env("HOME", self.dir.path())
            .env("TMPDIR", self.dir.path())
            .env("RUST_BACKTRACE", "1")
            .current_dir(self.dir.path());
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Finished {
        Finished::run(self.command().args(args))
    }

    /// Repeats a command until it succeeds.
    #[track_caller]
    fn eventually(&self, args: &[&str]) -> Finished {
        let mut last = None;
        wait_until_blocking(&format!("{args:?} succeeds"), || {
            let finished = self.run(args);
            let is_done = finished.code == Some(0);
            last = Some(finished);
            is_done
        });
        last.unwrap()
    }

    fn peer(&self, args: &[&str]) -> Server {
        let mut command = self.command();
        command.args(["peer", "--listen", "127.0.0.1:0", "-q", "--home", "home"]);
        Server::start(command.args(args))
    }

    fn file(&self, name: &str, size: usize) -> PathBuf {
        write_file(self.dir.path(), name, &bytes(size, 7))
    }
}

/// The machine of an index that serves a network.
struct Host {
    machine: Machine,
    index: Server,
    url: String,
}

impl Host {
    fn start() -> Self {
        let machine = Machine::new();
        machine
            .run(&["network", "create", "kitchen", "--index", "https://127.0.0.1:1"])
            .expect(0);
        let index = serve(&machine, "127.0.0.1:0", &[]);
        let url = format!("https://{}", index.address);
        machine
            .run(&["network", "set-index", &url, "--dir", "kitchen"])
            .expect(0);
        Self { machine, index, url }
    }

    /// A code for a role.
    #[track_caller]
    fn invite(&self, role: &str) -> String {
        let args = ["network", "invite", "--dir", "kitchen", "--role", role];
        last_word(&self.machine.run(&args).expect(0))
    }

    /// A machine that joined with this role.
    #[track_caller]
    fn member(&self, role: &str) -> Machine {
        let machine = Machine::new();
        let code = self.invite(role);
        machine.run(&["network", "join", &code, "--name", role]).expect(0);
        machine
    }

    /// The events of the audit log with this name.
    fn audited(&self, event: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.machine.path("kitchen/audit.log")).unwrap();
        let lines = text.lines().map(parse);
        lines.filter(|line| line["event"] == event).collect()
    }
}

fn serve(machine: &Machine, listen: &str, args: &[&str]) -> Server {
    let mut command = machine.command();
    command.args([
        "index",
        "--listen",
        listen,
        "--store",
        "memory",
        "-q",
        "--network",
        "kitchen",
    ]);
    Server::start(command.args(args))
}

fn last_word(finished: &Finished) -> String {
    finished.stdout.split_whitespace().next_back().unwrap().to_owned()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files
}

/// Forwards connections and records what passes in both directions.
struct Wire {
    address: SocketAddr,
    captured: Arc<Mutex<Vec<u8>>>,
}

impl Wire {
    fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let captured = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&captured);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(server).unwrap());
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let record = Arc::clone(&record);
                    thread::spawn(move || forward(from, to, &record));
                }
            }
        });
        Self { address, captured }
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, record: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        record.lock().unwrap().extend(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // The other end may have closed the connection already.
    _ = to.shutdown(std::net::Shutdown::Write);
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The commands of README.md and docs/private-networks.md.
#[test]
fn a_network_is_made_joined_and_used_with_the_documented_commands() {
    let (host, laptop, server) = (Machine::new(), Machine::new(), Machine::new());
    // A free port, as an operator would choose one.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let listen = format!("127.0.0.1:{port}");
    let url = format!("https://{listen}");
    let made = host
        .run(&["network", "create", "kitchen", "--index", &url])
        .expect(0);
    assert!(
        made.stdout.contains("Made the network kitchen"),
        "{}",
        made.stdout
    );
    let _index = serve(&host, &listen, &[]);
    let joined = laptop.run(&["network", "join", &last_word(&made)]).expect(0);
    assert!(
        joined.stdout.contains("joined the network kitchen"),
        "{}",
        joined.stdout
    );
    assert!(joined.stdout.contains("(admin)"), "{}", joined.stdout);
    // An admin invites from its own machine; the code travels in a file.
    let invited = laptop
        .run(&["network", "invite", "--role", "publisher", "--ttl", "10m"])
        .expect(0);
    fs::write(server.path("code"), &invited.stdout).unwrap();
    server.run(&["network", "join", "--code-file", "code"]).expect(0);
    server.file("model.bin", 300_000);
    let _peer = server.peer(&["--share", "model.bin"]);
    laptop.eventually(&["search", "model"]);
    laptop.run(&["get", "model.bin"]).expect(0);
    assert_eq!(
        fs::read(laptop.path("model.bin")).unwrap(),
        fs::read(server.path("model.bin")).unwrap()
    );
    let members = laptop.run(&["network", "members", "--json"]).expect(0).objects();
    let roles: Vec<&Value> = members.iter().map(|member| &member["role"]).collect();
    assert!(
        roles.len() == 2 && roles.contains(&&"admin".into()),
        "{members:?}"
    );
    // Private files are private.
    let config = laptop.path(".config/potluck/network");
    for path in files_below(&config)
        .iter()
        .chain(&files_below(&host.path("kitchen")))
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        let is_public = path.extension().is_some_and(|end| end == "crt")
            || path.ends_with("network.json") && path.starts_with(&config);
        assert!(mode == 0o600 || is_public, "{}: {mode:o}", path.display());
    }
}

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
    // Also after a restart of the index with a store on disk; here it keeps running.
    publisher.run(&["network", "unbind", "weights.bin"]).expect(0);
    other.run(&["query", "weights.bin"]).expect(3);
    assert_eq!(host.audited("bindings_removed").len(), 1);
}

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

#[test]
fn an_observer_sees_no_name_and_no_id() {
    let host = Host::start();
    let wire = Wire::to(host.index.address);
    let url = format!("https://{}", wire.address);
    host.machine
        .run(&["network", "set-index", &url, "--dir", "kitchen"])
        .expect(0);
    let (publisher, reader) = (host.member("publisher"), host.member("reader"));
    publisher.file("salaries-of-2026.txt", 50_000);
    let _peer = publisher.peer(&["--share", "salaries-of-2026.txt"]);
    reader.eventually(&["search", "salaries"]);
    reader.run(&["get", "salaries-of-2026.txt"]).expect(0);
    let found = reader.run(&["search", "salaries", "--json"]).expect(0).object();
    let id = found["files"][0]["id"].as_str().unwrap();
    let raw: Vec<u8> = (0..32)
        .map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let captured = wire.captured.lock().unwrap();
    assert!(captured.len() > 5_000, "{} bytes", captured.len());
    for secret in [
        b"salaries".as_slice(),
        id.as_bytes(),
        &raw,
        b"publisher",
        b"kitchen",
        b"potluck",
    ] {
        assert!(
            !contains(&captured, secret),
            "{}",
            String::from_utf8_lossy(secret)
        );
    }
}

#[test]
fn a_code_is_used_once_and_errors_say_what_to_do() {
    let host = Host::start();
    let (first, second) = (Machine::new(), Machine::new());
    let code = host.invite("reader");
    first.run(&["network", "join", &code]).expect(0);
    let refused = second
        .run(&["network", "join", &code, "--json"])
        .expect(1)
        .error();
    assert_eq!(refused["error"], "invalid_code");
    assert!(
        refused["message"].as_str().unwrap().contains("network invite"),
        "{refused}"
    );
    let again = first.run(&["network", "join", &code, "--json"]).expect(2).error();
    assert!(
        again["message"]
            .as_str()
            .unwrap()
            .contains("member of the network"),
        "{again}"
    );
    let wrong = if code.ends_with('x') { 'y' } else { 'x' };
    let typed = format!("{}{wrong}", &code[..code.len() - 1]);
    let refused = second
        .run(&["network", "join", &typed, "--json"])
        .expect(1)
        .error();
    assert!(
        refused["message"].as_str().unwrap().contains("paste it again"),
        "{refused}"
    );
    // A stranger learns nothing.
    let bare = host.url.strip_prefix("https://").unwrap();
    let refused = second.run(&["search", "x", "--index", bare, "--json"]);
    assert_ne!(refused.code, Some(0));
    // No secret is in the audit log, or in any other file of the index.
    let secret = code.trim_start_matches("potluck1_");
    for file in files_below(&host.machine.path("kitchen")) {
        assert!(!String::from_utf8_lossy(&fs::read(file).unwrap()).contains(secret));
    }
    assert_eq!(host.audited("joined").len(), 1);
}

#[test]
fn a_peer_joins_with_a_file_and_starts_again_with_it() {
    let host = Host::start();
    let machine = Machine::new();
    fs::write(machine.path("code"), host.invite("publisher")).unwrap();
    for _ in 0..2 {
        let mut peer = machine.peer(&["--join-file", "code"]);
        peer.terminate();
    }
    assert_eq!(host.audited("joined").len(), 1);
    assert_eq!(host.audited("peer_enrolled").len(), 1);
    // A new key is a new peer.
    let rekeyed = machine
        .run(&["network", "rekey", "--home", "home", "--json"])
        .expect(0)
        .object();
    assert_ne!(rekeyed["peer"], rekeyed["old_peer"]);
    let mut peer = machine.peer(&[]);
    peer.terminate();
    assert_eq!(host.audited("peer_enrolled").len(), 2);
}

#[test]
fn a_network_moves_to_another_machine_with_its_copy() {
    let mut host = Host::start();
    let reader = host.member("reader");
    host.machine
        .run(&["network", "backup", "copy", "--dir", "kitchen"])
        .expect(0);
    host.machine
        .run(&["network", "backup", "copy", "--dir", "kitchen"])
        .expect(1);
    host.index.terminate();
    let other = Machine::new();
    fs::copy(host.machine.path("copy"), other.path("copy")).unwrap();
    other
        .run(&["network", "restore", "copy", "--dir", "kitchen"])
        .expect(0);
    let index = serve(&other, "127.0.0.1:0", &[]);
    let url = format!("https://{}", index.address);
    reader.run(&["network", "set-index", &url]).expect(0);
    let members = reader.run(&["network", "members", "--json"]).expect(0).object();
    assert_eq!(members["name"], "reader");
}
