//! The registrar against a fake index that follows the protocol and can be made to fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::Range,
    time::{Duration, Instant},
};

use potluck_core::{
    FileId, Reason, Token, index_client::IndexClient, model::Registration, proto::v1,
};
use potluck_peer::announce::{
    registrar::{Caller, IndexConnection, Registrar},
    set::AnnounceSet,
};
use potluck_testkit::{
    fakes::index::{FakeIndex, FakeIndexState, Hook},
    network::endpoint_at,
    records::{own_address, record, registration},
    wait::{DEADLINE, in_time, wait_until},
};
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A registrar and the fake index with which it registers.
struct Rig {
    index: FakeIndex,
    address: SocketAddr,
    stop_index: CancellationToken,
    served: JoinHandle<()>,
    announce_set: AnnounceSet,
    registrar: Registrar,
    shutdown: CancellationToken,
    tracker: TaskTracker,
}

impl Rig {
    async fn new(announced: Vec<Registration>, state: FakeIndexState) -> Self {
        let index = FakeIndex::new(state);
        let stop_index = CancellationToken::new();
        let any_port = "127.0.0.1:0".parse().unwrap();
        let (address, served) = index.serve(any_port, stop_index.clone()).await;
        let announce_set = AnnounceSet::new();
        announce_set.put(announced);
        let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
        let client = IndexClient::new(endpoint_at(address));
        let connection =
            IndexConnection::new(client, Caller::Token(Token::generate()), own_address(4), None);
        let registrar =
            Registrar::start(connection, announce_set.clone(), shutdown.clone(), &tracker);
        Self {
            index,
            address,
            stop_index,
            served,
            announce_set,
            registrar,
            shutdown,
            tracker,
        }
    }

    /// Waits until everything is registered.
    async fn synced(&self) {
        self.registrar.synced(DEADLINE).await.unwrap();
    }

    /// Whether the index has a lease and exactly the registrations of the announce set.
    fn index_is_current(&self) -> bool {
        let announced = self.announce_set.snapshot().into_iter();
        let announced: BTreeMap<_, _> =
            announced.map(|one| (one.file.id.0.to_vec(), one)).collect();
        let state = self.index.state();
        state.has_lease && state.files == announced
    }

    /// The reason of the error in the registrar's status.
    fn error_reason(&self) -> Option<Reason> {
        self.registrar.status().error.map(|problem| problem.reason)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.tracker.close();
        in_time("all tasks end", self.tracker.wait()).await;
        let state = self.index.state();
        assert!(
            state.files.is_empty() && !state.has_lease,
            "everything is unregistered"
        );
    }
}

fn many(range: Range<u64>) -> Vec<Registration> {
    range.map(|n| registration(n, &format!("name {n}"))).collect()
}

fn ids(range: Range<u64>) -> Vec<FileId> {
    range.map(|n| record(n).id).collect()
}

#[tokio::test]
async fn registers_in_batches_and_then_sends_changes() {
    let announced = many(0..25_001);
    let rig = Rig::new(announced, FakeIndexState::default()).await;
    rig.synced().await;
    assert!(rig.index_is_current());
    // Small batches: those in flight are in memory, in several forms.
    assert!(rig.index.state().largest_batch <= 2_500 && rig.index.state().register_calls == 11);
    assert_eq!(
        rig.index.state().replace_calls,
        0,
        "nothing is unregistered in between"
    );
    let status = rig.registrar.status();
    assert!(status.registered && status.file_count == 25_001 && status.advertised.is_some());
    rig.announce_set.remove(&ids(5..10));
    rig.announce_set
        .put(vec![registration(1, "another name"), registration(99_999, "new")]);
    rig.synced().await;
    assert!(rig.index_is_current());
    rig.stop().await;
}

#[tokio::test]
async fn does_not_replace_registrations_that_are_current() {
    let announced = many(0..25_000);
    let rig = Rig::new(announced, FakeIndexState::with_files(&many(0..25_000))).await;
    rig.synced().await;
    assert!(rig.index_is_current());
    assert_eq!(rig.index.state().replace_calls, 0);
    rig.stop().await;
}

