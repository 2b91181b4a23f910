//! Reads spans from the disk into messages that are ready to be sent.
//!
//! This is the only code that reads content to serve it. Cached data is read on the calling thread;
//! data on disk is read on a blocking thread.
//!
//! Invariant: bytes are returned only if the file was unchanged both before and after the read.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _, sync::Arc};

use bytes::Bytes;
use potluck_core::{Problem, Reason, grpc::download_codec::ChunkHeader};

use crate::{content::Content, fs::page_cache, upload::data::buffers::BufferPool};

/// Maximum bytes of data in a batch: large enough for a low cost per byte, small enough to hold one
/// batch for each of many readers.
pub(crate) const BATCH: u64 = 256 * 1024;

/// Maximum messages in a batch: many small files per hop to a blocking thread.
const MAX_MESSAGES: usize = 256;

/// How many bytes the system is asked to read ahead of a disk read: a few batches, so that the disk
/// stays busy.
const READ_AHEAD: u64 = 4 * 1024 * 1024;

/// A validated span of a request: its range lies within the file.
#[derive(Debug)]
pub(crate) struct SpanJob {
    pub(crate) content: Arc<dyn Content>,
    pub(crate) range: Range<u64>,
}

/// Some encoded messages; empty at the end.
#[derive(Debug, Default)]
pub(crate) struct MessageBatch {
    /// The messages, with their headers.
    pub(crate) bytes: Bytes,
    /// The number of file bytes among them.
    pub(crate) data: u64,
}

/// Reads the spans of one request in order.
#[derive(Debug)]
pub(crate) struct SpanReader {
    jobs: Vec<SpanJob>,
    /// Index of the current span; `offset` is the position in its file.
    current: usize,
    offset: u64,
    file: Option<Arc<File>>,
    /// Whether cached reads of the open file never wait for a disk or another machine.
    never_waits: bool,
    buffers: BufferPool,
}

impl SpanReader {
    pub(crate) fn new(jobs: Vec<SpanJob>, buffers: BufferPool) -> Self {
        let mut reader = Self {
            offset: 0,
            current: 0,
            file: None,
            never_waits: false,
            jobs,
            buffers,
        };
        reader.offset = reader.jobs.first().map_or(0, |job| job.range.start);
        reader.skip_finished();
        reader
    }

    /// Whether all spans were read.
    pub(crate) fn is_done(&self) -> bool {
        self.current >= self.jobs.len()
    }

    /// The next messages with at most `max` bytes of data, as far as they are cached. Never waits
    /// for a disk; `None` if nothing is cached.
    pub(crate) fn read_cached(&mut self, max: u64) -> Option<MessageBatch> {
        if self.file.is_some() && !self.never_waits {
            return None;
        }
        // [`Content::try_open`] opens only such files.
        self.never_waits = true;
        // The error is not used: the blocking read that follows finds the cause.
        let not_cached = || Problem::new(Reason::Internal, "not in the page cache");
        let batch = self.fill(
            max,
            |content, range| content.try_open(range).ok_or_else(not_cached),
            |content, file, range, bytes| {
                let is_good =
                    page_cache::read_cached(file, range.start, bytes) && content.is_unchanged(file);
                is_good.then_some(()).ok_or_else(not_cached)
            },
        );
        batch.ok().filter(|batch| batch.data > 0)
    }

    /// The next messages with at most `max` bytes of data; empty only at the end. Blocks.
    ///
    /// # Errors
    /// The error of [`Content::open`] or [`Content::check_unchanged`]; `STORE_UNAVAILABLE` if the
    /// disk fails. After an error, nothing more can be read.
    pub(crate) fn read(&mut self, max: u64) -> Result<MessageBatch, Problem> {
        let batch = self.fill(
            max,
            |content, range| content.open(range),
            |content, file, range, bytes| {
                if bytes.len() as u64 + range.start < range.end {
                    read_ahead(file, &range);
                }
                let read = file.read_exact_at(bytes, range.start);
                // Check this first, even if the read failed: a truncated file counts as changed.
                content.check_unchanged(file)?;
                read.map_err(|error| unreadable(content, &error))
            },
        );
        self.never_waits = self.file.as_deref().is_some_and(page_cache::never_waits);
        batch
    }

    /// Fills a batch with `open` and `read`. If one message fails, returns those before it; fails
    /// only if there are none.
    fn fill(
        &mut self,
        max: u64,
        open: impl Fn(&dyn Content, Range<u64>) -> Result<Arc<File>, Problem>,
        read: impl Fn(&dyn Content, &File, Range<u64>, &mut [u8]) -> Result<(), Problem>,
    ) -> Result<MessageBatch, Problem> {
        let lens = self.next_lens(max);
        let mut buffer = self.buffers.take(lens.len(), lens.iter().sum::<u64>() as usize);
        let mut data = 0;
        for len in lens {
            let header = self.header(len);
            let (content, rest) = (
                &*self.jobs[self.current].content,
                self.offset..self.jobs[self.current].range.end,
            );
            let file = match self.file.take() {
                Some(file) => Ok(file),
                None => open(content, rest.clone()),
            };
            let added = file.and_then(|file| {
                buffer.push_message(&header, len as usize, |bytes| {
                    read(content, &file, rest, bytes)
                })?;
                Ok(file)
            });
            match added {
                Ok(file) => self.file = Some(file),
                Err(problem) if data == 0 => return Err(problem),
                Err(_) => break,
            }
            data += len;
            self.advance(len);
        }
        Ok(MessageBatch {
            bytes: buffer.freeze(),
            data,
        })
    }

    /// The data lengths of the next messages.
    fn next_lens(&self, max: u64) -> Vec<u64> {
        let mut space = max;
        let mut offset = self.offset;
        let mut lens = Vec::new();
        for (index, job) in self.jobs.iter().enumerate().skip(self.current) {
            if space == 0 || lens.len() == MAX_MESSAGES {
                break;
            }
            if index > self.current {
                offset = job.range.start;
            }
            let len = space.min(job.range.end - offset);
            // An empty span gets no message.
            if len > 0 {
                lens.push(len);
                space -= len;
            }
        }
        lens
    }

    fn header(&self, len: u64) -> ChunkHeader {
        // At most 4,096 spans, and at most one batch: both fit.
        ChunkHeader::new(self.current as u32, self.offset, len as u32)
    }

    fn advance(&mut self, len: u64) {
        self.offset += len;
        self.skip_finished();
    }

    /// Advances to the next span with bytes left to read.
    fn skip_finished(&mut self) {
        while let Some(job) = self.jobs.get(self.current)
            && self.offset >= job.range.end
        {
            self.current += 1;
            self.file = None;
            self.offset = self.jobs.get(self.current).map_or(0, |job| job.range.start);
        }
    }
}

/// Asks the system to read ahead, so that the disk works while this batch is sent.
fn read_ahead(file: &File, rest: &Range<u64>) {
    #[cfg(target_os = "linux")]
    if let Some(len) = std::num::NonZeroU64::new((rest.end - rest.start).min(READ_AHEAD)) {
        // A failure only makes reads slower.
        let _ = rustix::fs::fadvise(file, rest.start, Some(len), rustix::fs::Advice::WillNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, rest);
}

fn unreadable(content: &dyn Content, error: &io::Error) -> Problem {
    let id = content.id();
    tracing::warn!(%id, %error, "a shared file cannot be read");
    Problem::new(
        Reason::StoreUnavailable,
        format!("this peer cannot read {id} now"),
    )
}
