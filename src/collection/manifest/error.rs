//! The reason why entries or bytes are not a valid manifest.

use crate::{Problem, Reason, collection::path::PathError};

/// The reason why entries or bytes are not a valid manifest. Paths come from outside and are
/// escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The bytes do not start with [`MAGIC`](crate::collection::manifest::MAGIC).
    #[error("not a collection: the file does not start like a manifest")]
    NotAManifest,
    /// The bytes are not a message in canonical form.
    #[error("the manifest is damaged or not in canonical form, at byte {at}")]
    NotCanonical {
        /// Offset of the invalid entry.
        at: usize,
    },
    /// A path that is invalid in a collection.
    #[error("`{path}` is not allowed in a collection: {error}")]
    Path {
        /// The path, escaped.
        path: String,
        /// Why the path is invalid.
        error: PathError,
    },
    /// An entry that does not sort after the previous one.
    #[error("`{path}` is out of order: entries are sorted by path")]
    Order {
        /// The path, escaped.
        path: String,
    },
    /// Two entries with the same path.
    #[error("`{path}` occurs twice")]
    Duplicate {
        /// The path, escaped.
        path: String,
    },
    /// An entry beneath a file, a link, or a folder listed as empty.
    #[error("`{path}` is beneath `{parent}`, which is a file, a link or an empty folder")]
    Conflict {
        /// Path of the entry, escaped.
        path: String,
        /// Path of its ancestor that is not a folder, escaped.
        parent: String,
    },
    /// A link that leads, or could lead, out of the collection.
    #[error("the link `{path}` to `{target}` is not allowed: {why}")]
    UnsafeLink {
        /// Path of the link, escaped.
        path: String,
        /// Target of the link, escaped.
        target: String,
        /// Why the link is unsafe.
        why: &'static str,
    },
    /// The size does not match the id, or is over the limit.
    #[error("the size of `{path}` does not match its id or exceeds the limit")]
    Size {
        /// The path, escaped.
        path: String,
    },
    /// More than [`MAX_FOLDERS`](crate::collection::limits::MAX_FOLDERS) folders, or too many for
    /// the number of entries.
    #[error(
        "the folder has too many folders for one collection: {folders} for {entries} entries, more \
         than {max}"
    )]
    TooManyFolders {
        /// Distinct folders up to the first excess entry.
        folders: usize,
        /// Entries up to that point.
        entries: usize,
        /// Maximum number of folders.
        max: usize,
    },
    /// Over the maximum manifest size or number of entries, or more content than a transfer has
    /// units for.
    #[error("the folder is too large for one collection ({0}): share its subfolders instead")]
    TooLarge(&'static str),
}

impl From<ManifestError> for Problem {
    fn from(error: ManifestError) -> Self {
        let reason = match error {
            ManifestError::Path { .. } | ManifestError::UnsafeLink { .. } => Reason::UnsafePath,
            ManifestError::TooLarge(_) | ManifestError::TooManyFolders { .. } => Reason::OutOfRange,
            _ => Reason::InvalidArgument,
        };
        Self::new(reason, error.to_string())
    }
}

/// Escapes and shortens untrusted text for an error message.
pub(crate) fn escaped(text: &str) -> String {
    // Maximum characters: enough to recognise a path.
    const MAX: usize = 200;
    let mut escaped: String = text.chars().take(MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX).is_some() {
        escaped.push('…');
    }
    escaped
}
