//! Limits of memory, and peers that leave.

use super::*;

#[tokio::test]
async fn a_full_index_accepts_only_changes_that_need_no_memory() {
    let CommitRequest::Register { peer: record, .. } = open(1) else {
        unreachable!()
    };
    let other = PeerRecord {
        id: PeerId([2; 32]),
        ..record.clone()
    };
    let partial = |file: Registration| Registration {
        is_complete: false,
        ..file
    };
    let mut restored = RestoredPeers::default();
    for (record, files) in [
        (
            record.clone(),
            vec![partial(registration(1, "a")), registration(2, "b")],
        ),
        (other, vec![registration(1, "c")]),
    ] {
        restored.add_stored(&StoredPeer { record, files });
    }
    let limits = Limits {
        max_memory_mib: 0,
        ..Limits::default()
    };
    let setup = setup_with(restored, limits);
    drop(setup.commands);
    let mut claimed = registration(1, "a");
    claimed.file.sha256 = Some(potluck_core::Sha256([1; 32]));
    let longer = Registration {
        names: vec!["a".to_owned(), "c".to_owned()],
        ..registration(1, "")
    };
    let both = [registration(1, "a"), registration(2, "b")];
    for (n, files, replace, outcome) in [
        (1, vec![registration(3, "a")], false, Err(CommitError::Full)),
        (1, vec![registration(1, "new")], false, Err(CommitError::Full)),
        (1, vec![registration(1, "b")], false, Err(CommitError::Full)),
        (1, vec![longer], false, Err(CommitError::Full)),
        (1, vec![claimed], false, Err(CommitError::Full)),
        (
            1,
            vec![registration(2, "b"), registration(1, "b")],
            true,
            Err(CommitError::Full),
        ),
        (3, vec![], false, Err(CommitError::Full)),
        (1, both.to_vec(), false, Ok(2)),
        (1, both.to_vec(), true, Ok(2)),
        (1, vec![registration(1, "c")], false, Ok(2)),
        (1, vec![registration(1, "c")], true, Ok(1)),
        (1, vec![registration(2, "b")], false, Err(CommitError::Full)),
    ] {
        let CommitRequest::Register { peer, .. } = open(n) else {
            unreachable!()
        };
        let case = format!("{n}: {files:?}, replace: {replace}");
        let cost = files.iter().map(cost::max_cost).sum();
        let request = CommitRequest::Register {
            peer,
            files,
            replace,
            cost,
            instance: Vec::new(),
        };
        assert_eq!(setup.committer.commit(request, 1).await, outcome, "{case}");
    }
}

#[tokio::test]
async fn a_large_peer_is_hidden_immediately_and_cleared_in_steps() {
    let record = |n: u8| {
        let CommitRequest::Register { peer, .. } = open(n) else {
            unreachable!()
        };
        peer
    };
    let many = |n: u32| {
        let mut one = registration(1, "many");
        one.file.root.0[..4].copy_from_slice(&n.to_le_bytes());
        one.file.id = FileId::derive(one.file.size, &one.file.root);
        one
    };
    let files: Vec<_> = (0..20_000).map(many).collect();
    let mut restored = RestoredPeers::default();
    restored.add_stored(&StoredPeer {
        record: record(1),
        files: files.clone(),
    });
    restored.add_stored(&StoredPeer {
        record: record(2),
        files: files[..1].to_vec(),
    });
    let setup = setup_with(restored, Limits::default());
    drop(setup.commands);
    let mut watcher = setup
        .registry
        .watch(files[9].file.id, std::net::IpAddr::from([192, 0, 2, 7]), 9)
        .unwrap()
        .0;
    let forget = CommitRequest::Forget { peer: record(1).id };
    assert_eq!(setup.committer.commit(forget, 1).await, Ok(20_000));
    let found = |n: usize| {
        let catalog = setup.registry.catalog();
        catalog.sample_providers(&files[n].file.id, 9, &mut rand::rng()).1
    };
    assert_eq!(found(9), 0);
    assert_eq!(found(0), 1);
    assert_eq!(
        *watcher.next().await.unwrap(),
        potluck_core::model::ProviderEvent::Left(record(1).id)
    );
    // The peer registers again while its old entry is cleared, and stays.
    let back = CommitRequest::Register {
        peer: record(1),
        files: files[..3].to_vec(),
        replace: true,
        cost: 0,
        instance: Vec::new(),
    };
    assert_eq!(setup.committer.commit(back, 1).await, Ok(3));
    while setup.registry.catalog().file_count() > 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(found(0), 2);
    assert_eq!(setup.registry.catalog().registration_count(), 4);
    assert_eq!(found(9), 0);
    // A replacement of many files becomes visible as a whole.
    let all = CommitRequest::Register {
        peer: record(1),
        files: files[..10_000].to_vec(),
        replace: false,
        cost: 0,
        instance: Vec::new(),
    };
    assert_eq!(setup.committer.commit(all, 1).await, Ok(10_000));
    let other = CommitRequest::Register {
        peer: record(1),
        files: files[9_999..10_001].to_vec(),
        replace: true,
        cost: 0,
        instance: Vec::new(),
    };
    assert_eq!(setup.committer.commit(other, 1).await, Ok(2));
    assert_eq!(setup.registry.catalog().registration_count(), 3);
    assert_eq!(
        setup.registry.summary_of(&record(1).id, Instant::now()).digest,
        potluck_core::SetDigest::from_iter(&files[9_999..10_001])
    );
}

