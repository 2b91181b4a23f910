//! The registrar against a fake index that follows the protocol and can be made to fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "announce/fake_index.rs"]
mod fake;
mod served_library;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use fake::{Fake, State};
use potluck_core::{
    FileId, Reason, Root, Token,
    grpc::transport,
    index_client::IndexClient,
    model::{Address, FileKind, FileRecord, Registration},
    proto::v1::{self, index_service_server::IndexServiceServer},
};
use potluck_peer::announce::{
    registrar::{IndexConnection, Registrar},
    set::AnnounceSet,
};
use served_library::{DEADLINE, wait_until};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

struct Rig {
    fake: Fake,
    address: SocketAddr,
    serving: CancellationToken,
    served: tokio::task::JoinHandle<()>,
    holdings: AnnounceSet,
    registrar: Registrar,
    shutdown: CancellationToken,
    tracker: TaskTracker,
}

async fn serve(
    fake: Fake,
    address: SocketAddr,
    stop: CancellationToken,
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = IndexServiceServer::new(fake).max_decoding_message_size(transport::MAX_MESSAGE);
    let server = transport::server().add_service(service);
    let served = tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        server
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await
            .unwrap();
    });
    (address, served)
}

impl Rig {
    async fn new(holdings: AnnounceSet, state: State) -> Self {
        let fake = Fake(Arc::new(Mutex::new(state)));
        let serving = CancellationToken::new();
        let (address, served) = serve(fake.clone(), "127.0.0.1:0".parse().unwrap(), serving.clone()).await;
        let client = IndexClient::new(address.to_string().parse().unwrap());
        let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
        let own = Address {
            host: String::new(),
            port: 4,
        };
        let index = IndexConnection::new(client, Token::generate(), own, None);
        let registrar = Registrar::start(index, holdings.clone(), shutdown.clone(), &tracker);
        Self {
            fake,
            address,
            serving,
            served,
            holdings,
            registrar,
            shutdown,
            tracker,
        }
    }

    fn same(&self) -> bool {
        let held: BTreeMap<_, _> = self
            .holdings
            .snapshot()
            .into_iter()
            .map(|one| (one.file.id.0.to_vec(), one))
            .collect();
        let state = self.fake.state();
        state.lease && state.files == held
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.tracker.close();
        tokio::time::timeout(DEADLINE, self.tracker.wait())
            .await
            .expect("no task is left");
        assert!(
            self.fake.state().files.is_empty() && !self.fake.state().lease,
            "everything is taken back"
        );
    }
}

fn registration(n: u32, name: &str) -> Registration {
    let mut root = [0; 32];
    root[..4].copy_from_slice(&n.to_le_bytes());
    let root = Root(root);
    let file = FileRecord {
        id: FileId::derive(1, &root),
        size: 1,
        root,
        sha256: None,
        kind: FileKind::File,
    };
    Registration {
        file,
        names: vec![name.to_owned()],
        is_complete: true,
    }
}

fn many(range: std::ops::Range<u32>) -> Vec<Registration> {
    range.map(|n| registration(n, &format!("name {n}"))).collect()
}

#[tokio::test]
async fn everything_is_registered_in_batches_and_changes_follow() {
    let holdings = AnnounceSet::new();
    holdings.put(many(0..25_001));
    let rig = Rig::new(holdings, State::default()).await;
    rig.registrar.synced(DEADLINE).await.unwrap();
    assert!(rig.same());
    // Small batches: those in flight are in memory, in several forms.
    assert!(rig.fake.state().largest <= 2_500 && rig.fake.state().registers == 11);
    assert_eq!(rig.fake.state().replaces, 0, "nothing is taken away in between");
    let status = rig.registrar.status();
    assert!(status.registered && status.file_count == 25_001 && status.advertised.is_some());
    rig.holdings
        .remove(&many(5..10).iter().map(|one| one.file.id).collect::<Vec<_>>());
    rig.holdings
        .put(vec![registration(1, "another name"), registration(99_999, "new")]);
    rig.registrar.synced(DEADLINE).await.unwrap();
    assert!(rig.same());
    rig.stop().await;
}

