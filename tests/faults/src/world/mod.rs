//! The machines of a round, each with a disk, a place in the network, and one server: the index on
//! machine 0, a peer on each other one.

pub(crate) mod disk;
pub(crate) mod network;
pub(crate) mod program;

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use self::{
    disk::Disk,
    network::Network,
    program::{Finished, Running, Server},
};
use crate::plan::NodeNumber;

/// The time for which the index keeps a peer that does not renew. Short, so that a round does not
/// take long; long enough that a busy machine renews in time.
pub(crate) const LEASE: Duration = Duration::from_secs(4);

/// The longest that a command takes which depends on nothing.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// How long a server may take to end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(30);

const INDEX_PORT: u16 = 1313;
const PEER_PORT: u16 = 12_349;

/// What this machine allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Abilities {
    /// Namespaces for the network.
    pub(crate) network: bool,
    /// File systems in images.
    pub(crate) disks: bool,
}

/// A machine.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) number: NodeNumber,
    pub(crate) disk: Disk,
    pub(crate) server: Option<Server>,
    /// Whether the server was killed or told to end.
    pub(crate) is_down_on_purpose: bool,
    /// Counts how often state was lost or damaged.
    pub(crate) losses: u32,
    /// Whether stored state was ever damaged.
    pub(crate) was_damaged: bool,
    /// Whether the disk was ever full since the last healing.
    pub(crate) was_full: bool,
    /// Whether the disk fails.
    pub(crate) is_failing: bool,
    /// Whether it ever failed, which may have ended a download.
    pub(crate) has_failed: bool,
    /// The port of the server where machines share an address.
    port: Cell<u16>,
}

/// All machines.
#[derive(Debug)]
pub(crate) struct World {
    folder: PathBuf,
    program: PathBuf,
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Option<Network>,
    pub(crate) is_tls: bool,
    commands: Cell<u64>,
}

impl World {
    /// Makes the machines and starts their servers. `folder` is for logs and disks.
    pub(crate) fn new(
        folder: &Path,
        program: &Path,
        peers: usize,
        is_tls: bool,
        abilities: Abilities,
    ) -> anyhow::Result<Self> {
        let images = folder.join("images");
        for name in ["images", "logs", "d"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let images = if abilities.disks {
            network::run(&format!("mount -t tmpfs tmpfs {}", images.display()))?;
            Some(images.as_path())
        } else {
            None
        };
        let mut nodes = Vec::new();
        for number in 0..=peers {
            let disk = Disk::new(&folder.join(format!("d/{number}")), images)?;
            for name in ["user", "shelf", "out", "tmp"] {
                fs::create_dir_all(disk.root().join(name))?;
            }
            nodes.push(Node {
                number,
                disk,
                server: None,
                is_down_on_purpose: true,
                losses: 0,
                was_damaged: false,
                was_full: false,
                is_failing: false,
                has_failed: false,
                port: Cell::new(0),
            });
        }
        let network = match abilities.network {
            true => Some(Network::new(nodes.len())?),
            false => None,
        };
        let mut world = Self {
            folder: folder.to_owned(),
            program: program.to_owned(),
            nodes,
            network,
            is_tls,
            commands: Cell::new(0),
        };
        if is_tls {
            world.create_network()?;
        }
        for node in 0..world.nodes.len() {
            world.start(node)?;
            world.wait_ready(node, COMMAND_LIMIT)?;
            if node == 0 && is_tls {
                world.join_network()?;
            }
        }
        for node in &world.nodes {
            if node.disk.is_image() {
                node.disk.sync()?;
            }
        }
        Ok(world)
    }

    /// The address of the index.
    pub(crate) fn index(&self) -> String {
        let scheme = if self.is_tls { "https://" } else { "http://" };
        match &self.network {
            Some(network) => format!("{scheme}{}:{INDEX_PORT}", network.address(0)),
            None => format!("{scheme}127.0.0.1:{}", self.nodes[0].port.get()),
        }
    }

    /// The address at which others find a peer.
    pub(crate) fn peer_address(&self, node: NodeNumber) -> String {
        match &self.network {
            Some(network) => format!("{}:{PEER_PORT}", network.address(node)),
            None => format!("127.0.0.1:{}", self.nodes[node].port.get()),
        }
    }

    /// The home of a peer, or the data folder of the index.
    pub(crate) fn home(&self, node: NodeNumber) -> PathBuf {
        let root = self.nodes[node].disk.root();
        root.join(if node == 0 { "data" } else { "home" })
    }

    /// A folder on the disk of a machine.
    pub(crate) fn on_disk(&self, node: NodeNumber, name: &str) -> PathBuf {
        self.nodes[node].disk.root().join(name)
    }

    /// A folder that is on no machine.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.folder.join("scratch")
    }

