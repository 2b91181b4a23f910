//! The commands, one module each: arguments and implementation.

pub(crate) mod check;
pub(crate) mod complete;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod get;
pub(crate) mod health;
pub(crate) mod id;
pub(crate) mod limits;
pub(crate) mod ls;
pub(crate) mod network;
pub(crate) mod query;
pub(crate) mod search;
pub(crate) mod serve;
pub(crate) mod share;
pub(crate) mod status;
pub(crate) mod transfers;
pub(crate) mod unshare;
pub(crate) mod verify;
pub(crate) mod why;

use clap::CommandFactory as _;

use crate::{
    args::{Cli, Command, Verb},
    context::CommandContext,
    error::CommandError,
};

/// Runs a command from the shell.
pub(crate) async fn run(context: &CommandContext, command: Command) -> Result<(), CommandError> {
    match command {
        Command::Verb(verb) => {
            context.stoppable(context.renew_membership()).await?;
            run_verb(context, verb).await
        }
        Command::Demo(args) => demo::run(context, args).await,
        Command::Index(args) => serve::index(context, args).await,
        Command::Peer(args) => serve::peer(context, args).await,
        Command::Network(args) => network::run(context, args).await,
        Command::Completions(args) => completions::run(&context.out, &args, &mut Cli::command()),
        Command::Complete(args) => complete::run(context, args, Cli::command()).await,
    }
}

/// Runs a command that the shell and the prompt share.
pub(crate) async fn run_verb(context: &CommandContext, verb: Verb) -> Result<(), CommandError> {
    match verb {
        Verb::Share(args) => share::run(context, args).await,
        Verb::Search(args) => context.stoppable(search::run(context, args)).await,
        Verb::Query(args) => context.stoppable(query::run(context, args)).await,
        Verb::Get(args) => get::run(context, *args).await,
        Verb::Unshare(args) => unshare::run(context, args).await,
        Verb::Ls(args) => ls::run(context, args).await,
        Verb::Transfers(args) => context.stoppable(transfers::run(context, args)).await,
        Verb::Why(args) => context.stoppable(why::run(context, args)).await,
        Verb::Limits(args) => context.stoppable(limits::run(context, args)).await,
        Verb::Id(args) => id::run(context, args).await,
        Verb::Verify(args) => verify::run(context, args).await,
        Verb::Check(args) => check::run(context, args).await,
        Verb::Status(args) => context.stoppable(status::run(context, args)).await,
        Verb::Health(args) => context.stoppable(health::run(context, args)).await,
    }
}
