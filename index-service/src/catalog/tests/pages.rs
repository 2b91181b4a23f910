//! Pages of searches and listings, while files change and peers are hidden.

use super::{model::Model, *};

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
fn files_behind_many_hidden_ones_are_found() {
    let mut catalog = Catalog::default();
    for n in 1..3 {
        catalog.set_peer(peer(n), &address(n));
    }
    // The hidden files have more providers, so they come first.
    for n in 1..100 {
        catalog.put(&peer(1), &registration(n, &["name"]));
        catalog.put(&peer(2), &registration(n, &["name"]));
    }
    for n in 1..3 {
        catalog.hide(&peer(n));
    }
    catalog.set_peer(peer(3), &address(3));
    catalog.put(&peer(3), &registration(100, &["name"]));
    for page in [1, 2, 50] {
        assert_eq!(by_name(&catalog, "name", page).len(), 1);
        assert_eq!(search(&catalog, "name", page).len(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Other peers come and go between the pages.
    #[test]
    fn files_that_stay_are_found_while_others_change(
        files in prop::collection::vec((0..40u8, names(), 1..4u8), 1..30),
        others in prop::collection::vec((40..80u8, names(), any::<bool>()), 0..60),
        query in prop::sample::select(QUERIES.to_vec()),
        page in 1..5usize,
        ranked in prop::sample::select(vec![3, 1000]),
    ) {
        let mut catalog = Catalog::default();
        for n in 0..5 {
            catalog.set_peer(peer(n), &address(n));
        }
        let mut model = Model::default();
        for (n, names, providers) in files {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            for provider in 0..providers {
                let file = registration(n, &names);
                catalog.put(&peer(provider), &file);
                let entry = model.peers.entry(peer(provider));
                entry.or_insert_with(|| (address(provider), BTreeMap::new())).1.insert(file.file.id, file);
            }
        }
        let bounds = PageBounds { ranked, ..PageBounds::default() };
        let mut found = Vec::new();
        let mut after = None;
        let mut others = others.into_iter();
        loop {
            let next = search_page(&catalog, bounds, query, after, page, 50);
            found.extend(next.files.into_iter().map(|found| found.file.id));
            after = next.next;
            if after.is_none() {
                break;
            }
            for (n, names, is_put) in others.by_ref().take(2) {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                if is_put {
                    catalog.put(&peer(4), &registration(n, &names));
                } else {
                    catalog.remove(&peer(4), &record(n).id);
                }
            }
        }
        for file in model.files() {
            let count = found.iter().filter(|id| **id == file).count();
            match model.level(file, query) {
                None => prop_assert_eq!(count, 0),
                // A group of three files may grow.
                Some(_) if ranked < 1000 => prop_assert!(count >= 1),
                Some(_) => prop_assert_eq!(count, 1),
            }
        }
    }
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