    /// The log of a machine's server.
    pub(crate) fn log(&self, node: NodeNumber) -> PathBuf {
        self.folder.join(format!("logs/{node}.log"))
    }

    /// A command of `potluck` on a machine.
    pub(crate) fn command(&self, node: NodeNumber, args: &[&str]) -> Command {
        let program = self.program.to_str().expect("the path of the program is UTF-8");
        // A program ends with this one.
        let mut command = match &self.network {
            Some(_) => {
                let mut command = Network::enter(node, "setpriv");
                command.args(["--pdeathsig", "KILL", program]);
                command
            }
            None => Command::new(program),
        };
        let root = self.nodes[node].disk.root();
        let path = std::env::var_os("PATH").unwrap_or_default();
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", root.join("user"))
            .env("TMPDIR", root.join("tmp"))
            .env("RUST_BACKTRACE", "1")
            .current_dir(&self.folder)
            .args(args);
        if let Some(level) = std::env::var_os("FAULTS_LOG") {
            command.env("POTLUCK_LOG", level);
        }
        command
    }

    /// A command for the owner of a peer, with its output as JSON.
    pub(crate) fn peer_command(&self, node: NodeNumber, args: &[&str]) -> Command {
        let mut command = self.command(node, args);
        let control = format!("unix:{}", self.home(node).join("control.sock").display());
        command.args(["--json", "--peer", &control]);
        if !self.is_tls {
            command.args(["--index", &self.index()]);
        }
        command
    }

    /// Starts a command whose result is polled for.
    pub(crate) fn spawn(&self, command: &mut Command) -> anyhow::Result<Running> {
        let number = self.commands.replace(self.commands.get() + 1);
        Running::start(command, self.folder.join(format!("logs/command-{number}")))
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, command: &mut Command) -> anyhow::Result<Finished> {
        self.spawn(command)?.wait(COMMAND_LIMIT)
    }

    /// Starts the server of a machine. It is not ready yet.
    pub(crate) fn start(&mut self, number: NodeNumber) -> anyhow::Result<()> {
        let host = match self.network {
            Some(_) => "0.0.0.0",
            None => "127.0.0.1",
        };
        let home = self.home(number);
        let home = home.to_str().context("the path is UTF-8")?;
        let port = match (&self.network, number) {
            (None, number) => self.nodes[number].port.get(),
            (Some(_), 0) => INDEX_PORT,
            (Some(_), _) => PEER_PORT,
        };
        let listen = format!("{host}:{port}");
        let lease = format!("{}s", LEASE.as_secs());
        let mut command = if number == 0 {
            let mut command = self.command(0, &["index", "--listen", &listen]);
            command.args(["--data-dir", home, "--ttl", &lease]);
            if self.is_tls {
                command.arg("--network").arg(self.on_disk(0, "kitchen"));
            }
            command
        } else {
            let args = ["peer", "--listen", &listen, "--home", home];
            let mut command = self.command(number, &args);
            if !self.is_tls {
                command.args(["--index", &self.index()]);
            }
            command
        };
        if !self.is_tls && self.network.is_some() {
            command.arg("--plaintext");
        }
        let server = Server::start(&mut command, &self.log(number))?;
        let node = &mut self.nodes[number];
        node.server = Some(server);
        node.is_down_on_purpose = false;
        Ok(())
    }

