//! The lock on a part, and the removal of parts.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind},
    os::{fd::AsFd, unix::fs::OpenOptionsExt as _},
};

use potluck_core::FileId;
use rustix::{
    fs::{FlockOperation, OFlags},
    io::Errno,
};

use crate::download::storage::{resume_state::ResumeState, target::DownloadTarget};

/// Takes the lock on a part; false if another holder has it. On file systems without locks it
/// always succeeds.
pub(super) fn try_lock(part: impl AsFd) -> bool {
    rustix::fs::flock(part, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK)
}

/// Removes the unfinished download of this id, unless another download is writing it.
///
/// # Errors
/// The file system's error.
pub(crate) fn remove(id: FileId, target: &DownloadTarget) -> io::Result<()> {
    let state = target.state();
    // Removes only what a resume state of this download identifies.
    if ResumeState::load(&state)?.is_none_or(|state| state.id != id) {
        return Ok(());
    }
    let part = target.part();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = match OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(&part)
    {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return fs::remove_file(state),
        Err(error) => return Err(error),
    };
    // A running download to the same target may hold the part.
    if !try_lock(&opened) {
        tracing::info!(
            part = %part.display(),
            "another download is writing this part: removes nothing"
        );
        return Ok(());
    }
    let metadata = opened.metadata()?;
    match metadata.is_dir() {
        true => fs::remove_dir_all(&part)?,
        false if metadata.is_file() => fs::remove_file(&part)?,
        // Not created by a download.
        false => return Ok(()),
    }
    fs::remove_file(state)
}
