//! Validates a download request before anything is opened, and streams the answer.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use potluck_core::{FileId, Problem, Reason, convert, identity::merkle::LEAF_SIZE, proto::v1};
use tokio::time::Instant;
use tonic::Status;

use crate::{
    content::Content,
    fs::blocking::blocking,
    limits::{Limits, UploadSlot},
    upload::{
        UploadShared,
        in_flight_sends::SendGuard,
        reader::{BATCH, MessageBatch, SpanJob, SpanReader},
        scheduler::ConnectionHandle,
    },
};

/// Maximum spans in a request, as the contract specifies.
pub(crate) const MAX_SPANS: usize = 4096;

/// Maximum bytes in a request, as the contract specifies.
pub(crate) const MAX_BYTES: u64 = 64 * 1024 * 1024;

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

/// A range of a file whose size is not known yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RequestedRange {
    id: FileId,
    range: Range<u64>,
}

/// Parses a request into ranges.
///
/// # Errors
/// `INVALID_ID`; `OUT_OF_RANGE` for too many spans, too many bytes, or a range that overflows.
pub(crate) fn parse(request: v1::DownloadRequest) -> Result<Vec<RequestedRange>, Problem> {
    let out_of_range =
        |message: String, field: String| Problem::new(Reason::OutOfRange, message).field(field);
    if request.spans.len() > MAX_SPANS {
        let message = format!(
            "a request has at most {MAX_SPANS} spans, this has {}",
            request.spans.len()
        );
        return Err(out_of_range(message, "spans".into()));
    }
    let mut total = 0u64;
    let spans = request.spans.into_iter().enumerate().map(|(index, span)| {
        let field = |name: &str| format!("spans[{index}].{name}");
        let id = convert::file_id(&span.file_id, &field("file_id"))?;
        let end = span.offset.checked_add(span.length);
        let end = end.ok_or_else(|| out_of_range("no file is that large".into(), field("offset")))?;
        total = total.saturating_add(span.length);
        if total > MAX_BYTES {
            let message = format!("a request is of at most {MAX_BYTES} bytes in all");
            return Err(out_of_range(message, field("length")));
        }
        Ok(RequestedRange {
            id,
            range: span.offset..end,
        })
    });
    spans.collect()
}

