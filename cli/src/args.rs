//! Command-line definitions for clap. Each command defines its own arguments in [`commands`].

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use clap::{
    Args, CommandFactory as _, Parser, Subcommand,
    builder::{FalseyValueParser, TypedValueParser as _},
};

use crate::commands;

/// Environment variable equivalent to `--json`.
pub(crate) const JSON_VARIABLE: &str = "POTLUCK_JSON";

const EXAMPLES: &str = "\
Examples:
  potluck demo             watch one file come from three peers at once
  potluck share model.bin  share a file in place
  potluck search model     find files by words of their names
  potluck get model.bin    fetch it from everyone who has it
  potluck                  the interactive prompt

Exit codes:
  0 done, 1 failed, 2 usage, 3 not found, 4 verification failed,
  5 index or peer unreachable, 130 interrupted";

/// Share files, find them, and download one file from many peers at once, every piece verified
#[derive(Debug, Parser)]
#[command(name = "potluck", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Flags that every command accepts.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Globals {
    /// URL of the index [default: http://127.0.0.1:1313]
    #[arg(
        long,
        global = true,
        env = "POTLUCK_INDEX",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub(crate) index: Option<String>,

    /// Peer to use, unix:PATH or http://ADDR [default: the peer in the default home, if it is
    /// running]
    #[arg(
        long,
        global = true,
        env = "POTLUCK_PEER",
        hide_env_values = true,
        value_name = "ENDPOINT"
    )]
    pub(crate) peer: Option<String>,

    /// File with the control token, for a peer whose control service listens on TCP
    #[arg(
        long,
        global = true,
        env = "POTLUCK_PEER_TOKEN_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(crate) peer_token_file: Option<PathBuf>,

    /// Print one JSON object per line, errors included
    #[arg(long, global = true, env = JSON_VARIABLE, hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,

    /// Print only results and errors
    #[arg(short, long, global = true, env = "POTLUCK_QUIET", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub(crate) quiet: bool,

    /// Log to stderr; repeat for more detail
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// The subcommands of `potluck`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Verb(Verb),
    Demo(commands::demo::DemoArgs),
    Index(commands::serve::IndexArgs),
    Peer(commands::serve::PeerArgs),
    Completions(commands::completions::CompletionsArgs),
}

/// The commands available both in the shell and at the prompt.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Share(commands::share::ShareArgs),
    Search(commands::search::SearchArgs),
    Query(commands::query::QueryArgs),
    Get(commands::get::GetArgs),
    Unshare(commands::unshare::UnshareArgs),
    #[command(visible_alias = "list")]
    Ls(commands::ls::LsArgs),
    Transfers(commands::transfers::TransfersArgs),
    Why(commands::why::WhyArgs),
    Limits(commands::limits::LimitsArgs),
    Id(commands::id::IdArgs),
    Verify(commands::verify::VerifyArgs),
    Check(commands::check::CheckArgs),
    Status(commands::status::StatusArgs),
    Health(commands::health::HealthArgs),
}

impl Globals {
    /// These flags; those that are not set are taken from `outer`.
    pub(crate) fn over(&self, outer: &Self) -> Self {
        Self {
            index: self.index.clone().or_else(|| outer.index.clone()),
            peer: self.peer.clone().or_else(|| outer.peer.clone()),
            peer_token_file: self
                .peer_token_file
                .clone()
                .or_else(|| outer.peer_token_file.clone()),
            json: self.json || outer.json,
            quiet: self.quiet || outer.quiet,
            verbose: self.verbose.max(outer.verbose),
        }
    }
}

/// Whether `--json` is among the arguments. Works on a command line that clap rejected.
pub(crate) fn asks_json<T: AsRef<OsStr>>(words: impl IntoIterator<Item = T>) -> bool {
    words
        .into_iter()
        .take_while(|word| word.as_ref() != "--")
        .any(|word| word.as_ref() == "--json")
}

/// Whether this value of [`JSON_VARIABLE`] asks for JSON.
pub(crate) fn json_by_variable(value: Option<OsString>) -> bool {
    value.is_some_and(|value| {
        FalseyValueParser::new()
            .parse_ref(&Cli::command(), None, &value)
            .unwrap_or(false)
    })
}

/// The first paragraph of clap's error message, as one line.
pub(crate) fn usage_message(error: &clap::Error) -> String {
    let text = error.to_string();
    let paragraph: Vec<_> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let message = paragraph.join(" ");
    message.strip_prefix("error: ").unwrap_or(&message).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_anywhere() {
        for line in [
            &["potluck", "--index", "http://a:1", "--json", "search", "x"][..],
            &["potluck", "search", "x", "--json", "--index", "http://a:1"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.globals.index.as_deref(), Some("http://a:1"));
            assert!(cli.globals.json);
        }
    }

    #[test]
    fn a_peer_takes_the_index_before_and_after_its_name() {
        for line in [
            &["potluck", "--index", "http://a:1", "peer"][..],
            &["potluck", "peer", "--index", "http://a:1"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            let Some(Command::Peer(args)) = cli.command else {
                panic!("no peer")
            };
            assert_eq!(args.options.index, "http://a:1", "{line:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Cli::try_parse_from(["potluck", "get"]).unwrap_err();
        assert!(
            usage_message(&error).contains("<ID|NAME|sha256:HEX>"),
            "{}",
            usage_message(&error)
        );
    }

    #[test]
    fn examples_fit_a_narrow_terminal() {
        for command in std::iter::once(&Cli::command()).chain(Cli::command().get_subcommands()) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
        }
    }

    #[test]
    fn every_verb_teaches_by_example() {
        for command in Cli::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("potluck"), "{} has no example", command.get_name());
        }
    }
}
