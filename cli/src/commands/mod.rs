//! The commands, one module each: arguments and implementation.

pub(crate) mod cache;
pub(crate) mod check;
pub(crate) mod complete;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod gateway;
pub(crate) mod get;
pub(crate) mod health;
pub(crate) mod id;
pub(crate) mod index_store;
pub(crate) mod limits;
pub(crate) mod ls;
pub(crate) mod man;
pub(crate) mod network;
pub(crate) mod query;
pub(crate) mod search;
pub(crate) mod serve;
pub(crate) mod share;
pub(crate) mod status;
pub(crate) mod transfers;
pub(crate) mod ui;
pub(crate) mod unshare;
pub(crate) mod verify;
pub(crate) mod why;

use clap::{CommandFactory as _, FromArgMatches};
use potluck_core::{
    configuration::{Configured, ServiceCommand},
    process::Hangups,
};

use crate::{
    args::{Cli, Command, Verb, usage_message},
    context::CommandContext,
    error::CommandError,
};

/// Runs a command from the shell. A service reads its settings again at each of the `hangups`.
pub(crate) async fn run(
    context: &CommandContext,
    command: Command,
    hangups: Hangups,
) -> Result<(), CommandError> {
    match command {
        Command::Verb(verb) => {
            if uses_network(&verb) {
                context.stoppable(context.renew_membership()).await?;
            }
            run_verb(context, verb).await
        }
        Command::Demo(args) => demo::run(context, args).await,
        Command::Index(args) => match args.maintenance {
            Some(maintenance) => maintenance.run(context).await,
            None => {
                let configured = configured(serve::index_service())?;
                serve::index(context, configured, hangups).await
            }
        },
        Command::Peer(_) => {
            let configured = configured(serve::peer_service())?;
            serve::peer(context, configured, hangups).await
        }
        Command::Gateway(_) => {
            let configured = configured(serve::gateway_service())?;
            serve::gateway(context, configured, hangups).await
        }
        Command::Network(args) => network::run(context, args).await,
        Command::Completions(args) => completions::run(&context.out, &args, &mut Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
        Command::Complete(args) => complete::run(context, args, Cli::command()).await,
    }
}

/// The options of a service, which can be read again.
fn configured<O: FromArgMatches + 'static>(
    service: ServiceCommand,
) -> Result<Configured<O>, CommandError> {
    Configured::read(Cli::command(), service, std::env::args_os().collect())
        .map_err(|error| CommandError::usage(usage_message(&error)))
}

/// Whether a command needs the certificate of this machine. Others work although it has expired.
const fn uses_network(verb: &Verb) -> bool {
    match verb {
        Verb::Share(_) | Verb::Search(_) | Verb::Query(_) | Verb::Get(_) | Verb::Ui(_) => true,
        Verb::Unshare(_)
        | Verb::Ls(_)
        | Verb::Transfers(_)
        | Verb::Why(_)
        | Verb::Limits(_)
        | Verb::Id(_)
        | Verb::Verify(_)
        | Verb::Check(_)
        | Verb::Cache(_)
        | Verb::Status(_)
        | Verb::Health(_) => false,
    }
}

/// Runs a command that the shell and the prompt share.
pub(crate) async fn run_verb(context: &CommandContext, verb: Verb) -> Result<(), CommandError> {
    match verb {
        Verb::Share(args) => share::run(context, *args).await,
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
        Verb::Cache(args) => context.stoppable(cache::run(context, args)).await,
        Verb::Status(args) => context.stoppable(status::run(context, args)).await,
        Verb::Health(args) => context.stoppable(health::run(context, args)).await,
        Verb::Ui(args) => ui::run(context, args).await,
    }
}
