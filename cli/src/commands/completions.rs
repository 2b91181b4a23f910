//! `potluck completions`: prints shell completion scripts.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::{args::Cli, error::CommandError, output::Output};

const EXAMPLES: &str = "\
Examples:
  potluck completions bash > ~/.local/share/bash-completion/completions/potluck
  potluck completions zsh  > ~/.zfunc/_potluck
  potluck completions fish > ~/.config/fish/completions/potluck.fish";

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// Shell to print the script for
    shell: Shell,
}

/// Prints the script.
pub(crate) fn run(out: &Output, args: &CompletionsArgs) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "potluck", &mut script);
    out.line(String::from_utf8_lossy(&script).trim_end())
}
