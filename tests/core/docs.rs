//! Checks that documents with stable content match the code.

use std::collections::HashSet;

use potluck_core::{
    Reason,
    collection::{limits, path, plan},
    identity::{layout, merkle},
};

const ERRORS: &str = include_str!("../../docs/errors.md");
const PROTOCOL: &str = include_str!("../../docs/protocol.md");

/// Converts `InvalidArgument` to `INVALID_ARGUMENT`.
fn code_name(code: tonic::Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

#[test]
fn the_table_of_errors_has_every_reason() {
    let rows: Vec<Vec<&str>> = ERRORS
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().trim_matches('`'))
                .collect()
        })
        .collect();
    for reason in Reason::ALL {
        let row = rows.iter().find(|row| row[0] == reason.as_str());
        let row = row.unwrap_or_else(|| panic!("docs/errors.md has no row for {reason}"));
        assert_eq!(row[1..3], [reason.word(), &code_name(reason.code())], "{reason}");
        assert!(
            row.len() == 5 && row[3..].iter().all(|cell| cell.len() > 5),
            "{reason} needs all cells"
        );
    }
    let documented: HashSet<_> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(
        (rows.len(), documented.len()),
        (Reason::ALL.len(), Reason::ALL.len()),
        "no row twice or made up"
    );
}

#[test]
fn the_protocol_has_the_numbers_of_the_code() {
    let has =
        |text: &str| assert!(PROTOCOL.contains(text), "docs/protocol.md does not say `{text}`");
    has(&merkle::EMPTY_FILE.to_string());
    assert_eq!(merkle::LEAF_SIZE, 16 << 10);
    has("leaves of 16 KiB");
    let folders = (
        limits::MAX_FOLDERS,
        limits::FREE_FOLDERS,
        limits::FOLDERS_PER_ENTRY,
    );
    assert_eq!(folders, (262_144, 4_096, 16));
    has("at most 262,144, and at most 4,096 + 16 for each entry");
    assert_eq!((plan::EXPANSION_FREE, plan::EXPANSION_RATIO), (1 << 30, 10));
    has("over 1 GiB and over ten times the distinct content");
    assert_eq!(
        (
            layout::MIN_PIECE_SIZE,
            layout::MAX_PIECE_SIZE,
            layout::TARGET_PIECES
        ),
        (128 << 10, 16 << 20, 4096)
    );
    has("ceil(size / 4096), 128 KiB, 16 MiB)");
    assert_eq!(layout::MAX_FILE_SIZE, 16 << 40);
    has("at most 16 TiB");
    assert_eq!(
        (limits::MAX_MANIFEST_SIZE, limits::MAX_ENTRIES),
        (64 << 20, 1_048_576)
    );
    has("At most 64 MiB and 1,048,576 entries");
    assert_eq!(
        (path::MAX_PATH_LEN, path::MAX_DEPTH, path::MAX_COMPONENT_LEN),
        (4096, 256, 255)
    );
    has("at most 4,096 bytes, 1 to 256 components joined by `/`, each 1 to 255 bytes");
    assert_eq!((limits::BUNDLE_FILES, limits::MAX_UNITS), (1024, 4_194_304));
    has("Files of 1 byte to the unit size");
    has("1,024 files");
    has("is over 4,194,304");
}

#[test]
fn the_contract_names_only_reasons_that_exist() {
    let protos = [
        include_str!("../../proto/potluck/v1/index.proto"),
        include_str!("../../proto/potluck/v1/peer.proto"),
        include_str!("../../proto/potluck/v1/control.proto"),
        include_str!("../../proto/potluck/v1/network.proto"),
    ];
    let mut named = 0;
    for line in protos.iter().flat_map(|proto| proto.lines()) {
        let Some(comment) = line.trim().strip_prefix("//") else {
            continue;
        };
        // Error comments have the form `CODE (REASON, REASON: why)`.
        for list in comment
            .split('(')
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap())
        {
            for word in list.split([',', ':', ' ']).filter(|word| is_reason_like(word)) {
                assert!(
                    Reason::from_wire(word).is_some(),
                    "`{word}` in `{line}` is no reason"
                );
                named += 1;
            }
        }
    }
    assert!(named > 30, "only {named} reasons were found");
}

#[test]
fn the_image_is_built_with_the_manifest_of_every_member() {
    let manifest = include_str!("../../Cargo.toml");
    let ignored = include_str!("../../.dockerignore");
    let members = manifest
        .lines()
        .find(|line| line.starts_with("members = "))
        .unwrap();
    let members: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.len() > 10, "{members:?}");
    for member in members {
        let is_there =
            |line: &str| line == format!("!{member}") || line == format!("!{member}/Cargo.toml");
        assert!(
            ignored.lines().any(is_there),
            ".dockerignore leaves out {member}/Cargo.toml"
        );
    }
}

fn is_reason_like(word: &str) -> bool {
    word.contains('_') && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}
