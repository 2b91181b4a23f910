//! `potluck ui`: serves a page in a browser that shows and controls the peer.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
};

use clap::Args;
use serde_json::json;

use crate::{
    context::{CommandContext, PeerHandle},
    error::CommandError,
    ui::{PageServer, PageSources},
};

const EXAMPLES: &str = "\
Examples:
  potluck ui                            print the link to the page
  potluck ui --open                     open it in the browser
  potluck ui --listen 127.0.0.1:8313    choose the port, for `ssh -L`

The link works once, in one browser. The page is served on this machine only,
until the command is stopped. Without a running peer, the command runs one.";

/// Show downloads, library, limits and index as a live page in a browser
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UiArgs {
    /// Address on loopback to serve the page on; port 0 chooses a free port
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:0",
        env = "POTLUCK_UI_LISTEN",
        hide_env_values = true
    )]
    listen: SocketAddr,

    /// Open the page in the browser
    #[arg(long)]
    open: bool,
}

/// Serves the page until the command is stopped.
pub(crate) async fn run(context: &CommandContext, args: UiArgs) -> Result<(), CommandError> {
    let server = PageServer::bind(args.listen).await?;
    let peer = match context.stoppable(context.running_peer()).await? {
        Some(peer) => peer,
        None => context.stoppable(context.start_peer(None, false)).await?,
    };
    let served = serve(context, &peer, server, args.open).await;
    peer.close().await;
    served
}

async fn serve(
    context: &CommandContext,
    peer: &PeerHandle,
    server: PageServer,
    open: bool,
) -> Result<(), CommandError> {
    let target = match peer.is_in_process() {
        true => Some(std::env::current_dir().map_err(|error| {
            CommandError::io("find the current folder", std::path::Path::new("."), &error)
        })?),
        false => None,
    };
    let sources = PageSources {
        peer: peer.control.clone(),
        index: context.index_in_use(Some(peer))?,
        target,
        stop: context.stop.clone(),
    };
    let link = server.link();
    match context.out.is_json() {
        true => context.out.print_object(&json!({ "url": link }))?,
        false => context.out.print_line(&link)?,
    }
    if peer.ends_with_command() {
        context
            .out
            .note("this command's own peer runs until the command is stopped");
    }
    if open && let Err(error) = open_browser(&link) {
        context.out.warn(format_args!("{error}: open the link yourself"));
    }
    context.out.note("press Ctrl-C to stop");
    server.serve(sources).await;
    Ok(())
}

/// Starts the browser of this desktop.
///
/// # Errors
/// What happened, for people.
fn open_browser(link: &str) -> Result<(), String> {
    let program = match cfg!(target_os = "macos") {
        true => "open",
        false => "xdg-open",
    };
    let null = Stdio::null;
    let started = Command::new(program)
        .arg(link)
        .stdin(null())
        .stdout(null())
        .stderr(null())
        .spawn();
    match started {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("cannot start a browser with {program}: {error}")),
    }
}
