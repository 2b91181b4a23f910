//! Removes entries, step by step.
//!
//! 1. The entry is marked as leaving, so that nobody begins to use it.
//! 2. The library stops sharing it, unless its owner asked to share it: then it stays.
//! 3. It gets another name, which ends in `.leaving`. From here on it goes, also after a crash.
//! 4. If its owner shared it in between, it gets its name back.
//! 5. Its bytes are deleted, and then its row.
//!
//! A failed write to the database stops none of these steps: on a full disk, room must be made before
//! the database can be written again.

use std::{fs, io, path::Path, sync::atomic::Ordering};

use potluck_core::{Problem, Reason, durable};

use super::{
    Cache,
    cause::{Evicted, EvictionCause},
    files::{delete, leaving_path, part_of, state_of},
    policy::{self, Candidate, Goal, NoRoom},
};

/// Free space that a download leaves on a disk; the same as when it is prepared.
const RESERVE: u64 = 16 << 20;

/// Bytes to free if the disk reports free space and writes fail, as with a quota.
const QUOTA_STEP: u64 = 64 << 20;

impl Cache {
    /// Removes what is above the limit or was not used for too long; with `max_bytes`, also what is
    /// above that.
    ///
    /// # Errors
    /// Only if a task of the peer failed.
    pub async fn collect(&self, max_bytes: Option<u64>) -> Result<Vec<Evicted>, Problem> {
        let cache = self.clone();
        crate::fs::blocking::blocking(move || {
            let mut gone = cache.evict_due();
            if let Some(max) = max_bytes {
                gone.extend(cache.evict(Goal::Shrink(max), EvictionCause::Request));
            }
            gone
        })
        .await
    }

    /// Removes what is above the limit or was not used for too long. Blocks.
    pub(super) fn evict_due(&self) -> Vec<Evicted> {
        let settings = self.settings();
        let mut gone = Vec::new();
        if !settings.max_idle.is_zero() {
            let since = super::now().saturating_sub(settings.max_idle.as_secs());
            gone.extend(self.evict(Goal::UnusedSince(since), EvictionCause::Idle));
        }
        if settings.max_bytes > 0 {
            let goal = Goal::Limit {
                max: settings.max_bytes,
                incoming: 0,
            };
            gone.extend(self.evict(goal, EvictionCause::Limit));
        }
        gone
    }

    /// Makes room below the limit for `incoming` more bytes. Blocks.
    ///
    /// # Errors
    /// [`Reason::DiskFull`] or [`Reason::Busy`]: they do not fit, and nothing was removed.
    pub(super) fn make_room(&self, incoming: u64) -> Result<(), Problem> {
        let max = self.settings().max_bytes;
        if max == 0 {
            return Ok(());
        }
        let _order = self.shared.evicting.lock();
        match self.choose(Goal::Limit { max, incoming }) {
            Ok(names) => drop(self.remove_all(&names, EvictionCause::Limit)),
            Err(NoRoom { protected }) => {
                let pinned = self.totals().pinned_bytes;
                return Err(no_room(incoming, max, pinned, protected));
            }
        }
        Ok(())
    }

    /// Frees the disk of the cache so that a file of `bytes` at `near` fits, if that path is on the
    /// same disk. Returns the number of bytes freed. Blocks.
    pub(crate) fn free_disk(&self, near: &Path, bytes: u64) -> u64 {
        let Some(available) = self.available_for(near) else {
            return 0;
        };
        let wanted = bytes.saturating_add(RESERVE);
        let missing = match wanted.saturating_sub(available) {
            0 => bytes.clamp(1, QUOTA_STEP),
            missing => missing,
        };
        let gone = self.evict(Goal::Free(missing), EvictionCause::Disk);
        gone.iter().map(|evicted| evicted.entry.bytes).sum()
    }

    /// Free bytes of the disk of `near`, if it is that of the cache.
    fn available_for(&self, near: &Path) -> Option<u64> {
        use std::os::unix::fs::MetadataExt as _;
        let existing = near.ancestors().find(|path| path.exists())?;
        let (disk, own) = (
            existing.metadata().ok()?.dev(),
            self.folder().metadata().ok()?.dev(),
        );
        let free = rustix::fs::statvfs(existing).ok()?;
        (disk == own).then(|| free.f_bavail.saturating_mul(free.f_frsize))
    }

