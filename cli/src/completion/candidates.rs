//! Names, ids and transfers that complete a word, from the index and the running peer.

use std::{ffi::OsString, sync::Mutex, time::Duration};

use potluck_core::{FileId, IdPrefix, Problem, index_client::IndexClient, model::QueryKey};

use crate::{
    completion::Candidate,
    context::CommandContext,
    control::{
        ControlClient,
        model::{Item, Transfer, TransferState},
    },
    error::CommandError,
    options::GlobalOptions,
    output::text,
};

/// How long a completion may take: a person does not notice it, and a dead index does not block the
/// terminal.
pub(crate) const DEADLINE: Duration = Duration::from_millis(300);

/// Maximum number of candidates: more than a person reads.
const MAX_CANDIDATES: usize = 50;

/// Files per page of a search. Larger than [`MAX_CANDIDATES`], because the search also finds words
/// in the middle of names.
const PAGE: u32 = 200;

/// Pages of a search or of the library that one completion reads at most.
const MAX_PAGES: usize = 4;

/// Digits of an id from which the index finds it.
const MIN_ID_DIGITS: usize = 8;

/// What an argument names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Files that the index knows, by name, or by id from [`MIN_ID_DIGITS`] digits.
    IndexedFiles,
    /// Ids of items that the peer shares.
    SharedIds,
    /// Paths of items that the peer shares.
    SharedPaths,
    /// Paths and, if the word can begin one, ids of items that the peer shares.
    SharedItems,
    /// All transfers, by number, or by id.
    Transfers,
    /// Transfers that can be paused.
    RunningTransfers,
    /// Transfers that can be resumed.
    StoppedTransfers,
    /// Transfers that have not ended.
    UnfinishedTransfers,
}

/// Finds candidates with the index and the peer of a context.
#[derive(Debug, Clone)]
pub(crate) struct CandidateFinder {
    context: CommandContext,
    runtime: tokio::runtime::Handle,
}

impl CandidateFinder {
    /// A finder that runs its calls on `runtime`.
    pub(crate) const fn new(context: CommandContext, runtime: tokio::runtime::Handle) -> Self {
        Self { context, runtime }
    }

    /// This finder, with the index and the peer that a line names.
    pub(crate) fn for_line(&self, words: &[OsString]) -> Self {
        let options = GlobalOptions {
            // A note would corrupt the line.
            quiet: true,
            ..GlobalOptions::scan(words)
        };
        let line = self.context.line(&options, self.context.stop.clone());
        Self {
            context: line.unwrap_or_else(|_| self.context.clone()),
            runtime: self.runtime.clone(),
        }
    }

    /// The candidates of `source` that begin with `prefix`: those that were found by the deadline.
    /// Blocks, and must not be called from an async task.
    pub(crate) fn find(&self, source: Source, prefix: &str) -> Vec<Candidate> {
        let found = Found {
            prefix,
            candidates: Mutex::default(),
        };
        let search = async {
            // A failure or a timeout only means fewer candidates.
            let _ = tokio::time::timeout(DEADLINE, collect(&self.context, source, &found)).await;
        };
        self.runtime.block_on(search);
        found.into_candidates()
    }
}

/// The candidates found so far.
struct Found<'a> {
    prefix: &'a str,
    candidates: Mutex<Vec<Candidate>>,
}

