use proptest::prelude::*;

use super::*;

fn entry(path: &str, content: Content) -> Entry {
    Entry {
        path: RelPath::parse(path).unwrap(),
        content,
    }
}

fn file(path: &str, size: u64) -> Entry {
    let id = if size == 0 {
        EMPTY_FILE
    } else {
        FileId([size as u8; 32])
    };
    entry(
        path,
        Content::File {
            id,
            size,
            executable: false,
        },
    )
}

fn link(path: &str, target: &str) -> Entry {
    entry(
        path,
        Content::Link {
            target: target.to_owned(),
        },
    )
}

fn directory(path: &str) -> Entry {
    entry(path, Content::EmptyDirectory)
}

/// The bytes of entries as they are, whatever is wrong with them.
fn raw(entries: &[Entry]) -> Vec<u8> {
    Manifest {
        entries: entries.to_vec(),
    }
    .encode()
}

#[test]
fn the_bytes_are_those_of_the_documented_message() {
    let manifest = Manifest::new(vec![
        link("b", "a"),
        entry(
            "a",
            Content::File {
                id: FileId([7; 32]),
                size: 300,
                executable: true,
            },
        ),
        directory("c"),
    ])
    .unwrap();
    let message = v1::Manifest {
        entries: manifest.entries.iter().map(to_wire).collect(),
    };
    let expected = [MAGIC.to_vec(), message.encode_to_vec()].concat();
    assert_eq!(manifest.encode(), expected);
    // Golden: a change of these bytes changes the id of every collection.
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
    assert_eq!(hex::encode(manifest.encode()), golden);
    assert_eq!(Manifest::decode(&expected), Ok(manifest));
}

#[test]
fn an_empty_folder_is_a_collection() {
    let manifest = Manifest::new(Vec::new()).unwrap();
    assert_eq!(manifest.encode(), MAGIC);
    assert_eq!(Manifest::decode(MAGIC), Ok(manifest));
}

#[test]
fn order_does_not_matter_to_new_and_does_to_decode() {
    let (a, b) = (file("a", 1), file("b", 2));
    let manifest = Manifest::new(vec![b.clone(), a.clone()]).unwrap();
    assert_eq!(manifest.entries, [a.clone(), b.clone()]);
    assert_eq!(
        Manifest::decode(&raw(&[b, a.clone()])),
        Err(ManifestError::NotCanonical { at: 8 + 43 })
    );
    assert!(matches!(
        Manifest::decode(&raw(&[a.clone(), a])),
        Err(ManifestError::NotCanonical { .. })
    ));
}

#[test]
fn one_path_is_there_once() {
    let twice = Manifest::new(vec![file("a", 1), directory("a")]);
    assert_eq!(twice, Err(ManifestError::Duplicate { path: "a".into() }));
}

