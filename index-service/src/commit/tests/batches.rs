//! Which changes share a flush, and which are not written at all.

use super::*;

#[tokio::test]
async fn changes_share_a_flush_and_are_visible_only_after_it() {
    let setup = setup();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100 {
        let committer = setup.committer.clone();
        tasks.spawn(async move { committer.commit(open(n), 1).await });
    }
    // Wait until all changes are queued; the first batch is still waiting for its command.
    while MAX_QUEUED_BYTES - setup.committer.queue_bytes.available_permits() < 100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        setup.registry.catalog().peer_count(),
        0,
        "nothing is shown before it is durable"
    );
    drop(setup.commands);
    while let Some(done) = tasks.join_next().await {
        assert_eq!(done.unwrap(), Ok(0));
    }
    assert_eq!(setup.registry.catalog().peer_count(), 100);
    let batches: Vec<usize> = setup.batches.try_iter().map(|batch| batch.len()).collect();
    assert_eq!(batches.iter().sum::<usize>(), 100);
    assert!(batches.len() < 50, "{batches:?}");
    setup.committer.stop();
    setup.thread.join().unwrap();
    assert_eq!(setup.committer.commit(open(1), 1).await, Err(CommitError::Closed));
}

#[tokio::test]
async fn calls_of_one_peer_share_a_flush_if_they_add_different_files() {
    let limits = Limits {
        max_files_per_peer: 90,
        ..Limits::default()
    };
    let setup = setup_with(RestoredPeers::default(), limits);
    let files: Vec<Registration> = (0..100)
        .map(|n| registration(n, "a"))
        // Changes of one file depend on each other.
        .chain(["b", "c", "b"].map(|name| registration(5, name)))
        .collect();
    let mut tasks = tokio::task::JoinSet::new();
    for file in files {
        let CommitRequest::Register { peer, .. } = open(1) else {
            unreachable!()
        };
        let request = CommitRequest::Register {
            peer,
            files: vec![file],
            replace: false,
            cost: 0,
            instance: Vec::new(),
        };
        let committer = setup.committer.clone();
        tasks.spawn(async move { committer.commit(request, 1).await });
    }
    while MAX_QUEUED_BYTES - setup.committer.queue_bytes.available_permits() < 103 {
        tokio::task::yield_now().await;
    }
    drop(setup.commands);
    let mut refused = 0;
    while let Some(done) = tasks.join_next().await {
        refused += usize::from(matches!(done.unwrap(), Err(CommitError::TooManyFiles { .. })));
    }
    assert_eq!(refused, 10, "the limit counts the files of the same batch");
    let catalog = setup.registry.catalog();
    let id = PeerId([1; 32]);
    assert_eq!(catalog.file_count_of(&id), 90);
    let changed = registration(5, "b");
    assert_eq!(catalog.registration(&id, &changed.file.id), Some(changed));
    let batches: Vec<usize> = setup.batches.try_iter().map(|batch| batch.len()).collect();
    assert_eq!(batches.iter().sum::<usize>(), 93);
    assert!(batches.len() < 10, "{batches:?}");
}

#[tokio::test]
async fn durable_registrations_are_not_written_again() {
    let setup = setup();
    drop(setup.commands);
    let register = async |files: &[Registration], replace: bool, port: u16| {
        let CommitRequest::Register { mut peer, .. } = open(1) else {
            unreachable!()
        };
        peer.address.port = port;
        let request = CommitRequest::Register {
            peer,
            files: files.to_vec(),
            replace,
            cost: 0,
            instance: Vec::new(),
        };
        let count = setup.committer.commit(request, 1).await.unwrap();
        let written: Vec<Change> = setup.batches.try_iter().flatten().collect();
        match &written[..] {
            [] => (count, None),
            [Change::Register { files, new, .. }] => (count, Some((files.clone(), *new))),
            other => panic!("{other:?}"),
        }
    };
    let (a, b) = (registration(1, "a"), registration(2, "b"));
    let both = [a.clone(), b.clone()];
    assert_eq!(register(&both, false, 1).await, (2, Some((both.to_vec(), 2))));
    for replace in [false, true] {
        assert_eq!(register(&both, replace, 1).await, (2, None), "replace: {replace}");
    }
    let partial = Registration {
        is_complete: false,
        ..b.clone()
    };
    let renamed = registration(1, "another");
    for changed in [partial, b.clone(), renamed, a.clone()] {
        let other = if changed.file.id == a.file.id { &b } else { &a };
        let files = [other.clone(), changed.clone()];
        let written = register(&files, false, 1).await;
        assert_eq!(written, (2, Some((vec![changed], 0))), "only the changed file");
    }
    assert_eq!(
        register(&both, false, 2).await,
        (2, Some((Vec::new(), 0))),
        "another address"
    );
    let repeated = [registration(2, "c"), b.clone()];
    assert_eq!(
        register(&repeated, false, 2).await,
        (2, Some((repeated.to_vec(), 0))),
        "the last registration of a file counts"
    );
    assert_eq!(register(&both, false, 2).await, (2, None));
    let one = [a.clone()];
    assert_eq!(
        register(&one, true, 2).await,
        (1, Some((one.to_vec(), 1))),
        "the other file is removed"
    );
}

#[tokio::test]
async fn the_queue_is_bounded_in_bytes() {
    let setup = setup();
    let waiting = setup.committer.clone();
    let first = tokio::spawn(async move { waiting.commit(open(1), MAX_QUEUED_BYTES).await });
    while setup.committer.queue_bytes.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(setup.committer.commit(open(2), 1).await, Err(CommitError::Busy));
    setup.commands.send(Command::Write).unwrap();
    assert_eq!(first.await.unwrap(), Ok(0));
    setup.commands.send(Command::Write).unwrap();
    assert_eq!(setup.committer.commit(open(2), 1).await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_is_reported() {
    let setup = setup();
    assert_eq!(setup.committer.commit(open(1), 1).await, Err(CommitError::Slow));
}

#[tokio::test]
async fn the_words_of_many_restored_names_are_indexed_after_the_start() {
    let CommitRequest::Register { peer, .. } = open(1) else {
        unreachable!()
    };
    let files = (0..60_000_u32).map(|n| {
        let mut file = registration(1, &format!("restored {n}"));
        file.file.root.0[..4].copy_from_slice(&n.to_le_bytes());
        file.file.id = FileId::derive(file.file.size, &file.file.root);
        file
    });
    let mut restored = RestoredPeers::default();
    restored.add_stored(&StoredPeer {
        record: peer,
        files: files.collect(),
    });
    let setup = setup_with(restored, Limits::default());
    drop(setup.commands);
    while setup.registry.catalog().unindexed_names() > 0 {
        tokio::task::yield_now().await;
    }
    let catalog = setup.registry.catalog();
    for (query, found) in [("59999", 1), ("restored 59999", 1), ("none", 0)] {
        let mut search =
            crate::catalog::SearchScan::new(crate::catalog::terms(query).unwrap(), None, 10);
        while !catalog.advance_search(&mut search, 1000) {}
        assert_eq!(search.finish().files.len(), found, "{query}");
    }
}
