//! Several stores over one real cluster. Skipped with a line if this machine has no `redis-server`.

use std::collections::BTreeMap;

use potluck_core::{
    FileId, PeerId, SetDigest,
    model::{Address, Registration},
};
use potluck_testkit::system::redis_cluster::RedisCluster;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::runtime::Runtime;

use super::*;
use crate::store::{
    Change, Followed, IndexStore, PeerRecord, SharedStore as _, StoreError,
    contract::{Model, apply_to_model, collect, peer, registration},
    shared_log::{LogEnd, LogPart, SharedLog as _},
};

/// A store and a catalog that follows it.
struct Process {
    store: RedisStore,
    model: Model,
}

fn config(cluster: &RedisCluster) -> RedisConfig {
    let nodes = cluster
        .addresses()
        .iter()
        .map(|node| format!("redis://{node}"))
        .collect();
    RedisConfig {
        nodes,
        user: None,
        password: None,
        ca: None,
        folder: None,
    }
}

impl Process {
    fn start(runtime: &Runtime, cluster: &RedisCluster) -> Self {
        let mut store = RedisStore::open(runtime.handle().clone(), &config(cluster)).unwrap();
        let mut model = Model::new();
        store.load(&mut |peer| collect(&mut model, peer)).unwrap();
        Self { store, model }
    }

    /// Makes changes; whether all of them were made.
    fn apply(&mut self, changes: &[Change]) -> bool {
        let failed = match self.store.apply(changes) {
            Ok(()) => Vec::new(),
            Err(StoreError::Partly { failed, .. }) => failed,
            Err(error) => panic!("{error}"),
        };
        for (place, change) in changes.iter().enumerate() {
            if !failed.contains(&place) {
                apply_to_model(&mut self.model, change);
            }
        }
        failed.is_empty()
    }

    fn follow(&mut self) {
        loop {
            let model = &self.model;
            let digest_of = |peer: &PeerId| {
                let files = model.get(peer).map(|(_, files)| files)?;
                Some(SetDigest::from_iter(files.values()))
            };
            // A cluster that does not answer is asked again.
            let Ok(following) = self.store.follow(&digest_of) else {
                std::thread::sleep(std::time::Duration::from_millis(100));
                continue;
            };
            for change in following.changes {
                match change {
                    Followed::Change(change) => apply_to_model(&mut self.model, &change),
                    Followed::Peer(peer) => {
                        self.model.remove(&peer.record.id);
                        collect(&mut self.model, peer);
                    }
                }
            }
            if !following.has_more {
                return;
            }
        }
    }
}

/// What Redis holds.
fn stored(runtime: &Runtime, cluster: &RedisCluster) -> Model {
    Process::start(runtime, cluster).model
}

fn random_change(rng: &mut StdRng) -> Change {
    let record = peer(rng.random_range(1..6));
    let count = match rng.random_range(0..20) {
        // More than a stream carries.
        0 => 400,
        _ => rng.random_range(0..12),
    };
    let files: Vec<Registration> = (0..count)
        .map(|_| registration(rng.random_range(0..600), &format!("{}", rng.random::<u8>())))
        .collect();
    match rng.random_range(0..10) {
        0 => Change::Forget { peer: record.id },
        1..3 => Change::Unregister {
            peer: record.id,
            files: files.iter().map(|file| file.file.id).collect::<Vec<FileId>>(),
        },
        n => Change::Register {
            peer: PeerRecord {
                address: Address {
                    port: rng.random_range(1..4),
                    ..record.address
                },
                ..record
            },
            files,
            new: 0,
            replace: n == 3,
        },
    }
}

#[test]
fn processes_that_change_the_same_peers_see_the_same() {
    let Some(cluster) = RedisCluster::start(3) else {
        return;
    };
    let runtime = Runtime::new().unwrap();
    for seed in 0..6 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut processes = [0, 1].map(|_| Process::start(&runtime, &cluster));
        for _ in 0..60 {
            let process = &mut processes[rng.random_range(0..2)];
            if rng.random_range(0..4) == 0 {
                process.follow();
            } else {
                let changes: Vec<_> =
                    (0..rng.random_range(1..4)).map(|_| random_change(rng)).collect();
                assert!(process.apply(&changes));
            }
        }
        let truth = stored(&runtime, &cluster);
        for process in &mut processes {
            process.follow();
            assert_eq!(process.model, truth, "seed {seed}");
        }
        cluster.flush();
    }
}

#[test]
fn what_a_failover_loses_is_noticed() {
    let Some(mut cluster) = RedisCluster::start(3) else {
        return;
    };
    let runtime = Runtime::new().unwrap();
    let rng = &mut StdRng::seed_from_u64(7);
    let mut processes = [0, 1].map(|_| Process::start(&runtime, &cluster));
    for process in &mut processes {
        process.follow();
    }
    for round in 0..3 {
        let primary = (0..cluster.len())
            .filter(|&node| cluster.is_primary(node))
            .nth(round % 3)
            .unwrap();
        // The replica hears nothing more, so that the changes that follow are lost.
        let partner = cluster.partner(primary);
        cluster.pause(partner);
        for _ in 0..10 {
            processes[0].apply(&[random_change(rng)]);
        }
        processes[1].follow();
        cluster.kill(primary);
        cluster.resume(partner);
        let mut is_whole = false;
        for _ in 0..200 {
            is_whole = processes[1].apply(&[random_change(rng), random_change(rng)]);
            processes.iter_mut().for_each(Process::follow);
            if is_whole && cluster.is_primary(partner) {
                break;
            }
        }
        assert!(is_whole, "the replica took over");
        cluster.restart(primary);
        cluster.wait_until_whole();
        processes.iter_mut().for_each(Process::follow);
        let truth: BTreeMap<_, _> = stored(&runtime, &cluster);
        for process in &processes {
            assert_eq!(process.model, truth, "round {round}");
        }
    }
}

