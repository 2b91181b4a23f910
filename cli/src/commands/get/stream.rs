//! Reads a file of an origin in order, without peers: what `-o -` needs if no peer has it, and what a
//! URL needs if nothing states its SHA-256.
//!
//! Invariant: after a failure, a file without a SHA-256 goes on only if a strong validator says that it
//! is still the same.

use std::time::Duration;

use bytes::Bytes;
use potluck_core::{Problem, Reason};
use potluck_origins::{OriginClient, OriginFile, client::OriginBody};

/// Failures in a row after which a read ends.
const MAX_FAILURES: u32 = 5;

/// Delay after the first failure; doubles with each.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// A file of an origin that is read in order.
pub(super) struct OriginStream<'a> {
    client: OriginClient,
    file: &'a OriginFile,
    /// The next byte.
    offset: u64,
    body: Option<OriginBody>,
    failures: u32,
}

impl<'a> OriginStream<'a> {
    /// Reads from this offset on.
    pub(super) const fn new(client: OriginClient, file: &'a OriginFile, offset: u64) -> Self {
        Self {
            client,
            file,
            offset,
            body: None,
            failures: 0,
        }
    }

    /// The next bytes; `None` at the end. Not cancel-safe: bytes may be lost.
    ///
    /// # Errors
    /// The origin's failure, after some attempts; [`Reason::OriginChanged`] if the file may be another
    /// one now.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        while self.offset < self.file.size {
            let read = match &mut self.body {
                Some(body) => body.next().await,
                None => match self.client.open(self.file, self.offset..self.file.size).await {
                    Ok(body) => self.body.insert(body).next().await,
                    Err(error) => Err(error),
                },
            };
            match read {
                Ok(Some(bytes)) => {
                    self.failures = 0;
                    self.offset += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                // The body ends where the range ends.
                Ok(None) => self.body = None,
                Err(error) => {
                    self.body = None;
                    self.failures += 1;
                    let is_last = self.failures >= MAX_FAILURES;
                    if !error.is_temporary() || is_last {
                        return Err(error.into());
                    }
                    if self.offset > 0 && !self.can_continue() {
                        return Err(cannot_continue(self.file));
                    }
                    let problem = Problem::from(error);
                    let delay = FIRST_DELAY * (1 << (self.failures - 1));
                    tokio::time::sleep(problem.retry_after.unwrap_or(delay)).await;
                }
            }
        }
        Ok(None)
    }

    /// Whether bytes that come later belong to those that came before.
    fn can_continue(&self) -> bool {
        self.file.sha256.is_some() || self.file.validator.is_some()
    }
}

fn cannot_continue(file: &OriginFile) -> Problem {
    Problem::new(
        Reason::OriginChanged,
        format!(
            "{} broke off, and states no strong validator (ETag), so the rest might be of another \
             file: run the command again, or give #sha256=HEX",
            file.host()
        ),
    )
}
