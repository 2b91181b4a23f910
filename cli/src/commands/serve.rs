//! `potluck index`, `potluck peer` and `potluck gateway`: run the services, with their own flags.

use clap::Args;
use potluck_core::{
    Reason,
    configuration::{Configured, ServiceCommand, Settings},
    process::Hangups,
};
use potluck_index::{RunError, ServeError};

use crate::{
    commands::{
        gateway::{self, GatewayArgs},
        index_store::IndexMaintenance,
    },
    context::CommandContext,
    error::CommandError,
    options::GlobalOptions,
};

/// Run an index, which knows which peers have which files, or look after its stored registrations
#[derive(Debug, Args)]
#[command(
    after_help = potluck_index::Options::help_footer("potluck index"),
    args_conflicts_with_subcommands = true
)]
pub(crate) struct IndexArgs {
    #[command(subcommand)]
    pub(crate) maintenance: Option<IndexMaintenance>,

    #[command(flatten)]
    pub(crate) options: potluck_index::Options,
}

/// Run a peer, which shares, serves and downloads files
#[derive(Debug, Args)]
#[command(after_help = potluck_peer::Options::help_footer("potluck peer"))]
pub(crate) struct PeerArgs {
    #[command(flatten)]
    pub(crate) options: potluck_peer::Options,
}

/// The services, whose options may be in a file.
pub(crate) fn services() -> [ServiceCommand; 3] {
    [index_service(), peer_service(), gateway_service()]
}

/// The index, whose options may be in a file.
pub(crate) fn index_service() -> ServiceCommand {
    ServiceCommand::subcommand::<potluck_index::Options>("index")
}

/// The peer, whose options may be in a file.
pub(crate) fn peer_service() -> ServiceCommand {
    ServiceCommand::subcommand::<potluck_peer::Options>("peer")
}

/// The gateway, whose options may be in a file, with those options of every command that it uses.
pub(crate) fn gateway_service() -> ServiceCommand {
    ServiceCommand::subcommand::<GatewayArgs>("gateway").with_options_of::<GlobalOptions>(&[
        "index",
        "credentials",
        "no-network",
        "tls-cert",
        "tls-key",
        "tls-ca",
        "log",
        "log-format",
        "otlp",
    ])
}

/// Runs an index until it is stopped.
pub(crate) async fn index(
    context: &CommandContext,
    configured: Configured<potluck_index::Options>,
    hangups: Hangups,
) -> Result<(), CommandError> {
    if configured.options.print_config {
        return print(context, &configured.settings);
    }
    potluck_index::run(configured, hangups, context.stop.clone())
        .await
        .map_err(|error| {
            let reason = match error {
                RunError::AddressInUse(_) => Reason::AddressInUse,
                RunError::Listen { .. } | RunError::Monitoring(_) => Reason::InvalidAddress,
                RunError::Options(_) | RunError::BeyondLoopback(_) => Reason::InvalidArgument,
                RunError::Serve(ServeError::Network(_)) => Reason::InvalidArgument,
                _ => Reason::StoreUnavailable,
            };
            CommandError::new(reason, with_causes(&error))
        })
}

/// Runs a peer until it is stopped.
pub(crate) async fn peer(
    context: &CommandContext,
    configured: Configured<potluck_peer::Options>,
    hangups: Hangups,
) -> Result<(), CommandError> {
    if configured.options.print_config {
        return print(context, &configured.settings);
    }
    Ok(potluck_peer::run(configured, hangups, context.stop.clone()).await?)
}

/// Runs a gateway until it is stopped.
pub(crate) async fn gateway(
    context: &CommandContext,
    configured: Configured<GatewayArgs>,
    hangups: Hangups,
) -> Result<(), CommandError> {
    if configured.options.print_config {
        return print(context, &configured.settings);
    }
    gateway::run(context, configured, hangups).await
}

fn print(context: &CommandContext, settings: &Settings) -> Result<(), CommandError> {
    context
        .out
        .print_lines(settings.to_string().lines().map(ToOwned::to_owned))
}

/// An error's message, followed by those causes that it does not already contain.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
