//! What peers register, queries find and watchers hear of.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use potluck_core::{
    Problem, Reason, Sha256, Token,
    model::{FileKind, ProviderEvent, QueryKey, Registration},
    proto::v1,
};
use potluck_index::{Config, Limits, StoreConfig};
use potluck_testkit::{
    records::{own_address, record, registration, token, with_sha256},
    services::TestIndex,
    wait::{in_time, wait_until},
};

#[tokio::test]
async fn registers_finds_and_unregisters_a_file() {
    let index = TestIndex::in_memory().await;
    let client = &index.client;
    let lease = client
        .register(
            &token(1),
            &own_address(7001),
            &[with_sha256(5, "Llama 7B.gguf", 9)],
            None,
            false,
        )
        .await
        .unwrap();
    assert_eq!(lease.ttl, Duration::from_secs(60));
    assert_eq!(lease.file_count, 1);
    assert_eq!(lease.address.unwrap().to_string(), "127.0.0.1:7001");

    let by = [
        QueryKey::Id(record(5).id),
        QueryKey::IdPrefix(record(5).id.to_string()[..8].parse().unwrap()),
        QueryKey::IdPrefix(record(5).id.to_string()[..63].parse().unwrap()),
        QueryKey::Sha256(Sha256([9; 32])),
        QueryKey::Name("Llama 7B.gguf".to_owned()),
    ];
    for by in by {
        let page = client.query(&by, 0, None).await.unwrap();
        let [found] = &page.files[..] else {
            panic!("{by:?}: {page:?}")
        };
        assert_eq!(found.file.id, record(5).id);
        assert_eq!(found.file.sha256, Some(Sha256([9; 32])));
        assert_eq!(found.providers[0].peer, token(1).peer_id());
        assert_eq!(found.providers[0].address.to_string(), "127.0.0.1:7001");
    }
    for words in ["llama", "LLAMA 7b", "gg", ""] {
        let page = client.search(words, 0, None).await.unwrap();
        assert_eq!(page.files.len(), 1, "{words}");
    }
    assert!(client.search("llama 8b", 0, None).await.unwrap().files.is_empty());
    assert!(
        client
            .query(&QueryKey::Name("llama 7b.gguf".to_owned()), 0, None)
            .await
            .unwrap()
            .files
            .is_empty()
    );

    assert_eq!(
        client
            .unregister(&token(1), Some(&[record(5).id, record(6).id]))
            .await
            .unwrap(),
        1
    );
    assert!(
        client
            .query(&QueryKey::Id(record(5).id), 0, None)
            .await
            .unwrap()
            .files
            .is_empty()
    );
    let stats = client.stats().await.unwrap();
    assert_eq!((stats.peers, stats.files, stats.registrations), (1, 0, 0));
    assert_eq!(stats.store, "memory");
    index.stop().await;
}

#[tokio::test]
async fn two_files_with_one_name_are_two_results() {
    let index = TestIndex::in_memory().await;
    let client = &index.client;
    for peer in 1..=3 {
        let file = if peer < 3 { 1 } else { 2 };
        client
            .register(
                &token(peer),
                &own_address(7000),
                &[registration(file, "config.json")],
                None,
                false,
            )
            .await
            .unwrap();
    }
    let page = client
        .query(&QueryKey::Name("config.json".to_owned()), 1, None)
        .await
        .unwrap();
    let found: Vec<_> = page
        .files
        .iter()
        .map(|f| (f.file.id, f.provider_count, f.providers.len()))
        .collect();
    assert_eq!(found, [(record(1).id, 2, 1), (record(2).id, 1, 1)]);
}

#[tokio::test]
async fn issues_a_token_to_a_caller_without_one() {
    let index = TestIndex::in_memory().await;
    let mut raw = index.raw_client().await;
    let request = v1::RegisterRequest {
        address: Some(v1::Address {
            host: "127.0.0.1".to_owned(),
            port: 9,
        }),
        files: vec![(&registration(1, "a")).into()],
        ..Default::default()
    };
    let answer = raw.register(request).await.unwrap().into_inner();
    let issued = Token::try_from(&*answer.token).unwrap();
    assert_eq!(issued.peer_id().to_bytes(), answer.peer_id);
    assert_eq!(answer.file_ids, [record(1).id.to_bytes()]);
    let lease = index.new_client().renew(&issued, &own_address(9)).await.unwrap();
    assert_eq!(lease.file_count, 1);
    let again = v1::RegisterRequest {
        token: answer.token.clone(),
        address: Some(v1::Address {
            host: String::new(),
            port: 9,
        }),
        ..Default::default()
    };
    assert!(raw.register(again).await.unwrap().into_inner().token.is_empty());
}

