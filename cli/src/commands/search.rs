//! `potluck search`: finds files by words in their names.

use std::{collections::HashSet, time::Duration};

use clap::Args;
use potluck_core::{
    FileId, Problem, Reason,
    index_client::IndexClient,
    model::{FilePage, IndexedFile},
};
use serde_json::json;

use crate::{context::CommandContext, error::CommandError, views::indexed_files};

/// Default number of results: a few screens.
const DEFAULT_LIMIT: u64 = 100;

/// Page size: the maximum that the index returns.
const PAGE: u64 = 1000;

/// Consecutive empty pages after which the search gives up. The index examines about ten thousand
/// names per page.
const MAX_EMPTY: u32 = 500;

/// Maximum retries for a page if the index is busy or limits the request rate.
const MAX_RETRIES: u32 = 30;

/// Maximum wait before a retry.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10);

/// Number of results remembered to avoid printing duplicates. A file with a great many names can
/// appear on several pages.
const MAX_REMEMBERED: usize = 100_000;

const EXAMPLES: &str = "\
Examples:
  potluck search llama 70b     names with words that begin with llama and 70b
  potluck search               all files of the index
  potluck search --all --json  all matches, one JSON object per page";

/// Find files by words in their names
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SearchArgs {
    /// Words, or beginnings of words, that the name must contain; without any, all files match
    words: Vec<String>,

    /// Maximum number of results
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, conflicts_with = "all",
        value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,

    /// Print all results
    #[arg(long)]
    all: bool,

    /// Continue from the `next_page` token of an earlier search
    #[arg(long, value_name = "TOKEN")]
    page: Option<String>,
}

/// Searches and prints the results page by page.
pub(crate) async fn run(context: &CommandContext, args: SearchArgs) -> Result<(), CommandError> {
    let index = context.lookup_index().await?;
    let query = args.words.join(" ");
    let mut remaining = if args.all { u64::MAX } else { args.limit };
    let mut page = args.page;
    let mut found = 0;
    let mut empty = 0;
    let mut seen: HashSet<FileId> = HashSet::new();
    while remaining > 0 && empty < MAX_EMPTY {
        let size = remaining.min(PAGE) as u32; // at most PAGE
        let mut answer = context
            .stoppable(async { Ok(search_page(&index, &query, size, page).await?) })
            .await?;
        page = answer.next;
        answer.files.retain(|found| !seen.contains(&found.file.id));
        let room = MAX_REMEMBERED.saturating_sub(seen.len());
        seen.extend(answer.files.iter().take(room).map(|found| found.file.id));
        remaining = remaining.saturating_sub(answer.files.len() as u64);
        found += answer.files.len();
        empty = if answer.files.is_empty() { empty + 1 } else { 0 };
        if context.out.is_json() {
            // The last object has `next_page` set if there are more results.
            if !answer.files.is_empty() || page.is_none() || empty == MAX_EMPTY {
                context.out.print_object(&Objects {
                    files: &answer.files,
                    next_page: page.as_deref(),
                })?;
            }
        } else if !answer.files.is_empty() {
            context
                .out
                .print_lines(indexed_files::table_lines(&answer.files, context.out.width()))?;
        }
        if page.is_none() {
            break;
        }
    }
    if let Some(page) = page.as_ref().filter(|_| empty == MAX_EMPTY) {
        let what = format!("no further match for `{query}` among the names examined so far");
        return Err(CommandError::new(Reason::NotFound, what)
            .hint("longer or rarer words are found faster")
            .hint(format!("to continue the search: add --page {page}")));
    }
    if found == 0 {
        let what = match query.is_empty() {
            true => "the index has no files yet".to_owned(),
            false => format!("no name matches `{query}`"),
        };
        let hint = match query.is_empty() {
            true => "share a file with: potluck share PATH",
            false => "every word must begin a word of the name: try fewer or shorter words",
        };
        return Err(CommandError::new(Reason::NotFound, what).hint(hint));
    }
    if page.is_some() {
        context.out.note(format_args!(
            "there are more matches: --limit N shows more than {}, --all shows all",
            args.limit
        ));
    }
    Ok(())
}

/// A page of results. Serialized one file at a time to save memory.
#[derive(serde::Serialize)]
struct Objects<'a> {
    #[serde(serialize_with = "objects")]
    files: &'a [IndexedFile],
    next_page: Option<&'a str>,
}

fn objects<S: serde::Serializer>(files: &&[IndexedFile], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(files.iter().map(object))
}

/// Requests a page; retries if the index is busy or limits the request rate.
///
/// # Errors
/// As `IndexService.Search`.
async fn search_page(
    index: &IndexClient,
    query: &str,
    size: u32,
    page: Option<String>,
) -> Result<FilePage, Problem> {
    let mut retries = 0;
    loop {
        match index.search(query, size, page.clone()).await {
            Err(problem)
                if matches!(problem.reason, Reason::RateLimited | Reason::Busy) && retries < MAX_RETRIES =>
            {
                retries += 1;
                let wait = problem
                    .retry_after
                    .unwrap_or(MAX_RETRY_DELAY)
                    .min(MAX_RETRY_DELAY);
                tokio::time::sleep(wait).await;
            }
            answer => return answer,
        }
    }
}

fn object(found: &IndexedFile) -> serde_json::Value {
    json!({
        "id": found.file.id,
        "size": found.file.size,
        "kind": found.file.kind,
        "names": found.names,
        "providers": found.provider_count,
    })
}
