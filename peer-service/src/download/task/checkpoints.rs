//! Writes the resume state of a running download at intervals.
//!
//! Invariant: a checkpoint lists only units that were verified before its flush started.

use std::{sync::Arc, time::Duration};

use potluck_core::Problem;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    download::{engine::active::ActiveDownload, storage::target::DISK_RETRY},
    fs::blocking::blocking,
};

/// Interval between checkpoints: bounds how much progress a crash loses.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// Delay before the first checkpoint, so that even a short run can be resumed.
const FIRST_CHECKPOINT_AFTER: Duration = Duration::from_millis(250);

/// The interval is at least this many times the duration of a checkpoint, so slow disks get fewer.
const MIN_INTERVAL_FACTOR: u32 = 10;

/// Writes checkpoints until `stop` is cancelled.
///
/// # Errors
/// If written data did not reach the disk. It then cancels `stop`, because later writes are
/// unreliable too.
pub(crate) async fn run_checkpoints(
    download: Arc<ActiveDownload>,
    stop: CancellationToken,
) -> Result<(), Problem> {
    let mut wait = FIRST_CHECKPOINT_AFTER;
    // Units found on disk without a valid resume state must be recorded, so the first checkpoint is
    // due.
    let mut stored_count = match download.part_file.has_valid_resume_state() {
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
        if Some(count) == stored_count {
            continue;
        }
        let (part, started) = (Arc::clone(&download.part_file), Instant::now());
        match blocking(move || part.checkpoint(&have))
            .await
            .and_then(|written| written)
        {
            Ok(()) => {
                (stored_count, failing) = (Some(count), false);
                wait = CHECKPOINT_INTERVAL.max(started.elapsed() * MIN_INTERVAL_FACTOR);
            }
            Err(problem) if download.part_file.sync_failed() => {
                stop.cancel();
                return Err(problem);
            }
            // Retried even if no further units arrive, and logged once.
            Err(problem) => {
                if !failing {
                    tracing::warn!(%problem, "could not write the resume state; tries again");
                }
                (wait, failing) = (DISK_RETRY, true);
            }
        }
    }
}
