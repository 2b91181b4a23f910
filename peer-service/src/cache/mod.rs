//! The cache: what this peer fetched on behalf of others, and may remove again.
//!
//! | module | purpose |
//! |---|---|
//! | `policy` | which entries go; pure |
//! | `entry` | an entry, and its stored form |
//! | `cause` | what was removed, and why |
//! | `files` | the files of an entry |
//! | `eviction` | removes entries, step by step |
//! | `opening` | the state after a restart |
//! | `serving` | marks what uploads use |
//! | `upkeep` | removes what is old, and stores when entries were used |
//!
//! The cache is a folder in the home, and a table in the peer's database with a row for each entry. The
//! row is stored before the first byte of an entry is written.
//!
//! Invariants:
//!
//! - Only an entry is ever removed: a file or folder directly in the cache folder whose row says that
//!   this peer put it there. Not even an entry is removed while its owner shares it explicitly, alone
//!   or as part of a folder.
//! - A pinned entry stays, and so does one that a download, an upload or a client uses.
//! - A crash at any time leaves each entry either whole or marked as leaving; the next start removes
//!   those.
//! - A use of an entry writes nothing. The times of uses are stored now and then.
//!
//! Non-goals: who may read an entry. The gateway asks the origin.

mod cause;
mod entry;
mod eviction;
mod files;
mod opening;
mod policy;
mod serving;
#[cfg(test)]
mod tests;
mod upkeep;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use potluck_core::{FileId, Problem, Reason, Sha256, durable, files::open_own, model::FileKind};
use tokio::sync::Notify;

use self::entry::{Slot, checked_name, encode};
pub(crate) use self::serving::CachedLibrary;
pub use self::{
    cause::{Evicted, EvictionCause},
    entry::CacheEntry,
};
use crate::{
    fs::blocking::blocking,
    library::Library,
    store::{Store, StoreError},
};

/// Settings of the cache; they may change while the peer runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheSettings {
    /// Maximum bytes; 0: no limit.
    pub max_bytes: u64,
    /// How long an entry stays without being used; zero: no limit.
    pub max_idle: Duration,
}

/// What is about to be put into the cache.
#[derive(Debug, Clone)]
pub struct NewEntry {
    /// Its file name: lower-case letters, digits and hyphens.
    pub name: String,
    /// For people: where it comes from.
    pub label: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its SHA-256, if that is known.
    pub sha256: Option<Sha256>,
}

/// Totals of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheTotals {
    /// Number of entries.
    pub entries: u64,
    /// The bytes that they take, or will take once they have arrived.
    pub bytes: u64,
    /// The part of them that is pinned.
    pub pinned_bytes: u64,
}

/// The cache of a peer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    store: Store,
    library: Library,
    settings: Mutex<CacheSettings>,
    state: Mutex<State>,
    /// Held while entries are removed, so that two callers do not make room for each other twice.
    evicting: Mutex<()>,
    /// Notified when an entry was removed.
    left: Notify,
    /// Held while rows are encoded and stored, so that an older row never replaces a newer one.
    storing: Mutex<()>,
    evictions: [AtomicU64; EvictionCause::ALL.len()],
    evicted_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<String, Slot>,
}

/// Keeps an entry from being removed.
#[derive(Debug)]
pub struct CacheUse {
    shared: Arc<Shared>,
    name: String,
}

impl Drop for CacheUse {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if let Some(slot) = state.slots.get_mut(&self.name) {
            slot.uses -= 1;
            slot.touch();
        }
    }
}

impl Slot {
    fn touch(&mut self) {
        let now = now();
        if self.entry.last_used != now {
            self.entry.last_used = now;
            self.is_stale = true;
        }
    }
}

impl Cache {
    /// The path of an entry.
    pub fn path(&self, name: &str) -> PathBuf {
        self.shared.folder.join(name)
    }

    /// The folder of the cache.
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// The settings in force.
    pub fn settings(&self) -> CacheSettings {
        *self.shared.settings.lock()
    }

    /// Changes the settings. Entries beyond a lower limit go soon.
    pub fn set_settings(&self, settings: CacheSettings) {
        *self.shared.settings.lock() = settings;
    }

    /// All entries, by name.
    pub fn list(&self) -> Vec<CacheEntry> {
        let state = self.shared.state.lock();
        let slots = state.slots.values().filter(|slot| !slot.is_leaving);
        slots
            .map(|slot| CacheEntry {
                is_in_use: slot.uses > 0,
                ..slot.entry.clone()
            })
            .collect()
    }

    /// Totals over all entries.
    pub fn totals(&self) -> CacheTotals {
        let state = self.shared.state.lock();
        let mut totals = CacheTotals::default();
        for slot in state.slots.values() {
            totals.entries += 1;
            totals.bytes += slot.entry.bytes;
            totals.pinned_bytes += slot.entry.bytes * u64::from(slot.entry.is_pinned);
        }
        totals
    }