#[tokio::test]
async fn derives_an_id_that_is_left_empty() {
    let index = TestIndex::in_memory().await;
    let mut registration = v1::Registration::from(&registration(7, "a"));
    registration.file.as_mut().unwrap().file_id.clear();
    let request = v1::RegisterRequest {
        address: Some(v1::Address {
            host: String::new(),
            port: 9,
        }),
        files: vec![registration],
        ..Default::default()
    };
    let answer = index
        .raw_client()
        .await
        .register(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.file_ids, [record(7).id.to_bytes()]);
}

#[tokio::test]
async fn a_registration_without_the_flag_is_complete() {
    let index = TestIndex::in_memory().await;
    for (complete, expected) in [(None, true), (Some(false), false), (Some(true), true)] {
        let request = v1::RegisterRequest {
            token: token(1).expose().to_vec().into(),
            address: Some((&own_address(9)).into()),
            files: vec![v1::Registration {
                complete,
                ..(&registration(7, "a")).into()
            }],
            ..Default::default()
        };
        index.raw_client().await.register(request).await.unwrap();
        let found = index.query(record(7).id).await.unwrap();
        assert_eq!(found.providers[0].is_complete, expected, "{complete:?}");
    }
}

#[tokio::test]
async fn replace_removes_earlier_registrations() {
    let index = TestIndex::in_memory().await;
    let client = &index.client;
    let old: Vec<Registration> = (0..10).map(|n| registration(n, "old")).collect();
    index.register(1, &old).await;
    index.register(2, &old).await;
    let new = [registration(9, "new"), registration(10, "new")];
    let lease = client
        .register(&token(1), &own_address(1), &new, None, true)
        .await
        .unwrap();
    assert_eq!(lease.file_count, 2);
    assert_eq!(index.provider_count(record(0).id).await, 1);
    assert_eq!(index.provider_count(record(9).id).await, 2);
    assert_eq!(client.stats().await.unwrap().registrations, 12);
}

#[tokio::test]
async fn a_peer_with_a_new_address_has_to_register_again() {
    let index = TestIndex::in_memory().await;
    let client = &index.client;
    index.register(1, &[registration(1, "a")]).await;
    assert_eq!(
        client.renew(&token(1), &own_address(2)).await.unwrap_err().reason,
        Reason::LeaseUnknown
    );
    assert_eq!(
        client.renew(&token(3), &own_address(1)).await.unwrap_err().reason,
        Reason::LeaseUnknown
    );
    let lease = client
        .register(&token(1), &own_address(2), &[], None, false)
        .await
        .unwrap();
    assert_eq!(lease.file_count, 1);
    let page = client.query(&QueryKey::Id(record(1).id), 0, None).await.unwrap();
    assert_eq!(page.files[0].providers[0].address.port, 2);
}

#[tokio::test]
async fn pages_list_every_file_once() {
    let index = TestIndex::in_memory().await;
    let client = &index.client;
    let files: Vec<_> = (0..257)
        .map(|n| registration(n, &format!("shard {n} of 257.bin")))
        .collect();
    index.register(1, &files).await;
    let mut ids = Vec::new();
    let mut next = None;
    loop {
        let page = client.search("sha 257", 10, next).await.unwrap();
        assert!(page.files.len() <= 10);
        ids.extend(page.files.iter().map(|found| found.file.id));
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(ids.len(), 257);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 257);
}

async fn next<S>(events: &mut S) -> Result<ProviderEvent, Problem>
where
    S: Stream<Item = Result<ProviderEvent, Problem>> + Unpin,
{
    let next = in_time("an event comes", events.next()).await;
    next.expect("the stream goes on")
}

