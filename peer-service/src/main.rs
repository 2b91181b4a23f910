//! `potluck-peer`: the peer service as a program.

use clap::Parser;
use potluck_peer::{Options, run};
use tokio_util::sync::CancellationToken;

/// Shares files with other peers and fetches from many at once, every piece verified
#[derive(Debug, Parser)]
#[command(name = "potluck-peer", version)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn main() -> anyhow::Result<()> {
    let line = Line::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async { Ok(run(line.options, CancellationToken::new()).await?) })
}
