//! `potluck man DIR`: writes manual pages. Packages use it.

use std::path::PathBuf;

use clap::{Args, Command};
use potluck_core::Reason;

use crate::error::CommandError;

/// Write the manual pages of all commands, for a package
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder for the pages, which exists
    dir: PathBuf,
}

/// Writes one page for the command line `program` and for each of its commands.
pub(crate) fn run(args: &ManArgs, program: Command) -> Result<(), CommandError> {
    clap_mangen::generate_to(program, &args.dir).map_err(|error| {
        let message = format!("cannot write manual pages to {}: {error}", args.dir.display());
        CommandError::new(Reason::Internal, message)
    })
}
