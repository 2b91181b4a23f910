//! Follows what other index processes change, and notices what a failover lost.
//!
//! Each call reads the new changes of all tags, with one pipeline for each primary. The answer begins
//! with the run id of the primary: if that differs from last time, the tag is served by another
//! primary, or by one that was restarted, and the last changes may be lost. Then the rows of the tag
//! are compared with what is known, and peers that differ are read again. The same happens to one tag
//! in each call although nothing seems wrong.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use potluck_core::{PeerId, SetDigest};
use redis::{RedisError, cluster_async::ClusterConnection};

use super::{
    connection::{Topology, claim, field, malformed, run_at_primary},
    keys::{TAGS, Tag},
    read::{TagRead, first_id, read_leases, read_peer, read_some, read_tag},
    rows::{StreamedChange, decode_change},
    scripts::milliseconds,
    store::{RedisStore, store_error},
    tags::Verdict,
};
use crate::store::{Change, Followed, Following, SharedStore, StoreError};

/// Changes of one tag that are read at once.
const MAX_CHANGES: usize = 100;

/// Peers that are read again in one call.
const MAX_STALE: usize = 256;

/// Tags that are compared at once.
const MAX_CONCURRENT: usize = 16;

/// Calls after which the topology is read again although nothing seems wrong.
const TOPOLOGY_INTERVAL: u32 = 50;

/// How long a primary that did not answer is left alone.
const DOWN_INTERVAL: Duration = Duration::from_secs(1);

/// Leases that are renewed or read with one pipeline.
const MAX_LEASES: usize = 2_000;

/// A change as a stream has it.
struct StreamEntry {
    stream_id: String,
    number: u64,
    previous: u64,
    change: StreamedChange,
}

/// Reads the run of the primary of `tags`, and their new changes.
async fn read_changes(
    mut connection: ClusterConnection,
    tags: Vec<(Tag, String)>,
) -> Result<(u64, Vec<(Tag, Vec<StreamEntry>)>), RedisError> {
    type Streams = Option<Vec<(String, Vec<(String, Vec<(String, Vec<u8>)>)>)>>;
    let mut pipe = redis::pipe();
    pipe.cmd("INFO").arg("server");
    for (tag, from) in &tags {
        pipe.cmd("XREAD")
            .arg("COUNT")
            .arg(MAX_CHANGES)
            .arg("STREAMS")
            .arg(tag.changes())
            .arg(&**from);
    }
    let slot = tags.first().map_or(0, |(tag, _)| tag.slot());
    let answers = run_at_primary(&mut connection, slot, pipe, tags.len() + 1).await?;
    let mut answers = answers.into_iter();
    let info: String = redis::from_redis_value(answers.next().ok_or_else(malformed)?)?;
    let mut changes = Vec::new();
    for ((tag, _), answer) in tags.into_iter().zip(answers) {
        let streams: Streams = redis::from_redis_value(answer)?;
        let entries = streams.into_iter().flatten().flat_map(|(_, entries)| entries);
        let entries: Option<Vec<_>> = entries.map(stream_entry).collect();
        changes.push((tag, entries.ok_or_else(malformed)?));
    }
    Ok((run_of(&info), changes))
}

/// The run of a server, as a number; never 0.
fn run_of(info: &str) -> u64 {
    let run = field(info, "run_id").and_then(|run| run.get(..16));
    run.and_then(|run| u64::from_str_radix(run, 16).ok())
        .unwrap_or(1)
        .max(1)
}

fn stream_entry((stream_id, fields): (String, Vec<(String, Vec<u8>)>)) -> Option<StreamEntry> {
    let find = |name: &str| {
        fields
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| &value[..])
    };
    let number = |name: &str| std::str::from_utf8(find(name)?).ok()?.parse().ok();
    Some(StreamEntry {
        number: number("n")?,
        previous: number("p")?,
        change: decode_change(find("e")?).ok()?,
        stream_id,
    })
}

