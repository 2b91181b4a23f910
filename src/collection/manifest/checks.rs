//! Validates the entries of a manifest.

use std::cmp::Ordering;

use crate::{
    FileLayout,
    collection::{
        limits::{FOLDERS_PER_ENTRY, FREE_FOLDERS, MAX_FOLDERS, MAX_UNITS},
        manifest::{
            entries::EncodedEntries,
            entry::{EntryContent, ManifestEntry},
            error::{ManifestError, escaped},
            folders::new_folders,
        },
        path::{self, MAX_DEPTH, MAX_PATH_LEN, RelPath},
    },
    identity::{layout, merkle::EMPTY_FILE},
};

/// Validates entries one by one, in order.
#[derive(Debug, Default)]
pub(crate) struct EntryChecker<'a> {
    /// The last path and the earlier paths that are its prefixes. Paths with a common prefix are
    /// adjacent in the order.
    open_paths: Vec<&'a str>,
    /// The last path.
    previous: &'a str,
    /// Number of distinct folders, including empty ones.
    folders: usize,
    totals: ManifestTotals,
}

/// Totals over all entries.
#[derive(Debug, Default)]
pub(crate) struct ManifestTotals {
    /// Number of entries.
    count: u32,
    /// Id prefix and index of each file. Full ids are compared only if the prefixes are equal.
    id_prefixes: Vec<(u64, u32)>,
    size: u128,
}

/// Upper bound of the units of this many files with this many bytes: each file counts as one, and
/// each full unit as another.
fn max_units(files: u64, bytes: u64) -> u64 {
    files + bytes / layout::piece_size(bytes)
}

impl<'a> EntryChecker<'a> {
    /// Rejects an entry that is out of order, beneath a non-folder, or invalid by itself.
    pub(crate) fn check(&mut self, entry: &ManifestEntry<'a>) -> Result<(), ManifestError> {
        let path = entry.path.as_str();
        match self.open_paths.last().map(|last| (*last).cmp(path)) {
            None | Some(Ordering::Less) => {}
            Some(Ordering::Equal) => return Err(ManifestError::Duplicate { path: escaped(path) }),
            Some(Ordering::Greater) => return Err(ManifestError::Order { path: escaped(path) }),
        }
        check_entry(entry)?;
        while self.open_paths.pop_if(|open| !path.starts_with(*open)).is_some() {}
        let is_ancestor = |open: &&&str| path.as_bytes().get(open.len()) == Some(&b'/');
        if let Some(ancestor) = self.open_paths.iter().find(is_ancestor) {
            return Err(ManifestError::Conflict {
                path: escaped(path),
                parent: escaped(ancestor),
            });
        }
        self.open_paths.push(path);
        self.folders += new_folders(self.previous, path).count();
        self.folders += usize::from(matches!(entry.content, EntryContent::EmptyDirectory));
        self.previous = path;
        self.totals.add(entry.content);
        match self.folders > MAX_FOLDERS {
            true => Err(self.too_many_folders(MAX_FOLDERS)),
            false => Ok(()),
        }
    }

    fn too_many_folders(&self, max: usize) -> ManifestError {
        ManifestError::TooManyFolders {
            folders: self.folders,
            entries: self.totals.count as usize,
            max,
        }
    }

    /// The totals. Rejects a manifest with too many folders for its number of entries.
    pub(crate) fn totals(self) -> Result<ManifestTotals, ManifestError> {
        let max = FREE_FOLDERS + FOLDERS_PER_ENTRY * self.totals.count as usize;
        match self.folders > max {
            true => Err(self.too_many_folders(max)),
            false => Ok(self.totals),
        }
    }
}

