//! The store in a Redis Cluster: connects, makes changes, and remembers their places.

use std::{collections::HashMap, fmt, time::Duration};

use futures_util::{StreamExt as _, stream};
use hashbrown::HashSet;
use potluck_core::{PeerId, model::ClusterId};
use redis::{RedisError, cluster_async::ClusterConnection};
use tokio::runtime::Handle;

use super::{
    connection::{self, RedisConfig, RedisOpenError, Topology},
    keys::Tag,
    scripts::{Scripts, Written},
    tags::{TagState, Verdict},
};
use crate::store::{Change, IndexStore, SharedStore, StoreError, StoredPeer};

/// Maximum peers that are written at once: enough to keep the connections busy.
const MAX_CONCURRENT_WRITES: usize = 256;

/// Registrations in a Redis Cluster.
pub(crate) struct RedisStore {
    pub(super) runtime: Handle,
    pub(super) connection: ClusterConnection,
    pub(super) cluster_id: ClusterId,
    pub(super) scripts: Scripts,
    pub(super) topology: Topology,
    /// One for each [`Tag`].
    pub(super) tags: Vec<TagState>,
    /// Peers that must be read again.
    pub(super) stale: HashSet<PeerId>,
    /// Leases that are to be renewed in Redis.
    pub(super) renewals: HashMap<PeerId, Duration>,
    /// The next tag to compare although nothing seems wrong.
    pub(super) next_check: usize,
    /// Reads until the topology is read again.
    pub(super) topology_due: u32,
    /// When to ask the primaries again that did not answer.
    pub(super) retry_down_at: Option<std::time::Instant>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("cluster_id", &self.cluster_id)
            .finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Connects to the cluster, and checks it. Call [`IndexStore::load`] next. All calls block their
    /// thread, which must not be one of `runtime`'s workers.
    ///
    /// # Errors
    /// [`RedisOpenError`].
    pub(crate) fn open(runtime: Handle, config: &RedisConfig) -> Result<Self, RedisOpenError> {
        let (connection, cluster_id, topology) = runtime.block_on(async {
            let (mut connection, id) = connection::connect(config).await?;
            let topology = Topology::read(&mut connection).await?;
            Ok::<_, RedisOpenError>((connection, id, topology))
        })?;
        Ok(Self {
            runtime,
            connection,
            cluster_id,
            scripts: Scripts::default(),
            topology,
            tags: Tag::all().map(|_| TagState::default()).collect(),
            stale: HashSet::new(),
            renewals: HashMap::new(),
            next_check: 0,
            topology_due: 0,
            retry_down_at: None,
        })
    }

    /// Makes the changes of each peer in order, and those of several peers at once. Returns what was
    /// done, by the place of the change; places after a failure of the same peer are missing.
    async fn write(&self, changes: &[Change]) -> Vec<(usize, Result<Written, RedisError>)> {
        let mut of_peer: HashMap<PeerId, Vec<usize>> = HashMap::new();
        for (place, change) in changes.iter().enumerate() {
            // A primary that is down costs a timeout only once.
            if !self.tags[Tag::of(change.peer()).index()].is_down {
                of_peer.entry(*change.peer()).or_default().push(place);
            }
        }
        let write = async |places: Vec<usize>| {
            let mut connection = self.connection.clone();
            let mut done = Vec::with_capacity(places.len());
            for place in places {
                let written = self.scripts.run(&mut connection, &changes[place]).await;
                let failed = written.is_err();
                done.push((place, written));
                if failed {
                    break;
                }
            }
            done
        };
        let writes = stream::iter(of_peer.into_values()).map(write);
        let done: Vec<_> = writes.buffer_unordered(MAX_CONCURRENT_WRITES).collect().await;
        done.into_iter().flatten().collect()
    }

    /// Takes over what was written.
    fn note_written(&mut self, change: &Change, written: Written) {
        let peer = *change.peer();
        let tag = &mut self.tags[Tag::of(&peer).index()];
        match written {
            Written::Change {
                number,
                stream_id,
                previous,
            } => {
                let exists = !matches!(change, Change::Forget { .. } | Change::Expire { .. });
                if tag.take(peer, number, previous, exists) == Verdict::Gap {
                    // Another process changed the peer before, or the change was made twice.
                    self.stale.insert(peer);
                }
                tag.advance(number, stream_id);
            }
            Written::Nothing if tag.versions.contains_key(&peer) => {
                self.stale.insert(peer);
            }
            Written::Nothing => {}
            Written::Alive => {
                // The caller forgets it and gets it back.
                tag.versions.remove(&peer);
                self.stale.insert(peer);
            }
        }
    }
}

impl IndexStore for RedisStore {
    fn kind(&self) -> &'static str {
        "redis"
    }

    fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    fn load(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        let runtime = self.runtime.clone();
        runtime.block_on(self.read_all(each))
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let done = self.runtime.block_on(self.write(changes));
        let mut is_failed = vec![true; changes.len()];
        let mut reason = None;
        for (place, written) in done {
            match written {
                Ok(written) => {
                    is_failed[place] = false;
                    self.note_written(&changes[place], written);
                }
                Err(error) => reason = Some(error),
            }
        }
        let failed: Vec<usize> = (0..changes.len()).filter(|&place| is_failed[place]).collect();
        // What failed may have been written.
        self.stale
            .extend(failed.iter().map(|&place| *changes[place].peer()));
        match failed.is_empty() {
            true => Ok(()),
            false => Err(StoreError::Partly {
                failed,
                reason: reason.map_or_else(
                    || "a primary of the cluster does not answer".to_owned(),
                    |error| error.to_string(),
                ),
            }),
        }
    }

    fn reopen(&mut self, each: &mut dyn FnMut(StoredPeer)) -> Result<(), StoreError> {
        self.load(each)
    }

    fn shared(&mut self) -> Option<&mut dyn SharedStore> {
        Some(self)
    }
}

/// The error of a command.
pub(super) fn store_error(error: RedisError) -> StoreError {
    StoreError::Io(std::io::Error::other(error))
}