impl SharedStore for RedisStore {
    fn follow(
        &mut self,
        digest_of: &dyn Fn(&PeerId) -> Option<SetDigest>,
    ) -> Result<Following, StoreError> {
        let runtime = self.runtime.clone();
        runtime.block_on(async {
            let mut following = Following::default();
            self.read_streams(&mut following).await?;
            self.compare_tags(digest_of).await?;
            self.read_stale(&mut following).await?;
            self.flush_renewals().await;
            following.generation = self.generation();
            following.has_more = !self.stale.is_empty();
            Ok(following)
        })
    }

    fn renew_leases(&mut self, leases: Vec<(PeerId, Duration)>) {
        self.renewals.extend(leases);
    }

    fn leases(&mut self, peers: &[PeerId]) -> Vec<(PeerId, Option<Duration>)> {
        let runtime = self.runtime.clone();
        runtime.block_on(async {
            // A lease that was renewed here and not yet in Redis has not ended.
            let renewed = |peer: &&PeerId| self.renewals.contains_key(*peer);
            let (renewed, unknown): (Vec<_>, Vec<_>) = peers.iter().partition(renewed);
            let of_renewed = |peer: &PeerId| (*peer, self.renewals.get(peer).copied());
            let mut leases: Vec<_> = renewed.into_iter().map(of_renewed).collect();
            for (slot, peers) in self.by_primary(unknown.into_iter().copied()) {
                for peers in peers.chunks(MAX_LEASES) {
                    let mut connection = self.connection.clone();
                    match read_leases(&mut connection, slot, peers).await {
                        Ok(found) => leases.extend(found),
                        Err(error) => tracing::debug!(%error, "cannot read some leases yet"),
                    }
                }
            }
            leases
        })
    }
}

impl RedisStore {
    /// Changes whenever another primary, or another run of it, serves a tag.
    fn generation(&self) -> u64 {
        let tags = self.tags.iter().enumerate();
        tags.fold(1, |sum: u64, (place, tag)| {
            sum.wrapping_add(tag.run.wrapping_mul(2 * place as u64 + 1))
        })
    }

    /// Groups peers by the primary of their keys; those without one are left out. Returns a slot of
    /// each primary.
    fn by_primary(&self, peers: impl Iterator<Item = PeerId>) -> Vec<(u16, Vec<PeerId>)> {
        let mut groups: BTreeMap<&str, (u16, Vec<PeerId>)> = BTreeMap::new();
        for peer in peers {
            let tag = Tag::of(&peer);
            if self.tags[tag.index()].is_down {
                continue;
            }
            if let Some(name) = self.topology.primary_of(tag.slot()) {
                let group = groups.entry(name).or_insert_with(|| (tag.slot(), Vec::new()));
                group.1.push(peer);
            }
        }
        groups.into_values().collect()
    }

    /// Reads the new changes of all tags whose primary answers.
    ///
    /// # Errors
    /// [`StoreError::Io`] if none answers.
    async fn read_streams(&mut self, following: &mut Following) -> Result<(), StoreError> {
        let now = Instant::now();
        let retries_down = self.retry_down_at.is_none_or(|at| at <= now);
        if self.topology_due == 0 || (retries_down && self.tags.iter().any(|tag| tag.is_down)) {
            match Topology::read(&mut self.connection).await {
                Ok(topology) => {
                    (self.topology, self.topology_due) = (topology, TOPOLOGY_INTERVAL);
                    self.keep_identity().await?;
                }
                Err(error) => tracing::debug!(%error, "cannot read the cluster's topology"),
            }
        }
        self.topology_due = self.topology_due.saturating_sub(1);
        let mut groups: BTreeMap<&str, Vec<(Tag, String)>> = BTreeMap::new();
        let mut skipped = 0;
        for tag in Tag::all() {
            let state = &mut self.tags[tag.index()];
            let name = self.topology.primary_of(tag.slot());
            match name {
                Some(name) if !state.is_down || retries_down => {
                    let from = match state.stream_id.is_empty() {
                        true => first_id(),
                        false => state.stream_id.clone(),
                    };
                    groups.entry(name).or_default().push((tag, from));
                }
                _ => {
                    state.is_down = true;
                    skipped += 1;
                }
            }
        }
        let reads = groups.into_values().map(|tags| {
            let places: Vec<Tag> = tags.iter().map(|(tag, _)| *tag).collect();
            let connection = self.connection.clone();
            async move { (places, read_changes(connection, tags).await) }
        });
        let reads = futures_util::future::join_all(reads).await;
        let mut reason = None;
        let mut answered = false;
        for (tags, read) in reads {
            match read {
                Ok((run, changes)) => {
                    answered = true;
                    self.take_changes(run, changes, following).await;
                }
                Err(error) => {
                    for tag in tags {
                        self.tags[tag.index()].is_down = true;
                    }
                    self.topology_due = 0;
                    self.retry_down_at = Some(now + DOWN_INTERVAL);
                    tracing::debug!(%error, "a primary of the cluster does not answer");
                    reason = Some(error);
                }
            }
        }
        match reason {
            Some(error) if !answered => Err(store_error(error)),
            None if !answered && skipped > 0 => Err(StoreError::Io(std::io::Error::other(
                "no primary of the cluster answers",
            ))),
            _ => Ok(()),
        }
    }

