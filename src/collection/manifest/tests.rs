use proptest::prelude::*;

use super::*;

/// Key of an entry on the wire.
const ENTRY: u8 = 0x0a;

use crate::{
    Problem, Reason,
    collection::{
        limits::{FOLDERS_PER_ENTRY, FREE_FOLDERS, MAX_FOLDERS},
        path::MAX_DEPTH,
    },
    identity::merkle::EMPTY_FILE,
    proto::v1::{self, manifest_entry::Content as WireContent},
};

/// A manifest of `entries`, which may be unsorted.
fn make(mut entries: Vec<ManifestEntry<'_>>) -> Result<Manifest, ManifestError> {
    entries.sort_unstable_by_key(|entry| entry.path);
    Manifest::new(entries)
}

/// An entry as the generated message type.
fn to_wire(entry: ManifestEntry<'_>) -> v1::ManifestEntry {
    let content = match entry.content {
        EntryContent::File { id, size, executable } => WireContent::File(v1::ManifestFile {
            file_id: id.to_bytes(),
            size,
            executable,
        }),
        EntryContent::EmptyDirectory => WireContent::Directory(v1::ManifestDirectory {}),
        EntryContent::Link { target } => WireContent::Link(v1::ManifestLink {
            target: target.to_owned(),
        }),
    };
    v1::ManifestEntry {
        path: entry.path.as_str().to_owned(),
        content: Some(content),
    }
}

fn to_message(entries: &[ManifestEntry<'_>]) -> Vec<u8> {
    use prost::Message as _;
    let message = v1::Manifest {
        entries: entries.iter().copied().map(to_wire).collect(),
    };
    [MAGIC.to_vec(), message.encode_to_vec()].concat()
}

fn entry<'a>(path: &'a str, content: EntryContent<'a>) -> ManifestEntry<'a> {
    ManifestEntry {
        path: RelPath::parse(path).unwrap(),
        content,
    }
}

fn file(path: &str, size: u64) -> ManifestEntry<'_> {
    let id = if size == 0 {
        EMPTY_FILE
    } else {
        FileId([size as u8; 32])
    };
    entry(
        path,
        EntryContent::File {
            id,
            size,
            executable: false,
        },
    )
}

fn link<'a>(path: &'a str, target: &'a str) -> ManifestEntry<'a> {
    entry(path, EntryContent::Link { target })
}

fn directory(path: &str) -> ManifestEntry<'_> {
    entry(path, EntryContent::EmptyDirectory)
}

/// Encodes entries without checking them.
fn raw(entries: &[ManifestEntry<'_>]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for entry in entries {
        encoding::encode_entry(entry, &mut bytes);
    }
    bytes
}

#[test]
fn the_bytes_are_those_of_the_documented_message() {
    let manifest = make(vec![
        link("b", "a"),
        entry(
            "a",
            EntryContent::File {
                id: FileId([7; 32]),
                size: 300,
                executable: true,
            },
        ),
        directory("c"),
    ])
    .unwrap();
    let expected = to_message(&manifest.entries().collect::<Vec<_>>());
    assert_eq!(manifest.bytes(), &expected);
    // Golden bytes: a change would change the id of every collection.
    let golden = concat!(
        "504c434f4c4c310a", // PLCOLL1\n
        "0a2c",
        "0a0161",
        "1227",
        "0a200707070707070707070707070707070707070707070707070707070707070707",
        "10ac02",
        "1801",
        "0a08",
        "0a0162",
        "2203",
        "0a0161",
        "0a05",
        "0a0163",
        "1a00",
    );
    assert_eq!(hex::encode(manifest.bytes()), golden);
    assert_eq!(Manifest::decode(expected), Ok(manifest));
}

#[test]
fn an_empty_folder_is_a_collection() {
    let manifest = Manifest::new([]).unwrap();
    assert_eq!(&manifest.bytes()[..], MAGIC);
    assert_eq!(manifest, Manifest::default());
    assert_eq!(Manifest::decode(&MAGIC[..]), Ok(manifest));
}

