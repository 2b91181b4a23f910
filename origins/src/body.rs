//! The bytes of a range, while they arrive.
//!
//! Invariant: a body that is read to its end without an error has exactly the bytes of the range.

use bytes::Bytes;
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;

use crate::{error::OriginError, transport::next_chunk};

/// The bytes of a range, while they arrive.
#[derive(Debug)]
pub struct OriginBody {
    pub(crate) response: Response,
    pub(crate) host: String,
    /// Bytes to drop before the range.
    pub(crate) skip: u64,
    /// Bytes of the range that are still to come.
    pub(crate) left: u64,
    /// Whether the body goes on after the range, because the origin ignores ranges.
    pub(crate) is_whole: bool,
    pub(crate) _permit: OwnedSemaphorePermit,
}

impl OriginBody {
    /// The next bytes of the range; `None` after the last ones. Cancel-safe.
    ///
    /// # Errors
    /// [`OriginError::Unreachable`] and [`OriginError::TimedOut`] if bytes are missing;
    /// [`OriginError::Invalid`] if there are too many.
    pub async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        loop {
            if self.left == 0 && self.is_whole {
                return Ok(None);
            }
            let Some(mut chunk) = next_chunk(&mut self.response, &self.host).await? else {
                return match self.left {
                    0 => Ok(None),
                    left => Err(OriginError::Unreachable {
                        host: self.host.clone(),
                        cause: format!("the response ended {left} bytes early"),
                    }),
                };
            };
            let skipped = self.skip.min(chunk.len() as u64);
            self.skip -= skipped;
            // Fits: at most the length of the chunk.
            let _ = chunk.split_to(skipped as usize);
            if self.is_whole {
                chunk.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            } else if chunk.len() as u64 > self.left {
                return Err(OriginError::Invalid {
                    host: self.host.clone(),
                    what: "it sends more bytes than were asked for".into(),
                });
            }
            self.left -= chunk.len() as u64;
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }
}
