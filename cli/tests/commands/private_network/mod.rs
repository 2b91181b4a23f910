//! A private network from its creation on: the index on one machine, members on others, each with a
//! user's folders of its own.

mod joining;
mod own_pki;
mod renewal;
mod revocation;
mod roles;
mod secrecy;
mod several_indexes;
mod wire;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use potluck_core::{
    grpc::transport::Endpoint,
    index_client::IndexClient,
    network::{
        credentials::Credentials,
        stored_identity::StoredIdentity,
        tls::{ServerIdentity, TlsContext, TlsMaterial},
    },
};
use potluck_peer::home::NETWORK_KEY;
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

    /// The error of a command that fails.
    #[track_caller]
    fn refused(&self, args: &[&str]) -> Value {
        let finished = self.run(&[args, &["--json"]].concat());
        assert!(finished.code != Some(0), "{args:?}: {}", finished.stdout);
        finished.error()
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

    /// The control service of [`Machine::peer`].
    fn control(&self) -> String {
        format!("unix:{}", self.path("home/control.sock").display())
    }

    fn file(&self, name: &str, size: usize) -> PathBuf {
        write_file(self.dir.path(), name, &bytes(size, 7))
    }

    /// The id of a file, from its content.
    #[track_caller]
    fn id(&self, name: &str) -> String {
        let object = self.run(&["id", name, "--json"]).expect(0).object();
        object["id"].as_str().unwrap().to_owned()
    }

    /// The folder with the credentials of the member.
    fn credentials(&self) -> PathBuf {
        self.path(".config/potluck/network")
    }

    /// The TLS settings of the peer in the folder `home`.
    fn peer_tls(&self) -> TlsContext {
        let credentials = Credentials::load(&self.credentials()).unwrap();
        let peer = StoredIdentity::load(&self.path("home/state"), NETWORK_KEY).unwrap();
        TlsContext::new(TlsMaterial::member(&credentials, &peer).unwrap()).unwrap()
    }
}

/// The machine of an index that serves a network.
struct Host {
    machine: Machine,
    index: Server,
    url: String,
    args: Vec<String>,
}

impl Host {
    /// An index that keeps registrations in memory.
    fn start() -> Self {
        Self::start_with(&["--store", "memory"])
    }

    /// An index with these flags.
    fn start_with(args: &[&str]) -> Self {
        let machine = Machine::new();
        machine
            .run(&["network", "create", "kitchen", "--index", "https://127.0.0.1:1"])
            .expect(0);
        let index = serve(&machine, "127.0.0.1:0", args);
        let url = format!("https://{}", index.address);
        machine
            .run(&["network", "set-index", &url, "--dir", "kitchen"])
            .expect(0);
        Self {
            machine,
            index,
            url,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
        }
    }

    /// Starts the index again at the same address, after it was stopped.
    fn start_again(&mut self) {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.index = serve(&self.machine, &self.index.address.to_string(), &args);
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

    /// The members, as the operator of the index sees them.
    #[track_caller]
    fn members(&self) -> Vec<Value> {
        let args = ["network", "members", "--dir", "kitchen", "--json"];
        self.machine.run(&args).expect(0).objects()
    }

    /// The events of the audit log with this name.
    fn audited(&self, event: &str) -> Vec<Value> {
        events(&self.machine.path("kitchen/audit.log"), event)
    }

    /// A client of the index with these settings.
    fn client(&self, tls: &TlsContext) -> IndexClient {
        let endpoint = Endpoint::parse_secured(&self.url, tls, ServerIdentity::Index);
        IndexClient::new(endpoint.unwrap())
    }
}

/// The events with this name in an audit log.
fn events(log: &Path, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap();
    let lines = text.lines().map(parse);
    lines.filter(|line| line["event"] == event).collect()
}

fn serve(machine: &Machine, listen: &str, args: &[&str]) -> Server {
    let mut command = machine.command();
    command.args(["index", "--listen", listen, "-q", "--network", "kitchen"]);
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

/// A free port of loopback, as an operator would choose one.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Asserts that the message of an error has all of these parts.
#[track_caller]
fn says(error: &Value, parts: &[&str]) {
    let message = error["message"].as_str().unwrap();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}
