//! Looking up files at the index, and ids at the running peer.

use std::collections::HashSet;

use potluck_core::{
    IdPrefix, Problem, Reason,
    index_client::IndexClient,
    model::{IndexedFile, QueryKey},
};

use crate::{
    arguments::{file_query::FileQuery, transfer_target::TransferTarget},
    control::{
        ControlClient,
        model::{Item, Transfer},
    },
    error::CommandError,
    output::Output,
    views::id_matches::{self, IdMatch},
};

/// Maximum number of files read for one query: far more than a person would choose from.
const MAX_FILES: usize = 1000;

/// Approximate maximum size of the results in memory, in bytes: a thousand files with a few names
/// and providers each.
const MAX_BYTES: usize = 2 * 1024 * 1024;

/// Consecutive empty pages after which the query ends. A page is empty if its files were removed in
/// the meantime.
const MAX_EMPTY: u32 = 10;

/// All files that match the query, up to [`MAX_FILES`] and [`MAX_BYTES`].
///
/// # Errors
/// As `IndexService.Query`.
pub(crate) async fn find_files(
    index: &IndexClient,
    query: &FileQuery,
    providers: u32,
) -> Result<Vec<IndexedFile>, Problem> {
    match query {
        FileQuery::Id(id) => find(index, &QueryKey::Id(*id), providers).await,
        FileQuery::Sha256(sum) => find(index, &QueryKey::Sha256(*sum), providers).await,
        FileQuery::Name(name) => find(index, &QueryKey::Name(name.clone()), providers).await,
        // The caller looks for the SHA-256 that the origin states.
        FileQuery::Origin(_) => Ok(Vec::new()),
        FileQuery::IdPrefix { prefix, text } => {
            // A name of hex digits must not hide an id, nor the other way round.
            let mut files = find(index, &QueryKey::IdPrefix(*prefix), providers).await?;
            let ids: HashSet<_> = files.iter().map(|found| found.file.id).collect();
            let named = find(index, &QueryKey::Name(text.clone()), providers).await?;
            files.extend(named.into_iter().filter(|found| !ids.contains(&found.file.id)));
            Ok(files)
        }
    }
}

async fn find(
    index: &IndexClient,
    key: &QueryKey,
    providers: u32,
) -> Result<Vec<IndexedFile>, Problem> {
    let mut files = Vec::new();
    let mut bytes = 0;
    let mut empty = 0;
    let mut page = None;
    loop {
        let answer = index.query(key, providers, page).await?;
        empty = if answer.files.is_empty() { empty + 1 } else { 0 };
        bytes += answer.files.iter().map(memory_estimate).sum::<usize>();
        // Only a peer that knows the origin can download what has no root yet.
        files.extend(
            answer
                .files
                .into_iter()
                .filter(|found| !found.file.is_provisional()),
        );
        page = answer.next;
        let is_enough = files.len() >= MAX_FILES || bytes >= MAX_BYTES;
        if page.is_none() || empty == MAX_EMPTY || is_enough {
            return Ok(files);
        }
    }
}

/// Approximate size of a result in memory, in bytes.
fn memory_estimate(found: &IndexedFile) -> usize {
    let names: usize = found.names.iter().map(|name| name.len() + 32).sum();
    256 + names + found.providers.len() * 128
}

/// Items of the peer's library for which `is_match` is true.
///
/// # Errors
/// As `ControlService.ListLibrary`.
pub(crate) async fn find_items(
    control: &ControlClient,
    is_match: impl Fn(&Item) -> bool,
) -> Result<Vec<Item>, Problem> {
    let mut found = Vec::new();
    let mut page = None;
    loop {
        let (items, next) = control.library(page).await?;
        found.extend(items.into_iter().filter(&is_match));
        page = next;
        if page.is_none() {
            return Ok(found);
        }
    }
}

/// The ids with this prefix in the peer's library and transfers.
///
/// # Errors
/// As `ControlService.ListLibrary` and `ControlService.ListTransfers`.
pub(crate) async fn find_ids(
    control: &ControlClient,
    prefix: &IdPrefix,
) -> Result<Vec<IdMatch>, Problem> {
    let items = find_items(control, |item| prefix.matches(&item.record.id)).await?;
    let transfers = control.transfers().await?;
    let transfers = transfers.iter().filter(|transfer| prefix.matches(&transfer.file));
    let mut matches: Vec<IdMatch> = items
        .iter()
        .map(Into::into)
        .chain(transfers.map(Into::into))
        .collect();
    id_matches::dedup(&mut matches);
    Ok(matches)
}

/// The number of the transfer that an argument stands for: the newest one of a file.
///
/// # Errors
/// [`Reason::NotFound`] if no transfer matches; [`Reason::AmbiguousName`] if transfers of several
/// files match, after printing them; or as `ControlService.ListTransfers`.
pub(crate) async fn find_transfer(
    out: &Output,
    control: &ControlClient,
    target: &TransferTarget,
) -> Result<u64, CommandError> {
    if let (Some(number), None) = (target.number, target.id) {
        return Ok(number);
    }
    let is_match = |transfer: &Transfer| {
        target.number == Some(transfer.number)
            || target.id.is_some_and(|id| id.matches(&transfer.file))
    };
    // The list is ordered newest first.
    let found: Vec<Transfer> = control.transfers().await?.into_iter().filter(is_match).collect();
    let mut matches: Vec<IdMatch> = found.iter().map(Into::into).collect();
    id_matches::dedup(&mut matches);
    match (&matches[..], found.first()) {
        ([_], Some(newest)) => Ok(newest.number),
        ([], _) | (_, None) => {
            let message = format!("no transfer matches `{}`", target.text);
            Err(CommandError::new(Reason::NotFound, message)
                .hint("`potluck transfers` lists the transfers"))
        }
        _ => Err(id_matches::ambiguous(out, &target.text, &matches)),
    }
}

/// The not-found error, with a hint.
pub(crate) fn not_found(query: &FileQuery) -> CommandError {
    let error = CommandError::new(Reason::NotFound, format!("no running peer has {query}"));
    match (query, query.id_length_hint()) {
        (_, Some(hint)) => error.hint(hint),
        (FileQuery::Origin(_), _) => error,
        (FileQuery::Name(name), None) => error.hint(format!(
            "a name must match exactly; to find similar names: potluck search {}",
            shell_quoted(name)
        )),
        (_, None) => {
            error.hint("a peer that has it must be running and registered with this index")
        }
    }
}

/// Quotes a name for the shell.
fn shell_quoted(name: &str) -> String {
    shlex::try_quote(name).map_or_else(|_| name.to_owned(), Into::into)
}
