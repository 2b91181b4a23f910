//! Completion of a command line, in shells and at the prompt: commands, options, names and ids of
//! files, shared items, and transfers.
//!
//! | module | responsibility |
//! |---|---|
//! | [`engine`] | which arguments the word can be, by clap's completion engine |
//! | [`candidates`] | names, ids and transfers, from the index and the running peer |
//! | [`words`] | splits an incomplete line, and quotes candidates; pure |
//! | [`shells`] | the scripts for shells, and the answers that they read |
//!
//! Invariants:
//! - A candidate has no control characters, and is quoted where a shell would interpret it: a name
//!   from the network never runs anything.
//! - A candidate begins with the word that is completed.
//! - Completion never takes longer than [`candidates::DEADLINE`], prints no errors, and starts no
//!   peer.

mod candidates;
mod engine;
mod shells;
mod words;

pub(crate) use self::{
    candidates::CandidateFinder,
    engine::{Answer, complete},
    shells::{CompletedShell, answer, script},
    words::{backslash_escaped, last_word},
};

/// A word that completes the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The whole word, unquoted.
    pub(crate) value: String,
    /// A short description; may be empty.
    pub(crate) description: String,
}
