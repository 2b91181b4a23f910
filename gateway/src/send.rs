//! Sends objects: ranges, bounds, and what happens after wrong bytes.

use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use futures_util::stream;
use potluck_core::{Problem, Reason};
use potluck_peer::download::origin::early::{EarlyBytes, EarlyState};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::timeout,
};

use crate::{
    objects::{Arriving, Content, Object, Objects},
    range::{Wanted, wanted},
    reply::{SOURCE, sized, unsatisfiable},
};

/// Bytes of one chunk of a body.
const CHUNK: usize = 256 * 1024;

/// Maximum bodies that are sent at the same time. Further requests are refused with 503.
const MAX_BODIES: usize = 1024;

/// Silence after which some bytes are read from the origin itself: clients give up after 10 s.
const MAX_SILENCE: Duration = Duration::from_secs(5);

/// Bytes that are read then.
const BRIDGE: u64 = 16 * 1024;

/// Sends objects to clients. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    objects: Arc<Objects>,
    bodies: Arc<Semaphore>,
}

impl Sender {
    /// Sends what `objects` has.
    pub(crate) fn new(objects: Objects) -> Self {
        Self {
            objects: Arc::new(objects),
            bodies: Arc::new(Semaphore::new(MAX_BODIES)),
        }
    }

    /// The objects.
    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The answer to a request for an object, or for a range of it.
    pub(crate) async fn send(
        &self,
        headers: &HeaderMap,
        object: Object,
        etag: &str,
    ) -> Result<Response, Problem> {
        let is_tainted = self.objects.is_tainted(&object).await;
        let range = match wanted(headers, object.size, etag) {
            _ if is_tainted => Wanted::Whole,
            range => range,
        };
        let range = match range {
            Wanted::Beyond => return Ok(unsatisfiable(object.size)),
            Wanted::Whole if object.size == 0 => {
                return Ok(sized(StatusCode::OK, 0, Body::empty()));
            }
            Wanted::Whole => None,
            Wanted::Part(range) => Some(range),
        };
        let Ok(permit) = Arc::clone(&self.bodies).try_acquire_owned() else {
            return Err(Problem::new(Reason::Busy, "too many answers at a time")
                .retry_after(Duration::from_secs(1)));
        };
        let content = self.objects.get(&object).await?;
        let source = match &content {
            Content::Cached { .. } => "cache",
            Content::Arriving(_) => "download",
        };
        let size = object.size;
        let (offset, end) = range.as_ref().map_or((0, size), |range| (range.start, range.end));
        let sending = Sending {
            objects: Arc::clone(&self.objects),
            object,
            content,
            offset,
            end,
            is_tainted,
            is_whole: range.is_none(),
            early: Vec::new(),
            bridges: Bridges::default(),
            _permit: permit,
        };
        let body = Body::from_stream(stream::unfold(Some(sending), |sending| async {
            let mut sending = sending?;
            match sending.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(sending))),
                Ok(None) => None,
                Err(problem) => Some((Err(std::io::Error::other(problem.message)), None)),
            }
        }));
        let mut response = match &range {
            None => sized(StatusCode::OK, size, body),
            Some(range) => {
                let mut response =
                    sized(StatusCode::PARTIAL_CONTENT, range.end - range.start, body);
                let value = format!("bytes {}-{}/{}", range.start, range.end - 1, size);
                if let Ok(value) = HeaderValue::from_str(&value) {
                    response.headers_mut().insert(header::CONTENT_RANGE, value);
                }
                response
            }
        };
        response
            .headers_mut()
            .insert(SOURCE, HeaderValue::from_static(source));
        Ok(response)
    }
}

/// The body of an answer, while it is sent.
struct Sending {
    objects: Arc<Objects>,
    object: Object,
    content: Content,
    offset: u64,
    end: u64,
    is_tainted: bool,
    is_whole: bool,
    /// The runs whose bytes this answer has sent before their SHA-256 was compared.
    early: Vec<Arc<EarlyBytes>>,
    bridges: Bridges,
    _permit: OwnedSemaphorePermit,
}

/// Bytes of an answer that were read from the origin itself: where, and their hash. Whether they are
/// right is known once the content is.
#[derive(Default)]
struct Bridges {
    sent: Vec<(u64, usize, [u8; 32])>,
    run: Option<Arc<EarlyBytes>>,
}

impl Drop for Bridges {
    /// Bytes that were not compared count as wrong.
    fn drop(&mut self) {
        if let Some(run) = &self.run {
            run.set_wrong();
        }
    }
}

