//! A real Redis Cluster on loopback, whose nodes can be killed, stopped and started again.

use std::{
    fs::File,
    net::TcpListener,
    path::PathBuf,
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Number of slots of a cluster.
const SLOTS: u32 = 16_384;

/// Time after which nodes agree that another is down, in ms: short, so that a failover is quick.
const NODE_TIMEOUT: u32 = 1000;

/// Deadline for the cluster to form or to repair itself.
const DEADLINE: Duration = Duration::from_secs(60);

/// The nodes of a cluster: primaries first, then one replica for each. Killed when dropped.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisNode>,
    _dir: TempDir,
}

#[derive(Debug)]
struct RedisNode {
    port: u16,
    bus_port: u16,
    folder: PathBuf,
    extra: Vec<String>,
    process: Option<Child>,
}

impl RedisCluster {
    /// A cluster of this many primaries, each with a replica; `None` if this machine has no
    /// `redis-server`.
    pub fn start(primaries: usize) -> Option<Self> {
        Self::start_with(primaries, &[])
    }

    /// The same with more settings for each node, such as `--requirepass` and a password.
    pub fn start_with(primaries: usize, extra: &[&str]) -> Option<Self> {
        let dir = TempDir::with_prefix("potluck-redis-").unwrap();
        let extra: Vec<String> = extra.iter().map(|&setting| setting.to_owned()).collect();
        let mut nodes = Vec::new();
        for n in 0..2 * primaries {
            let folder = dir.path().join(n.to_string());
            std::fs::create_dir(&folder).unwrap();
            let mut node = RedisNode {
                port: 0,
                bus_port: 0,
                folder,
                extra: extra.clone(),
                process: None,
            };
            // Another program may take a port before the node does.
            loop {
                (node.port, node.bus_port) = (free_port(), free_port());
                if !node.launch() {
                    println!("skipped: this machine has no redis-server (Debian: `redis-server`)");
                    return None;
                }
                if node.answers() {
                    break;
                }
            }
            nodes.push(node);
        }
        let cluster = Self { nodes, _dir: dir };
        cluster.form(primaries);
        Some(cluster)
    }

    fn form(&self, primaries: usize) {
        let first = &self.nodes[0];
        for (n, node) in self.nodes.iter().enumerate() {
            if n > 0 {
                let (port, bus) = (node.port.to_string(), node.bus_port.to_string());
                first.call(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
            }
            // Nodes with one epoch each settle at once.
            node.call(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]);
        }
        for (n, node) in self.nodes[..primaries].iter().enumerate() {
            let from = SLOTS * n as u32 / primaries as u32;
            let to = SLOTS * (n as u32 + 1) / primaries as u32 - 1;
            node.call(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]);
        }
        let count = format!("cluster_known_nodes:{}", self.nodes.len());
        for node in &self.nodes {
            wait("the nodes know each other", || {
                node.call(&["CLUSTER", "INFO"]).contains(&count)
            });
        }
        for (n, node) in self.nodes[primaries..].iter().enumerate() {
            let primary = self.nodes[n].call(&["CLUSTER", "MYID"]).trim().to_owned();
            wait("a replica finds its primary", || {
                node.call(&["CLUSTER", "REPLICATE", &primary]).contains("OK")
            });
        }
        self.wait_until_whole();
    }

    /// Waits until all running nodes serve all slots and all running replicas are in sync.
    pub fn wait_until_whole(&self) {
        for node in self.nodes.iter().filter(|node| node.process.is_some()) {
            wait("the cluster serves all slots", || {
                node.call(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
            });
            wait("a replica is in sync", || {
                let role = node.call(&["INFO", "replication"]);
                role.contains("role:master") || role.contains("master_link_status:up")
            });
        }
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are no nodes; never.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The addresses of all nodes, as `HOST:PORT`.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port))
            .collect()
    }

    /// The value of `--store`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.addresses().join(","))
    }

    /// Runs a command at a node with `redis-cli`, and returns what that prints.
    pub fn call(&self, node: usize, arguments: &[&str]) -> String {
        self.nodes[node].call(arguments)
    }

    /// Whether a node is a primary that runs.
    pub fn is_primary(&self, node: usize) -> bool {
        self.nodes[node].process.is_some()
            && self.call(node, &["INFO", "replication"]).contains("role:master")
    }

    /// The node with the other copy of a node's data, as the cluster began.
    pub fn partner(&self, node: usize) -> usize {
        (node + self.nodes.len() / 2) % self.nodes.len()
    }

    /// Kills a node as a crash would.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a killed node again, with what it had on the disk.
    pub fn restart(&mut self, node: usize) {
        assert!(self.nodes[node].launch(), "redis-server starts again");
        assert!(self.nodes[node].answers(), "redis-server keeps its ports");
    }

    /// Stops a node without ending it, as a machine that hangs.
    pub fn pause(&self, node: usize) {
        self.nodes[node].signal(Signal::STOP);
    }

    /// Lets a stopped node go on.
    pub fn resume(&self, node: usize) {
        self.nodes[node].signal(Signal::CONT);
    }

    /// Removes all data.
    pub fn flush(&self) {
        for n in 0..self.nodes.len() {
            if self.is_primary(n) {
                self.call(n, &["FLUSHALL"]);
            }
        }
    }
}

impl RedisNode {
    /// Starts the process; false if there is no such program.
    fn launch(&mut self) -> bool {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        let (port, bus, timeout) = (
            self.port.to_string(),
            self.bus_port.to_string(),
            NODE_TIMEOUT.to_string(),
        );
        let folder = self.folder.to_str().unwrap();
        let settings = [
            ["--port", &port],
            ["--cluster-port", &bus],
            ["--bind", "127.0.0.1"],
            ["--dir", folder],
            ["--cluster-enabled", "yes"],
            ["--cluster-config-file", "nodes.conf"],
            ["--cluster-node-timeout", &timeout],
            ["--cluster-replica-validity-factor", "0"],
            ["--appendonly", "yes"],
            ["--save", ""],
            ["--repl-diskless-sync-delay", "0"],
        ];
        let started = Command::new("redis-server")
            .args(settings.as_flattened())
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.process = started.ok();
        self.process.is_some()
    }

    /// Waits for an answer; false if the process ends first.
    fn answers(&mut self) -> bool {
        let mut has_ended = false;
        wait("a node answers", || {
            let ended = self.process.as_mut().map(Child::try_wait);
            has_ended = matches!(ended, Some(Ok(Some(_))));
            has_ended || self.call(&["PING"]).contains("PONG")
        });
        !has_ended
    }

    fn call(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]);
        let password = self.extra.iter().position(|setting| setting == "--requirepass");
        if let Some(at) = password {
            command.args(["--no-auth-warning", "-a", &self.extra[at + 1]]);
        }
        let output = command.args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
            kill_process(pid.unwrap(), signal).unwrap();
        }
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Also ends a stopped process.
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for RedisNode {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that is free now, below the range from which the system chooses for connections.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let from_process = (process::id() % 10_000) as u16;
    loop {
        let port = 20_000 + (from_process + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn wait(what: &str, mut is_true: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_true() {
        assert!(started.elapsed() < DEADLINE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