/// Rejects an entry that is invalid by itself.
fn check_entry(entry: &ManifestEntry<'_>) -> Result<(), ManifestError> {
    let path = || escaped(entry.path.as_str());
    match entry.content {
        EntryContent::File { id, size, .. } => {
            match FileLayout::new(size).is_none() || (id == EMPTY_FILE) != (size == 0) {
                true => Err(ManifestError::Size { path: path() }),
                false => Ok(()),
            }
        }
        EntryContent::EmptyDirectory => Ok(()),
        EntryContent::Link { target } => check_link(entry.path, target),
    }
}

/// Rejects a link that could lead out of the collection, alone or through other links.
///
/// Every `..` must precede all names. Nothing lies beneath a link, so a link's ancestors are real
/// folders and leading `..` components lead to the folder that the text says. A `..` after a name
/// could start from the target of another link.
///
/// # Errors
/// [`ManifestError::UnsafeLink`].
pub fn check_link(path: RelPath<'_>, target: &str) -> Result<(), ManifestError> {
    link_problem(path, target).map_or(Ok(()), |why| {
        Err(ManifestError::UnsafeLink {
            path: escaped(path.as_str()),
            target: escaped(target),
            why,
        })
    })
}

fn link_problem(path: RelPath<'_>, target: &str) -> Option<&'static str> {
    if target.is_empty() {
        return Some("the target is empty");
    }
    if target.len() > MAX_PATH_LEN {
        return Some("the target is too long");
    }
    if target.starts_with('/') {
        return Some("the target is absolute");
    }
    if path::check_characters(target).is_err() {
        return Some("the target has forbidden characters");
    }
    let mut depth = path.components().count() - 1;
    let mut named = false;
    for part in target.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match part {
            ".." if named => return Some("the target has `..` after a name"),
            ".." if depth == 0 => return Some("the target is outside of the collection"),
            ".." => depth -= 1,
            _ => {
                named = true;
                depth += 1;
            }
        }
        if depth > MAX_DEPTH {
            return Some("the target is too deep");
        }
    }
    None
}

impl ManifestTotals {
    fn add(&mut self, content: EntryContent<'_>) {
        if let EntryContent::File { id, size, .. } = content {
            self.id_prefixes.push((id.prefix(), self.count));
            self.size += u128::from(size);
        }
        self.count += 1;
    }

    /// The files sorted by id and then path, and the sum of all sizes. Rejects an id with two
    /// sizes, and content that overflows the sum or could have too many units.
    pub(crate) fn into_index(
        mut self,
        entries: &EncodedEntries,
    ) -> Result<(Vec<u32>, u64), ManifestError> {
        self.id_prefixes.sort_unstable_by(|&(a, first), &(b, second)| {
            let by_whole_id = || entries.id(first).cmp(&entries.id(second));
            a.cmp(&b).then_with(by_whole_id).then(first.cmp(&second))
        });
        let size = u64::try_from(self.size)
            .map_err(|_| ManifestError::TooLarge("the sum of its sizes exceeds 64 bits"))?;
        let (mut distinct_files, mut distinct_bytes) = (self.id_prefixes.len() as u64, size);
        for pair in self.id_prefixes.windows(2) {
            let &[(a, first), (b, second)] = pair else {
                continue;
            };
            if a != b || entries.id(first) != entries.id(second) {
                continue;
            }
            let size_of = |index| match entries.content(index)? {
                EntryContent::File { size, .. } => Some(size),
                _ => None,
            };
            let Some((first_size, second_size)) = size_of(first).zip(size_of(second)) else {
                continue;
            };
            if first_size != second_size {
                let path = entries.get(second).map_or("", |entry| entry.path.as_str());
                return Err(ManifestError::Size { path: escaped(path) });
            }
            // Duplicate content counts once.
            distinct_files -= 1;
            distinct_bytes -= second_size;
        }
        if max_units(distinct_files, distinct_bytes) > u64::from(MAX_UNITS) {
            return Err(ManifestError::TooLarge("it has too many pieces"));
        }
        Ok((
            self.id_prefixes.into_iter().map(|(_, index)| index).collect(),
            size,
        ))
    }
}
