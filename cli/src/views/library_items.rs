//! Items of a peer's library, as JSON and text.

use std::path::Path;

use potluck_core::model::FileKind;
use serde_json::json;

use crate::{control::model::Item, output::text};

/// An item as JSON. For a collection, `size` is the size of its manifest, and `content_size` the
/// sum of its files.
pub(crate) fn object(item: &Item) -> serde_json::Value {
    json!({
        "id": item.record.id,
        "root": item.record.root,
        "size": item.record.size,
        "name": item.name,
        "path": item.path,
        "kind": item.record.kind,
        "sha256": item.record.sha256,
        "file_count": item.file_count,
        "content_size": item.content_size,
        "damaged_paths": item.damaged_paths,
    })
}

/// The kind of an item: `file`, or the number of files in the folder; and whether it is damaged.
pub(crate) fn kind_text(item: &Item) -> String {
    let what = match item.record.kind {
        FileKind::File | FileKind::Provisional => "file".to_owned(),
        FileKind::Collection => format!("folder, {}", text::count(item.file_count, "file")),
    };
    match item.damaged_paths.is_empty() {
        true => what,
        false => format!("{what}, damaged"),
    }
}

/// The path, and the name if it is not that of the path.
pub(crate) fn path_text(item: &Item) -> String {
    let path = text::path(&item.path);
    match Path::new(&item.path)
        .file_name()
        .is_some_and(|name| *name == *item.name)
    {
        true => path,
        false => format!("{path} (as {})", text::escape(&item.name)),
    }
}
