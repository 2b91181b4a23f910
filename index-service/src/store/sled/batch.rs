//! Turns changes into one batch of rows.

use std::collections::HashMap;

use lru::LruCache;
use potluck_core::{FileId, PeerId, model::Registration};
use sled::{Batch, Tree};

use crate::store::{
    Change, StoreError,
    segment::{self, SEGMENT_BYTES},
    sled::rows::{PeerSegments, RowHash, SegmentInfo, peer_key, segment_key, store_error},
};

/// Entries beyond twice the needed ones before a peer's segments are folded, so that small peers
/// are not folded on every change.
pub(super) const SLACK_ENTRIES: usize = 4096;

/// Maximum bytes of recently written short segments in memory: those of thousands of peers.
const RECENT_BYTES: usize = 8 * 1024 * 1024;

/// Short segments that were written recently. The next registration of the same peer is merged with
/// them, so they need not be read.
#[derive(Debug)]
pub(super) struct RecentSegments {
    segments: LruCache<(PeerId, u64), Vec<u8>>,
    bytes: usize,
}

impl Default for RecentSegments {
    fn default() -> Self {
        Self {
            segments: LruCache::unbounded(),
            bytes: 0,
        }
    }
}

impl RecentSegments {
    fn insert(&mut self, peer: PeerId, number: u64, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        if let Some((_, replaced)) = self.segments.push((peer, number), bytes) {
            self.bytes -= replaced.len();
        }
        while self.bytes > RECENT_BYTES
            && let Some((_, oldest)) = self.segments.pop_lru()
        {
            self.bytes -= oldest.len();
        }
    }

    fn take(&mut self, peer: PeerId, number: u64) -> Option<Vec<u8>> {
        let bytes = self.segments.pop(&(peer, number))?;
        self.bytes -= bytes.len();
        Some(bytes)
    }
}

/// Collects changes into one batch.
pub(super) struct BatchWriter<'a> {
    tree: &'a Tree,
    peers: &'a mut HashMap<PeerId, PeerSegments>,
    recent: &'a mut RecentSegments,
    /// The first segment number of each changed peer that the tree has never contained.
    first_new: HashMap<PeerId, u64>,
    batch: Batch,
    /// The digest of all rows, without the segments to write.
    rows: RowHash,
    /// Segments to write.
    unwritten: HashMap<(PeerId, u64), Vec<u8>>,
}

impl<'a> BatchWriter<'a> {
    /// Begins a batch. `rows` is the digest of all rows before it.
    pub(super) fn new(
        tree: &'a Tree,
        peers: &'a mut HashMap<PeerId, PeerSegments>,
        recent: &'a mut RecentSegments,
        rows: RowHash,
    ) -> Self {
        Self {
            tree,
            peers,
            recent,
            first_new: HashMap::new(),
            batch: Batch::default(),
            rows,
            unwritten: HashMap::new(),
        }
    }

    pub(super) fn add_change(&mut self, change: &Change) -> Result<(), StoreError> {
        match change {
            Change::Register {
                peer,
                files,
                new,
                replace,
            } => {
                let mut segments = self.take_segments(&peer.id).unwrap_or_default();
                if *replace {
                    self.remove_all_segments(&peer.id, &mut segments);
                }
                let (key, record) =
                    (peer_key(&peer.id), segment::encode_peer(&peer.address, peer.ttl));
                let row = RowHash::of(&key, &record);
                // Most changes leave it as it is.
                if row != segments.record {
                    self.rows.remove(segments.record);
                    self.rows.add(row);
                    segments.record = row;
                    self.batch.insert(key, record);
                }
                segments.needed_entries += new;
                let entries = files.iter().map(|file| (file.file.id, Some(file)));
                self.append_entries(&peer.id, &mut segments, entries)?;
                self.peers.insert(peer.id, segments);
            }
            Change::Unregister { peer, files } => {
                if let Some(mut segments) = self.take_segments(peer) {
                    segments.needed_entries = segments.needed_entries.saturating_sub(files.len());
                    self.append_entries(
                        peer,
                        &mut segments,
                        files.iter().map(|&file| (file, None)),
                    )?;
                    self.peers.insert(*peer, segments);
                }
            }
            Change::Forget { peer } | Change::Expire { peer } => {
                if let Some(mut segments) = self.take_segments(peer) {
                    self.remove_all_segments(peer, &mut segments);
                    self.rows.remove(segments.record);
                    self.batch.remove(peer_key(peer).as_slice());
                }
            }
        }
        Ok(())
    }

    /// Removes the segment list of a peer; the caller inserts it again.
    fn take_segments(&mut self, peer: &PeerId) -> Option<PeerSegments> {
        let segments = self.peers.remove(peer)?;
        self.first_new.entry(*peer).or_insert(segments.next_number);
        Some(segments)
    }

