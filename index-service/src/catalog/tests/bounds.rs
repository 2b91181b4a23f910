//! Steps and memory of the worst cases.

use super::*;

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
    for n in 0..30u8 {
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
