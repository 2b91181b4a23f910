//! Files whose ids begin with the same digits: what a user chooses from if a prefix is ambiguous.

use std::{collections::HashSet, fmt::Display};

use potluck_core::{
    FileId, Reason,
    model::{FileKind, IndexedFile},
};
use serde_json::json;

use crate::{
    control::model::{Item, Transfer},
    error::CommandError,
    output::{
        Output,
        table::{Align, Table},
        text,
    },
};

/// A file whose id matches a prefix.
#[derive(Debug, Clone)]
pub(crate) struct IdMatch {
    pub(crate) id: FileId,
    pub(crate) name: String,
    /// `None` if unknown.
    pub(crate) size: Option<u64>,
    pub(crate) kind: FileKind,
    /// Where the match was found.
    pub(crate) found_in: FoundIn,
}

/// Where a file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FoundIn {
    /// The index.
    Index,
    /// The library of the running peer.
    Library,
    /// The transfers of the running peer.
    Transfers,
}

impl FoundIn {
    const fn word(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Library => "library",
            Self::Transfers => "transfers",
        }
    }
}

impl From<&IndexedFile> for IdMatch {
    fn from(found: &IndexedFile) -> Self {
        Self {
            id: found.file.id,
            name: found.names.first().cloned().unwrap_or_default(),
            size: (found.file.kind == FileKind::File).then_some(found.file.size),
            kind: found.file.kind,
            found_in: FoundIn::Index,
        }
    }
}

impl From<&Item> for IdMatch {
    fn from(item: &Item) -> Self {
        Self {
            id: item.record.id,
            name: item.name.clone(),
            size: Some(item.content_size),
            kind: item.record.kind,
            found_in: FoundIn::Library,
        }
    }
}

impl From<&Transfer> for IdMatch {
    fn from(transfer: &Transfer) -> Self {
        Self {
            id: transfer.file,
            name: transfer.name.clone(),
            size: transfer.total,
            kind: transfer.kind,
            found_in: FoundIn::Transfers,
        }
    }
}

/// Keeps one match per id, the first.
pub(crate) fn dedup(matches: &mut Vec<IdMatch>) {
    let mut seen = HashSet::new();
    matches.retain(|found| seen.insert(found.id));
}

/// Prints the matches, and returns the error for an ambiguous prefix.
pub(crate) fn ambiguous(out: &Output, prefix: impl Display, matches: &[IdMatch]) -> CommandError {
    let printed = match out.is_json() {
        true => {
            out.print_object(&json!({ "files": matches.iter().map(object).collect::<Vec<_>>() }))
        }
        false => out.print_lines(lines(out, matches)),
    };
    if let Err(error) = printed {
        return error;
    }
    let files = text::count(matches.len() as u64, "file");
    CommandError::new(Reason::AmbiguousName, format!("{files} match `{prefix}`"))
        .hint("nothing was done; give more digits of the id")
}

fn object(found: &IdMatch) -> serde_json::Value {
    json!({
        "id": found.id,
        "size": found.size,
        "kind": found.kind,
        "names": [found.name],
        "found_in": found.found_in,
    })
}

fn lines(out: &Output, matches: &[IdMatch]) -> Vec<String> {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("SIZE", Align::Right),
        ("FOUND IN", Align::Left),
        ("NAME", Align::Elastic),
    ]);
    let ids = out.id_format(matches.iter().map(|found| &found.id));
    for found in matches {
        let size = match (found.size, found.kind) {
            (Some(size), _) => text::size(size),
            (None, FileKind::Collection) => "folder".to_owned(),
            (None, FileKind::File | FileKind::Provisional) => String::new(),
        };
        table.row([
            ids.text(&found.id),
            size,
            found.found_in.word().to_owned(),
            text::escape(&found.name).into_owned(),
        ]);
    }
    table.lines(out.width())
}