#[tokio::test]
async fn many_expired_peers_do_not_delay_other_changes() {
    let mut restored = RestoredPeers::default();
    for n in 0..4 * MAX_EXPIRED {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_le_bytes());
        let CommitRequest::Register { mut peer, .. } = open(1) else {
            unreachable!()
        };
        (peer.id, peer.ttl) = (PeerId(id), Duration::ZERO);
        restored.add_stored(&StoredPeer {
            record: peer,
            files: Vec::new(),
        });
    }
    let registry = Arc::new(Registry::new(restored, 10, Instant::now()));
    let (committer, thread) = Committer::start(
        Box::new(MemoryStore::default()),
        Arc::clone(&registry),
        Limits::default(),
    )
    .unwrap();
    committer.commit(open(9), 1).await.unwrap();
    while registry.catalog().peer_count() > 1 {
        tokio::task::yield_now().await;
    }
    committer.stop();
    thread.join().unwrap();
}

#[tokio::test]
async fn one_peer_or_host_cannot_fill_the_index() {
    const MIB: u64 = 1024 * 1024;
    let limits = Limits {
        max_memory_mib: 4,
        ..Limits::default()
    };
    let setup = setup_with(RestoredPeers::default(), limits);
    drop(setup.commands);
    let register = async |n: u8, host: &str, from: u32| {
        let CommitRequest::Register { mut peer, .. } = open(n) else {
            unreachable!()
        };
        peer.address.host = host.to_owned();
        let files: Vec<_> = (from..from + 100)
            .map(|n| {
                let mut one = registration(1, &format!("a name of its own {n}"));
                one.file.root.0[..4].copy_from_slice(&n.to_le_bytes());
                one.file.id = FileId::derive(one.file.size, &one.file.root);
                one
            })
            .collect();
        let cost = files.iter().map(cost::max_cost).sum();
        let request = CommitRequest::Register {
            peer,
            files,
            replace: false,
            cost,
            instance: Vec::new(),
        };
        setup.committer.commit(request, 1).await
    };
    let fill = async |peers: &[u8], host: &str, from: u32| {
        for at in 0..1000 {
            let n = peers[at as usize % peers.len()];
            match register(n, host, from + at * 100).await {
                Ok(_) => {}
                Err(CommitError::TooMuchMemory { .. }) => break,
                Err(other) => panic!("{other}"),
            }
        }
        setup.registry.catalog().charge_of_host(host)
    };
    // The limit applies to one peer and to several peers at one address, but on the local machine
    // to each peer separately.
    let first = fill(&[1], "192.0.2.1", 0).await;
    assert!((MIB..=2 * MIB).contains(&first), "{first}");
    let second = fill(&[2, 3, 4, 5], "192.0.2.2", 100_000).await;
    assert!((MIB / 2..=MIB).contains(&second), "{second}");
    assert!(matches!(
        register(6, "192.0.2.2", 300_000).await,
        Err(CommitError::TooMuchMemory { .. })
    ));
    for n in 7..9 {
        assert_eq!(register(n, "127.0.0.1", u32::from(n) * 1_000_000).await, Ok(100));
    }
    // Memory that a peer frees is available to all.
    let forget = CommitRequest::Forget {
        peer: PeerId([1; 32]),
    };
    setup.committer.commit(forget, 1).await.unwrap();
    while setup.registry.catalog().charge_of_host("192.0.2.1") > 0 {
        tokio::task::yield_now().await;
    }
    assert!(register(2, "192.0.2.2", 400_000).await.is_ok());
}
