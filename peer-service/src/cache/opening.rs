//! The state of the cache after a restart.
//!
//! | found | becomes |
//! |---|---|
//! | a row without a file or an unfinished download | no row |
//! | a row of an arriving entry whose file has its name | a complete entry |
//! | a name that ends in `.leaving`, with a row | nothing; or its own name again, if its owner shares it |
//! | anything without a row | stays, and counts for nothing |

use std::{fs, io, path::Path, sync::Arc};

use potluck_core::{Problem, Reason, durable};

use super::{
    Cache, CacheSettings, Shared, State,
    entry::{Slot, decode, encode},
    files::{delete, leaving_path, part_of, state_of},
};
use crate::{home::Home, library::Library, store::Store};

impl Cache {
    /// Opens the cache in the home. Blocks.
    ///
    /// # Errors
    /// If its folder or the database cannot be read.
    pub(crate) fn open(
        home: &Home,
        store: Store,
        library: Library,
        settings: CacheSettings,
    ) -> Result<Self, Problem> {
        let failed = |error: io::Error| {
            let message = format!("{}: {error}", home.cache().display());
            Problem::new(Reason::TargetNotWritable, message)
        };
        durable::create_folders(&home.cache(), 0o700).map_err(failed)?;
        // Items of the library have canonical paths, and the cache may be on another disk.
        let folder = home.cache().canonicalize().map_err(failed)?;
        let rows = store.cache_rows().map_err(|error| {
            Problem::new(
                Reason::StoreUnavailable,
                format!("cannot read the cache: {error}"),
            )
        })?;
        let mut state = State::default();
        let mut changes = Vec::new();
        for (name, row) in rows {
            let found = decode(&name, &row).map(|entry| (restore(&folder, &library, &name), entry));
            let Some((Ok(Some(is_whole)), mut entry)) = found else {
                // What cannot be looked at now keeps its row.
                if !matches!(found, Some((Err(_), _))) {
                    changes.push((name, None));
                }
                continue;
            };
            if is_whole && !entry.is_complete {
                entry.is_complete = true;
                changes.push((name.clone(), Some(encode(&entry))));
            }
            // A file that is gone, while a new download of it has begun.
            entry.is_complete &= is_whole;
            state.slots.insert(name, Slot::new(entry));
        }
        if let Err(error) = store.write_cache_rows(&changes) {
            // The next start sees the same.
            tracing::warn!(%error, "could not store what is in the cache");
        }
        Ok(Self {
            shared: Arc::new(Shared {
                folder,
                store,
                library,
                settings: settings.into(),
                state: state.into(),
                evicting: Default::default(),
                left: Default::default(),
                storing: Default::default(),
                evictions: Default::default(),
                evicted_bytes: Default::default(),
            }),
        })
    }
}

/// Finishes the removal of an entry, and looks what is there: `true` for all of it, `false` for a
/// part, `None` for nothing.
fn restore(folder: &Path, library: &Library, name: &str) -> io::Result<Option<bool>> {
    let path = folder.join(name);
    let leaving = leaving_path(&path);
    if exists(&leaving)? {
        match library.is_requested_at(&path) && !exists(&path)? {
            true => fs::rename(&leaving, &path)?,
            false => {
                delete(&leaving)?;
                if !exists(&path)? {
                    delete(&part_of(&path))?;
                    delete(&state_of(&path))?;
                }
            }
        }
    }
    match exists(&path)? {
        true => Ok(Some(true)),
        false => Ok(exists(&part_of(&path))?.then_some(false)),
    }
}

fn exists(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
