//! The stamps of a downloaded collection's files.

use std::path::Path;

use potluck_core::{
    Problem, Reason,
    collection::manifest::{EntryContent, Manifest},
};

use crate::{
    catalog::stamp::{Stamp, stamp_of},
    library::problems::is_gone,
};

/// The current stamps of a manifest's files. Blocks.
///
/// # Errors
/// - `FILE_CHANGED`, with the first path: it is gone, not a regular file, or of another size.
/// - `TARGET_NOT_WRITABLE`, with the system's message: `stat` fails for another reason.
pub fn stamps_at(root: &Path, manifest: &Manifest) -> Result<Vec<Stamp>, Problem> {
    let stamps = manifest.entries().map(|entry| {
        let EntryContent::File { size, .. } = entry.content else {
            return Ok(Stamp::default());
        };
        let (path, shown) = (entry.path, root.display());
        let file = match root.join(path.as_str()).symlink_metadata() {
            Err(error) if !is_gone(&error) => {
                return Err(Problem::new(
                    Reason::TargetNotWritable,
                    format!("`{path}` in {shown} cannot be checked: {error}"),
                ));
            }
            metadata => metadata.ok().filter(std::fs::Metadata::is_file),
        };
        file.map(|metadata| stamp_of(&metadata))
            .filter(|stamp| stamp.size == size)
            .ok_or_else(|| {
                Problem::new(
                    Reason::FileChanged,
                    format!("`{path}` in {shown} changed since it was downloaded"),
                )
            })
    });
    stamps.collect()
}