    /// Number of entries that were removed, by cause, and the sum of their bytes.
    pub(crate) fn evictions(&self) -> (impl Iterator<Item = (&'static str, u64)>, u64) {
        let count = |cause: EvictionCause| {
            let count = &self.shared.evictions[cause as usize];
            (cause.word(), count.load(Ordering::Relaxed))
        };
        let counts: Vec<_> = EvictionCause::ALL.into_iter().map(count).collect();
        (
            counts.into_iter(),
            self.shared.evicted_bytes.load(Ordering::Relaxed),
        )
    }

    /// Uses the entry at this path, if there is one, whether all of it is here or not.
    pub(crate) fn use_path(&self, path: &Path) -> Option<CacheUse> {
        self.use_name(self.name_at(path)?, false)
    }

    /// The name that an entry at this path would have.
    fn name_at<'a>(&self, path: &'a Path) -> Option<&'a str> {
        if path.parent()? != self.shared.folder {
            return None;
        }
        checked_name(path.file_name()?.to_str()?)
    }

    /// Uses an entry, unless it is leaving.
    fn use_name(&self, name: &str, only_complete: bool) -> Option<CacheUse> {
        let mut state = self.shared.state.lock();
        let slot = state.slots.get_mut(name)?;
        if slot.is_leaving || (only_complete && !slot.entry.is_complete) {
            return None;
        }
        slot.uses += 1;
        slot.touch();
        Some(CacheUse {
            shared: Arc::clone(&self.shared),
            name: name.to_owned(),
        })
    }

    /// Opens a complete entry of this size, and uses it.
    pub async fn open_file(&self, name: &str, size: u64) -> Option<(Arc<File>, CacheUse)> {
        let using = self.use_name(name, true)?;
        let path = self.path(name);
        let opened = blocking(move || {
            let file = open_own(&path).ok()?;
            let fits = file.metadata().is_ok_and(|metadata| metadata.len() == size);
            fits.then(|| Arc::new(file))
        });
        match opened.await.ok().flatten() {
            Some(file) => Some((file, using)),
            None => {
                // Somebody removed or replaced it.
                drop(using);
                self.forget_missing(name).await;
                None
            }
        }
    }

    /// Reads a complete entry of at most `max` bytes.
    pub async fn read_small(&self, name: &str, max: u64) -> Option<Vec<u8>> {
        let _using = self.use_name(name, true)?;
        let path = self.path(name);
        let read = move || {
            let file = open_own(&path).ok()?;
            let is_small = file.metadata().is_ok_and(|metadata| metadata.len() <= max);
            let mut bytes = Vec::new();
            file.take(max).read_to_end(&mut bytes).ok()?;
            is_small.then_some(bytes)
        };
        blocking(read).await.ok().flatten()
    }

    /// Makes room for an entry and stores that it belongs to the cache, before its first byte is
    /// written. An entry that exists already is used again.
    ///
    /// # Errors
    /// - [`Reason::DiskFull`]: it does not fit below the limit, whatever else is removed.
    /// - [`Reason::Busy`]: it does not fit below the limit now, because other entries are in use.
    /// - [`Reason::UnsafePath`]: the name cannot name an entry.
    /// - If the database cannot be written: the reason.
    pub async fn reserve(&self, new: NewEntry) -> Result<CacheUse, Problem> {
        if checked_name(&new.name).is_none() {
            let message = format!("{:?} cannot name an entry of the cache", new.name);
            return Err(Problem::new(Reason::UnsafePath, message));
        }
        loop {
            let left = self.shared.left.notified();
            let is_leaving = match self.shared.state.lock().slots.get(&new.name) {
                None => break,
                Some(slot) => slot.is_leaving,
            };
            if is_leaving {
                left.await;
            } else if let Some(using) = self.use_name(&new.name, false) {
                return Ok(using);
            }
        }
        let cache = self.clone();
        blocking(move || cache.insert(new)).await?
    }

    fn insert(&self, new: NewEntry) -> Result<CacheUse, Problem> {
        self.make_room(new.bytes)?;
        let now = now();
        let entry = CacheEntry {
            name: new.name.clone(),
            label: new.label,
            bytes: new.bytes,
            kind: FileKind::File,
            id: None,
            sha256: new.sha256,
            is_complete: false,
            is_pinned: false,
            is_in_use: false,
            added: now,
            last_used: now,
        };
        {
            let mut state = self.shared.state.lock();
            let slots = state.slots.entry(new.name.clone());
            slots.or_insert_with(|| Slot::new(entry)).uses += 1;
        }
        let using = CacheUse {
            shared: Arc::clone(&self.shared),
            name: new.name.clone(),
        };
        // Without a row, the entry would never be removed after a restart.
        self.store(&[new.name])?;
        Ok(using)
    }

    /// Puts a small file into the cache.
    ///
    /// # Errors
    /// As [`Cache::reserve`], or if the file cannot be written.
    pub async fn put_small(&self, new: NewEntry, bytes: Vec<u8>) -> Result<(), Problem> {
        let (name, path) = (new.name.clone(), self.path(&new.name));
        let _using = self.reserve(new).await?;
        let write = blocking(move || durable::write(&path, &bytes, 0o600)).await?;
        write.map_err(|error| {
            let reason = Reason::of_exhaustion(&error).unwrap_or(Reason::TargetNotWritable);
            Problem::new(reason, format!("cannot write to the cache: {error}"))
        })?;
        self.complete(&name, None, None).await
    }

    /// Records that all of the entry at this path is here.
    pub(crate) async fn complete_path(&self, path: &Path, id: FileId, kind: FileKind) {
        if let Some(name) = self.name_at(path)
            && let Err(problem) = self.complete(name, Some(id), Some(kind)).await
        {
            // The next start sees that it has its name.
            tracing::warn!(%problem, "could not store that an entry of the cache has arrived");
        }
    }

    async fn complete(
        &self,
        name: &str,
        id: Option<FileId>,
        kind: Option<FileKind>,
    ) -> Result<(), Problem> {
        {
            let mut state = self.shared.state.lock();
            let Some(slot) = state.slots.get_mut(name) else {
                return Ok(());
            };
            slot.entry.is_complete = true;
            slot.entry.id = id;
            slot.entry.kind = kind.unwrap_or(slot.entry.kind);
        }
        let (cache, name) = (self.clone(), name.to_owned());
        blocking(move || cache.store(&[name])).await?
    }

    /// Forgets the entry at this path if nothing of it is there, such as after a cancelled download.
    pub(crate) async fn forget_missing_at(&self, path: &Path) {
        if let Some(name) = self.name_at(path) {
            self.forget_missing(name).await;
        }
    }

    async fn forget_missing(&self, name: &str) {
        let (cache, name) = (self.clone(), name.to_owned());
        let forget = move || {
            let path = cache.path(&name);
            if path.symlink_metadata().is_ok() || files::part_of(&path).symlink_metadata().is_ok() {
                return;
            }
            {
                let mut state = cache.shared.state.lock();
                if state
                    .slots
                    .get(&name)
                    .is_none_or(|slot| slot.uses > 0 || slot.is_leaving)
                {
                    return;
                }
                state.slots.remove(&name);
            }
            // Otherwise the next start forgets it.
            let _ = cache.store(&[name]);
        };
        let _ = blocking(forget).await;
    }

    /// Keeps entries from being removed, or allows it again. Returns those that changed or had the
    /// value already.
    ///
    /// # Errors
    /// [`Reason::NotFound`] if one is not in the cache; nothing changes then. If the database cannot
    /// be written, the reason; the change then holds until the peer stops.
    pub async fn set_pinned(
        &self,
        names: Vec<String>,
        is_pinned: bool,
    ) -> Result<Vec<CacheEntry>, Problem> {
        let mut changed = Vec::new();
        {
            let mut state = self.shared.state.lock();
            for name in &names {
                if state.slots.get(name).is_none_or(|slot| slot.is_leaving) {
                    let message =
                        format!("{name} is not in the cache: `potluck cache ls` lists what is");
                    return Err(Problem::new(Reason::NotFound, message));
                }
            }
            for name in names {
                if let Some(slot) = state.slots.get_mut(&name) {
                    slot.entry.is_pinned = is_pinned;
                    changed.push(slot.entry.clone());
                }
            }
        }
        let names: Vec<_> = changed.iter().map(|entry| entry.name.clone()).collect();
        let cache = self.clone();
        blocking(move || cache.store(&names)).await??;
        Ok(changed)
    }

    /// Stores the rows of these entries as they are now; deletes those that are gone. Blocks.
    fn store(&self, names: &[String]) -> Result<(), Problem> {
        let _order = self.shared.storing.lock();
        let rows: Vec<_> = {
            let mut state = self.shared.state.lock();
            let mut row = |name: &String| {
                let slot = state.slots.get_mut(name)?;
                slot.is_stale = false;
                Some(encode(&slot.entry))
            };
            names.iter().map(|name| (name.clone(), row(name))).collect()
        };
        let stored = self.shared.store.write_cache_rows(&rows);
        stored.map_err(|error: StoreError| {
            let reason = error.exhaustion().unwrap_or(Reason::StoreUnavailable);
            Problem::new(reason, format!("the peer's database cannot be written: {error}"))
        })
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
