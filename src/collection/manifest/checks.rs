//! What entries must be to make a manifest.

use std::cmp::Ordering;

use crate::{
    FileLayout,
    collection::{
        manifest::{
            EntryContent, FOLDERS_PER_ENTRY, FREE_FOLDERS, MAX_FOLDERS, Manifest, ManifestEntry,
            ManifestError, escaped, nodes::new_folders,
        },
        path::{self, MAX_DEPTH, MAX_PATH_LEN, RelPath},
        plan::{BUNDLE_SIZE, MAX_UNITS},
    },
    identity::merkle::EMPTY_FILE,
};

/// Looks at entries one after the other.
#[derive(Debug, Default)]
pub(crate) struct EntryChecker<'a> {
    /// The last path, and those before it that it begins with: whatever begins with a path comes right after it, all of that together.
    open_paths: Vec<&'a str>,
    /// The last path.
    previous: &'a str,
    /// Distinct folders, empty ones among them.
    folders: usize,
    finish: ManifestTotals,
}

/// What entries come to.
#[derive(Debug, Default)]
pub(crate) struct ManifestTotals {
    /// How many entries there were.
    count: u32,
    /// Files by what their ids begin with: entries are looked at again only where that is the same.
    id_prefixes: Vec<(u64, u32)>,
    size: u128,
    /// Of all files, as if no two had one content; as [`units_of`].
    units: u64,
}

/// The units of a file: a bundle for each small one, which is more than there can be.
fn units_of(size: u64) -> u64 {
    match size <= BUNDLE_SIZE {
        true => 1,
        false => FileLayout::new(size).map_or(0, |layout| u64::from(layout.piece_count())),
    }
}

impl<'a> EntryChecker<'a> {
    /// Refuses an entry that does not come after the last, is beneath another, or can be in no collection.
    pub(crate) fn check(&mut self, entry: &ManifestEntry<'a>) -> Result<(), ManifestError> {
        let path = entry.path.as_str();
        match self.open_paths.last().map(|last| (*last).cmp(path)) {
            None | Some(Ordering::Less) => {}
            Some(Ordering::Equal) => return Err(ManifestError::Duplicate { path: escaped(path) }),
            Some(Ordering::Greater) => return Err(ManifestError::Order { path: escaped(path) }),
        }
        check_entry(entry)?;
        while self
            .open_paths
            .pop_if(|above| !path.starts_with(*above))
            .is_some()
        {}
        let beneath = |above: &&&str| path.as_bytes().get(above.len()) == Some(&b'/');
        if let Some(above) = self.open_paths.iter().find(beneath) {
            return Err(ManifestError::Conflict {
                path: escaped(path),
                parent: escaped(above),
            });
        }
        self.open_paths.push(path);
        self.folders += new_folders(self.previous, path).count();
        self.folders += usize::from(matches!(entry.content, EntryContent::EmptyDirectory));
        self.previous = path;
        self.finish.add(entry.content);
        match self.folders > MAX_FOLDERS {
            true => Err(self.too_many_folders(MAX_FOLDERS)),
            false => Ok(()),
        }
    }

    fn too_many_folders(&self, max: usize) -> ManifestError {
        ManifestError::TooManyFolders {
            folders: self.folders,
            entries: self.finish.count as usize,
            most: max,
        }
    }

    /// What the entries came to. Refuses more folders than so many entries may have.
    pub(crate) fn totals(self) -> Result<ManifestTotals, ManifestError> {
        let max = FREE_FOLDERS + FOLDERS_PER_ENTRY * self.finish.count as usize;
        match self.folders > max {
            true => Err(self.too_many_folders(max)),
            false => Ok(self.finish),
        }
    }
}

/// Refuses an entry that can be in no collection, whatever the others are.
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

/// Refuses a link that may lead out of the collection, whatever other links there are.
///
/// Every `..` has to come before any name. The folders above a link are real ones, as nothing lies beneath a link, so that
/// leading `..`s go where the text says; a `..` after a name could start from wherever a link of that name leads.
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
        return Some("it says nothing");
    }
    if target.len() > MAX_PATH_LEN {
        return Some("what it says is too long");
    }
    if target.starts_with('/') {
        return Some("it is absolute");
    }
    if path::check_characters(target).is_err() {
        return Some("it has control characters or backslashes");
    }
    let mut depth = path.components().count() - 1;
    let mut named = false;
    for part in target.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match part {
            ".." if named => return Some("it has `..` after a name"),
            ".." if depth == 0 => return Some("it leads out of the collection"),
            ".." => depth -= 1,
            _ => {
                named = true;
                depth += 1;
            }
        }
        if depth > MAX_DEPTH {
            return Some("it leads too deep");
        }
    }
    None
}

impl ManifestTotals {
    fn add(&mut self, content: EntryContent<'_>) {
        if let EntryContent::File { id, size, .. } = content {
            self.id_prefixes.push((id.prefix(), self.count));
            self.size += u128::from(size);
            self.units += units_of(size);
        }
        self.count += 1;
    }

    /// The files by id, those of one id by path, and the sum of all sizes. Refuses one id with two sizes, and more content than sums and
    /// units can count.
    pub(crate) fn into_index(mut self, manifest: &Manifest) -> Result<(Vec<u32>, u64), ManifestError> {
        self.id_prefixes.sort_unstable_by(|&(a, first), &(b, second)| {
            let whole = || {
                manifest
                    .id(first)
                    .cmp(&manifest.id(second))
                    .then(first.cmp(&second))
            };
            a.cmp(&b).then_with(whole)
        });
        for pair in self.id_prefixes.windows(2) {
            let &[(a, first), (b, second)] = pair else {
                continue;
            };
            if a != b || manifest.id(first) != manifest.id(second) {
                continue;
            }
            let file = |index| match manifest.content(index)? {
                EntryContent::File { size, .. } => Some(size),
                _ => None,
            };
            let Some((known, size)) = file(first).zip(file(second)) else {
                continue;
            };
            if known != size {
                let path = manifest.get(second).map_or("", |entry| entry.path.as_str());
                return Err(ManifestError::Size { path: escaped(path) });
            }
            // Counted once.
            self.units -= units_of(size);
        }
        if self.units > u64::from(MAX_UNITS) {
            return Err(ManifestError::TooLarge("it has too many pieces"));
        }
        let size = u64::try_from(self.size).map_err(|_| ManifestError::TooLarge("its sizes overflow"))?;
        Ok((
            self.id_prefixes.into_iter().map(|(_, index)| index).collect(),
            size,
        ))
    }
}
