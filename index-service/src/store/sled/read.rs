//! Reads all peers of a store.
//!
//! One thread reads rows from sled, others check and decode them, and the caller's thread takes the
//! decoded parts in the order in which they were read. A fixed number of buffers goes around between
//! the threads, so that the memory for reading depends neither on the size of the store nor on that
//! of a peer.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZero,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use parking_lot::Mutex;
use potluck_core::PeerId;
use sled::{IVec, Tree};

use crate::store::{
    PeerRecord, StoreError,
    packed::{PackedEntries, PeerPart, PeerSink},
    segment,
    sled::rows::{
        PeerSegments, RowHash, SUMMARY_KEY, SegmentInfo, read_key, segment_key, store_error,
    },
};

/// Maximum segments of a part: its registrations fit the second cache of a processor.
const MAX_PART_SEGMENTS: usize = 48;

/// Maximum threads that decode segments.
const MAX_DECODERS: usize = 4;

/// Buffers that go around: each decoder has one, and as many wait to be taken.
const BUFFERS_PER_DECODER: usize = 3;

/// Lookups of each row that was read.
///
/// sled 0.34 divides its cache into 256 parts, and removes pages from a part only at every 64th
/// access to it. A page that is read once counts as one access, so up to 16,384 pages of 64 KiB
/// stay in memory, whatever the limit of the cache. With 16 rows in a page, two lookups for each
/// leave two pages for each part.
const LOOKUPS_PER_ROW: usize = 2;

/// Rows of one peer as they are stored.
struct RawPart {
    /// The number of the part, in the order of reading.
    number: u64,
    record: PeerRecord,
    /// The hash of the peer's own row, in its first part.
    own_row: RowHash,
    is_first: bool,
    is_last: bool,
    segments: Vec<(u64, IVec)>,
}

/// A part that was checked.
struct DecodedPart {
    number: u64,
    part: PeerPart,
    own_row: RowHash,
    segments: Vec<SegmentInfo>,
}

/// Passes all peers to `sink`, and returns the segment lists and the digest of all rows but the
/// summary.
pub(super) fn read_all(
    tree: &Tree,
    sink: &mut dyn PeerSink,
) -> Result<(HashMap<PeerId, PeerSegments>, RowHash), StoreError> {
    let decoders = thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(MAX_DECODERS);
    let buffers = BUFFERS_PER_DECODER * decoders;
    let (raw_sender, raw) = sync_channel(buffers);
    let (sender, decoded) = sync_channel(buffers);
    let (free_sender, free) = sync_channel(buffers);
    for _ in 0..buffers {
        // The channel has room for all buffers.
        let _ = free_sender.try_send(PackedEntries::default());
    }
    // Dropped with the last decoder, so that the reader ends even if all of them panic.
    let (raw, free) = (Arc::new(Mutex::new(raw)), Arc::new(Mutex::new(free)));
    thread::scope(|scope| {
        let reader = scope.spawn(move || read_rows(tree, &raw_sender));
        for _ in 0..decoders {
            let (raw, free, sender) = (Arc::clone(&raw), Arc::clone(&free), sender.clone());
            scope.spawn(move || decode_all(&raw, &free, &sender));
        }
        drop((raw, free, sender));
        let mut merge = Merge {
            sink,
            free: free_sender,
            waiting: BTreeMap::new(),
            next: 0,
            current: PeerSegments::default(),
            peers: HashMap::new(),
            rows: RowHash::default(),
        };
        let mut failed = None;
        for decoded in decoded {
            match decoded {
                Ok(part) if failed.is_none() => merge.add(part),
                // The other threads end sooner if all that they read is received.
                Ok(part) => merge.recycle(part.part.entries),
                Err(error) => {
                    failed = failed.or(Some(error));
                    // In place of the buffer that the decoder had.
                    merge.recycle(PackedEntries::default());
                }
            }
        }
        let read = match reader.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        match failed {
            Some(error) => Err(error),
            None => read.map(|()| (merge.peers, merge.rows)),
        }
    })
}

/// Puts the decoded parts in order.
struct Merge<'a> {
    sink: &'a mut dyn PeerSink,
    free: SyncSender<PackedEntries>,
    /// Parts that follow one that is not decoded yet. There are fewer than buffers.
    waiting: BTreeMap<u64, DecodedPart>,
    /// The number of the next part.
    next: u64,
    /// The segments of the peer whose parts come at the moment.
    current: PeerSegments,
    peers: HashMap<PeerId, PeerSegments>,
    rows: RowHash,
}

