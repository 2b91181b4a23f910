//! Compares the catalog with a plain list that is searched from end to end.

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
    PutOutcome, SearchCursor, SearchPage, SearchScan, cost, words,
};

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
        let lookups = 16 * (bounds.term_steps + 700) + 16 * 300;
        assert!(
            found.steps <= bounds.steps.max(lookups) + MAX_ITEM_STEPS,
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
        let ranking = 4 * bounds.ranked + 8;
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
    assert_eq!(catalog.claims.len(), 0);
    assert!(
        catalog.by_sha256.is_empty() && catalog.hosts.len() == 0 && catalog.files.slot_count() == 0
    );
}

#[derive(Debug, Clone)]
enum CatalogStep {
    Peer(u8, u8),
    Put(u8, Registration),
    Remove(u8, u8),
    RemovePeer(u8),
}

fn names() -> impl Strategy<Value = Vec<String>> {
    let word = prop::sample::select(vec![
        "a", "ab", "abc", "model", "Model", "mode", "gguf", "é", "7b",
    ]);
    let name = prop::collection::vec(word, 1..4).prop_map(|words| words.join("-"));
    prop::collection::vec(name, 1..4)
}

fn step() -> impl Strategy<Value = CatalogStep> {
    let put = (
        0..5u8,
        0..8u8,
        names(),
        prop::option::of(0..3u8),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(peer, file, names, sum, collection, is_complete)| {
            let sha256 = sum.map(|n| Sha256([n; 32]));
            let kind = if collection {
                FileKind::Collection
            } else {
                FileKind::File
            };
            CatalogStep::Put(
                peer,
                Registration {
                    file: FileRecord {
                        sha256,
                        kind,
                        ..record(file)
                    },
                    names,
                    is_complete,
                },
            )
        });
    prop_oneof![
        2 => (0..5u8, 0..3u8).prop_map(|(peer, at)| CatalogStep::Peer(peer, at)),
        8 => put,
        3 => (0..5u8, 0..8u8).prop_map(|(peer, file)| CatalogStep::Remove(peer, file)),
        1 => (0..5u8).prop_map(CatalogStep::RemovePeer),
    ]
}

#[derive(Debug, Default)]
struct Model {
    peers: BTreeMap<PeerId, (Address, BTreeMap<FileId, Registration>)>,
}

impl Model {
    /// Registrations of a file, with their providers.
    fn of(&self, file: FileId) -> Vec<(Provider, &Registration)> {
        let registrations = self.peers.iter().filter_map(|(&peer, (address, files))| {
            let registration = files.get(&file)?;
            let provider = Provider {
                peer,
                address: address.clone(),
                is_complete: registration.is_complete,
            };
            Some((provider, registration))
        });
        registrations.collect()
    }

    fn files(&self) -> BTreeSet<FileId> {
        self.peers
            .values()
            .flat_map(|(_, files)| files.keys().copied())
            .collect()
    }

    /// The expected description of a file, matching names first.
    fn found(&self, file: FileId, terms: &[String]) -> IndexedFile {
        let registrations = self.of(file);
        let count = |counts: &dyn Fn(&Registration) -> bool| {
            registrations.iter().filter(|(_, r)| counts(r)).count()
        };
        let mut names: Vec<String> =
            registrations.iter().flat_map(|(_, r)| r.names.clone()).collect();
        names.sort();
        names.dedup();
        names.sort_by_key(|name| {
            let matches = !terms.is_empty() && words::matches(name, terms);
            (!matches, std::cmp::Reverse(count(&|r| r.names.contains(name))))
        });
        let sums: BTreeSet<Sha256> =
            registrations.iter().filter_map(|(_, r)| r.file.sha256).collect();
        let sha256 = sums
            .into_iter()
            .rev()
            .max_by_key(|&sum| count(&|r| r.file.sha256 == Some(sum)));
        let collections = count(&|r| r.file.kind == FileKind::Collection);
        let kind = if collections > 0 && 2 * collections >= registrations.len() {
            FileKind::Collection
        } else {
            FileKind::File
        };
        names.truncate(crate::catalog::MAX_NAMES);
        IndexedFile {
            file: FileRecord {
                sha256,
                kind,
                ..registrations[0].1.file
            },
            names,
            provider_count: registrations.len() as u64,
            providers: registrations.into_iter().map(|(provider, _)| provider).collect(),
        }
    }
}

