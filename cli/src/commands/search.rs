//! `potluck search`: finds files by words in their names.

use std::{collections::HashSet, time::Duration};

use clap::Args;
use potluck_core::{
    FileId, Problem, Reason,
    index_client::IndexClient,
    model::{FilePage, IndexedFile},
};

use crate::{context::CommandContext, error::CommandError, views::indexed_files};

/// Default number of results: a few screens.
const DEFAULT_LIMIT: u64 = 100;

/// Page size: the maximum that the index returns.
const PAGE: u64 = 1000;

/// Maximum pages that are read to learn whether there are more results than those to print.
const MAX_PAGES_AFTER_LIMIT: u32 = 10;

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
  potluck search llama 70b     names with both words, or words that begin so
  potluck search               all files of the index
  potluck search --all --json  all matches, one JSON object per page

Case and accents do not matter. The best matches come first: the whole name,
then whole words, then beginnings of words; among equal matches, the files with
the most peers.";

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

/// Searches and prints the results: in one table, or page by page.
pub(crate) async fn run(context: &CommandContext, args: SearchArgs) -> Result<(), CommandError> {
    let mut search = Search {
        index: context.lookup_index().await?,
        query: args.words.join(" "),
        next: args.page.clone(),
        empty: 0,
        seen: HashSet::new(),
    };
    let is_paged = args.all || args.page.is_some() || context.out.is_json();
    let (found, has_more) = match is_paged {
        true => print_pages(context, &args, &mut search).await?,
        false => print_table(context, &args, &mut search).await?,
    };
    let query = &search.query;
    if let Some(page) = search.next.as_ref().filter(|_| search.empty == MAX_EMPTY) {
        let message = format!("no further match for `{query}` among the names examined so far");
        return Err(CommandError::new(Reason::NotFound, message)
            .hint("longer or rarer words are found faster")
            .hint(format!("to continue the search: add --page {page}")));
    }
    if found == 0 {
        let message = match query.is_empty() {
            true => "the index has no files yet".to_owned(),
            false => format!("no name matches `{query}`"),
        };
        let hint = match query.is_empty() {
            true => "share a file with: potluck share PATH",
            false => "every word must begin a word of the name: try fewer or shorter words",
        };
        return Err(CommandError::new(Reason::NotFound, message).hint(hint));
    }
    if has_more {
        context.out.note(format_args!(
            "there are more matches: --limit N shows more than {}, --all shows all",
            args.limit
        ));
    }
    Ok(())
}

/// Prints each page as it arrives. Returns the number of matches, and whether there are more.
async fn print_pages(
    context: &CommandContext,
    args: &SearchArgs,
    search: &mut Search,
) -> Result<(usize, bool), CommandError> {
    let mut remaining = if args.all { u64::MAX } else { args.limit };
    let mut found = 0;
    while remaining > 0 && search.empty < MAX_EMPTY {
        let files = search.page(context, remaining.min(PAGE)).await?;
        remaining = remaining.saturating_sub(files.len() as u64);
        found += files.len();
        if context.out.is_json() {
            // The last object has `next_page` set if there are more results.
            if !files.is_empty() || search.next.is_none() || search.empty == MAX_EMPTY {
                context.out.print_object(&indexed_files::SearchObject {
                    files: &files,
                    next_page: search.next.as_deref(),
                })?;
            }
        } else if !files.is_empty() {
            context
                .out
                .print_lines(indexed_files::table_lines(&context.out, &files))?;
        }
        if search.next.is_none() {
            break;
        }
    }
    Ok((found, search.next.is_some()))
}

/// Prints the first matches in one table. Returns their number, and whether there are more.
async fn print_table(
    context: &CommandContext,
    args: &SearchArgs,
    search: &mut Search,
) -> Result<(usize, bool), CommandError> {
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut files = Vec::new();
    let mut pages_after_limit = 0;
    while search.empty < MAX_EMPTY
        && files.len() <= limit
        && pages_after_limit < MAX_PAGES_AFTER_LIMIT
    {
        // One more shows that there are more.
        let missing = (limit - files.len()) as u64 + 1;
        files.extend(search.page(context, missing.min(PAGE)).await?);
        pages_after_limit += u32::from(files.len() >= limit);
        if search.next.is_none() {
            break;
        }
    }
    let has_more = files.len() > limit || search.next.is_some();
    files.truncate(limit);
    if !files.is_empty() {
        context
            .out
            .print_lines(indexed_files::table_lines(&context.out, &files))?;
    }
    Ok((files.len(), has_more))
}

/// A search in progress.
struct Search {
    index: IndexClient,
    query: String,
    /// The token of the next page.
    next: Option<String>,
    /// Number of consecutive empty pages.
    empty: u32,
    /// Files of earlier pages.
    seen: HashSet<FileId>,
}

impl Search {
    /// The new files of the next page.
    async fn page(
        &mut self,
        context: &CommandContext,
        size: u64,
    ) -> Result<Vec<IndexedFile>, CommandError> {
        let size = size.min(PAGE) as u32; // at most PAGE
        let page = self.next.take();
        let call = async { Ok(search_page(&self.index, &self.query, size, page).await?) };
        let mut answer = context.stoppable(call).await?;
        self.next = answer.next;
        answer
            .files
            .retain(|found| !found.file.is_provisional() && !self.seen.contains(&found.file.id));
        let room = MAX_REMEMBERED.saturating_sub(self.seen.len());
        self.seen
            .extend(answer.files.iter().take(room).map(|found| found.file.id));
        self.empty = if answer.files.is_empty() {
            self.empty + 1
        } else {
            0
        };
        Ok(answer.files)
    }
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
                if matches!(problem.reason, Reason::RateLimited | Reason::Busy)
                    && retries < MAX_RETRIES =>
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