impl Merge<'_> {
    fn add(&mut self, part: DecodedPart) {
        self.waiting.insert(part.number, part);
        while let Some(part) = self.waiting.remove(&self.next) {
            self.next += 1;
            self.take(part);
        }
    }

    fn take(&mut self, part: DecodedPart) {
        let DecodedPart {
            part,
            own_row,
            segments,
            ..
        } = part;
        if part.is_first {
            self.current = PeerSegments {
                record: own_row,
                ..PeerSegments::default()
            };
        }
        for segment in segments {
            self.current.next_number = segment.number + 1;
            self.current.push(segment);
        }
        self.current.needed_entries = self.sink.add(&part);
        if part.is_last {
            let mut segments = std::mem::take(&mut self.current);
            segments.list.shrink_to_fit();
            self.rows.add(segments.rows());
            self.peers.insert(part.record.id, segments);
        }
        self.recycle(part.entries);
    }

    fn recycle(&self, entries: PackedEntries) {
        // Fails only if no decoder is left that needs it.
        let _ = self.free.try_send(entries);
    }
}

/// Reads the rows of every peer.
fn read_rows(tree: &Tree, parts: &SyncSender<RawPart>) -> Result<(), StoreError> {
    let mut current: Option<RawPart> = None;
    // Sending fails only after all decoders have ended.
    let send = |part: Option<RawPart>| part.is_none_or(|part| parts.send(part).is_ok());
    for item in tree.iter() {
        let (key, value) = item.map_err(store_error)?;
        for _ in 0..LOOKUPS_PER_ROW {
            tree.contains_key(&key).map_err(store_error)?;
        }
        if key == SUMMARY_KEY {
            continue;
        }
        let (id, segment) = read_key(&key)?;
        let Some(number) = segment else {
            let next = current.as_ref().map_or(0, |part| part.number + 1);
            if let Some(part) = &mut current {
                part.is_last = true;
            }
            if !send(current.take()) {
                return Ok(());
            }
            let (address, ttl) = segment::decode_peer(&value)?;
            current = Some(RawPart {
                number: next,
                record: PeerRecord { id, address, ttl },
                own_row: RowHash::of(&key, &value),
                is_first: true,
                is_last: false,
                segments: Vec::new(),
            });
            continue;
        };
        let Some(part) = current.as_mut().filter(|part| part.record.id == id) else {
            return Err(StoreError::Damaged(
                "registrations of a peer that is not stored".to_owned(),
            ));
        };
        if part.segments.len() == MAX_PART_SEGMENTS {
            let following = RawPart {
                number: part.number + 1,
                record: part.record.clone(),
                own_row: RowHash::default(),
                is_first: false,
                is_last: false,
                segments: Vec::with_capacity(MAX_PART_SEGMENTS),
            };
            if !send(current.replace(following)) {
                return Ok(());
            }
        }
        if let Some(part) = &mut current {
            part.segments.push((number, value));
        }
    }
    if let Some(part) = &mut current {
        part.is_last = true;
    }
    send(current);
    Ok(())
}

/// Decodes parts until there are none.
fn decode_all(
    raw: &Mutex<Receiver<RawPart>>,
    free: &Mutex<Receiver<PackedEntries>>,
    decoded: &SyncSender<Result<DecodedPart, StoreError>>,
) {
    loop {
        // Buffer first: the part that all later ones wait for then always has one. The locks are
        // released before the part is decoded.
        let buffer = free.lock().recv();
        let Ok(mut entries) = buffer else { return };
        let part = raw.lock().recv();
        let Ok(part) = part else { return };
        entries.clear();
        // Sending fails only if the caller's thread panicked.
        if decoded.send(decode_part(part, entries)).is_err() {
            return;
        }
    }
}

fn decode_part(part: RawPart, mut entries: PackedEntries) -> Result<DecodedPart, StoreError> {
    let RawPart {
        number,
        record,
        own_row,
        is_first,
        is_last,
        segments,
    } = part;
    let mut infos = Vec::with_capacity(segments.len());
    for (number, value) in segments {
        infos.push(SegmentInfo {
            number,
            hash: RowHash::of(&segment_key(&record.id, number), &value),
            bytes: value.len(),
            entries: segment::unpack(&value, &mut entries)?,
        });
    }
    Ok(DecodedPart {
        number,
        part: PeerPart {
            record,
            is_first,
            is_last,
            entries,
        },
        own_row,
        segments: infos,
    })
}