#[test]
fn entries_are_sorted_and_each_path_is_there_once() {
    let (a, b) = (file("a", 1), file("b", 2));
    let manifest = Manifest::new([a, b]).unwrap();
    assert_eq!(manifest.entries().collect::<Vec<_>>(), [a, b]);
    let order = Err(ManifestError::Order { path: "a".into() });
    assert_eq!(Manifest::new([b, a]), order);
    assert_eq!(Manifest::decode(raw(&[b, a])), order);
    let twice = Err(ManifestError::Duplicate { path: "a".into() });
    assert_eq!(Manifest::new([a, directory("a")]), twice);
    assert_eq!(Manifest::decode(raw(&[a, a])), twice);
}

#[test]
fn files_are_found_by_path_and_by_content() {
    let manifest = make(vec![
        file("d/same", 1),
        file("a", 1),
        file("b", 2),
        link("c", "a"),
        file("e", 0),
    ])
    .unwrap();
    assert_eq!(manifest.find("d/same"), Some(3));
    for missing in ["", "d", "d/sam", "z"] {
        assert_eq!(manifest.find(missing), None, "{missing}");
    }
    assert_eq!(manifest.with_id(&FileId([1; 32])), [0, 3]);
    assert_eq!(manifest.with_id(&EMPTY_FILE), [4]);
    assert!(manifest.with_id(&FileId([3; 32])).is_empty());
    let mut contents: Vec<_> = manifest.contents().collect();
    contents.sort_unstable();
    assert_eq!(contents, [&[0, 3][..], &[1], &[4]]);
    let above = ["", "a", "d", "d/same", "d/", "z"].map(|path| manifest.is_folder(path));
    assert_eq!(above, [false, false, true, false, false, false]);
    assert_eq!((manifest.file_count(), manifest.content_size()), (4, 4));
}

#[test]
fn nothing_lies_beneath_a_file_a_link_or_an_empty_folder() {
    // "a-" and "a.b" sort between "a" and "a/b".
    for top in [file("a", 1), link("a", "elsewhere"), directory("a")] {
        for below in ["a/b", "a/b/c/d"] {
            let entries = vec![top, file("a-", 1), file("a.b", 1), file(below, 1)];
            let conflict = ManifestError::Conflict {
                path: below.into(),
                parent: "a".into(),
            };
            assert_eq!(make(entries.clone()), Err(conflict.clone()));
            assert_eq!(Manifest::decode(raw(&entries)), Err(conflict));
        }
    }
    assert!(
        make(vec![
            file("a-", 1),
            file("a.b", 1),
            file("a/b", 1),
            file("a/bc", 2)
        ])
        .is_ok()
    );
}

#[test]
fn links_stay_inside() {
    for (path, target) in [
        ("a", "b"),
        ("a", "./b//c/"),
        ("a", "."),
        ("d/a", ".."),
        ("d/a", "../x"),
        ("d/e/a", "../../x/y"),
        ("d/e/a", "./../.././x"),
        ("a", "..."),
    ] {
        assert!(make(vec![link(path, target)]).is_ok(), "{path} -> {target}");
    }
    for (path, target) in [
        ("a", ""),
        ("a", "/"),
        ("a", "/etc/passwd"),
        ("a", ".."),
        ("a", "../x"),
        ("d/a", "../../x"),
        ("d/a", "../../d/x"),
        ("d/a", "b/.."),
        ("d/a", "b/../../.."),
        ("a", "b\0c"),
        ("a", "..\\x"),
    ] {
        let refused = make(vec![link(path, target)]);
        assert!(
            matches!(refused, Err(ManifestError::UnsafeLink { .. })),
            "{path} -> {target}: {refused:?}"
        );
        assert!(Manifest::decode(raw(&[link(path, target)])).is_err());
    }
    let deep = vec!["x"; MAX_DEPTH + 1].join("/");
    assert!(make(vec![link("a", &deep)]).is_err());
}

