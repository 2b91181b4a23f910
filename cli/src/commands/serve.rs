//! `potluck index` and `potluck peer`: run the services, with their own flags.

use clap::Args;
use potluck_core::Reason;
use potluck_index::{RunError, ServeError};

use crate::{context::CommandContext, error::CommandError};

/// Run an index, which knows which peers have which files
#[derive(Debug, Args)]
#[command(after_help = potluck_index::Options::help_footer("potluck index"))]
pub(crate) struct IndexArgs {
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

/// Runs an index until it is stopped.
pub(crate) async fn index(context: &CommandContext, args: IndexArgs) -> Result<(), CommandError> {
    potluck_index::run(args.options, context.stop.clone())
        .await
        .map_err(|error| {
            let reason = match error {
                RunError::AddressInUse(_) => Reason::AddressInUse,
                RunError::Listen { .. } => Reason::InvalidAddress,
                RunError::Options(_) | RunError::BeyondLoopback(_) => Reason::InvalidArgument,
                RunError::Serve(ServeError::Network(_)) => Reason::InvalidArgument,
                _ => Reason::StoreUnavailable,
            };
            CommandError::new(reason, with_causes(&error))
        })
}

/// Runs a peer until it is stopped.
pub(crate) async fn peer(context: &CommandContext, args: PeerArgs) -> Result<(), CommandError> {
    Ok(potluck_peer::run(args.options, context.stop.clone()).await?)
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