/// Finds the requested files and checks that the ranges lie within them.
fn resolve(
    asked: &[RequestedRange],
    find: impl Fn(&FileId) -> Result<Arc<dyn Content>, Problem>,
) -> Result<Vec<SpanJob>, Problem> {
    let mut contents: HashMap<FileId, Arc<dyn Content>> = HashMap::new();
    let jobs = asked
        .iter()
        .enumerate()
        .map(|(index, RequestedRange { id, range })| {
            let content = match contents.get(id) {
                Some(content) => Arc::clone(content),
                None => {
                    let content =
                        find(id).map_err(|problem| problem.field(format!("spans[{index}].file_id")))?;
                    contents.insert(*id, Arc::clone(&content));
                    content
                }
            };
            let size = content.size();
            if range.end > size {
                let message = format!("{id} has {size} bytes");
                return Err(Problem::new(Reason::OutOfRange, message).field(format!("spans[{index}].length")));
            }
            Ok(SpanJob {
                content,
                range: range.clone(),
            })
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
}

/// Streams the messages that answer a request. Reads the first batch before returning, so that
/// unavailable content fails the call itself.
///
/// # Errors
/// `NOT_FOUND`, `OUT_OF_RANGE`, `BUSY`, and the errors of opening the first file.
pub(crate) async fn stream(
    service: Arc<UploadShared>,
    asked: Vec<RequestedRange>,
    slot: UploadSlot,
    connection: ConnectionHandle,
) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<>, Problem> {
    let slot = Arc::new(slot);
    let max = batch_size(&service.limits, &connection);
    let (reader, first, guard) = match read_from_cache(&service, &asked, max, &connection)? {
        Some(begun) => begun,
        None => {
            let (shared, connection, slot) = (service.clone(), connection.clone(), Arc::clone(&slot));
            blocking(move || {
                let _held = slot;
                let jobs = resolve(&asked, |id| shared.find(id))?;
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
    };
    Ok(stream::unfold(Some(download), |download| async {
        let mut download = download?;
        match download.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(download))),
            Ok(None) => None,
            Err(problem) => Some((Err(problem.into()), None)),
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
    let held = match limits.upload().rate() {
        0 => TOTAL_BATCH_BYTES,
        rate => TOTAL_BATCH_BYTES.min(rate / BATCHES_PER_SECOND),
    };
    let max = if connection.is_fast() {
        BATCH
    } else {
        CAUTIOUS_BATCH
    };
    let share = held / u64::from(limits.active_uploads().max(1));
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
    asked: &[RequestedRange],
    max: u64,
    connection: &ConnectionHandle,
) -> Result<Option<(SpanReader, MessageBatch, SendGuard)>, Problem> {
    if asked.len() > MAX_INLINE_SPANS {
        return Ok(None);
    }
    let Ok(jobs) = resolve(asked, |id| shared.try_find(id)) else {
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
        let asked = Instant::now();
        let batch = match self.first_batch.take() {
            Some(first) => first,
            None => self.read_batch().await?,
        };
        if batch.bytes.is_empty() {
            return Ok(None);
        }
        if asked >= self.deadline {
            let message = "the stream was read too slowly: ask again";
            return Err(Problem::new(Reason::TimedOut, message));
        }
        self.shared.limits.upload().acquire(batch.data).await;
        let turn = self.connection.acquire().await;
        self.in_flight.record_sent(batch.data);
        // Time that this peer spends waiting does not count against the receiver.
        self.deadline += asked.elapsed();
        self.shared
            .counters
            .uploaded_bytes
            .fetch_add(batch.data, Ordering::Relaxed);
        Ok(Some(turn.attach_guard(batch.bytes, Arc::clone(&self.slot))))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(spans: Vec<(usize, u64, u64)>) -> v1::DownloadRequest {
        let spans = spans.into_iter().map(|(id_len, offset, length)| v1::Span {
            file_id: vec![7; id_len].into(),
            offset,
            length,
        });
        v1::DownloadRequest {
            spans: spans.collect(),
        }
    }

    fn refused(spans: Vec<(usize, u64, u64)>) -> (Reason, Option<String>) {
        let problem = parse(request(spans)).unwrap_err();
        (problem.reason, problem.field)
    }

    #[test]
    fn what_no_file_has_is_refused_naming_the_field() {
        assert_eq!(
            refused(vec![(32, 0, 1), (31, 0, 1)]),
            (Reason::InvalidId, Some("spans[1].file_id".into()))
        );
        assert_eq!(
            refused(vec![(32, u64::MAX, 1)]),
            (Reason::OutOfRange, Some("spans[0].offset".into()))
        );
        assert_eq!(
            refused(vec![(32, 0, MAX_BYTES), (32, 0, 1)]),
            (Reason::OutOfRange, Some("spans[1].length".into()))
        );
        assert_eq!(
            refused(vec![(32, 0, 0); MAX_SPANS + 1]),
            (Reason::OutOfRange, Some("spans".into()))
        );
        assert_eq!(
            parse(request(vec![(32, 0, 0); MAX_SPANS])).unwrap().len(),
            MAX_SPANS
        );
    }

    proptest! {
        /// For any request, parsing neither panics nor lets anything over the limits through.
        #[test]
        fn nothing_over_the_limits_gets_through(
            spans in proptest::collection::vec((30usize..34, any::<u64>(), prop_oneof![any::<u64>(), 0u64..1 << 24]), 0..20),
        ) {
            if let Ok(asked) = parse(request(spans)) {
                prop_assert!(asked.iter().all(|asked| asked.range.start <= asked.range.end));
                prop_assert!(asked.iter().map(|asked| asked.range.end - asked.range.start).sum::<u64>() <= MAX_BYTES);
            }
        }
    }
}