impl Found<'_> {
    /// Adds a candidate if it begins with the prefix and is new. Returns whether there is room for
    /// more.
    fn add(&self, value: String, description: impl FnOnce() -> String) -> bool {
        let mut candidates = self
            .candidates
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if value.starts_with(self.prefix) && candidates.iter().all(|known| known.value != value) {
            candidates.push(Candidate {
                value,
                description: description(),
            });
        }
        candidates.len() < MAX_CANDIDATES
    }

    /// Adds a file by name, or by id if the name cannot be typed: it has characters that control a
    /// terminal or are invisible, or looks like an option.
    fn add_name(&self, name: &str, id: &FileId, description: impl FnOnce() -> String) -> bool {
        let can_be_typed = text::escape(name) == name && !name.starts_with('-');
        match can_be_typed {
            true => self.add(name.to_owned(), description),
            false => self.add(id.to_string(), || {
                format!("{}, {}", text::escape(name), description())
            }),
        }
    }

    fn into_candidates(self) -> Vec<Candidate> {
        self.candidates
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn collect(
    context: &CommandContext,
    source: Source,
    found: &Found<'_>,
) -> Result<(), CommandError> {
    if source == Source::IndexedFiles {
        return Ok(indexed_files(&context.lookup_index().await?, found).await?);
    }
    let Some(peer) = context.running_peer().await? else {
        return Ok(());
    };
    match source {
        Source::IndexedFiles => {}
        Source::SharedIds | Source::SharedPaths | Source::SharedItems => {
            shared_items(&peer.control, source, found).await?;
        }
        Source::Transfers
        | Source::RunningTransfers
        | Source::StoppedTransfers
        | Source::UnfinishedTransfers => transfers(&peer.control, source, found).await?,
    }
    Ok(())
}

async fn indexed_files(index: &IndexClient, found: &Found<'_>) -> Result<(), Problem> {
    let describe = |size: u64, providers: u64| {
        format!("{}, {}", text::size(size), text::count(providers, "peer"))
    };
    if found.prefix.len() >= MIN_ID_DIGITS
        && let Ok(prefix) = found.prefix.parse::<IdPrefix>()
    {
        let page = index.query(&QueryKey::IdPrefix(prefix), 1, None).await?;
        for file in page.files {
            let name = file
                .names
                .first()
                .map(|name| text::escape(name))
                .unwrap_or_default();
            let facts = describe(file.file.size, file.provider_count);
            found.add(file.file.id.to_string(), || format!("{name}, {facts}"));
        }
    }
    // A search needs a letter or digit; without one, all files are read.
    let has_word = found.prefix.contains(char::is_alphanumeric);
    let words = if has_word { found.prefix } else { "" };
    let mut next = None;
    for _ in 0..MAX_PAGES {
        let page = index.search(words, PAGE, next).await?;
        for file in &page.files {
            for name in &file.names {
                let facts = || describe(file.file.size, file.provider_count);
                if !found.add_name(name, &file.file.id, facts) {
                    return Ok(());
                }
            }
        }
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    Ok(())
}

async fn shared_items(
    control: &ControlClient,
    source: Source,
    found: &Found<'_>,
) -> Result<(), Problem> {
    let can_be_id = !found.prefix.is_empty() && found.prefix.bytes().all(|b| b.is_ascii_hexdigit());
    let mut next = None;
    for _ in 0..MAX_PAGES {
        let (items, after) = control.library(next).await?;
        for item in &items {
            if !add_item(found, source, item, can_be_id) {
                return Ok(());
            }
        }
        next = after;
        if next.is_none() {
            break;
        }
    }
    Ok(())
}

fn add_item(found: &Found<'_>, source: Source, item: &Item, can_be_id: bool) -> bool {
    let facts = || text::size(item.content_size);
    let id = item.record.id.to_string();
    if source == Source::SharedIds {
        return found.add(id, || format!("{}, {}", text::escape(&item.name), facts()));
    }
    // Inside the current folder, people type relative paths.
    let here = std::env::current_dir().unwrap_or_default();
    let relative = std::path::Path::new(&item.path).strip_prefix(here).ok();
    let relative = relative
        .and_then(std::path::Path::to_str)
        .filter(|relative| !relative.is_empty() && !found.prefix.starts_with('/'));
    let has_room = found.add_name(relative.unwrap_or(&item.path), &item.record.id, facts);
    match source == Source::SharedItems && can_be_id {
        true => found.add(id, || text::escape(&item.path).into_owned()),
        false => has_room,
    }
}

async fn transfers(
    control: &ControlClient,
    source: Source,
    found: &Found<'_>,
) -> Result<(), Problem> {
    let applies = |transfer: &Transfer| match source {
        Source::RunningTransfers => {
            !transfer.state.has_ended() && transfer.state != TransferState::Paused
        }
        Source::StoppedTransfers => {
            matches!(transfer.state, TransferState::Paused | TransferState::Failed)
        }
        Source::UnfinishedTransfers => !transfer.state.has_ended(),
        _ => true,
    };
    let describe = |transfer: &Transfer| {
        let percent = transfer
            .total
            .map(|total| format!(" {} %", text::percent(transfer.done, total)))
            .unwrap_or_default();
        format!(
            "{}, {}{percent}",
            text::escape(&transfer.name),
            transfer.state.word()
        )
    };
    let all = control.transfers().await?;
    for transfer in all.iter().filter(|transfer| applies(transfer)) {
        found.add(transfer.number.to_string(), || describe(transfer));
        // An id is offered to those who began to type one.
        let has_room =
            found.prefix.is_empty() || found.add(transfer.file.to_string(), || describe(transfer));
        if !has_room {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(prefix: &str, names: &[&str]) -> Vec<String> {
        let found = Found {
            prefix,
            candidates: Mutex::default(),
        };
        for name in names {
            found.add_name(name, &FileId([0xab; 32]), String::new);
        }
        let values = found.into_candidates().into_iter();
        values.map(|candidate| candidate.value).collect()
    }

    #[test]
    fn a_name_that_cannot_be_typed_is_offered_by_id() {
        let id = "ab".repeat(32);
        let hostile = ["-rf", "a\x1b[2J", "a\nb", "a\u{202e}b", "plain name"];
        assert_eq!(found("", &hostile), [id.as_str(), "plain name"]);
        assert_eq!(found("a", &hostile), [id.as_str()]);
        assert_eq!(found("p", &hostile), ["plain name"]);
    }

    #[test]
    fn a_name_is_offered_once() {
        assert_eq!(found("", &["a", "a", "b"]), ["a", "b"]);
    }
}
