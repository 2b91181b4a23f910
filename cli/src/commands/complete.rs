//! `potluck complete`: answers the completion scripts of shells.

use std::{ffi::OsString, sync::Arc};

use clap::{Args, Command};

use crate::{
    completion::{self, CandidateFinder, CompletedShell},
    context::CommandContext,
    error::CommandError,
};

/// Complete a line, for the scripts of `potluck completions`
#[derive(Debug, Args)]
pub(crate) struct CompleteArgs {
    /// Shell that asks
    shell: CompletedShell,

    /// What its script passes
    #[arg(last = true, allow_hyphen_values = true)]
    line: Vec<OsString>,
}

/// Prints the answer for the script. `command` is the command line to complete.
pub(crate) async fn run(
    context: &CommandContext,
    args: CompleteArgs,
    command: Command,
) -> Result<(), CommandError> {
    // Text that is not UTF-8 has no candidates.
    let Ok(line) = args
        .line
        .into_iter()
        .map(OsString::into_string)
        .collect::<Result<Vec<_>, _>>()
    else {
        return Ok(());
    };
    let finder = CandidateFinder::new(context.clone(), tokio::runtime::Handle::current());
    // The engine blocks while it waits for candidates.
    let answered = tokio::task::spawn_blocking(move || {
        completion::answer(args.shell, &line, |words| {
            let finder = finder.for_line(&words);
            let find = move |source, prefix: &str| finder.find(source, prefix);
            completion::complete(command, words, Arc::new(find))
        })
    });
    // A panic there means that there are no candidates.
    context.out.print_lines(answered.await.unwrap_or_default())
}
