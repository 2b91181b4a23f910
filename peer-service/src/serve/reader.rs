//! Bytes of spans from the disk, a batch at a time. Blocks.
//!
//! The only place that reads what is served: a codec that reads straight into its buffer takes this one's part.
//!
//! Invariant: bytes are given only if the file was what it was hashed as before they were read and after.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _, sync::Arc};

use potluck_core::{Problem, Reason, proto::v1};

use crate::offer::Offer;

/// Most bytes in a message and in a batch: large enough that calls cost little, small enough to hold one for each of many readers.
pub(super) const CHUNK: u64 = 256 * 1024;

/// Most messages in a batch: many small files in one trip to the disk's thread.
const MAX_MESSAGES: usize = 256;

/// A span of a request, checked: the range lies in the file.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) offer: Arc<dyn Offer>,
    pub(super) range: Range<u64>,
}

/// Reads the spans of one request in order.
#[derive(Debug)]
pub(super) struct Reader {
    jobs: Vec<Job>,
    /// The span being read, and where in its file.
    at: usize,
    offset: u64,
    file: Option<Arc<File>>,
}

impl Reader {
    pub(super) fn new(jobs: Vec<Job>) -> Self {
        let mut reader = Self {
            offset: 0,
            at: 0,
            file: None,
            jobs,
        };
        reader.offset = reader.jobs.first().map_or(0, |job| job.range.start);
        reader.skip_finished();
        reader
    }

    /// Whether everything was read.
    pub(super) fn is_done(&self) -> bool {
        self.at >= self.jobs.len()
    }

    /// The next messages, about [`CHUNK`] bytes of them; empty when done.
    ///
    /// # Errors
    /// Whatever the offer says of the file, and `STORE_UNAVAILABLE` where the disk fails. Nothing more can be read then.
    pub(super) fn read(&mut self) -> Result<Vec<v1::DownloadResponse>, Problem> {
        let mut messages = Vec::new();
        let mut room = CHUNK;
        while room > 0 && messages.len() < MAX_MESSAGES && !self.is_done() {
            let message = self.read_one(room)?;
            room -= message.data.len() as u64;
            messages.push(message);
        }
        Ok(messages)
    }

    fn read_one(&mut self, room: u64) -> Result<v1::DownloadResponse, Problem> {
        let job = &self.jobs[self.at];
        let file = match self.file.take() {
            Some(file) => file,
            None => job.offer.open(self.offset..job.range.end)?,
        };
        let len = room.min(job.range.end - self.offset);
        // At most CHUNK, so it fits.
        let mut data = vec![0; len as usize];
        let read = file.read_exact_at(&mut data, self.offset);
        // Asked also where reading failed: a file that became shorter is one that changed.
        job.offer.check(&file)?;
        read.map_err(|error| unreadable(&*job.offer, &error))?;
        let message = v1::DownloadResponse {
            span: u32::try_from(self.at).unwrap_or(u32::MAX),
            offset: self.offset,
            data: data.into(),
        };
        self.offset += len;
        self.file = Some(file);
        self.skip_finished();
        Ok(message)
    }

    /// Moves on to the next span that has bytes to read.
    fn skip_finished(&mut self) {
        while let Some(job) = self.jobs.get(self.at)
            && self.offset >= job.range.end
        {
            self.at += 1;
            self.file = None;
            self.offset = self.jobs.get(self.at).map_or(0, |job| job.range.start);
        }
    }
}

fn unreadable(offer: &dyn Offer, error: &io::Error) -> Problem {
    let id = offer.record().id;
    tracing::warn!(%id, %error, "a shared file cannot be read");
    Problem::new(Reason::StoreUnavailable, format!("{id} cannot be read here now"))
}