fn sorted(mut found: IndexedFile) -> IndexedFile {
    found.providers.sort_by_key(|provider| provider.peer);
    found
}

fn assert_agrees(catalog: &Catalog, model: &Model, page: usize) {
    assert_eq!(catalog.peer_count(), model.peers.len() as u64);
    assert_eq!(catalog.file_count(), model.files().len() as u64);
    let registrations: usize = model.peers.values().map(|(_, files)| files.len()).sum();
    assert_eq!(catalog.registration_count(), registrations as u64);
    let mut charges = 0;
    for (id, (_, files)) in &model.peers {
        assert_eq!(catalog.digest_of(id), SetDigest::from_iter(files.values()));
        charges += catalog.charge_of_peer(id);
        for (file, registration) in files {
            let mut found = catalog.registration(id, file).unwrap();
            let mut expected = registration.clone();
            for registration in [&mut found, &mut expected] {
                registration.names.sort();
                registration.names.dedup();
            }
            assert_eq!(found, expected);
        }
    }
    assert!(charges <= catalog.bytes(), "{charges} of {}", catalog.bytes());
    let hosts: BTreeSet<String> = (0..6).map(|n| address(n).host).collect();
    let at_hosts: u64 = hosts.iter().map(|host| catalog.charge_of_host(host)).sum();
    assert_eq!(at_hosts, charges);
    for n in 0..8 {
        let id = record(n).id;
        let found = by_id(catalog, &id).map(sorted);
        let expected = model.files().contains(&id).then(|| model.found(id, &[]));
        assert_eq!(found, expected);
        let prefix = QueryKey::IdPrefix(id.to_string()[..8].parse().unwrap());
        let by_prefix = list_within(PageBounds::default(), catalog, &prefix, page);
        assert_eq!(by_prefix.into_iter().next().map(sorted), expected);
    }
    for query in ["", "a", "ab", "model", "mode gguf", "7b é", "nothing", "model a"] {
        let terms = words::terms(query).unwrap();
        let mut found = search(catalog, query, page);
        for (steps, term_steps) in [(1, 0), (2, 1), (20, 3), (100, 100_000), (100_000, 0)] {
            let bounds = PageBounds {
                steps,
                term_steps,
                ..PageBounds::default()
            };
            let bounded = search_within(bounds, catalog, query, page);
            assert_eq!(bounded, found, "search {query:?} within {bounds:?}");
        }
        found.sort_by_key(|found| found.file.id);
        let matches = |file: &FileId| {
            model
                .of(*file)
                .iter()
                .any(|(_, r)| r.names.iter().any(|name| words::matches(name, &terms)))
        };
        let expected: Vec<IndexedFile> = model
            .files()
            .into_iter()
            .filter(matches)
            .map(|file| IndexedFile {
                providers: Vec::new(),
                ..model.found(file, &terms)
            })
            .collect();
        assert_eq!(found, expected, "search {query:?}");
    }
    for name in ["a", "model", "model-gguf", "nothing"] {
        let mut expected: Vec<IndexedFile> = model
            .files()
            .into_iter()
            .filter(|&file| {
                model
                    .of(file)
                    .iter()
                    .any(|(_, r)| r.names.iter().any(|registered| registered == name))
            })
            .map(|file| model.found(file, &[]))
            .collect();
        expected.sort_by_key(|found| (std::cmp::Reverse(found.provider_count), found.file.id));
        let found: Vec<IndexedFile> =
            by_name(catalog, name, page).into_iter().map(sorted).collect();
        assert_eq!(found, expected, "name {name:?}");
        let by = QueryKey::Name(name.to_owned());
        for (steps, ranked) in [(1, 1), (30, 2), (1000, 3)] {
            let bounds = PageBounds {
                steps,
                ranked,
                ..PageBounds::default()
            };
            let mut bounded: Vec<IndexedFile> = list_within(bounds, catalog, &by, page)
                .into_iter()
                .map(sorted)
                .collect();
            bounded.sort_by_key(|found| (std::cmp::Reverse(found.provider_count), found.file.id));
            assert_eq!(bounded, expected, "name {name:?} within {bounds:?}");
        }
    }
    for n in 0..3 {
        let sum = Sha256([n; 32]);
        let found: BTreeSet<FileId> =
            list_within(PageBounds::default(), catalog, &QueryKey::Sha256(sum), 1000)
                .iter()
                .map(|found| found.file.id)
                .collect();
        let claims =
            |file: &FileId| model.of(*file).iter().any(|(_, r)| r.file.sha256 == Some(sum));
        assert_eq!(found, model.files().into_iter().filter(claims).collect());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_plain_list(steps in prop::collection::vec(step(), 0..60), page in 1..5usize) {
        let mut catalog = Catalog::default();
        let mut model = Model::default();
        for step in steps {
            match step {
                CatalogStep::Peer(n, at) => {
                    let known = model.peers.get(&peer(n));
                    let moved = known.is_some_and(|(known, _)| *known != address(at));
                    prop_assert_eq!(catalog.set_peer(peer(n), &address(at)), moved);
                    let entry = model.peers.entry(peer(n));
                    entry.or_insert_with(|| (address(at), BTreeMap::new())).0 = address(at);
                }
                CatalogStep::Put(n, registration) => {
                    let before = catalog.bytes();
                    let adds_memory = catalog.may_add_memory(&peer(n), &registration);
                    let put = catalog.put(&peer(n), &registration);
                    let max_added = if adds_memory { cost::max_cost(&registration) } else { 0 };
                    let after = catalog.bytes();
                    prop_assert!(after <= before + max_added, "{after} after {before}");
                    if let Some((_, files)) = model.peers.get_mut(&peer(n)) {
                        let is_complete = registration.is_complete;
                        let expected = match files.insert(registration.file.id, registration) {
                            None => PutOutcome::New,
                            Some(old) if old.is_complete == is_complete => PutOutcome::Unchanged,
                            Some(_) => PutOutcome::CompletenessChanged,
                        };
                        prop_assert_eq!(put, expected);
                    }
                }
                CatalogStep::Remove(n, file) => {
                    let id = record(file).id;
                    let files = model.peers.get_mut(&peer(n)).map(|(_, files)| files);
                    let existed = files.is_some_and(|files| files.remove(&id).is_some());
                    prop_assert_eq!(catalog.remove(&peer(n), &id), existed);
                }
                CatalogStep::RemovePeer(n) => {
                    let existed = model.peers.remove(&peer(n)).is_some();
                    prop_assert_eq!(remove_peer(&mut catalog, &peer(n)), existed);
                }
            }
        }
        assert_agrees(&catalog, &model, page);
        for at in 0..3 {
            let on_host = model.peers.values().filter(|(known, _)| *known == address(at)).count();
            prop_assert_eq!(catalog.peers_on_host(&address(at).host), on_host as u64);
        }
        for n in 0..5 {
            remove_peer(&mut catalog, &peer(n));
        }
        assert_empty(&catalog);
    }
}

#[test]
fn a_hidden_peer_is_not_found() {
    let mut catalog = Catalog::default();
    for n in 1..3 {
        catalog.set_peer(peer(n), &address(n));
        catalog.put(&peer(n), &registration(7, &["both"]));
    }
    for n in 10..20 {
        catalog.put(&peer(1), &registration(n, &["hidden"]));
    }
    let hidden = catalog.hide(&peer(1)).unwrap();
    loop {
        assert_eq!((catalog.peer_count(), catalog.registration_count()), (1, 1));
        assert_eq!(
            (catalog.address_of(&peer(1)), catalog.peers_on_host("192.0.2.1")),
            (None, 0)
        );
        assert_eq!(by_id(&catalog, &record(10).id), None);
        assert_eq!(by_name(&catalog, "hidden", 3), []);
        assert_eq!(search(&catalog, "hidden", 3), []);
        let (providers, count) = catalog.sample_providers(&record(7).id, 10, &mut rng());
        assert_eq!((providers.len(), count, providers[0].peer), (1, 1, peer(2)));
        assert_eq!(by_name(&catalog, "both", 1)[0].provider_count, 1);
        // The peer uses memory until it is cleared.
        assert!(catalog.charge_of_host("192.0.2.1") > 0);
        if catalog.clear(hidden, 3) {
            break;
        }
    }
    assert_eq!(catalog.charge_of_host("192.0.2.1"), 0);
    assert!(remove_peer(&mut catalog, &peer(2)));
    assert_empty(&catalog);
}

#[test]
fn a_peer_that_replaces_all_files_is_published_as_a_whole() {
    let mut catalog = Catalog::default();
    catalog.set_peer(peer(1), &address(1));
    for n in 0..5 {
        catalog.put(&peer(1), &registration(n, &["old"]));
    }
    let new = catalog.add_hidden(peer(1), &address(2));
    for n in 3..9 {
        catalog.put_at(new, &registration(n, &["new"]));
    }
    assert_eq!(
        (catalog.file_count_of(&peer(1)), catalog.registration_count()),
        (5, 5)
    );
    assert_eq!(
        catalog.provider_count(catalog.files.find(&record(3).id).unwrap()),
        1
    );
    let old = catalog.publish(new).unwrap();
    assert_eq!(
        (catalog.file_count_of(&peer(1)), catalog.registration_count()),
        (6, 6)
    );
    assert_eq!(catalog.address_of(&peer(1)), Some(&address(2)));
    assert_eq!(
        (
            catalog.peers_on_host("192.0.2.1"),
            catalog.peers_on_host("192.0.2.2")
        ),
        (0, 1)
    );
    while !catalog.clear(old, 1) {}
    assert_eq!(by_name(&catalog, "old", 9), []);
    assert!(remove_peer(&mut catalog, &peer(1)));
    assert_empty(&catalog);
}

#[test]
fn a_page_that_ends_at_a_name_without_a_match_loses_no_file() {
    let mut catalog = Catalog::default();
    catalog.set_peer(peer(1), &address(1));
    for n in 0..10 {
        catalog.put(&peer(1), &registration(n, &[&format!("other {n}")]));
    }
    for n in 10..13 {
        catalog.put(&peer(1), &registration(n, &[&format!("wide {n}")]));
    }
    for steps in 1..60 {
        // No term is looked up, so every name is checked.
        let bounds = PageBounds {
            steps,
            term_steps: 0,
            ..PageBounds::default()
        };
        assert_eq!(search_within(bounds, &catalog, "wide", 2).len(), 3, "{bounds:?}");
    }
}

#[test]
fn adding_a_file_to_names_takes_memory() {
    let mut catalog = Catalog::default();
    catalog.set_peer(peer(1), &address(1));
    let names: Vec<String> = (0..16).map(|n| format!("name {n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    catalog.put(&peer(1), &registration(1, &names));
    let before = catalog.bytes();
    catalog.put(&peer(1), &registration(2, &names));
    let more = cost::REGISTRATION + cost::FILE + 16 * cost::NAME_OF_FILE;
    assert_eq!(catalog.bytes(), before + more);
    catalog.remove(&peer(1), &record(2).id);
    assert_eq!(catalog.bytes(), before);
}

#[test]
fn samples_are_random_and_have_a_maximum_size() {
    let mut catalog = Catalog::default();
    for n in 0..200 {
        catalog.set_peer(peer(n), &address(n));
        catalog.put(&peer(n), &registration(1, &["a"]));
    }
    let mut rng = rng();
    let (one, count) = catalog.sample_providers(&record(1).id, 50, &mut rng);
    let (other, _) = catalog.sample_providers(&record(1).id, 50, &mut rng);
    assert_eq!((one.len(), count), (50, 200));
    assert_ne!(one, other);
    let distinct: BTreeSet<PeerId> = one.iter().map(|provider| provider.peer).collect();
    assert_eq!(distinct.len(), 50);
}

#[test]
fn terms_that_match_too_many_words_are_still_found() {
    let mut catalog = Catalog::default();
    catalog.set_peer(peer(1), &address(1));
    for n in 0..6000u64 {
        let names = vec![format!(
            "wide{n:05} {}",
            if n.is_multiple_of(100) { "rare" } else { "common" }
        )];
        catalog.put(&peer(1), &numbered(n, names));
    }
    assert_eq!(search(&catalog, "wide", 1000).len(), 6000);
    assert_eq!(search(&catalog, "wide rare", 7).len(), 60);
    assert_eq!(search(&catalog, "wide00 comm", 1000).len(), 990);
    assert_eq!(search(&catalog, "wide nothing", 10).len(), 0);
}

#[test]
fn pages_are_bounded_in_bytes() {
    let mut catalog = Catalog::default();
    catalog.set_peer(peer(1), &address(1));
    let long: Vec<String> = (0..16).map(|n| format!("{n:02}{}", "x".repeat(253))).collect();
    for n in 0..1000u64 {
        catalog.put(&peer(1), &numbered(n, long.clone()));
    }
    let page = search_page(&catalog, PageBounds::default(), "", None, 1000, usize::MAX / 2);
    assert!(page.next.is_some() && page.files.len() < 1000);
    assert_eq!(search(&catalog, "", 1000).len(), 1000);
    assert_eq!(by_name(&catalog, &long[0], 1000).len(), 1000);
}

#[test]
fn a_file_with_a_different_claim_per_provider_takes_bounded_steps() {
    let mut catalog = Catalog::default();
    for n in 0..20_000u32 {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_le_bytes());
        catalog.set_peer(PeerId(id), &address(1));
        catalog.put(&PeerId(id), &registration(1, &[&format!("name {n}")]));
    }
    let page = list_page(
        &catalog,
        PageBounds::default(),
        &QueryKey::Id(record(1).id),
        None,
        1,
        50,
    );
    assert!(page.steps <= MAX_ITEM_STEPS, "{}", page.steps);
    let found = &page.files[0];
    assert_eq!(
        (found.provider_count, found.names.len()),
        (20_000, crate::catalog::MAX_NAMES)
    );
    assert_eq!(search(&catalog, "", 100).len(), 1);
    // The file may appear under several names and more than once.
    let mut after = None;
    loop {
        let page = search_page(&catalog, PageBounds::default(), "name", after, 1000, 8000);
        assert!(page.steps <= MAX_CALL_STEPS, "{}", page.steps);
        let distinct: BTreeSet<FileId> = page.files.iter().map(|found| found.file.id).collect();
        assert_eq!(distinct.len(), page.files.len(), "each file once per page");
        let Some(next) = page.next else { break };
        after = Some(next);
    }
}

/// A catalog of many names that are slow to match: each of their characters expands to eighteen.
#[test]
fn names_that_are_slow_to_match_take_bounded_steps() {
    let mut catalog = Catalog::default();
    for n in 0..80u8 {
        catalog.set_peer(peer(n), &address(1));
        for file in 0..4 {
            let names: Vec<String> = (0..16)
                .map(|at| format!("a{n:02}{at:02}{file}{} b", "\u{fdfa}".repeat(80)))
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            catalog.put(&peer(n), &registration(file, &names));
        }
    }
    // Every call stays within its steps, and the pages together return all files.
    for query in ["a", "a b", "a0 b", "b a1 \u{627}", "c a", ""] {
        let mut after = None;
        let mut found = BTreeSet::new();
        loop {
            let page = search_page(&catalog, PageBounds::default(), query, after, 1000, 8000);
            assert!(page.steps <= MAX_CALL_STEPS, "{query:?}: {}", page.steps);
            found.extend(page.files.iter().map(|found| found.file.id));
            let Some(next) = page.next else { break };
            assert!(after < Some(next), "a page advances");
            after = Some(next);
        }
        let expected = if query == "c a" { 0 } else { 4 };
        assert_eq!(found.len(), expected, "{query:?}");
    }
}

/// Half of all names contain one word, the other half another, and no name contains both. Bitmaps
/// rule out many names per step.
#[test]
fn broad_words_without_a_common_name_take_one_call() {
    let mut catalog = Catalog::default();
    catalog.set_peer(peer(1), &address(1));
    for n in 0..20_000u64 {
        let word = if n.is_multiple_of(2) { "even" } else { "odd" };
        let names = vec![format!("number {n} {word}")];
        catalog.put(&peer(1), &numbered(n, names));
    }
    let page = search_page(&catalog, PageBounds::default(), "even odd", None, 100, 8000);
    assert!(page.files.is_empty() && page.next.is_none());
    assert!(page.steps < 2_000, "{} steps", page.steps);
    // A prefix of every word: names are checked one by one, and the call ends in between.
    let page = search_page(&catalog, PageBounds::default(), "1 n o", None, 1000, 8000);
    assert!(page.steps <= MAX_CALL_STEPS);
    assert!(!page.files.is_empty());
}

#[test]
fn empty_slots_count_as_steps() {
    let mut catalog = Catalog::default();
    catalog.set_peer(peer(1), &address(1));
    for n in 0..200 {
        catalog.put(&peer(1), &registration(n, &[&format!("name {n}")]));
    }
    for n in 0..199 {
        catalog.remove(&peer(1), &record(n).id);
    }
    let bounds = PageBounds {
        steps: 3,
        ..PageBounds::default()
    };
    let mut pages = 0;
    let mut after = None;
    let mut found = 0;
    loop {
        let page = search_page(&catalog, bounds, "", after, 10, 1000);
        assert!(page.steps < 100, "{}", page.steps);
        (pages, found) = (pages + 1, found + page.files.len());
        let Some(next) = page.next else { break };
        after = Some(next);
    }
    assert_eq!(found, 1);
    assert!(pages > 2, "{pages} pages");
}

#[test]
fn a_sample_contains_each_host_before_any_host_twice() {
    let mut catalog = Catalog::default();
    let id = |n: u32| {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_le_bytes());
        PeerId(id)
    };
    for n in 0..300 {
        catalog.set_peer(
            id(n),
            &Address {
                host: "192.0.2.1".into(),
                port: n as u16 + 1,
            },
        );
        catalog.put(&id(n), &registration(1, &["a"]));
    }
    for n in 300..303 {
        catalog.set_peer(id(n), &address((n - 200) as u8));
        catalog.put(&id(n), &registration(1, &["a"]));
    }
    let mut rng = rng();
    let mut first = BTreeSet::new();
    for _ in 0..100 {
        let (some, count) = catalog.sample_providers(&record(1).id, 8, &mut rng);
        assert_eq!((some.len(), count), (8, 303));
        let hosts: BTreeSet<&str> = some[..4].iter().map(|of| of.address.host.as_str()).collect();
        assert_eq!(hosts.len(), 4, "each host before any host twice");
        first.insert(some[0].peer);
    }
    assert!(first.len() > 4, "the order and the peers of a host are random");
}
