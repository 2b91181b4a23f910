//! Files that the index knows, as a table and as JSON.

use potluck_core::model::{FileKind, IndexedFile};
use serde_json::json;

use crate::output::{
    Output,
    table::{Align, Table},
    text,
};

/// The result of a query as JSON. Serialized one file at a time to save memory.
#[derive(serde::Serialize)]
pub(crate) struct QueryObject<'a> {
    #[serde(serialize_with = "objects")]
    pub(crate) files: &'a [IndexedFile],
}

fn objects<S: serde::Serializer>(files: &&[IndexedFile], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(files.iter().map(object))
}

/// A file as JSON.
fn object(found: &IndexedFile) -> serde_json::Value {
    let providers: Vec<_> = found
        .providers
        .iter()
        .map(|provider| {
            json!({
                "peer": provider.peer,
                "address": provider.address.to_string(),
                "complete": provider.is_complete,
            })
        })
        .collect();
    json!({
        "id": found.file.id,
        "root": found.file.root,
        "size": found.file.size,
        "kind": found.file.kind,
        "names": found.names,
        "sha256": found.file.sha256,
        "provider_count": found.provider_count,
        "providers": providers,
    })
}

/// A page of search results as JSON. Serialized one file at a time to save memory.
#[derive(serde::Serialize)]
pub(crate) struct SearchObject<'a> {
    #[serde(serialize_with = "results")]
    pub(crate) files: &'a [IndexedFile],
    pub(crate) next_page: Option<&'a str>,
}

fn results<S: serde::Serializer>(files: &&[IndexedFile], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(files.iter().map(result))
}

/// A result of a search as JSON.
fn result(found: &IndexedFile) -> serde_json::Value {
    json!({
        "id": found.file.id,
        "size": found.file.size,
        "kind": found.file.kind,
        "names": found.names,
        "providers": found.provider_count,
    })
}

/// A table of files with their ids, from which the user can choose one.
pub(crate) fn table_lines(out: &Output, files: &[IndexedFile]) -> Vec<String> {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("SIZE", Align::Right),
        ("PEERS", Align::Right),
        ("NAME", Align::Elastic),
    ]);
    let ids = out.id_format(files.iter().map(|found| &found.file.id));
    for found in files {
        table.row([
            ids.text(&found.file.id),
            size_text(found),
            found.provider_count.to_string(),
            name_text(found),
        ]);
    }
    table.lines(out.width())
}

/// The size as text. The index does not know the content size of a collection.
fn size_text(found: &IndexedFile) -> String {
    match found.file.kind {
        FileKind::File | FileKind::Provisional => text::size(found.file.size),
        FileKind::Collection => "folder".to_owned(),
    }
}

/// The most used name, and the number of other names.
fn name_text(found: &IndexedFile) -> String {
    let first = found
        .names
        .first()
        .map_or_else(|| "(no name)".into(), |name| text::escape(name));
    match found.names.len() {
        0 | 1 => first.into_owned(),
        n => format!("{first} (and {})", text::count(n as u64 - 1, "other name")),
    }
}
