//! The targets. Those over private code of the services are in their `fuzzing` modules.

use potluck_index::fuzzing as index;
use potluck_peer::fuzzing as peer;

pub mod certificate;
pub mod chunks;
pub mod index_answers;
pub mod join_code;
pub mod manifest;
pub mod pieces;
pub mod status;
pub mod stores;
pub mod typed;

/// A fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its corpus and of its program in `fuzz_targets/`.
    pub name: &'static str,
    /// Checks an input, and returns whether the code accepted it. Panics if a property does not
    /// hold.
    pub run: fn(&[u8]) -> bool,
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Parts of inputs that the code looks for.
    pub words: &'static [&'static [u8]],
    /// Whether it writes files, so that a run takes milliseconds.
    pub is_store: bool,
}

const fn parser(
    name: &'static str,
    run: fn(&[u8]) -> bool,
    seeds: fn() -> Vec<Vec<u8>>,
    words: &'static [&'static [u8]],
) -> Target {
    Target {
        name,
        run,
        seeds,
        words,
        is_store: false,
    }
}

const fn store(name: &'static str, run: fn(&[u8]) -> bool) -> Target {
    Target {
        name,
        run,
        seeds: stores::seeds,
        words: &[],
        is_store: true,
    }
}

/// Field keys and lengths of messages.
const FIELDS: &[&[u8]] = &[
    &[0x08],
    &[0x0a],
    &[0x0a, 32],
    &[0x10],
    &[0x12],
    &[0x12, 32],
    &[0x18],
    &[0x1a],
    &[0x1a, 32],
    &[0x20],
    &[0x22],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
];

/// Parts of stored downloads.
const JSON: &[&[u8]] = &[
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"null",
    b"18446744073709551615",
    b"1e9",
    b"\\u0000",
    b"\"Never\"",
    b"{\"Ratio\":1}",
    b"\"seeding\":",
];

/// Parts of globs.
const GLOBS: &[&[u8]] = &[
    b"*",
    b"**",
    b"**/",
    b"/**",
    b"?",
    b"[",
    b"]",
    b"[!",
    b"{",
    b"}",
    b",",
    b"\\",
    b"!",
    b"#",
    b"/",
    b"\n",
    b" ",
    b"README.md",
    b"a/b",
    b"\xef\xbb\xbf",
];

/// All targets.
pub static TARGETS: &[Target] = &[
    parser("manifest", manifest::manifest, manifest::seeds, manifest::WORDS),
    parser("piece_layer", pieces::piece_layer, pieces::seeds, &[]),
    parser("leaves", pieces::leaves, pieces::leaf_seeds, &[]),
    parser("chunks", chunks::chunks, chunks::seeds, chunks::WORDS),
    parser(
        "index_answers",
        index_answers::index_answers,
        index_answers::seeds,
        index_answers::WORDS,
    ),
    parser("index_requests", index::requests, index::request_seeds, FIELDS),
    parser("peer_requests", peer::requests, peer::request_seeds, FIELDS),
    parser(
        "availability",
        peer::availability,
        peer::availability_seeds,
        FIELDS,
    ),
    parser(
        "resume_state",
        peer::resume_state,
        peer::resume_state_seeds,
        &[b"PLPART1\n", b"PLPART2\n"],
    ),
    parser(
        "item_rows",
        peer::item_rows,
        peer::item_row_seeds,
        &[b"/", &[0, 0, 0, 0]],
    ),
    parser(
        "downloads",
        peer::persisted_download,
        peer::persisted_download_seeds,
        JSON,
    ),
    parser("index_rows", index::stored_rows, index::stored_row_seeds, FIELDS),
    parser("page_token", index::page_token, index::page_token_seeds, &[]),
    parser(
        "join_code",
        join_code::join_code,
        join_code::seeds,
        join_code::WORDS,
    ),
    parser(
        "certificate",
        certificate::certificate,
        certificate::certificate_seeds,
        certificate::WORDS,
    ),
    parser(
        "signing_request",
        certificate::signing_request,
        certificate::signing_request_seeds,
        certificate::WORDS,
    ),
    parser("status", status::status, status::seeds, status::WORDS),
    parser("ignore_rules", peer::ignore_rules, peer::ignore_rule_seeds, GLOBS),
    parser("path_filter", peer::path_filter, peer::path_filter_seeds, GLOBS),
    parser("typed", typed::typed, typed::typed_seeds, typed::TYPED_WORDS),
    parser("names", typed::names, typed::name_seeds, typed::NAME_WORDS),
    store("index_store", stores::index_store),
    store("peer_store", stores::peer_store),
    store("members", stores::members),
];
