//! The resume state of a running transfer, kept up to date.

use std::{sync::Arc, time::Duration};

use potluck_core::Problem;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    download::engine::{active::ActiveDownload, driver::DISK_RETRY},
    fs::blocking::blocking,
};

/// Time between two checkpoints: what a crash can cost.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// Time to the first one, so that even a short run leaves something to resume from.
const FIRST_CHECKPOINT_AFTER: Duration = Duration::from_millis(250);

/// A checkpoint may take this part of the time: on a slow disk they become rarer.
const CHECKPOINT_SHARE: u32 = 10;

/// Records what is on disk every now and then, until `stop`.
///
/// # Errors
/// Where data was lost on its way to the disk; it cancels `stop`, as nothing that follows can be relied on.
pub(crate) async fn run_checkpoints(
    download: Arc<ActiveDownload>,
    stop: CancellationToken,
) -> Result<(), Problem> {
    let mut wait = FIRST_CHECKPOINT_AFTER;
    // What was found without a state that is believed is worth one.
    let mut stored = match download.part_file.has_valid_resume_state() {
        true => Some(download.have().count()),
        false => None,
    };
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
        let have = download.have();
        wait = CHECKPOINT_INTERVAL;
        let count = have.count();
        if Some(count) == stored {
            continue;
        }
        let (part, started) = (Arc::clone(&download.part_file), Instant::now());
        match blocking(move || part.checkpoint(&have))
            .await
            .and_then(|done| done)
        {
            Ok(()) => {
                (stored, failing) = (Some(count), false);
                wait = CHECKPOINT_INTERVAL.max(started.elapsed() * CHECKPOINT_SHARE);
            }
            Err(problem) if download.part_file.sync_failed() => {
                stop.cancel();
                return Err(problem);
            }
            // Tried again whether or not more has come by then, and said once.
            Err(problem) => {
                if !failing {
                    tracing::warn!(%problem, "the resume state could not be written; tried again");
                }
                (wait, failing) = (DISK_RETRY, true);
            }
        }
    }
}
