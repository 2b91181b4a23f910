//! The paths of items.

use std::path::{Path, PathBuf};

use potluck_core::Problem;

use crate::library::problems::unreadable;

/// The path of an item: absolute, with links in its parent folders resolved. The last component is
/// not resolved, so that a link keeps its name.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, Problem> {
    let absolute = std::path::absolute(path).map_err(|error| unreadable(&error))?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent
            .canonicalize()
            .map_err(|error| unreadable(&error))?
            .join(name)),
        // The path ends in `..` or is the root.
        _ => absolute.canonicalize().map_err(|error| unreadable(&error)),
    }
}
