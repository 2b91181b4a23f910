//! `potluck search`: files by words of their names.

use clap::Args;
use potluck_core::{Reason, index_client::Found};
use serde_json::json;

use crate::{
    context::Context,
    fail::Fail,
    table::{self, Lean},
    text,
};

/// Results given unless more are asked for: what fits a few screens.
const DEFAULT_LIMIT: u64 = 100;

/// Results asked for at once: the most that the index gives.
const PAGE: u64 = 1000;

const EXAMPLES: &str = "\
Examples:
  potluck search llama 70b     words beginning with llama and 70b, in any order
  potluck search               everything the index knows
  potluck search --all --json  every match, one JSON object a page";

/// Find files by words, or beginnings of words, of their names
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SearchArgs {
    /// Words that the name must have, all of them; none: everything
    words: Vec<String>,

    /// Most results to give
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, conflicts_with = "all",
        value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,

    /// Give every result, page after page
    #[arg(long)]
    all: bool,

    /// Go on where `next_page` of an earlier answer says
    #[arg(long, value_name = "TOKEN")]
    page: Option<String>,
}

/// Searches, and prints page after page.
pub(crate) async fn run(context: &Context, args: SearchArgs) -> Result<(), Fail> {
    let index = context.index_to_ask().await?;
    let query = args.words.join(" ");
    let mut left = if args.all { u64::MAX } else { args.limit };
    let mut page = args.page;
    let mut found = 0;
    while left > 0 {
        let size = left.min(PAGE) as u32; // at most PAGE
        let answer = index.search(&query, size, page).await?;
        page = answer.next;
        left = left.saturating_sub(answer.files.len().max(1) as u64);
        found += answer.files.len();
        if context.out.is_json() {
            context.out.object(&Objects {
                files: &answer.files,
                next_page: page.as_deref(),
            })?;
        } else if !answer.files.is_empty() {
            context.out.lines(lines(&answer.files, context.out.width()))?;
        }
        if page.is_none() {
            break;
        }
    }
    if found == 0 {
        let what = match query.is_empty() {
            true => "the index knows no files yet".to_owned(),
            false => format!("no file has a name with `{query}`"),
        };
        let hint = match query.is_empty() {
            true => "share one: potluck share PATH",
            false => "every word must begin a word of the name; fewer words find more",
        };
        return Err(Fail::new(Reason::NotFound, what).hint(hint));
    }
    if page.is_some() {
        context.out.note(format_args!(
            "there is more: --all gives everything, --limit N more than {}",
            args.limit
        ));
    }
    Ok(())
}

/// A page as JSON, which is made for one file at a time.
#[derive(serde::Serialize)]
struct Objects<'a> {
    #[serde(serialize_with = "objects")]
    files: &'a [Found],
    next_page: Option<&'a str>,
}

fn objects<S: serde::Serializer>(files: &&[Found], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(files.iter().map(object))
}

fn object(found: &Found) -> serde_json::Value {
    json!({
        "id": found.file.id,
        "size": found.file.size,
        "kind": found.file.kind,
        "names": found.names,
        "providers": found.provider_count,
    })
}

/// Found files as a table: where several fit, to choose one by its id.
pub(crate) fn lines(files: &[Found], width: Option<usize>) -> Vec<String> {
    let columns = [
        ("SIZE", Lean::Right),
        ("PEERS", Lean::Right),
        ("NAME", Lean::Left),
    ];
    let rows = files.iter().map(|found| {
        let cells = vec![size(found), found.provider_count.to_string(), names(found)];
        (cells, found.file.id.to_string())
    });
    table::with_ids(&columns, rows, width)
}

/// The size for people; of a collection only its list's size is known to the index.
fn size(found: &Found) -> String {
    match found.file.kind {
        potluck_core::index_client::Kind::File => text::size(found.file.size),
        potluck_core::index_client::Kind::Collection => "folder".to_owned(),
    }
}

/// The name that most peers use, and how many others there are.
fn names(found: &Found) -> String {
    let first = found
        .names
        .first()
        .map_or_else(|| "(no name)".into(), |name| text::shown(name));
    match found.names.len() {
        0 | 1 => first.into_owned(),
        n => format!("{first} (and {})", text::count(n as u64 - 1, "other name")),
    }
}
