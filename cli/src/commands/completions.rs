//! `potluck completions`: prints shell completion scripts.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::{
    completion::{self, CompletedShell},
    error::CommandError,
    output::Output,
};

const EXAMPLES: &str = "\
Examples:
  potluck completions bash > ~/.local/share/bash-completion/completions/potluck
  potluck completions zsh  > ~/.zfunc/_potluck
  potluck completions fish > ~/.config/fish/completions/potluck.fish

In these shells, Tab also completes names and ids of files, shared items and
transfers. They come from the index and the running peer.";

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
    let shell = match args.shell {
        Shell::Bash => CompletedShell::Bash,
        Shell::Zsh => CompletedShell::Zsh,
        Shell::Fish => CompletedShell::Fish,
        // The other shells complete only commands and options.
        other => {
            let mut script = Vec::new();
            clap_complete::generate(other, program, "potluck", &mut script);
            return out.print_line(String::from_utf8_lossy(&script).trim_end());
        }
    };
    out.print_line(completion::script(shell).trim_end())
}