#[test]
fn leases_end_unless_a_process_renews_them() {
    let Some(cluster) = RedisCluster::start(3) else {
        return;
    };
    let runtime = Runtime::new().unwrap();
    let [mut one, mut two] = [0, 1].map(|_| Process::start(&runtime, &cluster));
    let ttl = std::time::Duration::from_millis(1500);
    let short = |n| PeerRecord { ttl, ..peer(n) };
    let open = |n| Change::Register {
        peer: short(n),
        files: vec![registration(n.into(), "a")],
        new: 1,
        replace: false,
    };
    assert!(one.apply(&[open(1), open(2)]));
    let ids = [peer(1).id, peer(2).id];
    for _ in 0..3 {
        std::thread::sleep(ttl / 2);
        one.store.renew_leases(vec![(ids[0], ttl)]);
        one.follow();
    }
    two.follow();
    let leases: BTreeMap<_, _> = two.store.leases(&ids).into_iter().collect();
    assert!(leases[&ids[0]].is_some_and(|remaining| remaining <= ttl));
    assert_eq!(leases[&ids[1]], None);
    // The lease of the first peer is alive, so that it stays.
    two.apply(&[Change::Expire { peer: ids[0] }, Change::Expire { peer: ids[1] }]);
    two.follow();
    one.follow();
    for process in [&one, &two] {
        assert_eq!(process.model.keys().copied().collect::<Vec<_>>(), [ids[0]]);
    }
}

#[test]
fn a_store_that_cannot_be_used_is_refused() {
    let Some(cluster) = RedisCluster::start(1) else {
        return;
    };
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let with_folder = RedisConfig {
        folder: Some(folder.path().join("index")),
        ..config(&cluster)
    };
    let open = |config: &RedisConfig| RedisStore::open(runtime.handle().clone(), config);
    let id = open(&with_folder).unwrap().cluster_id();
    assert_eq!(open(&with_folder).unwrap().cluster_id(), id);
    // An empty cluster takes the id that the index remembers.
    cluster.flush();
    assert_eq!(open(&with_folder).unwrap().cluster_id(), id);
    cluster.flush();
    open(&config(&cluster)).unwrap();
    let refused = open(&with_folder).unwrap_err();
    assert!(
        matches!(refused, RedisOpenError::OtherCluster { .. }),
        "{refused}"
    );
    for node in 0..cluster.len() {
        cluster.call(node, &["HSET", "potluck:{000}:meta", "layout", "2"]);
    }
    let refused = open(&config(&cluster)).unwrap_err();
    assert!(matches!(refused, RedisOpenError::Layout { .. }), "{refused}");
    let nobody = RedisConfig {
        nodes: vec!["redis://127.0.0.1:1".to_owned()],
        ..config(&cluster)
    };
    let refused = open(&nobody).unwrap_err();
    assert!(matches!(refused, RedisOpenError::Unreachable { .. }), "{refused}");
    let password = RedisConfig {
        password: Some("wrong".to_owned()),
        ..config(&cluster)
    };
    assert!(open(&password).is_err());
}

#[test]
fn a_password_is_used() {
    let settings = ["--requirepass", "hunter2", "--masterauth", "hunter2"];
    let Some(cluster) = RedisCluster::start_with(1, &settings) else {
        return;
    };
    let runtime = Runtime::new().unwrap();
    let open = |password: Option<&str>| {
        let config = RedisConfig {
            password: password.map(str::to_owned),
            ..config(&cluster)
        };
        RedisStore::open(runtime.handle().clone(), &config)
    };
    open(Some("hunter2")).unwrap();
    for wrong in [None, Some("wrong")] {
        let refused = open(wrong).unwrap_err();
        assert!(matches!(refused, RedisOpenError::Password { .. }), "{refused}");
    }
}

#[test]
fn a_log_is_changed_only_where_it_ends_as_expected() {
    let Some(cluster) = RedisCluster::start(1) else {
        return;
    };
    let runtime = Runtime::new().unwrap();
    let open = || RedisLog::open(runtime.handle().clone(), &config(&cluster)).unwrap();
    let (mut one, mut other) = (open(), open());
    let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let end = |len, last: &str| LogEnd {
        len,
        last: last.to_owned(),
    };
    assert_eq!(one.read(0).unwrap(), LogPart::default());
    assert!(one.append(&LogEnd::default(), &lines("a b")).unwrap());
    assert!(!other.append(&LogEnd::default(), &lines("c")).unwrap());
    assert!(!other.append(&end(2, "a"), &lines("c")).unwrap());
    assert!(other.append(&end(2, "b"), &lines("c d")).unwrap());
    let part = one.read(2).unwrap();
    assert_eq!((part.first.as_deref(), part.lines), (Some("a"), lines("c d")));
    assert!(!one.replace(&end(2, "b"), &lines("x")).unwrap());
    assert!(one.replace(&end(4, "d"), &lines("x")).unwrap());
    assert_eq!(other.read(0).unwrap().lines, lines("x"));
}
