//! A list of lines in the store that several index processes share.

use std::fmt::Debug;

use super::StoreError;

/// A list of lines that several processes append to. All calls block their thread, which must not be
/// a worker of the runtime.
pub(crate) trait SharedLog: Debug + Send {
    /// The first line, and the lines from number `from` on, counted from 0.
    ///
    /// # Errors
    /// The store does not answer.
    fn read(&mut self, from: u64) -> Result<LogPart, StoreError>;

    /// Appends lines if the log ends as expected; false if it does not, and nothing was changed.
    ///
    /// # Errors
    /// The store does not answer: the lines may have been appended.
    fn append(&mut self, end: &LogEnd, lines: &[String]) -> Result<bool, StoreError>;

    /// Replaces all lines if the log ends as expected; false if it does not, and nothing was changed.
    ///
    /// # Errors
    /// The store does not answer: the lines may have been replaced.
    fn replace(&mut self, end: &LogEnd, lines: &[String]) -> Result<bool, StoreError>;
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LogPart {
    /// The first line of the log; `None` if it has none.
    pub(crate) first: Option<String>,
    /// The lines that were asked for.
    pub(crate) lines: Vec<String>,
}

/// The end of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LogEnd {
    /// Number of lines.
    pub(crate) len: u64,
    /// The last line; empty if there are none.
    pub(crate) last: String,
}
