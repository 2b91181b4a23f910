//! A hostile peer, by hand: registers with an index as a provider of a file and answers as the
//! attack says.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use potluck_hostile::{
    membership::Attacker,
    peer::{ATTACKS, HostilePeer, PeerAttack},
};

/// Provides a file in a hostile way, for downloads of your own.
#[derive(Debug, Parser)]
struct Options {
    /// Names of the attacks, each with an address of its own; all if none is given
    attacks: Vec<String>,

    /// Print the attacks and what each does
    #[arg(long)]
    list: bool,

    /// The index to register with
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:1313")]
    index: String,

    /// The file to provide
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    file: Option<PathBuf>,

    /// Attack over TLS, as the member whose credentials are in this folder
    #[arg(long, value_name = "DIR")]
    credentials: Option<PathBuf>,

    /// Time to run, in seconds
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
}

fn is_chosen(options: &Options, attack: &PeerAttack) -> bool {
    match options.attacks.is_empty() {
        true => !attack.needs_tls() || options.credentials.is_some(),
        false => options.attacks.iter().any(|name| name == attack.name),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if options.list {
        for attack in ATTACKS {
            println!("{:<24} {}", attack.name, attack.description);
        }
        return Ok(());
    }
    for name in &options.attacks {
        let is_known = ATTACKS.iter().any(|attack| attack.name == *name);
        anyhow::ensure!(is_known, "there is no attack `{name}`: see --list");
    }
    let file = options.file.as_ref().context("--file is missing")?;
    let data = std::fs::read(file).with_context(|| file.display().to_string())?;
    let attacker = Attacker::new(options.credentials.as_deref())?;
    let mut peers = Vec::new();
    for attack in ATTACKS.iter().filter(|attack| is_chosen(&options, attack)) {
        let data = data.clone().into();
        let peer = HostilePeer::start(attack, &attacker, &options.index, data, "hostile").await?;
        println!("{:<24} {} at {}", attack.name, peer.id.short(), peer.address);
        peers.push(peer);
    }
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    Ok(())
}
