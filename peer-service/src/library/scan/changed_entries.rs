//! Compares a collection with its folder by `stat` alone.

use std::path::Path;

use potluck_core::collection::manifest::EntryContent;

use crate::{
    catalog::{
        item::SharedCollection,
        row::EntryIndex,
        share_options::{LinkPolicy, ShareOptions},
        stamp::stamp_of,
    },
    fs::parallel::map_ranges,
};

/// The entries of a collection whose files changed. The files may be behind links if `options` say
/// that links are followed. Calls `stat` on this number of threads, because
/// it takes most of the time at start.
pub(crate) fn changed_entries(
    root: &Path,
    folder: &SharedCollection,
    options: &ShareOptions,
    threads: usize,
) -> Vec<EntryIndex> {
    let stamps = &folder.members.stamps;
    let is_changed = |index: EntryIndex| {
        let known = stamps.get(index as usize);
        let entry = folder.manifest.get(index);
        let (Some(known), Some(entry)) = (known, entry) else {
            return false;
        };
        let path = root.join(entry.path.as_str());
        let stamp = || match options.links {
            LinkPolicy::Follow => path.metadata().ok(),
            LinkPolicy::Keep | LinkPolicy::Skip => path.symlink_metadata().ok(),
        };
        matches!(entry.content, EntryContent::File { .. })
            && stamp().map(|metadata| stamp_of(&metadata)) != Some(*known)
    };
    map_ranges(stamps.len(), threads, |range| {
        let indexes = range.filter_map(|index| EntryIndex::try_from(index).ok());
        indexes.filter(|&index| is_changed(index)).collect()
    })
}
