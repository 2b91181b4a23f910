//! Streams the ranges that a request names.
//!
//! Invariant: all ranges are checked before the first file is opened.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use potluck_core::{FileId, Problem, Reason, identity::merkle::LEAF_SIZE, model::SameZone};
use tokio::time::Instant;

use crate::{
    content::{Content, FileRange},
    fs::blocking::blocking,
    limits::{Limits, UploadSlot},
    upload::{
        crowd::in_flight_sends::SendGuard,
        data::reader::{BATCH, MessageBatch, SpanJob, SpanReader},
        scheduling::scheduler::ConnectionHandle,
        shared::UploadShared,
    },
};

/// Approximate bytes of data held for all uploads together. Each upload holds an equal part, but at
/// least one leaf.
const TOTAL_BATCH_BYTES: u64 = 16 * 1024 * 1024;

/// Maximum bytes of data in a batch for a connection that is not known to be fast. Nothing else
/// gets through while a batch is being sent; at 16 KiB/s, this takes four seconds.
const CAUTIOUS_BATCH: u64 = 64 * 1024;

/// How long a receiver may take for one download in total. For the maximum of 64 MiB, this requires
/// 56 KiB/s.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(20 * 60);

/// Approximate number of batches that a rate-limited peer sends per second.
const BATCHES_PER_SECOND: u64 = 4;

/// Maximum spans that are looked up on the thread that received the request.
const MAX_INLINE_SPANS: usize = 64;

/// Finds the requested files and checks that the ranges lie within them.
fn resolve(
    requested: &[FileRange],
    find: impl Fn(&FileId) -> Result<Arc<dyn Content>, Problem>,
) -> Result<Vec<SpanJob>, Problem> {
    let mut contents: HashMap<FileId, Arc<dyn Content>> = HashMap::new();
    let jobs = requested
        .iter()
        .enumerate()
        .map(|(index, FileRange { id, range })| {
            let field = |name| format!("spans[{index}].{name}");
            let content = match contents.get(id) {
                Some(content) => Arc::clone(content),
                None => {
                    let content = find(id).map_err(|problem| problem.field(field("file_id")))?;
                    contents.insert(*id, Arc::clone(&content));
                    content
                }
            };
            let size = content.size();
            if range.end > size {
                let message = format!("{id} has {size} bytes");
                return Err(Problem::new(Reason::OutOfRange, message).field(field("length")));
            }
            let range = range.clone();
            Ok(SpanJob { content, range })
        });
    jobs.collect()
}

/// A running upload.
struct UploadStream {
    shared: Arc<UploadShared>,
    /// `None` only while a blocking thread reads.
    reader: Option<SpanReader>,
    /// The batch that was read before the stream was polled.
    first_batch: Option<MessageBatch>,
    /// Reports the requested units to watchers until all of them are handed over.
    in_flight: SendGuard,
    /// The connection that the upload is sent on.
    connection: ConnectionHandle,
    /// Released when the last bytes are freed, not when they are handed over. A blocking read also
    /// holds it, even if the caller is gone; so a hanging disk blocks no more threads than there
    /// are slots.
    slot: Arc<UploadSlot>,
    /// When the receiver must have taken everything.
    deadline: Instant,
    /// Counts the bytes of this content, if that is needed. A request is of one download, so its
    /// first file stands for all.
    tally: Option<Arc<AtomicU64>>,
    /// Whether the receiver is in the same zone.
    same_zone: SameZone,
}

/// Streams the messages that answer a request. Reads the first batch before returning, so that
/// unavailable content fails the call itself.
///
/// # Errors
/// `NOT_FOUND`, `OUT_OF_RANGE`, `BUSY`, and the errors of opening the first file.
pub(crate) async fn stream(
    service: Arc<UploadShared>,
    (requested, same_zone): (Vec<FileRange>, SameZone),
    slot: UploadSlot,
    connection: ConnectionHandle,
) -> Result<impl Stream<Item = Result<Bytes, Problem>> + Send + use<>, Problem> {
    let slot = Arc::new(slot);
    let first = requested.first();
    let tally = first.and_then(|first| service.counters.tallies.find(&first.id));
    let max = batch_size(&service.limits, &connection);
    let (reader, first, guard) = match read_from_cache(&service, &requested, max, &connection)? {
        Some(cached) => cached,
        None => {
            let (shared, connection, slot) =
                (service.clone(), connection.clone(), Arc::clone(&slot));
            blocking(move || {
                let _held = slot;
                let jobs = resolve(&requested, |id| shared.find(id))?;
                let guard = shared.in_flight_sends.register(&jobs, &connection)?;
                let mut reader = SpanReader::new(jobs, shared.buffers.clone());
                let first = reader.read(max)?;
                Ok::<_, Problem>((reader, first, guard))
            })
            .await??
        }
    };
    let download = UploadStream {
        shared: service,
        reader: Some(reader),
        first_batch: Some(first),
        in_flight: guard,
        connection,
        slot,
        deadline: Instant::now() + TOTAL_TIMEOUT,
        tally,
        same_zone,
    };
    Ok(stream::unfold(Some(download), |download| async {
        let mut download = download?;
        match download.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(download))),
            Ok(None) => None,
            Err(problem) => Some((Err(problem), None)),
        }
    }))
}