    /// Appends entries. If a file occurs twice, its last entry counts, as in all segments.
    fn append_entries<'b>(
        &mut self,
        peer: &PeerId,
        segments: &mut PeerSegments,
        entries: impl Iterator<Item = (FileId, Option<&'b Registration>)>,
    ) -> Result<(), StoreError> {
        self.push_segments(peer, segments, entries);
        while let [.., previous, last] = *segments.list
            && previous.bytes < 2 * last.bytes
            && previous.bytes + last.bytes <= SEGMENT_BYTES
        {
            self.join_last_two(peer, segments)?;
        }
        if segments.entries > 2 * segments.needed_entries + SLACK_ENTRIES {
            self.fold_all(peer, segments)?;
            segments.needed_entries = segments.entries;
        }
        Ok(())
    }

    /// Appends the last segment to the one before it.
    fn join_last_two(
        &mut self,
        peer: &PeerId,
        segments: &mut PeerSegments,
    ) -> Result<(), StoreError> {
        if let Some(last) = segments.pop()
            && let Some(previous) = segments.pop()
        {
            let mut bytes = self.read_segment(peer, previous.number)?;
            bytes.extend(self.read_segment(peer, last.number)?);
            self.remove_segment(peer, last);
            self.rows.remove(previous.hash);
            segments.push(SegmentInfo {
                number: previous.number,
                hash: RowHash::default(),
                bytes: bytes.len(),
                entries: previous.entries + last.entries,
            });
            self.unwritten.insert((*peer, previous.number), bytes);
        }
        Ok(())
    }

    /// Folds all segments into new ones, without entries that later ones replace.
    fn fold_all(&mut self, peer: &PeerId, segments: &mut PeerSegments) -> Result<(), StoreError> {
        let mut all = Vec::with_capacity(segments.list.len());
        for segment in &segments.list {
            let bytes = self.read_segment(peer, segment.number)?;
            all.push(segment::decode(&bytes));
        }
        let mut entries = segment::fold(all)?;
        // No earlier segment remains to which a removal could apply.
        entries.retain(|_, registration| registration.is_some());
        self.remove_all_segments(peer, segments);
        self.push_segments(
            peer,
            segments,
            entries.iter().map(|(&file, entries)| (file, entries.as_ref())),
        );
        Ok(())
    }

    fn push_segments<'b>(
        &mut self,
        peer: &PeerId,
        segments: &mut PeerSegments,
        entries: impl IntoIterator<Item = (FileId, Option<&'b Registration>)>,
    ) {
        for segment in segment::encode(entries) {
            let number = segments.next_number;
            segments.next_number += 1;
            segments.push(SegmentInfo {
                number,
                hash: RowHash::default(),
                bytes: segment.bytes.len(),
                entries: segment.entries,
            });
            self.unwritten.insert((*peer, number), segment.bytes);
        }
    }

    /// The bytes of a segment, which the caller replaces or removes.
    fn read_segment(&mut self, peer: &PeerId, number: u64) -> Result<Vec<u8>, StoreError> {
        if let Some(bytes) = self.unwritten.remove(&(*peer, number)) {
            return Ok(bytes);
        }
        if let Some(bytes) = self.recent.take(*peer, number) {
            return Ok(bytes);
        }
        let stored = self.tree.get(segment_key(peer, number)).map_err(store_error)?;
        let stored =
            stored.ok_or_else(|| StoreError::Damaged("a segment is missing".to_owned()))?;
        Ok(stored.to_vec())
    }

    fn remove_segment(&mut self, peer: &PeerId, segment: SegmentInfo) {
        let SegmentInfo { number, hash, .. } = segment;
        self.rows.remove(hash);
        self.unwritten.remove(&(*peer, number));
        self.recent.take(*peer, number);
        if self.first_new.get(peer).is_some_and(|&first| number < first) {
            self.batch.remove(segment_key(peer, number).as_slice());
        }
    }

    fn remove_all_segments(&mut self, peer: &PeerId, segments: &mut PeerSegments) {
        while let Some(segment) = segments.pop() {
            self.remove_segment(peer, segment);
        }
        segments.needed_entries = 0;
    }

    /// The batch with all segments to write, and the digest of all rows after it.
    pub(super) fn finish(mut self) -> (Batch, RowHash) {
        for ((peer, number), bytes) in self.unwritten {
            let key = segment_key(&peer, number);
            let hash = RowHash::of(&key, &bytes);
            self.rows.add(hash);
            if let Some(segments) = self.peers.get_mut(&peer)
                && let Ok(at) = segments
                    .list
                    .binary_search_by_key(&number, |segment| segment.number)
            {
                segments.list[at].hash = hash;
            }
            self.batch.insert(key, bytes.as_slice());
            if bytes.len() <= SEGMENT_BYTES / 2 {
                self.recent.insert(peer, number, bytes);
            }
        }
        (self.batch, self.rows)
    }
}
