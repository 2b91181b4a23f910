//! A hostile client, by hand: runs attacks on an index or a peer and checks what they cost it.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use potluck_core::model::Address;
use potluck_hostile::{
    client::{self, Limits},
    membership::Attacker,
    process::{connections_at, resident_memory},
    target::{Service, Target},
};

/// Attacks an index or a peer of your own, and checks what the attacks cost it.
///
/// Each attack runs while an honest client asks questions. Exits with 1 if the program's memory
/// grew too much, the honest client waited too long, or connections stayed open.
#[derive(Debug, Parser)]
struct Options {
    /// Names of the attacks; all that fit the target if none is given
    attacks: Vec<String>,

    /// Print the attacks and what each does
    #[arg(long)]
    list: bool,

    /// Address of the program under attack
    #[arg(long, value_name = "ADDRESS", required_unless_present = "list")]
    address: Option<SocketAddr>,

    /// Its process id, for its memory
    #[arg(long, value_name = "PID", required_unless_present = "list")]
    pid: Option<u32>,

    /// What it is
    #[arg(long, value_enum, default_value_t = Kind::Index)]
    kind: Kind,

    /// A file that it knows: registered at the index, or shared by the peer
    #[arg(long, value_name = "FILE", required_unless_present_any = ["list", "hold"])]
    file: Option<PathBuf>,

    /// Attack over TLS, as the member whose credentials are in this folder
    #[arg(long, value_name = "DIR")]
    credentials: Option<PathBuf>,

    /// Time for each attack, in seconds
    #[arg(long, value_name = "N", default_value_t = 5)]
    seconds: u64,

    /// Maximum growth of its memory during an attack, in MiB
    #[arg(long, value_name = "MIB", default_value_t = Limits::default().growth_mib)]
    max_growth: u64,

    /// Open this many connections instead, and print what each costs the program
    #[arg(long, value_name = "N", conflicts_with = "attacks")]
    hold: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Index,
    Peer,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if options.list {
        for attack in client::attacks() {
            println!("{:<24} {}", attack.name, attack.description);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let address = options.address.context("--address is missing")?;
    let pid = options.pid.context("--pid is missing")?;
    let service = match options.kind {
        Kind::Index => Service::Index,
        Kind::Peer => Service::Peer,
    };
    let data = match &options.file {
        Some(file) => std::fs::read(file).with_context(|| file.display().to_string())?,
        None => Vec::new(),
    };
    let attacker = Attacker::new(options.credentials.as_deref())?;
    let target = Target::new(address, service, attacker.tls()?, data);
    if let Some(count) = options.hold {
        hold(&target, pid, count).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if service == Service::Index {
        let bait = attacker.new_peer(&address.to_string()).await?;
        let nowhere = Address {
            host: String::new(),
            port: 9,
        };
        bait.register(&nowhere, client::bait()).await?;
    }
    let limits = Limits {
        growth_mib: options.max_growth,
        ..Limits::default()
    };
    let time = Duration::from_secs(options.seconds);
    for name in &options.attacks {
        let is_known = client::attacks().any(|attack| attack.name == *name);
        anyhow::ensure!(is_known, "there is no attack `{name}`: see --list");
    }
    let mut is_whole = true;
    for attack in client::attacks() {
        let is_chosen =
            options.attacks.is_empty() || options.attacks.iter().any(|name| name == attack.name);
        if !is_chosen || !attack.fits(&target) {
            continue;
        }
        let report = client::run(attack, &target, pid, time, &limits).await?;
        println!("{report}");
        for violation in report.violations(&limits) {
            println!("  {violation}");
            is_whole = false;
        }
    }
    Ok(if is_whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Opens `count` connections, makes a call on each, and prints the growth of the program's memory.
async fn hold(target: &Target, pid: u32, count: usize) -> anyhow::Result<()> {
    let memory = || resident_memory(pid).context("the process has no memory that can be read");
    let (before, open) = (memory()?, connections_at(target.address));
    let held = client::hold(target, count).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (after, now_open) = (memory()?, connections_at(target.address));
    let opened = now_open.saturating_sub(open);
    println!(
        "{} of {count} connections are open: {before} KiB before, {after} KiB after, {} bytes each",
        opened,
        (after.saturating_sub(before) * 1024)
            .checked_div(opened as u64)
            .unwrap_or(0)
    );
    drop(held);
    Ok(())
}