#[tokio::test]
async fn replaces_the_registrations_of_an_earlier_run() {
    for (has, quota) in [(20_000..45_000, None), (90_000..100_000, Some(25_000))] {
        let announced = many(0..25_000);
        let state = FakeIndexState {
            quota,
            ..FakeIndexState::with_files(&many(has))
        };
        let rig = Rig::new(announced, state).await;
        rig.synced().await;
        assert!(rig.index_is_current());
        assert_eq!(rig.index.state().replace_calls, 1);
        rig.stop().await;
    }
}

#[tokio::test]
async fn changes_during_registration_arrive() {
    let announced = many(0..60_000);
    let rig = Rig::new(announced, FakeIndexState::default()).await;
    for round in 0..40 {
        let changed = (0..50).map(|n| registration(n * 1000 + round, &format!("round {round}")));
        rig.announce_set.put(changed.collect());
        rig.announce_set.remove(&ids(round * 100..round * 100 + 10));
        tokio::task::yield_now().await;
    }
    rig.synced().await;
    assert!(rig.index_is_current());
    rig.stop().await;
}

#[tokio::test]
async fn registers_again_after_the_index_lost_data() {
    let announced = many(0..50);
    let rig = Rig::new(announced, FakeIndexState::default()).await;
    rig.synced().await;
    // It lost the lease.
    *rig.index.state() = FakeIndexState::default();
    wait_until("the lease is renewed", async || rig.index_is_current()).await;
    // It lost a file.
    rig.index.state().files.pop_first();
    wait_until("the file is registered again", async || rig.index_is_current()).await;
    // It lost everything, just before a new file is registered.
    *rig.index.state() = FakeIndexState::default();
    rig.announce_set.put(many(100..101));
    wait_until("old and new files are registered", async || {
        rig.index_is_current()
    })
    .await;
    // It lost everything right after a full announcement, while a new file arrives.
    let announce_set = rig.announce_set.clone();
    let add_file = Hook(Box::new(move || announce_set.put(many(101..102))));
    rig.index.state().forgets_after_replace = Some(add_file);
    rig.index.state().files.pop_first();
    wait_until("the index lost everything", async || {
        rig.index.state().forgets_after_replace.is_none()
    })
    .await;
    wait_until("everything is registered again", async || rig.index_is_current()).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_lost_answer_causes_no_replacement() {
    let announced = many(0..50);
    let rig = Rig::new(announced, FakeIndexState::default()).await;
    rig.synced().await;
    rig.index.state().loses_next_answer = true;
    rig.announce_set.put(many(50..51));
    rig.synced().await;
    assert!(rig.index_is_current() && !rig.index.state().loses_next_answer);
    rig.index.state().loses_next_answer = true;
    rig.announce_set.remove(&[record(0).id]);
    rig.synced().await;
    assert!(rig.index_is_current() && !rig.index.state().loses_next_answer);
    assert_eq!(
        rig.index.state().replace_calls,
        0,
        "nothing is unregistered in between"
    );
    rig.stop().await;
}

#[tokio::test]
async fn registers_again_after_the_index_was_down() {
    let announced = many(0..5);
    let mut rig = Rig::new(announced, FakeIndexState::default()).await;
    rig.synced().await;
    rig.stop_index.cancel();
    (&mut rig.served).await.unwrap();
    wait_until("the loss is noticed", async || !rig.registrar.status().registered).await;
    rig.announce_set.put(many(5..10));
    let problem = rig.registrar.synced(Duration::from_millis(50)).await.unwrap_err();
    assert!(
        matches!(problem.reason, Reason::Unreachable | Reason::NotPotluck),
        "{problem:?}"
    );
    // It comes back without any data.
    *rig.index.state() = FakeIndexState::default();
    rig.stop_index = CancellationToken::new();
    rig.served = rig.index.serve(rig.address, rig.stop_index.clone()).await.1;
    rig.synced().await;
    assert!(rig.index_is_current() && rig.error_reason().is_none());
    rig.stop().await;
}

#[tokio::test]
async fn a_peer_is_registered_soon_after_a_long_outage() {
    let rig = Rig::new(many(0..10), FakeIndexState::default()).await;
    rig.synced().await;
    rig.index.state().failure = Some(Reason::ShuttingDown);
    let calls = rig.index.state().renew_calls;
    wait_until("several calls fail", async || {
        rig.index.state().renew_calls > calls + 5
    })
    .await;
    {
        let mut state = rig.index.state();
        (state.failure, state.has_lease) = (None, false);
        state.files.clear();
    }
    let since = Instant::now();
    wait_until("everything is registered", async || rig.index_is_current()).await;
    // Leases of this index last 0.3 seconds; without the limit, the wait would be 8 seconds or more.
    let took = since.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    rig.stop().await;
}

#[tokio::test]
async fn one_refused_file_does_not_block_the_others() {
    let mut announced = many(0..200);
    announced.insert(100, registration(1000, "bad"));
    let state = FakeIndexState {
        bad_names: BTreeSet::from(["bad".to_owned()]),
        ..FakeIndexState::default()
    };
    let rig = Rig::new(announced, state).await;
    rig.synced().await;
    assert_eq!(rig.index.state().files.len(), 200);
    let status = rig.registrar.status();
    assert!(status.registered && status.error.unwrap().reason == Reason::InvalidName);
    rig.stop().await;
}

#[tokio::test]
async fn reports_a_full_quota_and_uses_the_room_that_appears() {
    let announced = many(0..120);
    let state = FakeIndexState {
        quota: Some(100),
        ..FakeIndexState::default()
    };
    let rig = Rig::new(announced, state).await;
    let problem = rig.registrar.synced(DEADLINE).await.unwrap_err();
    assert_eq!(problem.reason, Reason::QuotaExceeded);
    assert_eq!(rig.index.state().files.len(), 100, "the quota is used");
    assert!(rig.registrar.status().registered && rig.error_reason().is_some());
    rig.announce_set.remove(&ids(0..30));
    wait_until("the others are registered", async || rig.index_is_current()).await;
    rig.stop().await;
}

#[tokio::test]
async fn does_not_retry_in_a_loop_if_the_index_is_full() {
    let full = || FakeIndexState {
        quota: Some(0),
        ..FakeIndexState::default()
    };
    let new = Rig::new(many(0..1), full()).await;
    let forgotten = Rig::new(many(0..1), FakeIndexState::default()).await;
    forgotten.synced().await;
    // It lost this peer, and other peers use up the quota.
    *forgotten.index.state() = full();
    // It has what an earlier run announced.
    let remembered = FakeIndexState {
        quota: Some(0),
        ..FakeIndexState::with_files(&many(0..1))
    };
    let remembered = Rig::new(many(0..1), remembered).await;
    let rigs = [(new, false), (forgotten, false), (remembered, true)];
    for (rig, has_lease) in &rigs {
        wait_until("the full quota is reported", async || {
            rig.error_reason() == Some(Reason::QuotaExceeded)
        })
        .await;
        assert_eq!(rig.registrar.status().registered, *has_lease);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for (rig, _) in rigs {
        assert_eq!(rig.index.state().register_calls, 2, "one to add, one to replace");
        rig.stop().await;
    }
}

#[tokio::test]
async fn reports_a_refusal_at_once() {
    let state = FakeIndexState {
        failure: Some(Reason::AddressRefused),
        ..FakeIndexState::default()
    };
    let rig = Rig::new(Vec::new(), state).await;
    let problem = rig.registrar.synced(DEADLINE).await.unwrap_err();
    assert_eq!(problem.reason, Reason::AddressRefused);
    assert!(!rig.registrar.status().registered);
    rig.index.state().failure = None;
    rig.stop().await;
}

#[tokio::test]
async fn registers_again_after_the_index_was_restored_to_an_older_state() {
    let announced = many(0..50);
    let rig = Rig::new(announced, FakeIndexState::default()).await;
    rig.synced().await;
    let partial = Registration {
        is_complete: false,
        ..registration(7, "name 7")
    };
    // Another file, another name, another completeness: each time the number of files is the same.
    for (lost, stale) in [
        (3, registration(1000, "old")),
        (3, registration(3, "old")),
        (7, partial),
    ] {
        let replace_calls = rig.index.state().replace_calls;
        {
            let mut state = rig.index.state();
            state.files.remove(record(lost).id.0.as_slice());
            state.files.insert(stale.file.id.0.to_vec(), stale);
            assert_eq!(state.files.len(), 50);
        }
        wait_until("everything is registered again", async || rig.index_is_current()).await;
        assert_eq!(rig.index.state().replace_calls, replace_calls + 1);
        // The peer sees matching digests before the next round.
        let renew_calls = rig.index.state().renew_calls;
        wait_until("the lease is renewed", async || {
            rig.index.state().renew_calls > renew_calls + 1
        })
        .await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_wrong_digest_causes_one_replacement() {
    let announced = many(0..50);
    let state = FakeIndexState {
        wrong_digest: Some([7; 32]),
        ..FakeIndexState::default()
    };
    let rig = Rig::new(announced, state).await;
    wait_until("everything is registered again", async || {
        rig.index.state().replace_calls == 1
    })
    .await;
    let renew_calls = rig.index.state().renew_calls;
    wait_until("the lease is renewed several times", async || {
        rig.index.state().renew_calls > renew_calls + 6
    })
    .await;
    assert!(rig.index_is_current() && rig.registrar.status().registered);
    assert_eq!(rig.index.state().replace_calls, 1);
    rig.stop().await;
}

#[tokio::test]
async fn reports_another_peer_with_the_same_token() {
    let announced = many(0..5);
    let rig = Rig::new(announced, FakeIndexState::default()).await;
    rig.synced().await;
    assert_eq!(rig.error_reason(), None);
    rig.index.state().conflicting_address = Some(v1::Address {
        host: "192.0.2.9".to_owned(),
        port: 12349,
    });
    wait_until("the other peer is reported", async || {
        rig.error_reason() == Some(Reason::IdentityInUse)
    })
    .await;
    let status = rig.registrar.status();
    let message = status.error.unwrap().message;
    assert!(
        status.registered && message.contains("192.0.2.9:12349") && message.contains("state/token"),
        "{message}"
    );
    rig.index.state().conflicting_address = None;
    wait_until("the error is gone", async || rig.error_reason().is_none()).await;
    // The refused peer reports it too.
    rig.index.state().failure = Some(Reason::IdentityInUse);
    rig.announce_set.put(many(5..6));
    wait_until("the refusal is reported", async || {
        rig.error_reason() == Some(Reason::IdentityInUse)
    })
    .await;
    assert!(!rig.registrar.status().registered);
    let instances = rig.index.state().instances.clone();
    assert!(
        instances.len() == 1 && instances.iter().all(|one| one.len() == 16),
        "{instances:?}"
    );
    rig.index.state().failure = None;
    rig.stop().await;
}

#[tokio::test]
async fn renews_the_lease_while_the_index_cannot_store() {
    let announced = many(0..5);
    let rig = Rig::new(announced, FakeIndexState::default()).await;
    rig.synced().await;
    rig.index.state().failure = Some(Reason::StoreUnavailable);
    rig.announce_set.put(many(5..10));
    wait_until("the failure is reported", async || {
        rig.error_reason() == Some(Reason::StoreUnavailable)
    })
    .await;
    let renew_calls = rig.index.state().renew_calls;
    wait_until("the lease is renewed", async || {
        rig.index.state().renew_calls > renew_calls + 9
    })
    .await;
    assert!(rig.registrar.status().registered);
    rig.index.state().failure = None;
    rig.synced().await;
    assert!(rig.index_is_current());
    rig.stop().await;
}