#[test]
fn links_that_lead_out_together_are_refused() {
    // By its text, each target stays inside. Through `s`, which points to the root, `t` would not.
    let entries = vec![link("a/b/s", "../.."), link("t", "a/b/s/../x")];
    assert!(matches!(make(entries), Err(ManifestError::UnsafeLink { .. })));
}

#[test]
fn sizes_fit_ids_and_limits() {
    let of = |id, size| {
        entry(
            "a",
            EntryContent::File {
                id,
                size,
                executable: false,
            },
        )
    };
    let refused = |entries| matches!(make(entries), Err(ManifestError::Size { .. }));
    assert!(
        refused(vec![of(FileId([1; 32]), 0)]),
        "an empty file has the empty file's id"
    );
    assert!(refused(vec![of(EMPTY_FILE, 1)]));
    assert!(refused(vec![of(
        FileId([1; 32]),
        crate::identity::layout::MAX_FILE_SIZE + 1
    )]));
    assert!(refused(vec![of(FileId([1; 32]), u64::MAX)]));
    let mut other = of(FileId([1; 32]), 6);
    other.path = RelPath::parse("b").unwrap();
    assert!(
        refused(vec![of(FileId([1; 32]), 5), other]),
        "one id has one size"
    );
    assert_eq!(
        EMPTY_FILE,
        FileId::derive(0, &crate::identity::merkle::EMPTY_ROOT)
    );
}

#[test]
fn content_beyond_what_units_can_count_is_refused() {
    let names = ["1", "2", "3", "4"];
    let huge = |&path: &&'static str| {
        let content = EntryContent::File {
            id: FileId([path.as_bytes()[0]; 32]),
            size: crate::identity::layout::MAX_FILE_SIZE,
            executable: false,
        };
        entry(path, content)
    };
    assert!(make(names[..3].iter().map(huge).collect()).is_ok());
    let refused = make(names.iter().map(huge).collect());
    assert!(matches!(refused, Err(ManifestError::TooLarge(_))), "{refused:?}");
}

#[test]
fn too_many_entries_are_refused_before_they_take_memory() {
    // The shortest valid entries. Without the limit there would be millions.
    let mut bytes = MAGIC.to_vec();
    for i in 0..=MAX_ENTRIES {
        encoding::encode_entry(&link(&format!("{i:07}"), "x"), &mut bytes);
    }
    assert_eq!(
        Manifest::decode(bytes),
        Err(ManifestError::TooLarge("too many entries"))
    );
    let zeros = vec![0; MAX_MANIFEST_SIZE as usize + 1];
    assert!(matches!(Manifest::decode(zeros), Err(ManifestError::TooLarge(_))));
}

#[test]
fn other_encodings_of_the_same_message_are_refused() {
    let good = raw(&[file("a", 1)]);
    let body = &good[MAGIC.len() + 2..];
    let with = |entry: &[u8]| [&MAGIC[..], &[ENTRY, entry.len() as u8], entry].concat();
    assert!(Manifest::decode(with(body)).is_ok());
    // A length varint that is longer than necessary.
    let long = [&MAGIC[..], &[ENTRY, body.len() as u8 | 0x80, 0][..], body].concat();
    // An unknown field at the end of the entry, and of the manifest.
    let unknown = with(&[body, &[0x78, 1]].concat());
    let after = [&good[..], &[0x10, 1]].concat();
    // An explicit default value.
    let spelled = with(&[&body[..4], &[body[4] + 2], &body[5..], &[0x18, 0]].concat());
    // A repeated field: protobuf uses the last one.
    let twice = with(&[&body[..3], body].concat());
    for (what, bytes) in [
        ("long", long),
        ("unknown", unknown),
        ("after", after),
        ("spelled", spelled),
        ("twice", twice),
    ] {
        assert!(
            matches!(Manifest::decode(bytes), Err(ManifestError::NotCanonical { .. })),
            "{what}"
        );
    }
    assert_eq!(
        Manifest::decode(&b"PLCOLL2\n"[..]),
        Err(ManifestError::NotAManifest)
    );
    assert_eq!(Manifest::decode(&b""[..]), Err(ManifestError::NotAManifest));
}

