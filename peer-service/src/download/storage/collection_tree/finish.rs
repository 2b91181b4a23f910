//! Completes the folder of a collection after all units are verified.

use std::{
    fs::File,
    io::{self, ErrorKind, Read as _, Seek as _},
    path::Path,
    sync::atomic::Ordering,
};

use potluck_core::{
    collection::{manifest::EntryContent, path::RelPath},
    identity::merkle::EMPTY_FILE,
};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use crate::download::storage::{
    collection_tree::{CollectionTree, CreateMode, block_clone::clone_file},
    target::{AtEntry, NameClash},
};

/// Bytes copied between two checks for cancellation: a few milliseconds of work.
const COPY_STEP: u64 = 16 * 1024 * 1024;

/// Bytes copied before each step is flushed: a flush of many GiB at the end could not be cancelled.
const MAX_UNFLUSHED_COPY: u64 = 64 * 1024 * 1024;

/// Maximum links named in the note about a file system without links.
const MAX_NAMED_LINKS: usize = 3;

impl CollectionTree {
    /// Creates the entries that no unit contains: empty files, copies of content with several
    /// paths, and links.
    ///
    /// # Errors
    /// If the folder contains something that the manifest does not list, or a downloaded file is
    /// missing; `Interrupted` if `stop` is cancelled.
    pub(crate) fn finish(&self, stop: &CancellationToken) -> io::Result<()> {
        self.handles().clear();
        self.copied.store(0, Ordering::Relaxed);
        for entries in self.manifest.contents() {
            check_stopped(stop)?;
            let is_empty = self.manifest.id(entries[0]) == Some(EMPTY_FILE);
            if self.is_new && entries.len() == 1 && !is_empty {
                continue;
            }
            let (first, size) = match is_empty {
                true => self.open_to_write(entries[0])?,
                false => self.open_entry(entries[0], CreateMode::Never)?,
            };
            let len = first.metadata()?.len();
            if len < size {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            // An earlier run may have left a longer file.
            if len > size {
                first.set_len(size)?;
            }
            for &entry in &entries[1..] {
                self.copy(&first, entry, stop)?;
            }
        }
        let links = self.create_links(stop)?;
        self.note_modes();
        self.check_listing(links, stop)
    }

    /// Writes the content of `source` to an entry's file, by sharing its blocks if the file system
    /// supports that.
    fn copy(&self, source: &File, entry: u32, stop: &CancellationToken) -> io::Result<()> {
        check_stopped(stop)?;
        let (mut copy, size) = self.open_to_write(entry)?;
        copy.set_len(0)?;
        if size == 0 {
            return Ok(());
        }
        let failed = |error| {
            let path = self.manifest.get(entry).map_or("", |entry| entry.path.as_str());
            AtEntry::wrap(path, error)
        };
        if clone_file(source, &copy).is_ok() {
            self.copied.fetch_add(size, Ordering::Relaxed);
            return Ok(());
        }
        let mut source = source.try_clone()?;
        source.rewind()?;
        loop {
            check_stopped(stop)?;
            // `io::copy` copies within the kernel if possible.
            let step = io::copy(&mut (&source).take(COPY_STEP), &mut copy).map_err(failed)?;
            if step == 0 {
                return Ok(());
            }
            let copied = self.copied.fetch_add(step, Ordering::Relaxed) + step;
            if copied > MAX_UNFLUSHED_COPY {
                copy.sync_data().map_err(failed)?;
            }
        }
    }

    /// Creates the links and returns their number, which is 0 if the file system has no links.
    fn create_links(&self, stop: &CancellationToken) -> io::Result<usize> {
        let (mut created, mut left_out) = (0, Vec::new());
        for entry in self.manifest.entries() {
            let EntryContent::Link { target } = entry.content else {
                continue;
            };
            check_stopped(stop)?;
            match self.link(entry.path, target) {
                Ok(()) => created += 1,
                Err(error) if created == 0 && lacks_links(&error) => {
                    left_out.push(entry.path.as_str())
                }
                Err(error) => return Err(AtEntry::wrap(entry.path.as_str(), error)),
            }
        }
        if !left_out.is_empty() {
            let count = left_out.len();
            left_out.truncate(MAX_NAMED_LINKS);
            let more = if count > left_out.len() { ", …" } else { "" };
            let named = left_out.join("`, `");
            self.note(format!(
                "the file system does not support links: {count} left out (`{named}`{more})"
            ));
        }
        Ok(created)
    }

    fn link(&self, path: RelPath<'_>, target: &str) -> io::Result<()> {
        match self.dir.read_link_contents(path.as_str()) {
            Ok(found) if found == Path::new(target) => return Ok(()),
            Ok(_) => self.dir.remove_file(path.as_str())?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.dir.symlink(target, path.as_str())
    }

    fn note(&self, note: String) {
        let mut not_kept = self.not_kept.lock();
        if !not_kept.contains(&note) {
            not_kept.push(note);
        }
    }

    /// Adds a note if the file system does not keep the executable bit. Checks one executable and
    /// one plain file.
    fn note_modes(&self) {
        use cap_std::fs::PermissionsExt as _;
        let mut executables = 0_usize;
        let (mut plain_seen, mut is_kept) = (false, true);
        for entry in self.manifest.entries() {
            let EntryContent::File { executable, .. } = entry.content else {
                continue;
            };
            executables += usize::from(executable);
            let is_first = match executable {
                true => executables == 1,
                false => !std::mem::replace(&mut plain_seen, true),
            };
            if is_first && let Ok(there) = self.dir.symlink_metadata(entry.path.as_str()) {
                is_kept &= (there.permissions().mode() & 0o100 != 0) == executable;
            }
        }
        if executables > 0 && !is_kept {
            let files = match executables {
                1 => "1 file is".to_owned(),
                more => format!("{more} files are"),
            };
            self.note(format!(
                "the file system does not store the executable bit: {files} executable in the \
                 original"
            ));
        }
    }

    /// Fails if the folder contains something that the collection does not list or imply, or fewer
    /// entries than needed; this detects two entries that share a file. `links` is the number of
    /// links created.
    fn check_listing(&self, links: usize, stop: &CancellationToken) -> io::Result<()> {
        let all_links = self
            .manifest
            .entries()
            .filter(|entry| matches!(entry.content, EntryContent::Link { .. }))
            .count();
        let expected = self.manifest.len() - all_links + links;
        let all = self.plan.manifest().unwrap_or(&self.manifest);
        let mut has_others = false;
        let mut listed = 0;
        let mut folders = vec![Path::new(".").to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in self.dir.read_dir(&folder)? {
                check_stopped(stop)?;
                let entry = entry?;
                let path = folder.join(entry.file_name());
                let relative = path.strip_prefix(".").unwrap_or(&path);
                let found = relative.to_str().map(|path| {
                    let is_entry = self.manifest.find(path).is_some();
                    let is_needed = is_entry || self.manifest.is_folder(path);
                    let is_other = !is_needed && (all.find(path).is_some() || all.is_folder(path));
                    has_others |= is_other;
                    (is_entry, is_needed || is_other)
                });
                let Some((is_entry, true)) = found else {
                    return Err(io::Error::new(
                        ErrorKind::AlreadyExists,
                        format!(
                            "the folder contains {}, which is not part of the collection",
                            relative.display()
                        ),
                    ));
                };
                listed += usize::from(is_entry);
                if entry.file_type()?.is_dir() {
                    folders.push(path);
                }
            }
        }
        self.has_other_entries.store(has_others, Ordering::Relaxed);
        if listed == expected {
            return Ok(());
        }
        // Every entry exists but the folder has fewer, so two entries share a file.
        for entry in self.manifest.entries() {
            let path = entry.path.as_str();
            if !matches!(entry.content, EntryContent::Link { .. }) {
                let there = self.dir.symlink_metadata(path);
                there.map_err(|error| AtEntry::wrap(path, error))?;
            }
        }
        Err(io::Error::other(NameClash {
            first: "one of its names".into(),
            second: "another".into(),
        }))
    }
}

/// Whether the error means that the file system has no links.
fn lacks_links(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP))
}

/// Fails with `Interrupted` once `stop` is cancelled.
fn check_stopped(stop: &CancellationToken) -> io::Result<()> {
    match stop.is_cancelled() {
        true => Err(ErrorKind::Interrupted.into()),
        false => Ok(()),
    }
}
