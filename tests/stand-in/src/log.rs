//! The requests that arrived, and the bytes that were sent.

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use parking_lot::Mutex;
use serde::Serialize;

/// One request.
#[derive(Debug, Clone, Serialize)]
pub struct LogEntry {
    /// The path.
    pub path: String,
    /// The value of `Range`.
    pub range: Option<String>,
    /// Whether it had an `Authorization` header.
    pub has_credentials: bool,
    /// The status of the response.
    pub status: u16,
    /// Bytes of content that were given to the connection.
    pub bytes: u64,
}

/// All requests, in the order in which they arrived.
#[derive(Debug, Default, Clone)]
pub struct RequestLog(Arc<Mutex<Vec<LogEntry>>>);

/// An entry that is written while its response is sent.
#[derive(Debug, Clone)]
pub struct OpenEntry {
    log: RequestLog,
    index: usize,
}

impl RequestLog {
    /// Adds a request.
    pub fn open(&self, path: String, headers: &HeaderMap) -> OpenEntry {
        let mut entries = self.0.lock();
        let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        entries.push(LogEntry {
            path,
            range: range.map(ToOwned::to_owned),
            has_credentials: headers.contains_key(header::AUTHORIZATION),
            status: 0,
            bytes: 0,
        });
        OpenEntry {
            log: self.clone(),
            index: entries.len() - 1,
        }
    }

    /// All entries.
    pub fn entries(&self) -> Vec<LogEntry> {
        self.0.lock().clone()
    }

    /// The bytes of content that were sent so far.
    pub fn bytes(&self) -> u64 {
        self.0.lock().iter().map(|entry| entry.bytes).sum()
    }

    /// Forgets all entries.
    pub fn clear(&self) {
        self.0.lock().clear();
    }
}

impl OpenEntry {
    /// Records the status.
    pub fn set_status(&self, status: u16) {
        if let Some(entry) = self.log.0.lock().get_mut(self.index) {
            entry.status = status;
        }
    }

    /// Records bytes that were sent.
    pub fn add_bytes(&self, bytes: u64) {
        if let Some(entry) = self.log.0.lock().get_mut(self.index) {
            entry.bytes += bytes;
        }
    }
}