#[test]
fn messages_show_no_control_characters() {
    let bytes = [&MAGIC[..], &[ENTRY, 6, 0x0a, 2, 0x1b, b'c', 0x1a, 0][..]].concat();
    let message = Manifest::decode(bytes).unwrap_err().to_string();
    assert!(message.contains("\\u{1b}c"), "{message}");
}

/// An entry that owns its strings.
#[derive(Debug, Clone)]
struct Owned(String, OwnedContent);

#[derive(Debug, Clone)]
enum OwnedContent {
    File(u8, u64, bool),
    Directory,
    Link(String),
}

impl Owned {
    fn entry(&self) -> ManifestEntry<'_> {
        let content = match &self.1 {
            OwnedContent::File(_, 0, executable) => EntryContent::File {
                id: EMPTY_FILE,
                size: 0,
                executable: *executable,
            },
            OwnedContent::File(id, size, executable) => EntryContent::File {
                id: FileId([*id; 32]),
                size: *size,
                executable: *executable,
            },
            OwnedContent::Directory => EntryContent::EmptyDirectory,
            OwnedContent::Link(target) => EntryContent::Link { target },
        };
        entry(&self.0, content)
    }
}

fn of(entries: &[Owned]) -> Vec<ManifestEntry<'_>> {
    entries.iter().map(Owned::entry).collect()
}

fn entries() -> impl Strategy<Value = Vec<Owned>> {
    let content = prop_oneof![
        (
            any::<u8>(),
            prop_oneof![1..300_u64, 1..1_u64 << 40],
            any::<bool>()
        )
            .prop_map(|(id, size, executable)| OwnedContent::File(id, size, executable)),
        any::<bool>().prop_map(|executable| OwnedContent::File(0, 0, executable)),
        Just(OwnedContent::Directory),
        "(\\.\\./){0,2}[ab]{1,2}(/[ab]){0,2}".prop_map(OwnedContent::Link),
    ];
    let entry =
        ("[ab-]{1,2}(/[ab]){0,3}", content).prop_map(|(path, content)| Owned(path, content));
    proptest::collection::vec(entry, 0..6)
}

/// The rules of a manifest, written for clarity.
fn is_allowed(entries: &[ManifestEntry<'_>]) -> bool {
    let beneath = |a: &ManifestEntry<'_>, b: &ManifestEntry<'_>| {
        b.path.as_str().starts_with(&format!("{}/", a.path))
    };
    let clash = |a: &ManifestEntry<'_>, b: &ManifestEntry<'_>| {
        let sizes = match (&a.content, &b.content) {
            (
                EntryContent::File { id, size, .. },
                EntryContent::File {
                    id: other_id,
                    size: other,
                    ..
                },
            ) => id == other_id && size != other,
            _ => false,
        };
        a.path == b.path || beneath(a, b) || beneath(b, a) || sizes
    };
    let inside = |entry: &ManifestEntry<'_>| match &entry.content {
        EntryContent::Link { target } => {
            // A name such as `.. a` only begins with two dots: it leads nowhere.
            let up = target.split('/').filter(|part| *part == "..").count();
            up < entry.path.components().count()
        }
        _ => true,
    };
    entries.iter().all(inside)
        && entries
            .iter()
            .enumerate()
            .all(|(i, a)| entries[..i].iter().all(|b| !clash(a, b)))
}

