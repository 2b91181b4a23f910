//! The manifest of a collection, and the plan of its download.

use std::{collections::BTreeMap, path::Component, sync::Arc};

use potluck_core::{
    FileId, Root,
    collection::{
        manifest::{EntryContent, MAGIC, Manifest, ManifestEntry},
        path::RelPath,
        plan::Plan,
    },
    identity::merkle::EMPTY_FILE,
};

/// Plans of more units than this take too long for a run.
const MAX_UNITS: u32 = 4096;

/// A manifest that is accepted is canonical, its paths and links stay within the folder, its
/// lookups agree with its entries, and its plan covers each distinct file once.
///
/// The input is a manifest, with or without its first bytes.
pub fn manifest(input: &[u8]) -> bool {
    let whole = [MAGIC.as_slice(), input].concat();
    [input.to_vec(), whole]
        .map(check)
        .into_iter()
        .any(|accepted| accepted)
}

fn check(input: Vec<u8>) -> bool {
    let Ok(manifest) = Manifest::decode(input.clone()) else {
        return false;
    };
    assert_eq!(manifest.bytes(), &input, "decoding changes the bytes");
    let again = Manifest::new(manifest.entries()).expect("valid entries make a manifest");
    assert_eq!(again.bytes(), &input, "encoding is not canonical");
    assert_eq!(again, manifest);

    let mut sizes = BTreeMap::new();
    let (mut files, mut bytes) = (0, 0);
    let mut folders: Vec<&str> = manifest.folders().collect();
    let mut previous = None;
    for (index, entry) in (0..).zip(manifest.entries()) {
        let path = entry.path.as_str();
        assert!(previous.replace(path) < Some(path), "entries are not sorted");
        check_path(path);
        assert_eq!(manifest.find(path), Some(index), "an entry is not found");
        assert_eq!(manifest.get(index), Some(entry));
        assert_eq!(manifest.content(index), Some(entry.content));
        assert_eq!(manifest.id(index), entry.content.id());
        for (at, _) in path.match_indices('/') {
            assert!(manifest.is_folder(&path[..at]), "a parent is no folder");
            assert_eq!(manifest.find(&path[..at]), None, "a parent is an entry");
            assert!(folders.contains(&&path[..at]), "a parent is not listed");
        }
        match entry.content {
            EntryContent::File { id, size, .. } => {
                assert_eq!(*sizes.entry(id).or_insert(size), size, "an id has two sizes");
                assert!(
                    manifest.with_id(&id).contains(&index),
                    "a file is not in the index"
                );
                files += 1;
                bytes += size;
            }
            EntryContent::EmptyDirectory => assert!(folders.contains(&path)),
            EntryContent::Link { target } => check_link(path, target),
        }
    }
    assert_eq!((manifest.file_count(), manifest.content_size()), (files, bytes));
    let contents: usize = manifest.contents().map(<[u32]>::len).sum();
    assert_eq!(contents as u64, files, "contents do not cover the files");
    assert_eq!(manifest.contents().count(), sizes.len());
    let count = folders.len();
    for (at, folder) in folders.iter().enumerate() {
        let parent = folder.rsplit_once('/').map(|(parent, _)| parent);
        assert!(parent.is_none_or(|parent| folders[..at].contains(&parent)));
    }
    folders.sort_unstable();
    folders.dedup();
    assert_eq!(folders.len(), count, "a folder occurs twice");
    for group in manifest.lookalikes() {
        assert!(group.len() > 1, "one path looks like itself");
    }
    check_plan(manifest, &sizes);
    true
}

/// Checks with the standard library that a path leads to a place beneath its folder.
fn check_path(path: &str) {
    let buffer = RelPath::parse(path).expect("a valid path").to_path_buf();
    let is_normal = |part: Component<'_>| matches!(part, Component::Normal(_));
    assert!(buffer.components().all(is_normal), "{path:?}");
    assert_eq!(buffer.components().count(), path.split('/').count(), "{path:?}");
}

/// Follows a link by hand. It must never be above the collection, and never go up after a name,
/// which could be another link.
fn check_link(path: &str, target: &str) {
    let mut depth = path.matches('/').count() as i64;
    let mut has_name = false;
    assert!(!target.starts_with('/'), "{target:?}");
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                assert!(!has_name, "{path:?} -> {target:?}");
                depth -= 1;
            }
            _ => (depth, has_name) = (depth + 1, true),
        }
        assert!(depth >= 0, "{path:?} -> {target:?}");
    }
}

/// The units of a plan cover each distinct file that is not empty, without gap or overlap.
fn check_plan(manifest: Manifest, sizes: &BTreeMap<FileId, u64>) {
    let plan = Plan::of_collection(&Arc::new(manifest));
    if plan.unit_count() > MAX_UNITS {
        return;
    }
    let mut covered: BTreeMap<FileId, u64> = BTreeMap::new();
    for unit in 0..plan.unit_count() {
        let mut len = 0;
        for span in plan.spans(unit) {
            let end = covered.entry(span.id).or_default();
            assert_eq!(span.offset, *end, "a gap or an overlap");
            assert!(span.len > 0, "an empty span");
            *end += span.len;
            len += span.len;
            let units = plan.units_of(span.file, span.offset..span.offset + span.len);
            assert_eq!(units, unit..unit + 1, "a span belongs to another unit");
        }
        assert_eq!(plan.unit_len(unit), len);
    }
    let expected = sizes.iter().filter(|(_, size)| **size > 0);
    assert!(covered.iter().eq(expected), "the plan does not cover the files");
    assert_eq!(plan.spans(plan.unit_count()).count(), 0);
    assert_eq!(plan.unit_len(plan.unit_count()), 0);
}

/// Manifests of several shapes.
pub fn seeds() -> Vec<Vec<u8>> {
    let file = |size: u64, executable| EntryContent::File {
        id: match size {
            0 => EMPTY_FILE,
            size => FileId::derive(size, &Root([size as u8; 32])),
        },
        size,
        executable,
    };
    let link = |target| EntryContent::Link { target };
    let shapes: [&[(&str, EntryContent<'_>)]; 5] = [
        &[],
        &[("model.bin", file(3 << 20, false))],
        &[
            ("README.md", file(1000, false)),
            ("a", EntryContent::EmptyDirectory),
            ("bin/run", file(70_000, true)),
            ("bin/run-too", file(70_000, false)),
            ("data/part-1", file(300_000, false)),
            ("data/part-2", file(0, false)),
            ("latest", link("data/part-1")),
        ],
        &[
            ("deep/er/a", link("../../x")),
            ("deep/er/b", link("b/./c//d")),
            ("x", link(".")),
        ],
        &[
            ("É", file(1, false)),
            ("é", file(2, false)),
            ("名前", file(u32::MAX.into(), false)),
        ],
    ];
    let encode = |entries: &[(&str, EntryContent<'_>)]| {
        let entries = entries.iter().map(|&(path, content)| ManifestEntry {
            path: RelPath::parse(path).expect("a valid path"),
            content,
        });
        let manifest = Manifest::new(entries).expect("a valid manifest");
        manifest.bytes()[MAGIC.len()..].to_vec()
    };
    shapes.into_iter().map(encode).collect()
}

/// Parts of manifests.
pub const WORDS: &[&[u8]] = &[
    b"/",
    b"..",
    b"../",
    b".",
    b"//",
    b"\x0a",
    b"\x12\x00",
    b"\x1a\x00",
    b"\x22\x00",
    b"\\",
    "\u{202e}".as_bytes(),
    "\u{301}".as_bytes(),
];
