//! Tests of the whole catalog, and what they share.

use std::collections::{BTreeMap, BTreeSet};

use potluck_core::{
    FileId, PeerId, Root, SetDigest, Sha256,
    model::{Address, FileKind, FileRecord, IndexedFile, Provider, QueryKey, Registration},
};
use potluck_testkit::records;
use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};

use crate::catalog::{
    Catalog, Listing, ListingCursor, ListingPage, MAX_CALL_STEPS, MAX_ITEM_STEPS, PageBounds,
    PutOutcome, SearchCursor, SearchPage, SearchScan, cost,
    cursor::Tier,
    tables::popular_files::class_of,
    words::{self, MatchLevel},
};

mod bounds;
mod model;
mod pages;
mod peers;

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

fn address(n: u8) -> Address {
    Address {
        host: format!("192.0.2.{n}"),
        port: 1000,
    }
}

fn record(n: u8) -> FileRecord {
    let root = Root([n; 32]);
    FileRecord {
        id: FileId::derive(n.into(), &root),
        size: n.into(),
        root,
        sha256: None,
        kind: FileKind::File,
    }
}

fn registration(n: u8, names: &[&str]) -> Registration {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Registration {
        file: record(n),
        names,
        is_complete: true,
    }
}

/// File `n` of many, under these names.
fn numbered(n: u64, names: Vec<String>) -> Registration {
    Registration {
        names,
        ..records::registration(n, "")
    }
}

/// All pages of a search.
fn search(catalog: &Catalog, query: &str, page: usize) -> Vec<IndexedFile> {
    search_within(PageBounds::default(), catalog, query, page)
}

/// A page of a search, made in slices of `slice` steps.
fn search_page(
    catalog: &Catalog,
    bounds: PageBounds,
    query: &str,
    after: Option<SearchCursor>,
    max: usize,
    slice: usize,
) -> SearchPage {
    let mut search = SearchScan::within(bounds, words::terms(query).unwrap(), after, max);
    while !catalog.advance_search(&mut search, slice) {}
    search.finish()
}

fn search_within(
    bounds: PageBounds,
    catalog: &Catalog,
    query: &str,
    page: usize,
) -> Vec<IndexedFile> {
    let mut all = Vec::new();
    let mut after: Option<SearchCursor> = None;
    let mut slice = 1;
    loop {
        let found = search_page(catalog, bounds, query, after, page, slice);
        slice = slice % 97 + 5;
        assert!(found.files.len() <= page);
        let lookups = 2 * 16 * (bounds.term_steps + 700) + 16 * 300;
        assert!(
            found.steps <= bounds.steps + lookups + MAX_ITEM_STEPS,
            "{} steps within {bounds:?}",
            found.steps
        );
        all.extend(found.files);
        match found.next {
            Some(next) => {
                assert!(after < Some(next), "a page advances");
                after = Some(next);
            }
            None => return all,
        }
    }
}

fn list_page(
    catalog: &Catalog,
    bounds: PageBounds,
    by: &QueryKey,
    after: Option<ListingCursor>,
    max: usize,
    providers: usize,
) -> ListingPage {
    let mut listing = Listing::within(bounds, by.clone(), after, max, providers);
    while !catalog.advance_listing(&mut listing, 7, &mut rng()) {}
    listing.finish()
}

fn by_id(catalog: &Catalog, id: &FileId) -> Option<IndexedFile> {
    let page = list_page(catalog, PageBounds::default(), &QueryKey::Id(*id), None, 1, 1000);
    page.files.into_iter().next()
}

/// All pages of a query by name.
fn by_name(catalog: &Catalog, name: &str, page: usize) -> Vec<IndexedFile> {
    let by = QueryKey::Name(name.to_owned());
    list_within(PageBounds::default(), catalog, &by, page)
}

fn list_within(
    bounds: PageBounds,
    catalog: &Catalog,
    by: &QueryKey,
    page: usize,
) -> Vec<IndexedFile> {
    let mut all = Vec::new();
    let mut after: Option<ListingCursor> = None;
    loop {
        let found = list_page(catalog, bounds, by, after, page, 1000);
        assert!(found.files.len() <= page);
        let ranking = 8 * bounds.ranked + 8;
        assert!(found.steps <= bounds.steps.max(ranking) + MAX_ITEM_STEPS);
        all.extend(found.files);
        match found.next {
            Some(next) => after = Some(next),
            None => return all,
        }
    }
}

/// Hides and clears a peer; true if it existed.
fn remove_peer(catalog: &mut Catalog, peer: &PeerId) -> bool {
    let Some(slot) = catalog.hide(peer) else {
        return false;
    };
    while !catalog.clear(slot, 2) {}
    true
}

fn assert_empty(catalog: &Catalog) {
    assert_eq!(catalog.peer_count(), 0);
    assert_eq!(catalog.file_count(), 0);
    assert_eq!(catalog.registration_count(), 0);
    assert_eq!(catalog.bytes(), 0);
    assert_eq!(catalog.names.counts(), (0, 0));
    assert_eq!(catalog.claims.counts(), (0, 0));
    assert_eq!(catalog.claims.sums.len(), 0);
    assert_eq!(catalog.hosts.len(), 0);
    assert_eq!(catalog.files.counts(), (0, 0));
}

/// Queries that find some of [`names`].
const QUERIES: [&str; 12] = [
    "",
    "a",
    "ab",
    "model",
    "MODEL",
    "mode gguf",
    "7b é",
    "e",
    "nothing",
    "model a",
    "model-gguf",
    "a b",
];

/// Bounds with which a search has groups of one or a few files.
const SMALL_BOUNDS: [PageBounds; 6] = {
    const fn bounds(steps: usize, term_steps: usize, ranked: usize) -> PageBounds {
        PageBounds {
            steps,
            term_steps,
            ranked,
        }
    }
    [
        bounds(1, 0, 100),
        bounds(2, 1, 100),
        bounds(20, 3, 100),
        bounds(100, 100_000, 2),
        bounds(100_000, 0, 3),
        bounds(100_000, 100_000, 1),
    ]
};

fn names() -> impl Strategy<Value = Vec<String>> {
    let word = prop::sample::select(vec![
        "a", "ab", "abc", "model", "Model", "mode", "gguf", "é", "7b",
    ]);
    let name = prop::collection::vec(word, 1..4).prop_map(|words| words.join("-"));
    prop::collection::vec(name, 1..4)
}
