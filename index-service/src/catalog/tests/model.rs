//! Compares the catalog with a plain list that is searched from end to end.

use super::*;

#[derive(Debug, Clone)]
enum CatalogStep {
    Peer(u8, u8),
    Put(u8, Registration),
    Remove(u8, u8),
    RemovePeer(u8),
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
pub(super) struct Model {
    pub(super) peers: BTreeMap<PeerId, (Address, BTreeMap<FileId, Registration>)>,
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

    pub(super) fn files(&self) -> BTreeSet<FileId> {
        self.peers
            .values()
            .flat_map(|(_, files)| files.keys().copied())
            .collect()
    }

    /// How well the names of a file match a query.
    pub(super) fn level(&self, file: FileId, query: &str) -> Option<MatchLevel> {
        let registrations = self.of(file);
        let names = registrations.iter().flat_map(|(_, r)| &r.names);
        names.filter_map(|name| words::level(name, query)).min()
    }

    /// The expected description of a file, best matching names first.
    fn found(&self, file: FileId, query: &str) -> IndexedFile {
        let registrations = self.of(file);
        let count = |counts: &dyn Fn(&Registration) -> bool| {
            registrations.iter().filter(|(_, r)| counts(r)).count()
        };
        let mut names: Vec<String> =
            registrations.iter().flat_map(|(_, r)| r.names.clone()).collect();
        names.sort();
        names.dedup();
        names.sort_by_key(|name| {
            let level = words::level(name, query);
            let by_count = std::cmp::Reverse(count(&|r| r.names.contains(name)));
            (level.is_none(), level, by_count)
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
        let expected = model.files().contains(&id).then(|| model.found(id, ""));
        assert_eq!(found, expected);
        let prefix = QueryKey::IdPrefix(id.to_string()[..8].parse().unwrap());
        let by_prefix = list_within(PageBounds::default(), catalog, &prefix, page);
        assert_eq!(by_prefix.into_iter().next().map(sorted), expected);
    }
    for query in QUERIES {
        let mut expected: Vec<FileId> = model
            .files()
            .into_iter()
            .filter(|&file| model.level(file, query).is_some())
            .collect();
        expected.sort_by_key(|&file| {
            let count = model.of(file).len();
            (model.level(file, query), std::cmp::Reverse(count), file)
        });
        let expected: Vec<IndexedFile> = expected
            .into_iter()
            .map(|file| IndexedFile {
                providers: Vec::new(),
                ..model.found(file, query)
            })
            .collect();
        let found = search(catalog, query, page);
        assert_eq!(found, expected, "search {query:?}");
        for bounds in SMALL_BOUNDS {
            // The files of a tier and class are ordered within groups only.
            let mut found = search_within(bounds, catalog, query, page);
            let level = |found: &IndexedFile| model.level(found.file.id, query);
            let tier = |found: &IndexedFile| level(found).map(Tier::of);
            let count = |found: &IndexedFile| std::cmp::Reverse(found.provider_count);
            let class =
                |found: &IndexedFile| std::cmp::Reverse(class_of(found.provider_count as usize));
            assert!(found.is_sorted_by_key(tier), "search {query:?} within {bounds:?}");
            for tier in found.chunk_by(|a, b| tier(a) == tier(b)) {
                let is_ranked = tier
                    .is_sorted_by_key(|found| (level(found), count(found), found.file.id))
                    || tier.is_sorted_by_key(class);
                assert!(is_ranked, "search {query:?} within {bounds:?}");
            }
            let order = |found: &IndexedFile| found.file.id;
            found.sort_by_key(order);
            let mut expected = expected.clone();
            expected.sort_by_key(order);
            assert_eq!(found, expected, "search {query:?} within {bounds:?}");
        }
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
            .map(|file| model.found(file, ""))
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
        let mut restored = restore(&model);
        assert_agrees(&restored, &model, page);
        for n in 0..5 {
            remove_peer(&mut catalog, &peer(n));
            remove_peer(&mut restored, &peer(n));
        }
        assert_empty(&catalog);
        assert_empty(&restored);
    }
}

/// A catalog that is filled as after a restart.
fn restore(model: &Model) -> Catalog {
    let mut catalog = Catalog::without_words();
    for (id, (address, files)) in &model.peers {
        catalog.set_peer(*id, address);
        files.values().for_each(|file| {
            catalog.put(id, file);
        });
    }
    while !catalog.index_words(3) {}
    catalog
}