impl Sending {
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        if self.offset == self.end {
            return Ok(None);
        }
        match self.read().await {
            Ok(bytes) => {
                self.offset += bytes.len() as u64;
                Ok(Some(bytes))
            }
            Err(problem) => {
                if problem.reason == Reason::VerificationFailed {
                    self.objects.set_tainted(&self.object, true).await;
                }
                tracing::warn!(object = %self.object.sha256, %problem, "broke an answer off");
                Err(problem)
            }
        }
    }

    async fn read(&mut self) -> Result<Bytes, Problem> {
        let max = usize::try_from(self.end - self.offset).map_or(CHUNK, |left| left.min(CHUNK));
        let (bytes, run) = match &mut self.content {
            Content::Cached { file, .. } => {
                (read_cached(Arc::clone(file), self.offset, max).await?, None)
            }
            Content::Arriving(arriving) => match arriving.next(self.offset, max).await? {
                Next::Read(bytes) => (bytes, arriving.reader.early().cloned()),
                Next::Bridge(bytes) => {
                    let run = self.bridges.run.get_or_insert_default();
                    let hash = Sha256::digest(&bytes).into();
                    self.bridges.sent.push((self.offset, bytes.len(), hash));
                    (bytes, Some(Arc::clone(run)))
                }
            },
        };
        if bytes.is_empty() {
            return Err(Problem::new(Reason::FileChanged, "the file is short"));
        }
        if let Some(run) = run
            && !self.early.iter().any(|known| Arc::ptr_eq(known, &run))
        {
            self.objects.note_early(&self.object, &run).await;
            self.early.push(run);
        }
        // Nothing is asked for after the last byte.
        if self.offset + bytes.len() as u64 == self.end {
            self.complete().await?;
        }
        Ok(bytes)
    }

    /// Compares what was sent early, before the last bytes go out.
    async fn complete(&mut self) -> Result<(), Problem> {
        let wrong =
            || Problem::new(Reason::VerificationFailed, "the origin sent other bytes before");
        let last_piece = match &self.content {
            Content::Cached { .. } => None,
            Content::Arriving(arriving) => arriving.last_piece,
        };
        // A range that ends before the last piece; later answers look at its run.
        if last_piece.is_some_and(|last| self.end <= last)
            && self.early.iter().all(|run| run.state() != EarlyState::Wrong)
            && self.objects.early_state(&self.object) != Some(EarlyState::Wrong)
        {
            return Ok(());
        }
        if let Content::Arriving(arriving) = &mut self.content {
            for &(offset, len, hash) in &self.bridges.sent {
                let mut hasher = Sha256::new();
                let mut done = 0;
                while done < len {
                    let read = arriving.reader.read(offset + done as u64, len - done).await?;
                    hasher.update(&read);
                    done += read.len();
                }
                if <[u8; 32]>::from(hasher.finalize()) != hash {
                    return Err(wrong());
                }
            }
        }
        if let Some(run) = &self.bridges.run {
            run.set_right();
        }
        let all = self.objects.early_state(&self.object);
        // A part continues what other answers have sent.
        let continues_wrong_bytes = !self.is_whole && all == Some(EarlyState::Wrong);
        let is_right = self.early.iter().all(|run| run.state() == EarlyState::Right);
        if continues_wrong_bytes || !is_right {
            return Err(wrong());
        }
        match all {
            Some(EarlyState::Pending | EarlyState::Wrong) => {}
            _ if self.is_tainted && self.is_whole => {
                self.objects.set_tainted(&self.object, false).await;
            }
            Some(EarlyState::Right) => self.objects.forget_early(&self.object).await,
            None => {}
        }
        Ok(())
    }
}

/// The next bytes of an object that arrives.
enum Next {
    /// From the download.
    Read(Bytes),
    /// From the origin itself.
    Bridge(Bytes),
}

impl Arriving {
    /// The next bytes. After a silence, a few bytes of content without a root are read from the
    /// origin itself.
    async fn next(&mut self, offset: u64, max: usize) -> Result<Next, Problem> {
        loop {
            if let Ok(read) = timeout(MAX_SILENCE, self.reader.read(offset, max)).await {
                return read.map(Next::Read);
            }
            let Some(last) = self.last_piece.filter(|&last| offset < last) else {
                continue;
            };
            let end = last.min(offset + BRIDGE).min(offset + max as u64);
            let Ok(mut body) = self.client.open(&self.file, offset..end).await else {
                continue;
            };
            if let Ok(Some(bytes)) = body.next().await {
                return Ok(Next::Bridge(bytes));
            }
        }
    }
}

async fn read_cached(file: Arc<File>, offset: u64, max: usize) -> Result<Bytes, Problem> {
    let read = move || {
        let mut bytes = vec![0; max];
        let len = file.read_at(&mut bytes, offset)?;
        bytes.truncate(len);
        Ok::<_, std::io::Error>(bytes.into())
    };
    let failed = |error: std::io::Error| Problem::new(Reason::FileChanged, error.to_string());
    match spawn_blocking(read).await {
        Ok(read) => read.map_err(failed),
        Err(error) => Err(Problem::new(Reason::Internal, error.to_string())),
    }
}

/// The answer to a request for a file that is in memory.
pub(crate) fn small_response(bytes: Vec<u8>, is_kept: bool, wanted: &Wanted) -> Response {
    let size = bytes.len() as u64;
    let bytes = Bytes::from(bytes);
    let mut response = match wanted {
        Wanted::Beyond => return unsatisfiable(size),
        Wanted::Whole => sized(StatusCode::OK, size, Body::from(bytes)),
        Wanted::Part(range) => {
            // Fits: the file is in memory.
            let part = bytes.slice(range.start as usize..range.end as usize);
            let mut response = sized(
                StatusCode::PARTIAL_CONTENT,
                range.end - range.start,
                Body::from(part),
            );
            let value = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            response
        }
    };
    let source = if is_kept { "cache" } else { "origin" };
    response
        .headers_mut()
        .insert(SOURCE, HeaderValue::from_static(source));
    response
}
