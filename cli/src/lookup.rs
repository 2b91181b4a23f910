//! Looking up files at the index.

use potluck_core::{Problem, Reason, index_client::IndexClient, model::IndexedFile};

use crate::{arguments::file_query::FileQuery, error::CommandError};

/// Maximum number of files read for one name: far more than a person would choose from.
const MAX_FILES: usize = 1000;

/// Approximate maximum size of the results in memory, in bytes: a thousand files with a few names
/// and providers each.
const MAX_BYTES: usize = 2 * 1024 * 1024;

/// Consecutive empty pages after which the query ends. A page is empty if its files were removed in
/// the meantime.
const MAX_EMPTY: u32 = 10;

/// Approximate size of a result in memory, in bytes.
fn memory_estimate(found: &IndexedFile) -> usize {
    let names: usize = found.names.iter().map(|name| name.len() + 32).sum();
    256 + names + found.providers.len() * 128
}

/// All files that match the query, up to [`MAX_FILES`] and [`MAX_BYTES`].
///
/// # Errors
/// As `IndexService.Query`.
pub(crate) async fn find_files(
    index: &IndexClient,
    query: &FileQuery,
    providers: u32,
) -> Result<Vec<IndexedFile>, Problem> {
    let mut files = Vec::new();
    let mut bytes = 0;
    let mut empty = 0;
    let mut page = None;
    loop {
        let answer = index.query(&query.query_key(), providers, page).await?;
        empty = if answer.files.is_empty() { empty + 1 } else { 0 };
        bytes += answer.files.iter().map(memory_estimate).sum::<usize>();
        files.extend(answer.files);
        page = answer.next;
        let is_enough = files.len() >= MAX_FILES || bytes >= MAX_BYTES;
        if page.is_none() || empty == MAX_EMPTY || is_enough {
            return Ok(files);
        }
    }
}

/// The not-found error, with a hint.
pub(crate) fn not_found(query: &FileQuery) -> CommandError {
    let error = CommandError::new(Reason::NotFound, format!("no running peer has {query}"));
    match (query, query.truncated_id_hint()) {
        (_, Some(hint)) => error.hint(hint),
        (FileQuery::Name(name), None) => error.hint(format!(
            "a name must match exactly; to find similar names: potluck search {}",
            shell_quoted(name)
        )),
        (_, None) => error.hint("a peer that has it must be running and registered with this index"),
    }
}

/// Quotes a name for the shell.
fn shell_quoted(name: &str) -> String {
    shlex::try_quote(name).map_or_else(|_| name.to_owned(), Into::into)
}
