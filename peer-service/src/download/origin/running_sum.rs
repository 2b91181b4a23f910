//! The SHA-256 of a file, in order, while its pieces arrive in any order.
//!
//! Invariant: the sum covers exactly the bytes on disk before `next`. If a piece before it is
//! replaced, the sum starts over.

use std::{io, sync::Arc};

use parking_lot::Mutex;
use potluck_core::Sha256;
use sha2::Digest as _;
use tokio_util::sync::CancellationToken;

use crate::{
    download::{engine::active::ActiveDownload, origin::pieces::ProvisionalPieces},
    fs::blocking::blocking,
};

/// Units that are hashed before other work may use the thread.
const UNITS_PER_STEP: u32 = 64;

/// The sum so far.
#[derive(Debug, Default)]
pub(crate) struct RunningSum(Mutex<SumState>);

#[derive(Debug, Default)]
struct SumState {
    next: u32,
    hash: sha2::Sha256,
    resets: u64,
}

impl RunningSum {
    /// Hashes the units that follow and are there, up to a number of them. Returns whether more may
    /// follow at once. Blocks.
    ///
    /// # Errors
    /// If the part file cannot be read.
    pub(crate) fn advance(
        &self,
        download: &ActiveDownload,
        pieces: &ProvisionalPieces,
    ) -> io::Result<bool> {
        let state = &mut *self.0.lock();
        let units = download.part_file.plan().unit_count();
        for _ in 0..UNITS_PER_STEP {
            let resets = pieces.resets();
            if resets != state.resets {
                *state = SumState {
                    resets,
                    ..SumState::default()
                };
            }
            if state.next >= units || !download.has(state.next) {
                return Ok(false);
            }
            let data = download.part_file.read(state.next)?;
            data.slices(0..data.len()).for_each(|run| state.hash.update(run));
            // A piece that was replaced while it was read shows in the next step.
            state.next += 1;
        }
        Ok(true)
    }

    /// The SHA-256 once all units are there. Blocks.
    ///
    /// # Errors
    /// If the part file cannot be read.
    pub(crate) fn finish(
        &self,
        download: &ActiveDownload,
        pieces: &ProvisionalPieces,
    ) -> io::Result<Sha256> {
        while self.advance(download, pieces)? {}
        let state = &mut *self.0.lock();
        match state.next == download.part_file.plan().unit_count() {
            true => Ok(Sha256(std::mem::take(&mut state.hash).finalize().into())),
            false => Err(io::Error::other("a piece is missing")),
        }
    }

    /// Follows the download until `stop`.
    pub(crate) async fn follow(
        self: Arc<Self>,
        download: Arc<ActiveDownload>,
        pieces: Arc<ProvisionalPieces>,
        stop: CancellationToken,
    ) {
        let mut changes = download.changes();
        loop {
            changes.borrow_and_update();
            let (sum, part, all) = (Arc::clone(&self), Arc::clone(&download), Arc::clone(&pieces));
            let advanced = blocking(move || sum.advance(&part, &all)).await;
            // The end reads again and reports the error.
            let Ok(Ok(more)) = advanced else { return };
            if stop.is_cancelled() {
                return;
            }
            if !more {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
            }
        }
    }
}