proptest! {
    #[test]
    fn what_is_allowed_survives_the_round_trip(entries in entries()) {
        let entries = of(&entries);
        match make(entries.clone()) {
            Ok(manifest) => {
                prop_assert!(is_allowed(&entries));
                prop_assert_eq!(Manifest::decode(manifest.bytes().clone()), Ok(manifest));
            }
            Err(error) => prop_assert!(!is_allowed(&entries), "{}", error),
        }
    }

    #[test]
    fn the_bytes_are_what_generated_code_writes(entries in entries(), long in "[a-z]{0,300}") {
        let mut entries = of(&entries);
        entries.push(link("long", &long));
        prop_assert_eq!(raw(&entries), to_message(&entries));
    }

    #[test]
    fn entries_are_read_as_they_were_written(entries in entries()) {
        let entries = of(&entries);
        if let Ok(manifest) = make(entries.clone()) {
            prop_assert_eq!(manifest.len(), entries.len());
            for entry in &entries {
                let index = manifest.find(entry.path.as_str());
                prop_assert_eq!(index.and_then(|index| manifest.get(index)), Some(*entry));
                prop_assert_eq!(index.and_then(|index| manifest.id(index)), entry.content.id());
                if let Some(id) = entry.content.id() {
                    let same = entries.iter().filter(|other| other.content.id() == Some(id)).count();
                    prop_assert_eq!(manifest.with_id(&id).len(), same);
                }
            }
        }
    }

    #[test]
    fn changed_bytes_are_refused_or_canonical(
        entries in entries(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0..3_u8), 1..4),
    ) {
        let mut bytes = raw(&of(&entries));
        for (at, value, how) in changes {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = value,
                1 => bytes.insert(at, value),
                _ => drop(bytes.remove(at)),
            }
        }
        if let Ok(manifest) = Manifest::decode(bytes.clone()) {
            let entries: Vec<_> = manifest.entries().collect();
            prop_assert_eq!(to_message(&entries), bytes);
            prop_assert!(is_allowed(&entries));
        }
    }

    #[test]
    fn any_bytes_are_refused_or_canonical(rest in proptest::collection::vec(any::<u8>(), 0..60)) {
        let bytes = [MAGIC.to_vec(), rest].concat();
        if let Ok(manifest) = Manifest::decode(bytes.clone()) {
            prop_assert_eq!(to_message(&manifest.entries().collect::<Vec<_>>()), bytes);
        }
    }
}

#[test]
fn few_entries_do_not_make_many_folders() {
    // Chains of folders that share no prefix.
    let chain = |n: usize, depth: usize| format!("{n:05}/{}f", "x/".repeat(depth - 1));
    let refused = |entries: &[ManifestEntry<'_>]| match Manifest::decode(raw(entries)) {
        Err(ManifestError::TooManyFolders {
            folders,
            entries,
            max,
        }) => Some((folders, entries, max)),
        decoded => decoded.map(|_| None).unwrap(),
    };
    let paths: Vec<String> = (0..400).map(|n| chain(n, 254)).collect();
    let entries: Vec<_> = paths.iter().map(|path| file(path, 1)).collect();
    let max = FREE_FOLDERS + 400 * FOLDERS_PER_ENTRY;
    assert_eq!(refused(&entries), Some((400 * 254, 400, max)));
    let error = make(entries).unwrap_err();
    assert!(error.to_string().contains("101600 for 400 entries"), "{error}");
    assert_eq!(Problem::from(error).reason, Reason::OutOfRange);
    // A realistic tree.
    let paths: Vec<String> = (0..400).map(|n| chain(n, 16)).collect();
    let entries: Vec<_> = paths.iter().map(|path| file(path, 1)).collect();
    assert_eq!(refused(&entries), None);
    let paths: Vec<String> = (0..16).map(|n| chain(n, 254)).collect();
    let entries: Vec<_> = paths.iter().map(|path| file(path, 1)).collect();
    assert_eq!(refused(&entries), None, "a few deep ones are free");
    let paths: Vec<String> = (0..=MAX_FOLDERS).map(|n| format!("{n:07}")).collect();
    let entries: Vec<_> = paths.iter().map(|path| directory(path)).collect();
    let all = (MAX_FOLDERS + 1, MAX_FOLDERS + 1, MAX_FOLDERS);
    assert_eq!(refused(&entries), Some(all));
}
