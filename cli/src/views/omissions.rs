//! The entries that are left out of a shared folder, as text and JSON.

use std::path::Path;

use potluck_peer::library::{OmissionKind, Omissions};
use serde_json::json;

use crate::{
    control::model::{FolderOmissions, OmittedEntry},
    output::{Output, text},
};

/// Maximum number of paths that one command names if its output is not verbose.
pub(crate) const MAX_NAMED: usize = 10;

/// Maximum number of paths that the peer is asked for: all, or as many as are printed.
pub(crate) fn max_listed(out: &Output) -> usize {
    match out.is_verbose() {
        true => u32::MAX as usize,
        false => MAX_NAMED,
    }
}

/// The omissions of a folder that this process hashed.
pub(crate) fn of_hashed(folder: &Path, omitted: &Omissions, max: usize) -> FolderOmissions {
    let sample = omitted.sample(max).into_iter();
    FolderOmissions {
        folder: folder.to_string_lossy().into_owned(),
        counts: omitted.counts().collect(),
        entries: sample
            .map(|omission| OmittedEntry {
                path: omission.path.to_string_lossy().into_owned(),
                kind: omission.kind,
                message: omission.problem.message,
            })
            .collect(),
    }
}

/// Adds the omissions of an item to its JSON object: the counts, and the paths if the output is
/// verbose.
pub(crate) fn add_to_object(
    object: &mut serde_json::Value,
    omitted: &FolderOmissions,
    out: &Output,
) {
    let counts = omitted
        .counts
        .iter()
        .map(|(kind, count)| (kind.word().to_owned(), json!(count)));
    object["skipped"] = serde_json::Value::Object(counts.collect());
    if out.is_verbose() {
        let entries = omitted.entries.iter().map(|entry| {
            json!({ "path": entry.path, "kind": entry.kind.word(), "message": entry.message })
        });
        object["skipped_paths"] = entries.collect();
    }
}

/// Reports the omissions of a folder: one line for each kind, and examples. Names at most `left`
/// paths, unless the output is verbose, and counts them down.
pub(crate) fn report(out: &Output, omitted: &FolderOmissions, left: &mut usize) {
    for &(kind, count) in &omitted.counts {
        let line = heading(kind, count);
        match kind {
            OmissionKind::Excluded => out.note(line),
            _ => out.warn(line),
        }
        let mut named = 0;
        let of_kind = omitted.entries.iter().filter(|entry| entry.kind == kind);
        // Excluded entries were asked for, so they are named only on request.
        for entry in of_kind.filter(|_| out.is_verbose() || kind != OmissionKind::Excluded) {
            if !out.is_verbose() {
                match left.checked_sub(1) {
                    Some(rest) => *left = rest,
                    None => break,
                }
            }
            named += 1;
            let path = Path::new(&entry.path);
            let path = path
                .strip_prefix(&omitted.folder)
                .unwrap_or(path)
                .to_string_lossy();
            out.note(format_args!("  {}{}", text::escape(&path), details(entry)));
        }
        if named > 0 && named < count {
            let hint = if out.is_verbose() { "" } else { "; -v names all" };
            out.note(format_args!("  … and {} more{hint}", count - named));
        }
    }
}

/// The details of an entry that its heading does not give.
fn details(entry: &OmittedEntry) -> String {
    match entry.kind {
        OmissionKind::Special | OmissionKind::InvalidName => {
            format!(": {}", text::escape(&entry.message))
        }
        _ => String::new(),
    }
}

fn heading(kind: OmissionKind, count: u64) -> String {
    let entries = |noun: &str| text::count(count, noun);
    match kind {
        OmissionKind::Link => format!(
            "skipped {}, absolute or leading out of the folder; --links follow shares what links \
             lead to",
            entries("link")
        ),
        OmissionKind::DanglingLink => format!("skipped {} to nothing", entries("link")),
        OmissionKind::LinkLoop => {
            format!("skipped {} that links lead back to", entries("folder"))
        }
        OmissionKind::Special => {
            format!("skipped {}: pipes, sockets or devices", entries("special file"))
        }
        OmissionKind::Unreadable => {
            format!("skipped {} without permission to read", paths(count))
        }
        OmissionKind::InvalidName => {
            format!("skipped {} with a name that cannot be shared", paths(count))
        }
        OmissionKind::Vanished => {
            format!("skipped {} that disappeared meanwhile", paths(count))
        }
        OmissionKind::PeerState => {
            format!("skipped {} to this peer's own state", entries("link"))
        }
        OmissionKind::Excluded => format!("left out {} by pattern", paths(count)),
    }
}

/// A number of files or folders.
fn paths(count: u64) -> String {
    match count {
        1 => "1 file or folder".to_owned(),
        count => format!("{} files or folders", indicatif::HumanCount(count)),
    }
}
