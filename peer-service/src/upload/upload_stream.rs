//! What a `UploadStream` asks for, checked before anything is opened, and the stream that answers it.

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

/// Most spans of a request, as the contract has it.
pub(crate) const MAX_SPANS: usize = 4096;

/// Most bytes of a request, as the contract has it.
pub(crate) const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Bytes of data held for all uploads together, about: each holds its part of that, but not less than a leaf.
const TOTAL_BATCH_BYTES: u64 = 16 * 1024 * 1024;

/// Most bytes of data in a batch for a connection that is not known to be swift: nothing else gets through while one is on its way,
/// and over 16 KiB a second that is four seconds.
const CAUTIOUS_BATCH: u64 = 64 * 1024;

/// How long a receiver may take for a download in all: 64 MiB, the most that one is of, then come at 56 KiB a second at least.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(20 * 60);

/// Batches that a limited peer sends a second, about.
const BATCHES_PER_SECOND: u64 = 4;

/// Most spans that are looked up on the thread that received the request.
const MAX_INLINE_SPANS: usize = 64;

/// A range of a file, whose size is not known yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RequestedRange {
    id: FileId,
    range: Range<u64>,
}

/// What a request asks for.
///
/// # Errors
/// `INVALID_ID`; `OUT_OF_RANGE` for too many spans or bytes and for ranges that no file has.
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

/// The files asked for, and that the ranges lie in them.
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

/// A download under way.
struct UploadStream {
    shared: Arc<UploadShared>,
    /// Away only while another thread reads.
    reader: Option<SpanReader>,
    /// Read before it was asked for: what the call began with.
    first_batch: Option<MessageBatch>,
    /// Others are told of what is asked for until all of it was handed over.
    in_flight: SendGuard,
    /// The connection's way out.
    connection: ConnectionHandle,
    /// Free once the last of its bytes is gone, not when the last was handed over; and not while another thread reads, though nobody
    /// may wait for that any more: a disk that does not answer holds no more threads than there are slots.
    slot: Arc<UploadSlot>,
    /// Until when its receiver may take.
    deadline: Instant,
}

/// The messages that answer a request, some at a time. The first are read, so that what cannot be served fails the call itself.
///
/// # Errors
/// `NOT_FOUND`, `OUT_OF_RANGE`, `BUSY`, and whatever the first file's offer says.
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

/// Bytes of data to hold for an upload: fewer where there are many, so that all together they hold little more than [`TOTAL_BATCH_BYTES`];
/// where the link may be slow; and under a limit no more than each may send in a moment, so that its receiver sees a slow peer,
/// which it is, and not a silent one.
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
    // Whole leaves: a receiver hashes them where they lie.
    (share / LEAF_SIZE as u64 * LEAF_SIZE as u64).clamp(LEAF_SIZE as u64, max)
}

/// The beginning of an answer that is in memory, as most are: without a trip to another thread.
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
    /// The next messages, once it is their turn; `None` at the end.
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
        // What this peer makes it wait is not the receiver's fault.
        self.deadline += asked.elapsed();
        self.shared
            .counters
            .uploaded_bytes
            .fetch_add(batch.data, Ordering::Relaxed);
        Ok(Some(turn.attach_guard(batch.bytes, Arc::clone(&self.slot))))
    }

    /// The next messages; none at the end.
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
        /// Whatever is asked: no panic, and nothing over the limits gets through.
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
