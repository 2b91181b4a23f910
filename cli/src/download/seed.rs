//! Waits while this command's peer serves a finished download.

use std::time::Instant;

use crate::{
    context::{CommandContext, PeerHandle},
    control::model::Transfer,
    output::{
        draw,
        progress::{POLL_INTERVAL, ProgressLines},
        text,
    },
};

/// Waits until the limit of a finished download is reached, if the peer would stop with the
/// command, and shows what it sends. Ctrl-C ends the wait: the download is done.
pub(crate) async fn seed(context: &CommandContext, peer: &PeerHandle, transfer: &Transfer) {
    if !transfer.is_seeding || !peer.ends_with_command() {
        return;
    }
    context
        .out
        .note("serves it to others until the limit of --seed; Ctrl-C ends that");
    let mut progress = ProgressLines::new(context.out.bars());
    let mut sent = (Instant::now(), transfer.uploaded);
    loop {
        tokio::select! {
            // Both arms only wait.
            () = context.stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let current = match peer.control.explain(transfer.number).await {
            Ok(explained) if explained.transfer.is_seeding => explained.transfer,
            // Without an answer, nothing is served either.
            _ => return,
        };
        if context.out.shows_progress() {
            let (then, before) = std::mem::replace(&mut sent, (Instant::now(), current.uploaded));
            let rate = text::mean_rate(current.uploaded.saturating_sub(before), then.elapsed());
            let size = current.total.unwrap_or_default();
            let line = seeding_line(current.uploaded, size, &rate);
            progress.show(|width| vec![draw::truncate(&line, width)]);
        }
    }
}

/// What was sent, as bytes and as a ratio of the size, and how fast.
fn seeding_line(uploaded: u64, size: u64, rate: &str) -> String {
    let ratio = match size {
        0 => String::new(),
        size => format!(" ({:.2} of its size)", uploaded as f64 / size as f64),
    };
    format!("sent {}{ratio}  {rate}", text::size(uploaded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_the_ratio_that_a_limit_is_given_in() {
        let line = seeding_line(96 << 20, 64 << 20, "2.0 MiB/s");
        assert_eq!(line, "sent 96.00 MiB (1.50 of its size)  2.0 MiB/s");
        assert_eq!(seeding_line(0, 0, "0 B/s"), "sent 0 B  0 B/s");
    }
}