    /// Waits until a server is ready.
    pub(crate) fn wait_ready(&mut self, number: NodeNumber, limit: Duration) -> anyhow::Result<()> {
        let log = self.log(number);
        let node = &mut self.nodes[number];
        let server = node.server.as_mut().context("the server was started")?;
        let started = Instant::now();
        let address = loop {
            if let Some(address) = server.address() {
                break address;
            }
            if let Some(status) = server.ended()? {
                anyhow::bail!(
                    "server {number} ended as it started, with {status}: {}",
                    last_lines(&log)
                );
            }
            ensure!(
                started.elapsed() < limit,
                "server {number} is not ready within {limit:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        if let Some((_, port)) = address.rsplit_once(':') {
            node.port.set(port.parse()?);
        }
        Ok(())
    }

    /// Kills the server of a machine.
    pub(crate) fn kill(&mut self, number: NodeNumber) {
        let node = &mut self.nodes[number];
        node.is_down_on_purpose = true;
        if let Some(server) = node.server.take() {
            server.kill();
        }
    }

    /// Tells the server of a machine to end. Returns what is wrong about how it ends.
    pub(crate) fn terminate(&mut self, number: NodeNumber) -> Option<String> {
        let node = &mut self.nodes[number];
        node.is_down_on_purpose = true;
        let mut server = node.server.take()?;
        server.signal(Signal::CONT);
        server.signal(Signal::TERM);
        match server.wait(END_LIMIT) {
            None => Some(format!("server {number} does not end within {END_LIMIT:?}")),
            Some(status) if status.success() => None,
            Some(status) => Some(format!("server {number} ended with {status} after SIGTERM")),
        }
    }

    /// The last lines of a server's log.
    pub(crate) fn last_lines(&self, node: NodeNumber) -> String {
        last_lines(&self.log(node))
    }

    fn create_network(&self) -> anyhow::Result<()> {
        let folder = self.on_disk(0, "kitchen");
        let folder = folder.to_str().context("the path is UTF-8")?;
        // Without namespaces, the port of the index is known only later.
        let index = self.index();
        let made =
            self.run(&mut self.command(0, &["network", "create", folder, "--index", &index]))?;
        ensure!(made.code == Some(0), "network create: {}", made.errors);
        Ok(())
    }

    fn join_network(&self) -> anyhow::Result<()> {
        let folder = self.on_disk(0, "kitchen");
        let folder = folder.to_str().context("the path is UTF-8")?;
        if self.network.is_none() {
            let args = ["network", "set-index", &self.index(), "--dir", folder];
            let set = self.run(&mut self.command(0, &args))?;
            ensure!(set.code == Some(0), "network set-index: {}", set.errors);
        }
        for node in 1..self.nodes.len() {
            let args = ["network", "invite", "--dir", folder, "--role", "publisher"];
            let output = self.command(0, &args).output()?;
            let text = String::from_utf8(output.stdout)?;
            let code = text.split_whitespace().next_back().context("no code")?;
            let file = self.on_disk(node, "user/code");
            fs::write(&file, code)?;
            let file = file.to_str().context("the path is UTF-8")?;
            let name = format!("member{node}");
            let args = ["network", "join", "--code-file", file, "--name", &name];
            let joined = self.run(&mut self.command(node, &args))?;
            ensure!(joined.code == Some(0), "network join: {}", joined.errors);
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Before the disks below them.
        for node in 0..self.nodes.len() {
            self.kill(node);
        }
        self.network = None;
        for node in std::mem::take(&mut self.nodes) {
            let has_image = node.disk.is_image();
            drop(node);
            if !has_image {
                return;
            }
        }
        let images = self.folder.join("images");
        _ = network::run(&format!("umount -l {}", images.display()));
    }
}

/// The last lines of a log.
fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(4)..].join("\n")
}
