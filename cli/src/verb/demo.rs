//! `potluck demo`: an index and four peers on this machine; one file comes from three of them at once.

use clap::Args;

use crate::{context::Context, fail::Fail};

const EXAMPLES: &str = "\
Examples:
  potluck demo                256 MiB made for it
  potluck demo big.iso        a file of yours; it is only read";

/// Watch the main job on this machine: one file shared by three peers, fetched from all of them at once
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DemoArgs {
    /// What to share [default: 256 MiB made for it]
    file: Option<std::path::PathBuf>,
}

/// Runs the demo.
pub(crate) async fn run(_context: &Context, _args: DemoArgs) -> Result<(), Fail> {
    Err(Fail::usage("not built yet"))
}
