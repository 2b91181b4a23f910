//! Parses an argument that names a transfer: its number, or the id of its file.

use std::str::FromStr;

use potluck_core::FileId;

/// Identifies a transfer on the command line.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TransferTarget {
    /// The number shown by `potluck transfers`.
    Number(u64),
    /// The newest transfer of this file.
    File(FileId),
}

impl FromStr for TransferTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self::File)
            .or_else(|_| text.parse().map(Self::Number))
            .map_err(|_| "give the number of a transfer, or the id of its file".to_owned())
    }
}