    /// Takes the changes that one primary returned.
    async fn take_changes(
        &mut self,
        run: u64,
        changes: Vec<(Tag, Vec<StreamEntry>)>,
        following: &mut Following,
    ) {
        for (tag, entries) in changes {
            let state = &mut self.tags[tag.index()];
            state.is_down = false;
            if std::mem::replace(&mut state.run, run) != run {
                // At the start too, where the comparison finds nothing.
                state.is_uncertain = true;
            }
            if state.is_uncertain {
                continue;
            }
            following.has_more |= entries.len() == MAX_CHANGES;
            for entry in entries {
                self.take_change(tag, entry, following).await;
            }
        }
    }

    async fn take_change(&mut self, tag: Tag, entry: StreamEntry, following: &mut Following) {
        let StreamEntry {
            stream_id,
            number,
            previous,
            change,
        } = entry;
        let state = &mut self.tags[tag.index()];
        state.read(number, stream_id);
        let peer = *change.peer();
        let exists = !matches!(change, StreamedChange::Whole(Change::Forget { .. }));
        let verdict = state.take(peer, number, previous, exists);
        if verdict == Verdict::Known || self.stale.contains(&peer) {
            return;
        }
        if verdict == Verdict::Gap {
            self.stale.insert(peer);
            return;
        }
        let change = match change {
            StreamedChange::Whole(change) => change,
            StreamedChange::Listed { peer, files, replace } => {
                match read_some(&mut self.connection, &peer.id, &files).await {
                    Ok(files) => Change::Register {
                        peer,
                        files,
                        new: 0,
                        replace,
                    },
                    Err(error) => {
                        tracing::debug!(%error, "cannot read the files of a change yet");
                        self.stale.insert(peer.id);
                        return;
                    }
                }
            }
        };
        following.changes.push(Followed::Change(change));
    }

    /// Compares the tags that are uncertain, and the one whose turn it is.
    async fn compare_tags(
        &mut self,
        digest_of: &dyn Fn(&PeerId) -> Option<SetDigest>,
    ) -> Result<(), StoreError> {
        self.next_check = (self.next_check + 1) % usize::from(TAGS);
        let next = self.next_check;
        let due: Vec<Tag> = Tag::all()
            .filter(|tag| {
                let state = &self.tags[tag.index()];
                (state.is_uncertain || tag.index() == next) && !state.is_down
            })
            .collect();
        let connection = &self.connection;
        let reads = stream::iter(due).map(async |tag| {
            let mut connection = connection.clone();
            (tag, read_tag(&mut connection, tag).await)
        });
        let reads: Vec<_> = reads.buffer_unordered(MAX_CONCURRENT).collect().await;
        let mut differing = 0;
        for (tag, read) in reads {
            match read {
                Ok(read) => differing += self.compare(tag, read, digest_of),
                Err(StoreError::Damaged(reason)) => return Err(StoreError::Damaged(reason)),
                Err(error) => {
                    tracing::debug!(%error, "cannot compare a hash tag yet");
                    self.tags[tag.index()].is_uncertain = true;
                }
            }
        }
        if differing > 0 {
            tracing::info!(
                peers = differing,
                "peers differ from the Redis Cluster after a failover or a gap; reads them again"
            );
        }
        Ok(())
    }

