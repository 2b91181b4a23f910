//! `potluck health`: reports whether a service is up, for container health checks and scripts.

use clap::Args;
use potluck_core::grpc::transport::Endpoint;
use serde_json::json;

use crate::{
    context::CommandContext,
    error::{CommandError, ExitStatus},
};

const EXAMPLES: &str = "\
Examples:
  potluck health http://127.0.0.1:1313     is this index serving?
  potluck health http://127.0.0.1:12349    is this peer?
  potluck health unix:PATH/control.sock    is its control service?

Exit codes: 0 serving; 5 not serving, or nothing answers";

/// Check whether an index or peer is serving (grpc.health.v1)
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct HealthArgs {
    /// Address of the service, http://HOST:PORT or unix:PATH
    #[arg(value_name = "URL")]
    url: String,
}

/// Queries the service and prints its state.
pub(crate) async fn run(context: &CommandContext, args: HealthArgs) -> Result<(), CommandError> {
    let endpoint: Endpoint = args.url.parse()?;
    let is_serving = endpoint.is_serving().await?;
    match context.out.is_json() {
        true => context
            .out
            .print_object(&json!({ "endpoint": endpoint.to_string(), "serving": is_serving }))?,
        false => context
            .out
            .print_line(if is_serving { "serving" } else { "not serving" })?,
    }
    match is_serving {
        true => Ok(()),
        false => Err(CommandError::AlreadyReported(ExitStatus::Unreachable)),
    }
}
