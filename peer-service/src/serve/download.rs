//! What a `Download` asks for, checked before anything is opened, and the stream that answers it.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use futures_util::{Stream, stream};
use potluck_core::{FileId, Problem, Reason, proto::v1, wire};
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};
use tonic::Status;

use super::{
    Inner, blocking,
    reader::{CHUNK, Job, Reader},
    turns::Outlet,
};
use crate::limits::UploadSlot;

/// Most spans of a request, as the contract has it.
pub(super) const MAX_SPANS: usize = 4096;

/// Most bytes of a request, as the contract has it.
pub(super) const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// A range of a file, whose size is not known yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    id: FileId,
    range: Range<u64>,
}

/// What a request asks for.
///
/// # Errors
/// `INVALID_ID`; `OUT_OF_RANGE` for too many spans or bytes and for ranges that no file has.
pub(super) fn parse(request: v1::DownloadRequest) -> Result<Vec<Asked>, Problem> {
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
        let id = wire::file_id(&span.file_id, &field("file_id"))?;
        let end = span.offset.checked_add(span.length);
        let end = end.ok_or_else(|| out_of_range("no file is that large".into(), field("offset")))?;
        total = total.saturating_add(span.length);
        if total > MAX_BYTES {
            let message = format!("a request is of at most {MAX_BYTES} bytes in all");
            return Err(out_of_range(message, field("length")));
        }
        Ok(Asked {
            id,
            range: span.offset..end,
        })
    });
    spans.collect()
}

/// The files asked for, and that the ranges lie in them.
fn resolve(inner: &Inner, asked: Vec<Asked>) -> Result<Vec<Job>, Problem> {
    let mut offers = HashMap::new();
    let jobs = asked.into_iter().enumerate().map(|(index, asked)| {
        let offer = match offers.entry(asked.id) {
            std::collections::hash_map::Entry::Occupied(offer) => Arc::clone(offer.get()),
            std::collections::hash_map::Entry::Vacant(vacant) => {
                let offer = inner
                    .find(&asked.id)
                    .map_err(|problem| problem.field(format!("spans[{index}].file_id")))?;
                vacant.insert(offer).clone()
            }
        };
        let size = offer.record().size;
        if asked.range.end > size {
            let message = format!("{} has {size} bytes", asked.id);
            return Err(Problem::new(Reason::OutOfRange, message).field(format!("spans[{index}].length")));
        }
        Ok(Job {
            offer,
            range: asked.range,
        })
    });
    jobs.collect()
}

type Batch = Result<Vec<v1::DownloadResponse>, Problem>;

/// A download under way.
struct Download {
    inner: Arc<Inner>,
    /// Away while a batch is read.
    reader: Option<Reader>,
    ahead: Option<Ahead>,
    ready: VecDeque<v1::DownloadResponse>,
    /// The connection's way out, where it has one that takes turns, and this stream's number in it.
    outlet: Option<(Outlet, u64)>,
    /// Whether it is the turn of what is ready.
    admitted: bool,
    /// Whether everything was handed over.
    ended: bool,
    _slot: UploadSlot,
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some((outlet, stream)) = &self.outlet
            && !self.ended
        {
            outlet.forget(*stream);
        }
    }
}

/// A batch being read before it is asked for.
struct Ahead {
    batch: JoinHandle<(Reader, Batch)>,
    _permit: OwnedSemaphorePermit,
}

/// The stream of a request's bytes. Its first batch is read, so that what cannot be served fails the call itself.
///
/// # Errors
/// `NOT_FOUND`, `OUT_OF_RANGE`, and whatever the first file's offer says.
pub(super) async fn stream(
    inner: Arc<Inner>,
    asked: Vec<Asked>,
    slot: UploadSlot,
    outlet: Option<Outlet>,
) -> Result<impl Stream<Item = Result<v1::DownloadResponse, Status>> + Send + use<>, Problem> {
    let (reader, first) = match at_once(&inner, &asked) {
        Some(whole) => (None, vec![whole]),
        None => {
            let shared = inner.clone();
            blocking(move || {
                let mut reader = Reader::new(resolve(&shared, asked)?);
                let first = reader.read()?;
                Ok((Some(reader), first))
            })
            .await?
        }
    };
    let mut download = Download {
        inner,
        reader,
        ahead: None,
        ready: first.into(),
        outlet: outlet.map(|outlet| {
            let stream = outlet.stream();
            (outlet, stream)
        }),
        admitted: false,
        ended: false,
        _slot: slot,
    };
    download.read_ahead();
    Ok(stream::unfold(Some(download), |download| async {
        let mut download = download?;
        match download.next().await {
            Ok(Some(message)) => Some((Ok(message), Some(download))),
            Ok(None) => None,
            Err(problem) => Some((Err(problem.into()), None)),
        }
    }))
}

/// The whole answer to a request for one chunk that is in memory, as most are in a crowd: without a trip to another thread.
fn at_once(inner: &Inner, asked: &[Asked]) -> Option<v1::DownloadResponse> {
    let [Asked { id, range }] = asked else { return None };
    let len = range.end - range.start;
    let offer = inner.find_now(id)?;
    if len == 0 || len > CHUNK || range.end > offer.record().size {
        return None;
    }
    let mut data = vec![0; len as usize];
    offer
        .read_now(range.start, &mut data)
        .then(|| v1::DownloadResponse {
            span: 0,
            offset: range.start,
            data: data.into(),
        })
}

impl Download {
    async fn next(&mut self) -> Result<Option<v1::DownloadResponse>, Problem> {
        if self.ready.is_empty() {
            self.ready = self.batch().await?.into();
            self.admitted = false;
            self.read_ahead();
        }
        if !self.admitted {
            self.admit().await;
        }
        let Some(message) = self.ready.pop_front() else {
            self.ended = true;
            return Ok(None);
        };
        let bytes = message.data.len() as u64;
        self.inner
            .counters
            .uploaded_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        Ok(Some(message))
    }

    /// Waits until what is ready may go: many small files in one turn.
    async fn admit(&mut self) {
        let bytes = self.ready.iter().map(|message| message.data.len() as u64).sum();
        if bytes > 0 {
            self.inner.limits.upload().acquire(bytes).await;
            if let Some((outlet, stream)) = &self.outlet {
                outlet.turn(*stream, bytes).await;
            }
        }
        self.admitted = true;
    }

    /// The next messages; none at the end.
    async fn batch(&mut self) -> Batch {
        let read = match self.ahead.take() {
            Some(ahead) => ahead.batch,
            None => match self.reader.take() {
                Some(reader) if !reader.is_done() => spawn_read(reader),
                _ => return Ok(Vec::new()),
            },
        };
        let (reader, batch) = read.await.map_err(|error| {
            tracing::error!(%error, "reading for a download failed");
            Problem::new(Reason::Internal, "the peer failed to serve this")
        })?;
        self.reader = Some(reader);
        batch
    }

    /// Reads the next batch while this one is sent, if there is room for it in memory.
    fn read_ahead(&mut self) {
        if self.reader.as_ref().is_none_or(Reader::is_done) {
            return;
        }
        if let Ok(permit) = self.inner.read_ahead.clone().try_acquire_owned()
            && let Some(reader) = self.reader.take()
        {
            self.ahead = Some(Ahead {
                batch: spawn_read(reader),
                _permit: permit,
            });
        }
    }
}

fn spawn_read(mut reader: Reader) -> JoinHandle<(Reader, Batch)> {
    tokio::task::spawn_blocking(move || {
        let batch = reader.read();
        (reader, batch)
    })
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
