//! Bytes of spans, from the disk into messages that are ready to be sent.
//!
//! The only place that reads what is served. What is in memory already is read at once, on whatever thread asks; what has to come
//! from a disk is read on a thread that may wait.
//!
//! Invariant: bytes are given only if the file was what it was hashed as before they were read and after.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _, sync::Arc};

use bytes::Bytes;
use potluck_core::{Problem, Reason, grpc::download_codec::ChunkHeader};

use crate::{content::Content, fs::page_cache, upload::buffers::BufferPool};

/// Most bytes of data in a batch: large enough that each costs little, small enough to hold one for each of many readers.
pub(crate) const BATCH: u64 = 256 * 1024;

/// Most messages in a batch: many small files in one trip to the disk's thread.
const MAX_MESSAGES: usize = 256;

/// What the system is asked to bring into memory beyond what is read from a disk: a few batches, so that it never stands still.
const READ_AHEAD: u64 = 4 * 1024 * 1024;

/// A span of a request, checked: the range lies in the file.
#[derive(Debug)]
pub(crate) struct SpanJob {
    pub(crate) content: Arc<dyn Content>,
    pub(crate) range: Range<u64>,
}

/// Some messages, as they go out; none at the end.
#[derive(Debug, Default)]
pub(crate) struct MessageBatch {
    /// With their headers.
    pub(crate) bytes: Bytes,
    /// Of them, the file's.
    pub(crate) data: u64,
}

/// Reads the spans of one request in order.
#[derive(Debug)]
pub(crate) struct SpanReader {
    jobs: Vec<SpanJob>,
    /// The span being read, and where in its file.
    current: usize,
    offset: u64,
    file: Option<Arc<File>>,
    /// Whether that file never waits for a disk or another machine unless it is to.
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

    /// Whether everything was read.
    pub(crate) fn is_done(&self) -> bool {
        self.current >= self.jobs.len()
    }

    /// The next messages, of at most `most` bytes of data, as far as they are in memory; never waits for a disk.
    pub(crate) fn read_cached(&mut self, max: u64) -> Option<MessageBatch> {
        if self.file.is_some() && !self.never_waits {
            return None;
        }
        // What is opened now is such a file.
        self.never_waits = true;
        // Why it is not is found out where that may take its time.
        let not_now = || Problem::new(Reason::Internal, "not in memory");
        let batch = self.fill(
            max,
            |content, range| content.try_open(range).ok_or_else(not_now),
            |content, file, range, bytes| {
                let good = page_cache::read_cached(file, range.start, bytes) && content.is_unchanged(file);
                good.then_some(()).ok_or_else(not_now)
            },
        );
        batch.ok().filter(|batch| batch.data > 0)
    }

    /// The next messages, of at most `most` bytes of data; none only when done. Blocks.
    ///
    /// # Errors
    /// Whatever the offer says of the file, and `STORE_UNAVAILABLE` where the disk fails. Nothing more can be read then.
    pub(crate) fn read(&mut self, max: u64) -> Result<MessageBatch, Problem> {
        let batch = self.fill(
            max,
            |content, range| content.open(range),
            |content, file, range, bytes| {
                if bytes.len() as u64 + range.start < range.end {
                    read_ahead(file, &range);
                }
                let read = file.read_exact_at(bytes, range.start);
                // Asked also where reading failed: a file that became shorter is one that changed.
                content.check_unchanged(file)?;
                read.map_err(|error| unreadable(content, &error))
            },
        );
        self.never_waits = self.file.as_deref().is_some_and(page_cache::never_waits);
        batch
    }

    /// Reads the next messages by these means; those before one that cannot be had, if there are any.
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
                buffer.push_message(&header, len as usize, |bytes| read(content, &file, rest, bytes))?;
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

    /// Bytes of data in each of the next messages.
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
            // A span of nothing gets nothing.
            if len > 0 {
                lens.push(len);
                space -= len;
            }
        }
        lens
    }

    fn header(&self, len: u64) -> ChunkHeader {
        // At most 4,096 spans and a batch: both fit.
        ChunkHeader::new(self.current as u32, self.offset, len as u32)
    }

    fn advance(&mut self, len: u64) {
        self.offset += len;
        self.skip_finished();
    }

    /// Moves on to the next span that has bytes to read.
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

/// Asks the system for what comes next, so that the disk goes on while this is sent.
fn read_ahead(file: &File, rest: &Range<u64>) {
    #[cfg(target_os = "linux")]
    if let Some(len) = std::num::NonZeroU64::new((rest.end - rest.start).min(READ_AHEAD)) {
        // Only slower where the system does not do it.
        let _ = rustix::fs::fadvise(file, rest.start, Some(len), rustix::fs::Advice::WillNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, rest);
}

fn unreadable(content: &dyn Content, error: &io::Error) -> Problem {
    let id = content.id();
    tracing::warn!(%id, %error, "a shared file cannot be read");
    Problem::new(Reason::StoreUnavailable, format!("{id} cannot be read here now"))
}