/// An index that still has the files that this peer announced before a crash.
fn remembering(files: &[Registration]) -> State {
    let files = files.iter().map(|one| (one.file.id.0.to_vec(), one.clone()));
    State {
        lease: true,
        files: files.collect(),
        ..State::default()
    }
}

#[tokio::test]
async fn an_index_that_has_it_all_is_not_made_to_replace_it() {
    let holdings = AnnounceSet::new();
    holdings.put(many(0..25_000));
    let rig = Rig::new(holdings, remembering(&many(0..25_000))).await;
    rig.registrar.synced(DEADLINE).await.unwrap();
    assert!(rig.same());
    assert_eq!(rig.fake.state().replaces, 0);
    rig.stop().await;
}

#[tokio::test]
async fn what_an_earlier_run_left_is_gone_before_it_counts_as_told() {
    for (has, quota) in [(20_000..45_000, None), (90_000..100_000, Some(25_000))] {
        let holdings = AnnounceSet::new();
        holdings.put(many(0..25_000));
        let state = State {
            quota,
            ..remembering(&many(has))
        };
        let rig = Rig::new(holdings, state).await;
        rig.registrar.synced(DEADLINE).await.unwrap();
        assert!(rig.same());
        assert_eq!(rig.fake.state().replaces, 1);
        rig.stop().await;
    }
}

#[tokio::test]
async fn what_changes_while_it_is_told_arrives_as_it_is_at_last() {
    let holdings = AnnounceSet::new();
    holdings.put(many(0..60_000));
    let rig = Rig::new(holdings, State::default()).await;
    for round in 0..40u32 {
        let some = (0..50).map(|n| registration(n * 1000 + round, &format!("round {round}")));
        rig.holdings.put(some.collect());
        let gone: Vec<_> = many(round * 100..round * 100 + 10)
            .iter()
            .map(|one| one.file.id)
            .collect();
        rig.holdings.remove(&gone);
        tokio::task::yield_now().await;
    }
    rig.registrar.synced(DEADLINE).await.unwrap();
    assert!(rig.same());
    rig.stop().await;
}

