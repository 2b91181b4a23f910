//! The contract of all stores: one test body that runs over each implementation.

use std::{collections::BTreeMap, time::Duration};

use potluck_core::{
    FileId, PeerId, Root, Sha256,
    model::{Address, FileKind, FileRecord, Registration},
};
use potluck_testkit::system::redis_cluster::RedisCluster;
use proptest::{prelude::*, test_runner::TestRunner};

use crate::store::{
    Change, IndexStore, MemoryStore, PeerRecord, RedisConfig, RedisStore, SledStore, StoredPeer,
};

pub(crate) fn peer(n: u8) -> PeerRecord {
    let address = Address {
        host: format!("192.0.2.{n}"),
        port: 12349,
    };
    PeerRecord {
        id: PeerId([n; 32]),
        address,
        ttl: Duration::from_secs(60),
    }
}

pub(crate) fn registration(n: u64, name: &str) -> Registration {
    let mut root = [7; 32];
    root[..8].copy_from_slice(&n.to_le_bytes());
    let root = Root(root);
    let file = FileRecord {
        id: FileId::derive(n, &root),
        size: n,
        root,
        sha256: n.is_multiple_of(3).then_some(Sha256([n as u8; 32])),
        kind: if n.is_multiple_of(5) {
            FileKind::Collection
        } else {
            FileKind::File
        },
    };
    Registration {
        file,
        names: vec![name.to_owned()],
        is_complete: !n.is_multiple_of(2),
    }
}

pub(crate) type Model = BTreeMap<PeerId, (PeerRecord, BTreeMap<FileId, Registration>)>;

/// Applies a change to the model.
pub(crate) fn apply_to_model(model: &mut Model, change: &Change) {
    match change.clone() {
        Change::Register {
            peer, files, replace, ..
        } => {
            let mut registrations =
                model.remove(&peer.id).map(|(_, files)| files).unwrap_or_default();
            if replace {
                registrations.clear();
            }
            for file in files {
                registrations.insert(file.file.id, file);
            }
            model.insert(peer.id, (peer, registrations));
        }
        Change::Unregister { peer, files } => {
            if let Some((_, registrations)) = model.get_mut(&peer) {
                registrations.retain(|id, _| !files.contains(id));
            }
        }
        Change::Forget { peer } | Change::Expire { peer } => {
            model.remove(&peer);
        }
    }
}

pub(crate) fn collect(all: &mut Model, StoredPeer { record, files }: StoredPeer) {
    let files: BTreeMap<_, _> = files.into_iter().map(|file| (file.file.id, file)).collect();
    assert!(
        all.insert(record.id, (record, files)).is_none(),
        "a peer was loaded twice"
    );
}

fn load_all(store: &mut dyn IndexStore) -> Model {
    let mut all = Model::new();
    store.load(&mut |peer| collect(&mut all, peer)).unwrap();
    all
}

/// Checks that a store is equal to the model after each batch and after `reopen`.
fn check_contract<S: IndexStore>(
    mut store: S,
    batches: &[Vec<Change>],
    reopen: impl Fn(S) -> Option<(S, Model)>,
) {
    let mut model = Model::new();
    for batch in batches {
        store.apply(batch).unwrap();
        for change in batch {
            apply_to_model(&mut model, change);
        }
        assert_eq!(load_all(&mut store), model);
    }
    if let Some((mut store, loaded)) = reopen(store) {
        assert_eq!(loaded, model, "after reopening");
        // The reopened store accepts further changes.
        let more = Change::Register {
            peer: peer(1),
            files: vec![registration(999, "z")],
            new: 1,
            replace: false,
        };
        store.apply(std::slice::from_ref(&more)).unwrap();
        apply_to_model(&mut model, &more);
        assert_eq!(load_all(&mut store), model);
    }
}

fn change() -> impl Strategy<Value = Change> {
    let files = || prop::collection::vec((0..60u64, "[a-z]{1,200}"), 0..40);
    let register = (1..5u8, files(), 0..40usize, prop::bool::weighted(0.1));
    prop_oneof![
        4 => register.prop_map(|(n, files, new, replace)| Change::Register {
            peer: peer(n),
            // Arbitrary: the estimate must not affect the stored data.
            new,
            files: files.into_iter().map(|(n, name)| registration(n, &name)).collect(),
            replace,
        }),
        2 => (1..5u8, files()).prop_map(|(n, files)| Change::Unregister {
            peer: peer(n).id,
            files: files.into_iter().map(|(n, name)| registration(n, &name).file.id).collect(),
        }),
        1 => (1..5u8).prop_map(|n| Change::Forget { peer: peer(n).id }),
    ]
}

fn batches(max: usize) -> impl Strategy<Value = Vec<Vec<Change>>> {
    prop::collection::vec(prop::collection::vec(change(), 0..4), 0..max)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_store_equals_the_model(batches in batches(20)) {
        check_contract(MemoryStore::default(), &batches, |_| None);
    }

    #[test]
    fn the_sled_store_equals_the_model(batches in batches(12)) {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let (store, peers) = SledStore::open(dir.path()).unwrap();
            let mut loaded = Model::new();
            peers.into_iter().for_each(|peer| collect(&mut loaded, peer));
            (store, loaded)
        };
        let (store, loaded) = open();
        assert_eq!(loaded, Model::new());
        check_contract(store, &batches, |store| {
            drop(store);
            Some(open())
        });
    }
}

/// Over a real cluster; skipped with a line if this machine has no `redis-server`.
#[test]
fn the_redis_store_equals_the_model() {
    let Some(cluster) = RedisCluster::start(3) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = RedisConfig {
        nodes: vec![format!("redis://{}", cluster.addresses()[1])],
        user: None,
        password: None,
        ca: None,
        folder: None,
    };
    let open = || RedisStore::open(runtime.handle().clone(), &config).unwrap();
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 8,
        ..ProptestConfig::default()
    });
    runner
        .run(&batches(8), |batches| {
            cluster.flush();
            check_contract(open(), &batches, |store| {
                drop(store);
                let mut store = open();
                let loaded = load_all(&mut store);
                Some((store, loaded))
            });
            Ok(())
        })
        .unwrap();
}