/// Bytes of data to hold for an upload.
///
/// With many uploads, each holds less, so that together they hold little more than
/// [`TOTAL_BATCH_BYTES`]. A link that may be slow gets at most [`CAUTIOUS_BATCH`]. Under a rate
/// limit, each upload holds only what it may send in a moment; its receiver then sees a slow peer,
/// not a silent one.
fn batch_size(limits: &Limits, connection: &ConnectionHandle) -> u64 {
    let total = match limits.upload().rate() {
        0 => TOTAL_BATCH_BYTES,
        rate => TOTAL_BATCH_BYTES.min(rate / BATCHES_PER_SECOND),
    };
    let max = if connection.is_fast() {
        BATCH
    } else {
        CAUTIOUS_BATCH
    };
    let share = total / u64::from(limits.active_uploads().max(1));
    // Whole leaves, so that a receiver can hash them in place.
    (share / LEAF_SIZE as u64 * LEAF_SIZE as u64).clamp(LEAF_SIZE as u64, max)
}

/// Starts an answer from cached data, without a blocking thread. `None` if the data is not cached,
/// which is the rare case.
///
/// # Errors
/// `BUSY`.
fn read_from_cache(
    shared: &UploadShared,
    requested: &[FileRange],
    max: u64,
    connection: &ConnectionHandle,
) -> Result<Option<(SpanReader, MessageBatch, SendGuard)>, Problem> {
    if requested.len() > MAX_INLINE_SPANS {
        return Ok(None);
    }
    let Ok(jobs) = resolve(requested, |id| shared.try_find(id)) else {
        return Ok(None);
    };
    let guard = shared.in_flight_sends.register(&jobs, connection)?;
    let mut reader = SpanReader::new(jobs, shared.buffers.clone());
    let first = reader.read_cached(max);
    Ok(first.map(|first| (reader, first, guard)))
}

impl UploadStream {
    /// Waits until the next messages may be sent, and returns them; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let called = Instant::now();
        let batch = match self.first_batch.take() {
            Some(first) => first,
            None => self.read_batch().await?,
        };
        if batch.bytes.is_empty() {
            return Ok(None);
        }
        if called >= self.deadline {
            let message = "the stream was read too slowly: try again";
            return Err(Problem::new(Reason::TimedOut, message));
        }
        self.shared.limits.upload().acquire(batch.data).await;
        let permit = self.connection.acquire().await;
        self.in_flight.record_sent(batch.data);
        // Time that this peer spends waiting does not count against the receiver.
        self.deadline += called.elapsed();
        self.shared
            .counters
            .uploaded_bytes
            .fetch_add(batch.data, Ordering::Relaxed);
        self.shared.locality.add_sent(self.same_zone, batch.data);
        if let Some(tally) = &self.tally {
            tally.fetch_add(batch.data, Ordering::Relaxed);
        }
        Ok(Some(permit.attach_guard(batch.bytes, Arc::clone(&self.slot))))
    }

    /// The next messages; empty at the end.
    async fn read_batch(&mut self) -> Result<MessageBatch, Problem> {
        let max = batch_size(&self.shared.limits, &self.connection);
        let Some(mut reader) = self.reader.take_if(|reader| !reader.is_done()) else {
            return Ok(MessageBatch::default());
        };
        if let Some(batch) = reader.read_cached(max) {
            self.reader = Some(reader);
            return Ok(batch);
        }
        let slot = Arc::clone(&self.slot);
        let (reader, batch) = blocking(move || {
            let _held = slot;
            let batch = reader.read(max)?;
            Ok::<_, Problem>((reader, batch))
        })
        .await??;
        self.reader = Some(reader);
        Ok(batch)
    }
}
