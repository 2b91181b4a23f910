//! The links between the machines: a bridge in the namespace of this program, and a namespace with
//! one interface for each machine. Nothing outside these namespaces changes.
//!
//! Faults come from the packet filter and from queueing disciplines of the kernel. A delay needs
//! the discipline `netem`; where the kernel lacks it, a delay becomes a slow link with a long queue.

use std::{
    cell::RefCell,
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

use crate::plan::{LinkFault, NodeNumber};

/// The rate that stands in for a delay: a connection fills the queue before the link, and so its
/// packets wait.
const QUEUE_RATE: u64 = 4_000;

/// What is wrong with one machine's link.
#[derive(Debug, Clone, Default)]
struct LinkState {
    is_cut: bool,
    /// Lost packets, in percent.
    loss: u64,
    /// One of how many packets is corrupted, and where.
    corruption: Option<(u64, u64)>,
    /// The machines from which nothing arrives.
    blocked: Vec<NodeNumber>,
    /// How often the address changed.
    moves: u64,
}

/// The network.
#[derive(Debug)]
pub(crate) struct Network {
    links: RefCell<Vec<LinkState>>,
}

impl Network {
    /// Makes a network for this many machines.
    pub(crate) fn new(nodes: usize) -> anyhow::Result<Self> {
        run("mkdir -p /run/netns")?;
        run("mount -t tmpfs -o mode=755 tmpfs /run/netns")?;
        run("ip link set lo up")?;
        run("ip link add name br0 type bridge forward_delay 0")?;
        run("ip link set br0 up")?;
        // Frames on the bridge bypass the machine's own packet filter, where there is one.
        for name in ["iptables", "ip6tables", "arptables"] {
            _ = run(&format!("sysctl -qw net.bridge.bridge-nf-call-{name}=0"));
        }
        let network = Self {
            links: RefCell::new(vec![LinkState::default(); nodes]),
        };
        for node in 0..nodes {
            let port = port(node);
            run(&format!("ip netns add n{node}"))?;
            run(&format!(
                "ip link add name {port} type veth peer name eth0 netns n{node}"
            ))?;
            run(&format!("ip link set {port} master br0 up"))?;
            run(&format!("ip -n n{node} link set lo up"))?;
            run(&format!("ip -n n{node} link set eth0 up"))?;
            let address = network.address(node);
            run(&format!("ip -n n{node} addr add {address}/16 dev eth0"))?;
        }
        Ok(network)
    }

    /// The present address of a machine.
    pub(crate) fn address(&self, node: NodeNumber) -> String {
        let moves = self.links.borrow()[node].moves;
        format!("10.78.{moves}.{}", node + 1)
    }

    /// Gives a machine another address.
    pub(crate) fn move_node(&self, node: NodeNumber) -> anyhow::Result<()> {
        let old = self.address(node);
        self.links.borrow_mut()[node].moves += 1;
        let new = self.address(node);
        // The other order would remove both: addresses of one network depend on the first.
        run(&format!("ip -n n{node} addr del {old}/16 dev eth0"))?;
        run(&format!("ip -n n{node} addr add {new}/16 dev eth0"))
    }

    /// Adds a fault to a link.
    pub(crate) fn fault(&self, node: NodeNumber, fault: LinkFault) -> anyhow::Result<()> {
        {
            let link = &mut self.links.borrow_mut()[node];
            match fault {
                LinkFault::Cut => link.is_cut = true,
                LinkFault::Loss(percent) => link.loss = percent,
                LinkFault::Corrupt(one_of, offset) => link.corruption = Some((one_of, offset)),
                LinkFault::Rate(_) | LinkFault::Delay(_) => {}
            }
        }
        match fault {
            LinkFault::Rate(rate) => shape(node, rate, 100),
            LinkFault::Delay(delay) => delay_packets(node, delay),
            _ => self.filter(node),
        }
    }

    /// Removes all faults of a link, but no partition.
    pub(crate) fn mend(&self, node: NodeNumber) -> anyhow::Result<()> {
        {
            let link = &mut self.links.borrow_mut()[node];
            (link.is_cut, link.loss, link.corruption) = (false, 0, None);
        }
        unshape(node);
        self.filter(node)
    }

    /// Separates the machines whose bits are set from the others; 0 ends the partition.
    pub(crate) fn partition(&self, nodes: u64) -> anyhow::Result<()> {
        let count = self.links.borrow().len();
        let side = |node: NodeNumber| nodes >> node & 1;
        for node in 0..count {
            self.links.borrow_mut()[node].blocked =
                (0..count).filter(|other| side(*other) != side(node)).collect();
            self.filter(node)?;
        }
        Ok(())
    }

    /// The command that runs a program on a machine.
    pub(crate) fn enter(node: NodeNumber, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/n{node}")).arg(program);
        command
    }

    /// Puts the faults of a link into the packet filter of its machine.
    fn filter(&self, node: NodeNumber) -> anyhow::Result<()> {
        let link = self.links.borrow()[node].clone();
        let mut rules =
            "table inet faults\ndelete table inet faults\ntable inet faults {\n".to_owned();
        for (hook, way) in [("input", "saddr"), ("output", "daddr")] {
            _ = writeln!(
                rules,
                "chain {hook} {{\n type filter hook {hook} priority 0; policy accept;\n \
                 meta oifname \"lo\" accept\n meta iifname \"lo\" accept"
            );
            if link.is_cut {
                rules.push_str(" drop\n");
            }
            for other in &link.blocked {
                _ = writeln!(rules, " ip {way} & 0.0.0.255 == 0.0.0.{} drop", other + 1);
            }
            if link.loss > 0 {
                _ = writeln!(rules, " numgen random mod 100 < {} drop", link.loss);
            }
            if let Some((one_of, offset)) = link.corruption.filter(|_| hook == "input") {
                // Behind the header of TCP; the kernel corrects the checksum.
                let (bit, longer) = (8 * (32 + offset), offset + 60);
                _ = writeln!(
                    rules,
                    " meta l4proto tcp meta length > {longer} numgen random mod {one_of} 0 \
                     @th,{bit},8 set 0x5a"
                );
            }
            rules.push_str("}\n");
        }
        rules.push_str("}\n");
        let mut nft = Self::enter(node, "nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("nft")?;
        nft.stdin
            .take()
            .context("nft has no input")?
            .write_all(rules.as_bytes())?;
        ensure!(nft.wait()?.success(), "nft refused\n{rules}");
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in 0..self.links.borrow().len() {
            // The namespace goes away a little later, and its links with it.
            _ = run(&format!("ip link del {}", port(node)));
            _ = run(&format!("ip netns del n{node}"));
        }
        _ = run("ip link del br0");
        _ = run("umount -l /run/netns");
    }
}

/// The name of the bridge's end of a link.
fn port(node: NodeNumber) -> String {
    format!("v{node}")
}

/// Limits both directions to this many kilobits per second, with a queue of this many milliseconds.
fn shape(node: NodeNumber, rate: u64, queue: u64) -> anyhow::Result<()> {
    unshape(node);
    let limit = (rate * queue / 8).max(20_000);
    let queue = format!("root tbf rate {rate}kbit burst 20000 limit {limit}");
    run(&format!("tc -n n{node} qdisc add dev eth0 {queue}"))?;
    run(&format!("tc qdisc add dev {} {queue}", port(node)))
}

fn delay_packets(node: NodeNumber, delay: u64) -> anyhow::Result<()> {
    unshape(node);
    let jitter = delay / 4;
    let netem = format!("root netem delay {delay}ms {jitter}ms");
    if run(&format!("tc -n n{node} qdisc add dev eth0 {netem}")).is_err() {
        return shape(node, QUEUE_RATE, delay);
    }
    run(&format!("tc qdisc add dev {} {netem}", port(node)))
}

fn unshape(node: NodeNumber) {
    // Fails where there is nothing to remove.
    _ = run(&format!("tc -n n{node} qdisc del dev eth0 root"));
    _ = run(&format!("tc qdisc del dev {} root", port(node)));
}

/// Runs a command of words separated by spaces.
pub(crate) fn run(line: &str) -> anyhow::Result<()> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .with_context(|| line.to_owned())?;
    ensure!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
