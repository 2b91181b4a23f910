//! Waits while this command's peer serves a finished download.

use crate::{
    context::{CommandContext, PeerHandle},
    control::model::Transfer,
    output::progress::POLL_INTERVAL,
};

/// Waits until the limit of a finished download is reached, if the peer would stop with the
/// command. Ctrl-C ends the wait: the download is done.
pub(crate) async fn seed(context: &CommandContext, peer: &PeerHandle, transfer: &Transfer) {
    if !transfer.is_seeding || !peer.ends_with_command() {
        return;
    }
    context
        .out
        .note("serves it to others until the limit of --seed; Ctrl-C ends that");
    loop {
        tokio::select! {
            // Both arms only wait.
            () = context.stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        match peer.control.explain(transfer.number).await {
            Ok(explained) if explained.transfer.is_seeding => {}
            // Without an answer, nothing is served either.
            _ => return,
        }
    }
}