#[test]
fn nothing_lies_beneath_a_file_a_link_or_an_empty_folder() {
    // "a-" and "a.b" sort between "a" and "a/b".
    for top in [file("a", 1), link("a", "elsewhere"), directory("a")] {
        for below in ["a/b", "a/b/c/d"] {
            let entries = vec![top.clone(), file("a-", 1), file("a.b", 1), file(below, 1)];
            let conflict = ManifestError::Conflict {
                path: below.into(),
                parent: "a".into(),
            };
            assert_eq!(Manifest::new(entries.clone()), Err(conflict.clone()));
            assert_eq!(Manifest::decode(&raw(&entries)), Err(conflict));
        }
    }
    assert!(
        Manifest::new(vec![
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
        assert!(
            Manifest::new(vec![link(path, target)]).is_ok(),
            "{path} -> {target}"
        );
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
        let refused = Manifest::new(vec![link(path, target)]);
        assert!(
            matches!(refused, Err(ManifestError::UnsafeLink { .. })),
            "{path} -> {target}: {refused:?}"
        );
        assert!(Manifest::decode(&raw(&[link(path, target)])).is_err());
    }
    let deep = vec!["x"; MAX_DEPTH + 1].join("/");
    assert!(Manifest::new(vec![link("a", &deep)]).is_err());
}

#[test]
fn links_that_lead_out_together_are_refused() {
    // Each stays inside by its text; through `s`, which is the top, `t` would not.
    let entries = vec![link("a/b/s", "../.."), link("t", "a/b/s/../x")];
    assert!(matches!(
        Manifest::new(entries),
        Err(ManifestError::UnsafeLink { .. })
    ));
}

#[test]
fn sizes_fit_ids_and_limits() {
    let of = |id, size| {
        entry(
            "a",
            Content::File {
                id,
                size,
                executable: false,
            },
        )
    };
    let refused = |entries| matches!(Manifest::new(entries), Err(ManifestError::Size { .. }));
    assert!(
        refused(vec![of(FileId([1; 32]), 0)]),
        "an empty file has the empty file's id"
    );
    assert!(refused(vec![of(EMPTY_FILE, 1)]));
    assert!(refused(vec![of(
        FileId([1; 32]),
        crate::layout::MAX_FILE_SIZE + 1
    )]));
    assert!(refused(vec![of(FileId([1; 32]), u64::MAX)]));
    let mut other = of(FileId([1; 32]), 6);
    other.path = RelPath::parse("b").unwrap();
    assert!(
        refused(vec![of(FileId([1; 32]), 5), other]),
        "one id has one size"
    );
    assert_eq!(EMPTY_FILE, FileId::derive(0, &crate::merkle::EMPTY_ROOT));
}

#[test]
fn content_beyond_what_units_can_count_is_refused() {
    let huge = |n: u8| {
        let content = Content::File {
            id: FileId([n; 32]),
            size: crate::layout::MAX_FILE_SIZE,
            executable: false,
        };
        entry(&format!("{n}"), content)
    };
    assert!(Manifest::new((1..=4).map(huge).collect()).is_ok());
    let refused = Manifest::new((1..=5).map(huge).collect());
    assert!(matches!(refused, Err(ManifestError::TooLarge(_))), "{refused:?}");
}

#[test]
fn too_many_entries_are_refused_before_they_take_memory() {
    // The shortest entries there can be; without the cap they would be millions.
    let mut bytes = MAGIC.to_vec();
    for i in 0..=MAX_ENTRIES {
        encode_entry(&directory(&format!("{i:07}")), &mut bytes);
    }
    assert_eq!(
        Manifest::decode(&bytes),
        Err(ManifestError::TooLarge("too many entries"))
    );
    let zeros = vec![0; MAX_MANIFEST_SIZE as usize + 1];
    assert!(matches!(
        Manifest::decode(&zeros),
        Err(ManifestError::TooLarge(_))
    ));
}

#[test]
fn other_encodings_of_the_same_message_are_refused() {
    let good = raw(&[file("a", 1)]);
    let body = &good[MAGIC.len() + 2..];
    let with = |entry: &[u8]| [&MAGIC[..], &[ENTRY_KEY, entry.len() as u8], entry].concat();
    assert!(Manifest::decode(&with(body)).is_ok());
    // A length of more bytes than it needs.
    let long = [&MAGIC[..], &[ENTRY_KEY, body.len() as u8 | 0x80, 0][..], body].concat();
    // A field that is not known, at the end of the entry and of the manifest.
    let unknown = with(&[body, &[0x78, 1]].concat());
    let after = [&good[..], &[0x10, 1]].concat();
    // A default that is spelled out.
    let spelled = with(&[&body[..4], &[body[4] + 2], &body[5..], &[0x18, 0]].concat());
    // The same field twice: protobuf takes the last.
    let twice = with(&[&body[..3], body].concat());
    for (what, bytes) in [
        ("long", long),
        ("unknown", unknown),
        ("after", after),
        ("spelled", spelled),
        ("twice", twice),
    ] {
        assert!(
            matches!(Manifest::decode(&bytes), Err(ManifestError::NotCanonical { .. })),
            "{what}"
        );
    }
    assert_eq!(Manifest::decode(b"PLCOLL2\n"), Err(ManifestError::NotAManifest));
    assert_eq!(Manifest::decode(b""), Err(ManifestError::NotAManifest));
}

#[test]
fn messages_show_no_control_characters() {
    let bytes = [&MAGIC[..], &[ENTRY_KEY, 6, 0x0a, 2, 0x1b, b'c', 0x1a, 0][..]].concat();
    let message = Manifest::decode(&bytes).unwrap_err().to_string();
    assert!(message.contains("\\u{1b}c"), "{message}");
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let content = prop_oneof![
        (any::<u8>(), 1..1_u64 << 40, any::<bool>()).prop_map(|(id, size, executable)| Content::File {
            id: FileId([id; 32]),
            size,
            executable
        }),
        any::<bool>().prop_map(|executable| Content::File {
            id: EMPTY_FILE,
            size: 0,
            executable
        }),
        Just(Content::EmptyDirectory),
        "(\\.\\./){0,2}[ab]{1,2}(/[ab]){0,2}".prop_map(|target| Content::Link { target }),
    ];
    let entry = ("[ab-]{1,2}(/[ab]){0,3}", content).prop_map(|(path, content)| Entry {
        path: RelPath::parse(&path).unwrap(),
        content,
    });
    proptest::collection::vec(entry, 0..6)
}

/// The rules again, as plainly as they can be said.
fn is_allowed(entries: &[Entry]) -> bool {
    let beneath = |a: &Entry, b: &Entry| b.path.as_str().starts_with(&format!("{}/", a.path));
    let clash = |a: &Entry, b: &Entry| {
        let sizes = match (&a.content, &b.content) {
            (
                Content::File { id, size, .. },
                Content::File {
                    id: other_id,
                    size: other,
                    ..
                },
            ) => id == other_id && size != other,
            _ => false,
        };
        a.path == b.path || beneath(a, b) || beneath(b, a) || sizes
    };
    let inside = |entry: &Entry| match &entry.content {
        Content::Link { target } => target.matches("..").count() < entry.path.components().count(),
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
        match Manifest::new(entries.clone()) {
            Ok(manifest) => {
                prop_assert!(is_allowed(&entries));
                prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
            }
            Err(error) => prop_assert!(!is_allowed(&entries), "{}", error),
        }
    }

    #[test]
    fn changed_bytes_are_refused_or_canonical(
        entries in entries(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0..3_u8), 1..4),
    ) {
        let mut bytes = raw(&entries);
        for (at, value, how) in changes {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = value,
                1 => bytes.insert(at, value),
                _ => drop(bytes.remove(at)),
            }
        }
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert_eq!(manifest.encode(), bytes);
            prop_assert!(is_allowed(&manifest.entries));
        }
    }

    #[test]
    fn any_bytes_are_refused_or_canonical(rest in proptest::collection::vec(any::<u8>(), 0..60)) {
        let bytes = [MAGIC.to_vec(), rest].concat();
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert_eq!(manifest.encode(), bytes);
        }
    }
}
