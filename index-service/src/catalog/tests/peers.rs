//! Hidden peers, and samples of providers.

use super::*;

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