    /// Compares a tag with its rows in Redis. Peers that differ become stale; returns their number.
    fn compare(
        &mut self,
        tag: Tag,
        read: TagRead,
        digest_of: &dyn Fn(&PeerId) -> Option<SetDigest>,
    ) -> usize {
        let state = &mut self.tags[tag.index()];
        let mut stale = 0;
        let mut missing: hashbrown::HashSet<PeerId> = state.versions.keys().copied().collect();
        for row in &read.rows {
            let peer = row.record.id;
            missing.remove(&peer);
            let is_known = state.versions.get(&peer) == Some(&row.version)
                && digest_of(&peer) == Some(row.digest);
            if !is_known {
                stale += 1;
                self.stale.insert(peer);
            }
        }
        stale += missing.len();
        self.stale.extend(missing);
        if std::mem::take(&mut state.is_uncertain) {
            (state.number, state.stream_id) = (read.number, read.stream_id);
        }
        stale
    }

    /// Reads peers again.
    async fn read_stale(&mut self, following: &mut Following) -> Result<(), StoreError> {
        let stale: Vec<PeerId> = self
            .stale
            .iter()
            .filter(|peer| !self.tags[Tag::of(peer).index()].is_down)
            .take(MAX_STALE)
            .copied()
            .collect();
        let connection = &self.connection;
        let reads = stream::iter(stale).map(async |peer| {
            let mut connection = connection.clone();
            (peer, read_peer(&mut connection, peer).await)
        });
        let reads: Vec<_> = reads.buffer_unordered(MAX_CONCURRENT).collect().await;
        for (peer, read) in reads {
            let state = &mut self.tags[Tag::of(&peer).index()];
            match read {
                Ok(Some((version, stored))) => {
                    state.versions.insert(peer, version);
                    following.changes.push(Followed::Peer(stored));
                }
                Ok(None) => {
                    state.versions.remove(&peer);
                    following.changes.push(Followed::Change(Change::Forget { peer }));
                }
                Err(StoreError::Damaged(reason)) => return Err(StoreError::Damaged(reason)),
                Err(error) => {
                    tracing::debug!(%error, "cannot read a peer yet");
                    continue;
                }
            }
            self.stale.remove(&peer);
        }
        Ok(())
    }

    /// Renews leases in Redis; those of a primary that does not answer remain for the next call.
    async fn flush_renewals(&mut self) {
        for (slot, peers) in self.by_primary(self.renewals.keys().copied()) {
            for peers in peers.chunks(MAX_LEASES) {
                let mut pipe = redis::pipe();
                for peer in peers {
                    let ttl = self.renewals.get(peer).copied().unwrap_or_default();
                    pipe.cmd("SET")
                        .arg(Tag::of(peer).lease(peer))
                        .arg("")
                        .arg("PX")
                        .arg(milliseconds(ttl));
                }
                let mut connection = self.connection.clone();
                match run_at_primary(&mut connection, slot, pipe, peers.len()).await {
                    Ok(_) => peers.iter().for_each(|peer| _ = self.renewals.remove(peer)),
                    Err(error) => tracing::debug!(%error, "cannot renew some leases yet"),
                }
            }
        }
    }

    /// Writes the cluster id again if Redis lost it.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the cluster has another id now.
    async fn keep_identity(&mut self) -> Result<(), StoreError> {
        match claim(&mut self.connection, self.cluster_id).await {
            Ok(id) if id == self.cluster_id => Ok(()),
            Ok(id) => Err(StoreError::Io(std::io::Error::other(format!(
                "the Redis Cluster has the cluster id {id} now, but had {} when this index started: \
                 restart the index",
                self.cluster_id
            )))),
            Err(error) => {
                tracing::debug!(%error, "cannot check the cluster id");
                Ok(())
            }
        }
    }
}