    fn evict(&self, goal: Goal, cause: EvictionCause) -> Vec<Evicted> {
        let _order = self.shared.evicting.lock();
        let names = self.choose(goal).unwrap_or_default();
        self.remove_all(&names, cause)
    }

    /// The names of the entries to remove.
    fn choose(&self, goal: Goal) -> Result<Vec<String>, NoRoom> {
        let state = self.shared.state.lock();
        let candidates: Vec<_> = state
            .slots
            .values()
            .map(|slot| Candidate {
                bytes: slot.entry.bytes,
                last_used: slot.entry.last_used,
                is_protected: slot.is_protected(),
            })
            .collect();
        let chosen = policy::choose(&candidates, goal)?;
        let names: Vec<&String> = state.slots.keys().collect();
        Ok(chosen.into_iter().map(|index| names[index].clone()).collect())
    }

    fn remove_all(&self, names: &[String], cause: EvictionCause) -> Vec<Evicted> {
        let removed = names.iter().filter_map(|name| match self.remove(name, cause) {
            Ok(removed) => removed,
            Err(error) => {
                tracing::warn!(name, %error, "could not remove an entry of the cache");
                None
            }
        });
        removed.collect()
    }

    fn remove(&self, name: &str, cause: EvictionCause) -> io::Result<Option<Evicted>> {
        let entry = {
            let mut state = self.shared.state.lock();
            let Some(slot) = state.slots.get_mut(name).filter(|slot| !slot.is_protected()) else {
                return Ok(None);
            };
            slot.is_leaving = true;
            slot.entry.clone()
        };
        let removed = self.remove_bytes(name);
        {
            let mut state = self.shared.state.lock();
            match &removed {
                Ok(true) => drop(state.slots.remove(name)),
                _ => {
                    if let Some(slot) = state.slots.get_mut(name) {
                        slot.is_leaving = false;
                    }
                }
            }
        }
        self.shared.left.notify_waiters();
        if !removed? {
            return Ok(None);
        }
        // Otherwise the next start forgets it.
        if let Err(problem) = self.store(&[name.to_owned()]) {
            tracing::debug!(name, %problem, "the row of a removed entry stays for now");
        }
        self.shared.evictions[cause as usize].fetch_add(1, Ordering::Relaxed);
        self.shared
            .evicted_bytes
            .fetch_add(entry.bytes, Ordering::Relaxed);
        tracing::info!(
            name,
            label = entry.label,
            bytes = entry.bytes,
            cause = cause.word(),
            "removed from the cache"
        );
        Ok(Some(Evicted { entry, cause }))
    }

    /// Removes the bytes of an entry; false if its owner shares it.
    fn remove_bytes(&self, name: &str) -> io::Result<bool> {
        let path = self.path(name);
        let leaving = leaving_path(&path);
        if !self.shared.library.release_cached(&path) {
            return Ok(false);
        }
        match fs::rename(&path, &leaving) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if self.shared.library.is_requested_at(&path) {
            return match fs::rename(&leaving, &path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(false),
            };
        }
        for path in [leaving, part_of(&path), state_of(&path)] {
            delete(&path)?;
        }
        durable::sync_folder(self.folder())?;
        Ok(true)
    }
}

fn no_room(incoming: u64, max: u64, pinned: u64, protected: u64) -> Problem {
    if pinned.saturating_add(incoming) <= max {
        let message = format!(
            "no room in the cache now: {protected} bytes are pinned or in use, and the limit is {max} \
             bytes; it is tried again when they are no longer used"
        );
        return Problem::new(Reason::Busy, message).retry_after(std::time::Duration::from_secs(5));
    }
    Problem::new(
        Reason::DiskFull,
        format!(
            "{incoming} bytes do not fit into the cache: its limit is {max} bytes, {pinned} of them \
             pinned; raise --cache-size, or unpin something with `potluck cache unpin`"
        ),
    )
}
