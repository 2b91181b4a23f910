//! The command line: maps each verb to a module of [`commands`], which defines its arguments.

use clap::{Parser, Subcommand};

use crate::{commands, options::GlobalOptions};

const EXAMPLES: &str = "\
Examples:
  potluck demo             watch one file arrive from three peers at once
  potluck share model.bin  share a file where it is
  potluck search model     find files by words in their names
  potluck get model.bin    download a file from all peers that have it
  potluck                  start the interactive prompt

Environment:
  POTLUCK_PEER_HOME        home of the peer that commands use
                           [default: peer-12349 in the user's data folder]
  POTLUCK_PEER_TOKEN       control token, instead of --peer-token-file
  POTLUCK_LOG              log filter, as in POTLUCK_LOG=potluck_peer=debug
  The help of `index` and `peer` lists the variables of these services.

Exit codes:
  0 done, 1 failed, 2 usage, 3 not found, 4 verification failed,
  5 index or peer unreachable, 130 interrupted";

/// Share files, and download each from many peers at once, every piece verified
#[derive(Debug, Parser)]
#[command(
    name = "potluck",
    version = potluck_core::VERSION,
    after_help = EXAMPLES,
    max_term_width = 100,
    subcommand_help_heading = "Commands"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) options: GlobalOptions,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// The commands of `potluck`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Verb(Verb),
    Demo(commands::demo::DemoArgs),
    Index(commands::serve::IndexArgs),
    Peer(commands::serve::PeerArgs),
    Gateway(commands::gateway::GatewayArgs),
    Network(commands::network::NetworkArgs),
    Completions(commands::completions::CompletionsArgs),
    #[command(hide = true)]
    Man(commands::man::ManArgs),
    #[command(hide = true)]
    Complete(commands::complete::CompleteArgs),
}

/// The commands available both in the shell and at the prompt.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    #[command(visible_alias = "register")]
    Share(Box<commands::share::ShareArgs>),
    Search(commands::search::SearchArgs),
    Query(commands::query::QueryArgs),
    Get(Box<commands::get::GetArgs>),
    #[command(visible_alias = "unregister")]
    Unshare(commands::unshare::UnshareArgs),
    #[command(visible_alias = "list")]
    Ls(commands::ls::LsArgs),
    Transfers(commands::transfers::TransfersArgs),
    Why(commands::why::WhyArgs),
    Limits(commands::limits::LimitsArgs),
    Id(commands::id::IdArgs),
    Verify(commands::verify::VerifyArgs),
    Check(commands::check::CheckArgs),
    Cache(commands::cache::CacheArgs),
    Status(commands::status::StatusArgs),
    Health(commands::health::HealthArgs),
    Ui(commands::ui::UiArgs),
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
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_are_accepted_anywhere() {
        for line in [
            &["potluck", "--index", "http://a:1", "--json", "search", "x"][..],
            &["potluck", "search", "x", "--json", "--index", "http://a:1"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.options.index.as_deref(), Some("http://a:1"));
            assert!(cli.options.json);
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
            assert_eq!(args.options.index.as_deref(), Some("http://a:1"), "{line:?}");
        }
    }

    #[test]
    fn a_missing_argument_is_named() {
        let error = Cli::try_parse_from(["potluck", "get"]).unwrap_err();
        assert!(
            usage_message(&error).contains("<ID|NAME|sha256:HEX|ORIGIN>"),
            "{}",
            usage_message(&error)
        );
    }

    #[test]
    fn examples_fit_a_narrow_terminal() {
        let mut wide = Vec::new();
        for command in std::iter::once(&Cli::command()).chain(Cli::command().get_subcommands()) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let lines = help.lines().filter(|line| line.chars().count() > 80);
            wide.extend(lines.map(|line| format!("{}: {line}", command.get_name())));
        }
        assert!(wide.is_empty(), "{wide:#?}");
    }

    #[test]
    fn the_help_of_every_verb_has_an_example() {
        for command in Cli::command()
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
        {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("potluck"), "{} has no example", command.get_name());
        }
    }
}
