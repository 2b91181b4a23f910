//! `potluck health`: reports whether a service is up, for container health checks and scripts.

use clap::Args;
use potluck_core::{monitoring, network::tls::ServerIdentity};
use serde_json::json;
use tonic::transport::Uri;

use crate::{
    context::CommandContext,
    error::{CommandError, ExitStatus},
};

const EXAMPLES: &str = "\
Examples:
  potluck health localhost:1313            an index on this machine
  potluck health 192.0.2.7:12349           a peer on another machine
  potluck health https://192.0.2.7:12349   a server of its private network
  potluck health unix:PATH/control.sock    the control service of a peer
  potluck health http://localhost:9313/readyz
                                           a monitoring endpoint (--metrics)

Exit codes: 0 serving, 5 not serving or unreachable";

/// Check whether an index or a peer is serving
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct HealthArgs {
    /// Address of the service, as HOST:PORT, PORT or unix:PATH, or a page of a monitoring endpoint
    #[arg(value_name = "ADDRESS")]
    address: String,
}

/// Queries the service and prints its state.
pub(crate) async fn run(context: &CommandContext, args: HealthArgs) -> Result<(), CommandError> {
    let (endpoint, is_serving) = match page(&args.address) {
        Some(page) => (page.to_string(), monitoring::check(&page).await?),
        None => {
            let endpoint = context.server_at(&args.address, ServerIdentity::Any)?;
            let is_serving = endpoint.is_serving().await?;
            (endpoint.to_string(), is_serving)
        }
    };
    match context.out.is_json() {
        true => context
            .out
            .print_object(&json!({ "endpoint": endpoint, "serving": is_serving }))?,
        false => context
            .out
            .print_line(if is_serving { "serving" } else { "not serving" })?,
    }
    match is_serving {
        true => Ok(()),
        false => Err(CommandError::AlreadyReported(ExitStatus::Unreachable)),
    }
}

/// The page of a monitoring endpoint with this address; `None` for a gRPC service, which has no path.
fn page(address: &str) -> Option<Uri> {
    let uri: Uri = address.parse().ok()?;
    (uri.scheme_str() == Some("http") && uri.path().len() > 1).then_some(uri)
}