#[tokio::test]
async fn an_index_that_forgot_is_told_again() {
    let holdings = AnnounceSet::new();
    holdings.put(many(0..50));
    let rig = Rig::new(holdings, State::default()).await;
    rig.registrar.synced(DEADLINE).await.unwrap();
    // It lost the lease.
    *rig.fake.state() = State::default();
    wait_until("told again after the lease was lost", || rig.same()).await;
    // It lost a file.
    rig.fake.state().files.pop_first();
    wait_until("told again after a file was lost", || rig.same()).await;
    // It lost everything, just before a new file is registered.
    *rig.fake.state() = State::default();
    rig.holdings.put(many(100..101));
    wait_until("told again with what is new", || rig.same()).await;
    // It lost everything right after a full announcement, while a new file arrives.
    let forget = Some((rig.holdings.clone(), many(101..102)));
    rig.fake.state().forget = forget;
    rig.fake.state().files.pop_first();
    wait_until("it forgot again", || rig.fake.state().forget.is_none()).await;
    wait_until("told again although it was just told", || rig.same()).await;
    rig.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_lost_does_not_make_the_index_replace_all() {
    let holdings = AnnounceSet::new();
    holdings.put(many(0..50));
    let rig = Rig::new(holdings, State::default()).await;
    rig.registrar.synced(DEADLINE).await.unwrap();
    rig.fake.state().lose = true;
    rig.holdings.put(many(50..51));
    rig.registrar.synced(DEADLINE).await.unwrap();
    assert!(rig.same() && !rig.fake.state().lose);
    rig.fake.state().lose = true;
    rig.holdings.remove(&[registration(0, "").file.id]);
    rig.registrar.synced(DEADLINE).await.unwrap();
    assert!(rig.same() && !rig.fake.state().lose);
    assert_eq!(rig.fake.state().replaces, 0, "nothing is taken away in between");
    rig.stop().await;
}

#[tokio::test]
async fn an_index_that_is_down_is_waited_for() {
    let holdings = AnnounceSet::new();
    holdings.put(many(0..5));
    let mut rig = Rig::new(holdings, State::default()).await;
    rig.registrar.synced(DEADLINE).await.unwrap();
    rig.serving.cancel();
    (&mut rig.served).await.unwrap();
    let registrar = rig.registrar.clone();
    wait_until("it is noticed", || !registrar.status().registered).await;
    rig.holdings.put(many(5..10));
    let problem = rig.registrar.synced(Duration::from_millis(50)).await.unwrap_err();
    assert!(
        matches!(problem.reason, Reason::Unreachable | Reason::NotPotluck),
        "{problem:?}"
    );
    // It comes back without any data.
    *rig.fake.state() = State::default();
    rig.serving = CancellationToken::new();
    let (_, served) = serve(rig.fake.clone(), rig.address, rig.serving.clone()).await;
    rig.served = served;
    rig.registrar.synced(DEADLINE).await.unwrap();
    assert!(rig.same() && rig.registrar.status().error.is_none());
    rig.stop().await;
}

#[tokio::test]
async fn one_bad_file_does_not_keep_the_others_out() {
    let holdings = AnnounceSet::new();
    holdings.put(many(0..100));
    holdings.put(vec![registration(1000, "bad")]);
    holdings.put(many(100..200));
    let state = State {
        bad_names: BTreeSet::from(["bad".to_owned()]),
        ..State::default()
    };
    let rig = Rig::new(holdings, state).await;
    rig.registrar.synced(DEADLINE).await.unwrap();
    assert_eq!(rig.fake.state().files.len(), 200);
    let status = rig.registrar.status();
    assert!(status.registered && status.error.unwrap().reason == Reason::InvalidName);
    rig.stop().await;
}

#[tokio::test]
async fn a_full_quota_is_reported_and_room_is_used() {
    let holdings = AnnounceSet::new();
    holdings.put(many(0..120));
    let rig = Rig::new(
        holdings,
        State {
            quota: Some(100),
            ..State::default()
        },
    )
    .await;
    let problem = rig.registrar.synced(DEADLINE).await.unwrap_err();
    assert_eq!(problem.reason, Reason::QuotaExceeded);
    assert_eq!(rig.fake.state().files.len(), 100, "as much as there is room for");
    assert!(rig.registrar.status().registered && rig.registrar.status().error.is_some());
    rig.holdings
        .remove(&many(0..30).iter().map(|one| one.file.id).collect::<Vec<_>>());
    wait_until("what has room now is registered", || rig.same()).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_full_index_that_gives_no_lease_is_not_asked_again_and_again() {
    let full = || State {
        quota: Some(0),
        ..State::default()
    };
    let holding = || {
        let holdings = AnnounceSet::new();
        holdings.put(many(0..1));
        holdings
    };
    let new = Rig::new(holding(), full()).await;
    let forgotten = Rig::new(holding(), State::default()).await;
    forgotten.registrar.synced(DEADLINE).await.unwrap();
    // It lost this peer, and other peers use up the quota.
    *forgotten.fake.state() = full();
    // It has what an earlier run announced.
    let remembered = State {
        quota: Some(0),
        ..remembering(&many(0..1))
    };
    let remembered = Rig::new(holding(), remembered).await;
    let rigs = [(new, false), (forgotten, false), (remembered, true)];
    for (rig, has_lease) in &rigs {
        let registrar = rig.registrar.clone();
        let is_told =
            || registrar.status().error.map(|problem| problem.reason) == Some(Reason::QuotaExceeded);
        wait_until("it is told that there is no room", is_told).await;
        assert_eq!(registrar.status().registered, *has_lease);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for (rig, _) in rigs {
        assert_eq!(
            rig.fake.state().registers,
            2,
            "once, and once in place of what it has"
        );
        rig.stop().await;
    }
}

#[tokio::test]
async fn an_index_that_refuses_this_peer_says_so_at_once() {
    let rig = Rig::new(
        AnnounceSet::new(),
        State {
            fail: Some(Reason::AddressRefused),
            ..State::default()
        },
    )
    .await;
    let problem = rig.registrar.synced(DEADLINE).await.unwrap_err();
    assert_eq!(problem.reason, Reason::AddressRefused);
    assert!(!rig.registrar.status().registered);
    rig.fake.state().fail = None;
    rig.stop().await;
}

#[tokio::test]
async fn an_index_that_was_put_back_to_an_older_state_with_as_many_files_is_told_again() {
    let holdings = AnnounceSet::new();
    holdings.put(many(0..50));
    let rig = Rig::new(holdings, State::default()).await;
    rig.registrar.synced(DEADLINE).await.unwrap();
    let partial = Registration {
        is_complete: false,
        ..registration(7, "name 7")
    };
    // Another file, another name, another completeness: each time the number of files is the same.
    for (gone, stale) in [
        (3, registration(1000, "old")),
        (3, registration(3, "old")),
        (7, partial),
    ] {
        let replaces = rig.fake.state().replaces;
        {
            let mut state = rig.fake.state();
            state.files.remove(registration(gone, "").file.id.0.as_slice());
            state.files.insert(stale.file.id.0.to_vec(), stale);
            assert_eq!(state.files.len(), 50);
        }
        wait_until("the index is told again", || rig.same()).await;
        assert_eq!(rig.fake.state().replaces, replaces + 1);
        // The peer sees matching digests before the next round.
        let renewals = rig.fake.state().renewals;
        wait_until("it is renewed", || rig.fake.state().renewals > renewals + 1).await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn an_index_that_counts_otherwise_is_told_again_once() {
    let holdings = AnnounceSet::new();
    holdings.put(many(0..50));
    let state = State {
        wrong_digest: Some([7; 32]),
        ..State::default()
    };
    let rig = Rig::new(holdings, state).await;
    wait_until("everything is told again", || rig.fake.state().replaces == 1).await;
    let renewals = rig.fake.state().renewals;
    wait_until("it renews on and on", || rig.fake.state().renewals > renewals + 6).await;
    assert!(rig.same() && rig.registrar.status().registered);
    assert_eq!(rig.fake.state().replaces, 1);
    rig.stop().await;
}

#[tokio::test]
async fn another_peer_with_the_same_token_is_told_of() {
    let holdings = AnnounceSet::new();
    holdings.put(many(0..5));
    let rig = Rig::new(holdings, State::default()).await;
    rig.registrar.synced(DEADLINE).await.unwrap();
    let reason = || rig.registrar.status().error.map(|problem| problem.reason);
    assert_eq!(reason(), None);
    rig.fake.state().conflicting_address = Some(v1::Address {
        host: "192.0.2.9".to_owned(),
        port: 12349,
    });
    wait_until("it is in the status", || reason() == Some(Reason::IdentityInUse)).await;
    let status = rig.registrar.status();
    let said = status.error.unwrap().message;
    assert!(
        status.registered && said.contains("192.0.2.9:12349") && said.contains("state/token"),
        "{said}"
    );
    rig.fake.state().conflicting_address = None;
    wait_until("it is gone from the status", || reason().is_none()).await;
    // The refused peer reports it too.
    rig.fake.state().fail = Some(Reason::IdentityInUse);
    rig.holdings.put(many(5..6));
    wait_until("it is refused", || reason() == Some(Reason::IdentityInUse)).await;
    assert!(!rig.registrar.status().registered);
    let instances = rig.fake.state().instances.clone();
    assert!(
        instances.len() == 1 && instances.iter().all(|one| one.len() == 16),
        "{instances:?}"
    );
    rig.fake.state().fail = None;
    rig.stop().await;
}

#[tokio::test]
async fn an_index_that_cannot_store_anything_is_renewed_all_the_same() {
    let holdings = AnnounceSet::new();
    holdings.put(many(0..5));
    let rig = Rig::new(holdings, State::default()).await;
    rig.registrar.synced(DEADLINE).await.unwrap();
    rig.fake.state().fail = Some(Reason::StoreUnavailable);
    rig.holdings.put(many(5..10));
    let reason = || rig.registrar.status().error.map(|problem| problem.reason);
    wait_until("it is noticed", || reason() == Some(Reason::StoreUnavailable)).await;
    let renewals = rig.fake.state().renewals;
    wait_until("the lease is renewed", || {
        rig.fake.state().renewals > renewals + 9
    })
    .await;
    assert!(rig.registrar.status().registered);
    rig.fake.state().fail = None;
    rig.registrar.synced(DEADLINE).await.unwrap();
    assert!(rig.same());
    rig.stop().await;
}
