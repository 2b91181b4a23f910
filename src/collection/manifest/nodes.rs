//! The places in a folder's tree, each once: entries, and the folders that their paths imply.

use crate::collection::manifest::Manifest;

/// Where the folders above `path` end that are not above `previous`, the path before it in a manifest's order; outermost first.
///
/// Paths that begin with the same folder follow each other in that order, so that over a whole manifest each folder comes once.
pub(crate) fn new_folders<'a>(previous: &str, path: &'a str) -> impl Iterator<Item = usize> + use<'a> {
    let same = previous.bytes().zip(path.bytes());
    let shared = same.take_while(|(a, b)| a == b).count();
    // A folder is shared with its slash.
    let slashes = path.as_bytes()[shared..].iter().enumerate();
    let slashes = slashes.filter(|&(_, &byte)| byte == b'/');
    slashes.map(move |(at, _)| shared + at)
}

impl Manifest {
    /// Every folder, those that paths imply and empty ones, each once and after the one that it is in.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        let mut previous = "";
        self.entries().flat_map(move |entry| {
            let path = entry.path.as_str();
            let above = new_folders(previous, path).map(move |end| &path[..end]);
            previous = path;
            let itself = matches!(
                entry.content,
                crate::collection::manifest::EntryContent::EmptyDirectory
            )
            .then_some(path);
            above.chain(itself)
        })
    }
}