#[tokio::test]
async fn a_watcher_receives_every_change() {
    let index = TestIndex::in_memory().await;
    let client = &index.client;
    index.register(1, &[registration(1, "a")]).await;
    let mut events = Box::pin(client.watch_providers(record(1).id, 0).await.unwrap());
    let ProviderEvent::Snapshot(first) = next(&mut events).await.unwrap() else {
        panic!("a snapshot first")
    };
    assert_eq!(first[0].peer, token(1).peer_id());

    let partial = Registration {
        is_complete: false,
        ..registration(1, "a")
    };
    index.register(2, &[partial]).await;
    let ProviderEvent::Joined(joined) = next(&mut events).await.unwrap() else {
        panic!("joined")
    };
    assert_eq!((joined.peer, joined.is_complete), (token(2).peer_id(), false));

    index
        .register(2, &[registration(1, "a"), registration(2, "b")])
        .await;
    let ProviderEvent::Joined(joined) = next(&mut events).await.unwrap() else {
        panic!("complete")
    };
    assert!(joined.is_complete);

    client
        .register(&token(1), &own_address(11), &[], None, false)
        .await
        .unwrap();
    let ProviderEvent::Joined(joined) = next(&mut events).await.unwrap() else {
        panic!("moved")
    };
    assert_eq!((joined.peer, joined.address.port), (token(1).peer_id(), 11));

    client.unregister(&token(1), None).await.unwrap();
    assert_eq!(
        next(&mut events).await.unwrap(),
        ProviderEvent::Left(token(1).peer_id())
    );
    let second = Some(Duration::from_secs(1));
    client
        .register(&token(2), &own_address(2), &[], second, false)
        .await
        .unwrap();
    assert_eq!(
        next(&mut events).await.unwrap(),
        ProviderEvent::Left(token(2).peer_id()),
        "its lease expired"
    );

    assert_eq!(client.stats().await.unwrap().watchers, 1);
    index.shutdown.cancel();
    let end = next(&mut events).await.unwrap_err();
    assert_eq!(end.reason, Reason::ShuttingDown);
    index.stop().await;
}

#[tokio::test]
async fn registrations_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = || Config {
        store: StoreConfig::Sled(dir.path().to_owned()),
        ..Config::default()
    };
    let index = TestIndex::start(config()).await;
    let client = &index.client;
    let mut collection = with_sha256(1, "a folder", 4);
    collection.file.kind = FileKind::Collection;
    index.register(1, &[collection, registration(2, "b")]).await;
    client
        .register(
            &token(2),
            &own_address(2),
            &[registration(1, "a")],
            // Longer than the test needs until it checks the lease.
            Some(Duration::from_secs(5)),
            false,
        )
        .await
        .unwrap();
    index.register(3, &[registration(3, "gone")]).await;
    client.unregister(&token(1), Some(&[record(2).id])).await.unwrap();
    client.unregister(&token(3), None).await.unwrap();
    index.stop().await;

    let index = TestIndex::start(config()).await;
    let client = &index.client;
    let stats = client.stats().await.unwrap();
    assert_eq!(
        (stats.peers, stats.registrations, stats.store.as_str()),
        (2, 2, "sled")
    );
    let page = client
        .query(&QueryKey::Sha256(Sha256([4; 32])), 0, None)
        .await
        .unwrap();
    assert_eq!(page.files[0].provider_count, 2);
    assert!(
        client.renew(&token(1), &own_address(1)).await.is_ok(),
        "the lease survives the restart"
    );
    wait_until("the lease of the lost peer expires", async || {
        client.stats().await.unwrap().peers == 1
    })
    .await;
    index.stop().await;

    let index = TestIndex::start(config()).await;
    assert_eq!(
        index.client.stats().await.unwrap().peers,
        1,
        "the store has removed it"
    );
    let found = index.query(record(1).id).await.unwrap();
    assert_eq!(found.file.kind, FileKind::Collection);
    index.stop().await;
}

#[tokio::test]
async fn serves_many_clients_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        max_calls_per_second: 0,
        ..Limits::default()
    };
    let config = Config {
        store: StoreConfig::Sled(dir.path().to_owned()),
        limits,
        ..Config::default()
    };
    let index = TestIndex::start(config).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50u8 {
        let client = index.new_client();
        tasks.spawn(async move {
            for round in 0..10u64 {
                let mine = u64::from(n) * 1000 + round;
                let files = [
                    registration(mine, &format!("of {n}")),
                    registration(999_999, "of all"),
                ];
                let lease = client
                    .register(&token(n), &own_address(1 + u16::from(n)), &files, None, false)
                    .await
                    .unwrap();
                assert_eq!(lease.file_count, round + 2);
                let page = client
                    .query(&QueryKey::Id(record(mine).id), 0, None)
                    .await
                    .unwrap();
                assert_eq!(
                    page.files[0].providers[0].peer,
                    token(n).peer_id(),
                    "a client reads its own writes"
                );
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let client = &index.client;
    assert_eq!(client.stats().await.unwrap().registrations, 50 * 11);
    assert_eq!(index.provider_count(record(999_999).id).await, 50);
    index.stop().await;
}
