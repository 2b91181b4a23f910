//! `potluck completions`: prints shell completion scripts.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::{error::CommandError, output::Output};

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

/// Prints the script for the command line `program`.
pub(crate) fn run(
    out: &Output,
    args: &CompletionsArgs,
    program: &mut Command,
) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, program, "potluck", &mut script);
    out.print_line(String::from_utf8_lossy(&script).trim_end())
}
