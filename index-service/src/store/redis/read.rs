//! Reads peers from Redis.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use potluck_core::{FileId, PeerId, model::Registration};
use redis::{RedisError, cluster_async::ClusterConnection};

use super::{
    connection::run_at_primary,
    keys::Tag,
    rows::{PeerRow, decode_entry},
    store::{RedisStore, store_error},
    tags::TagState,
};
use crate::store::{StoreError, StoredPeer};

/// Tags that are read at once, so that reading neither waits for each answer nor holds everything in
/// memory.
const MAX_CONCURRENT_READS: usize = 32;

/// Files that are read with one command: a few hundred KiB.
const MAX_PAGE: usize = 2_000;

/// The fields of a hash and their values.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// The position and the rows of a tag.
#[derive(Debug)]
pub(super) struct TagRead {
    /// The number of the last change.
    pub(super) number: u64,
    /// The id of the last change in the stream.
    pub(super) stream_id: String,
    /// The rows of its peers.
    pub(super) rows: Vec<PeerRow>,
}

/// Reads the position of a tag, and then its rows: changes after the position may be in the rows
/// already, which their numbers show.
pub(super) async fn read_tag(
    connection: &mut ClusterConnection,
    tag: Tag,
) -> Result<TagRead, StoreError> {
    type Last = Vec<(String, Vec<(String, Vec<u8>)>)>;
    let mut pipe = redis::pipe();
    pipe.cmd("GET").arg(tag.version());
    pipe.cmd("XREVRANGE")
        .arg(tag.changes())
        .arg("+")
        .arg("-")
        .arg("COUNT")
        .arg(1);
    pipe.cmd("HGETALL").arg(tag.peers());
    let (number, last, rows): (Option<u64>, Last, Fields) =
        pipe.query_async(connection).await.map_err(store_error)?;
    let damaged = |_| StoreError::Damaged("a peer's id is malformed".to_owned());
    let row = |(peer, row): (Vec<u8>, Vec<u8>)| {
        PeerRow::decode(PeerId::try_from(&*peer).map_err(damaged)?, &row)
    };
    Ok(TagRead {
        number: number.unwrap_or(0),
        stream_id: last.into_iter().next().map_or_else(first_id, |(id, _)| id),
        rows: rows.into_iter().map(row).collect::<Result<_, _>>()?,
    })
}

/// The id before all changes of a stream.
pub(super) fn first_id() -> String {
    "0-0".to_owned()
}

/// Reads the files of a peer, in pages. Files that change meanwhile may be missing or old; the number
/// of the peer's last change shows that something changed.
async fn read_files(
    connection: &mut ClusterConnection,
    tag: Tag,
    peer: &PeerId,
) -> Result<Vec<Registration>, StoreError> {
    let mut files = hashbrown::HashMap::new();
    let mut cursor = 0_u64;
    loop {
        let mut scan = redis::cmd("HSCAN");
        scan.arg(tag.files(peer)).arg(cursor).arg("COUNT").arg(MAX_PAGE);
        let (next, page): (u64, Fields) =
            scan.query_async(connection).await.map_err(store_error)?;
        for (id, entry) in page {
            // A page may repeat files.
            files.insert(id, decode_entry(&entry)?);
        }
        cursor = next;
        if cursor == 0 {
            return Ok(files.into_values().collect());
        }
    }
}

/// Reads some files of a peer; removed ones are left out.
pub(super) async fn read_some(
    connection: &mut ClusterConnection,
    peer: &PeerId,
    files: &[FileId],
) -> Result<Vec<Registration>, StoreError> {
    let tag = Tag::of(peer);
    let mut found = Vec::with_capacity(files.len());
    for files in files.chunks(MAX_PAGE) {
        let mut get = redis::cmd("HMGET");
        get.arg(tag.files(peer));
        for file in files {
            get.arg(&file.0[..]);
        }
        let page: Vec<Option<Vec<u8>>> = get.query_async(connection).await.map_err(store_error)?;
        for entry in page.into_iter().flatten() {
            found.push(decode_entry(&entry)?);
        }
    }
    Ok(found)
}

/// Reads a peer and the number of its last change; `None` if it is not stored.
pub(super) async fn read_peer(
    connection: &mut ClusterConnection,
    peer: PeerId,
) -> Result<Option<(u64, StoredPeer)>, StoreError> {
    let tag = Tag::of(&peer);
    let mut get = redis::cmd("HGET");
    get.arg(tag.peers()).arg(&peer.0[..]);
    let row: Option<Vec<u8>> = get.query_async(connection).await.map_err(store_error)?;
    let Some(row) = row else { return Ok(None) };
    let row = PeerRow::decode(peer, &row)?;
    let files = read_files(connection, tag, &peer).await?;
    Ok(Some((
        row.version,
        StoredPeer {
            record: row.record,
            files,
        },
    )))
}

/// Reads the remaining leases of peers whose keys are at one primary; `None` for one that has ended.
pub(super) async fn read_leases(
    connection: &mut ClusterConnection,
    slot: u16,
    peers: &[PeerId],
) -> Result<Vec<(PeerId, Option<Duration>)>, RedisError> {
    let mut pipe = redis::pipe();
    for peer in peers {
        pipe.cmd("PTTL").arg(Tag::of(peer).lease(peer));
    }
    let answers = run_at_primary(connection, slot, pipe, peers.len()).await?;
    let mut leases = Vec::with_capacity(peers.len());
    for (peer, answer) in peers.iter().zip(answers) {
        let remaining: i64 = redis::from_redis_value(answer)?;
        let remaining = u64::try_from(remaining).ok().map(Duration::from_millis);
        leases.push((*peer, remaining));
    }
    Ok(leases)
}

impl RedisStore {
    /// Passes each stored peer to `each`, and remembers the position of each tag.
    pub(super) async fn read_all(
        &mut self,
        each: &mut dyn FnMut(StoredPeer),
    ) -> Result<(), StoreError> {
        let connection = &self.connection;
        let read = async |tag: Tag| {
            let mut connection = connection.clone();
            let read = read_tag(&mut connection, tag).await?;
            let mut peers = Vec::with_capacity(read.rows.len());
            for row in read.rows {
                let files = match row.count {
                    0 => Vec::new(),
                    _ => read_files(&mut connection, tag, &row.record.id).await?,
                };
                peers.push((
                    row.version,
                    StoredPeer {
                        record: row.record,
                        files,
                    },
                ));
            }
            Ok::<_, StoreError>((tag, read.number, read.stream_id, peers))
        };
        let mut tags: Vec<TagState> = Tag::all().map(|_| TagState::default()).collect();
        let mut reads = stream::iter(Tag::all())
            .map(read)
            .buffer_unordered(MAX_CONCURRENT_READS);
        while let Some(read) = reads.next().await {
            let (tag, number, stream_id, peers) = read?;
            let state = &mut tags[tag.index()];
            (state.number, state.stream_id) = (number, stream_id);
            for (version, peer) in peers {
                state.versions.insert(peer.record.id, version);
                each(peer);
            }
        }
        drop(reads);
        self.tags = tags;
        self.stale.clear();
        Ok(())
    }
}
