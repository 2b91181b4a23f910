//! `potluck query`: shows the files that match an id, a SHA-256 or a name, with their providers.

use clap::Args;
use console::style;
use potluck_core::{
    Problem, Reason,
    index_client::IndexClient,
    model::{FileKind, IndexedFile},
};
use serde_json::json;

use crate::{
    commands::{file_query::FileQuery, search},
    context::CommandContext,
    error::CommandError,
    output::{
        table::{Align, Table},
        text,
    },
};

/// Maximum number of files read for one name: far more than a person would choose from.
const MAX_FILES: usize = 1000;

/// Approximate maximum size of the results in memory, in bytes: a thousand files with a few names
/// and providers each.
const MOST_BYTES: usize = 2 * 1024 * 1024;

/// Maximum number of files shown with their providers; a longer list is shown as a table.
const MOST_IN_FULL: usize = 20;

/// Consecutive empty pages after which the query ends. A page is empty if its files were removed in
/// the meantime.
const MAX_EMPTY: u32 = 10;

const EXAMPLES: &str = "\
Examples:
  potluck query model.bin            every file of this name, with its peers
  potluck query 3f9a…(64 digits)     one file by its id
  potluck query sha256:e3b0…         files whose sharers claim this SHA-256";

/// Show who has a file
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct QueryArgs {
    /// An id, an exact name, or sha256:HEX
    #[arg(value_name = "ID|NAME|sha256:HEX")]
    want: FileQuery,

    /// Maximum number of peers to list for each file, a random sample
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    providers: u32,
}

/// Queries the index and prints the files.
pub(crate) async fn run(context: &CommandContext, args: QueryArgs) -> Result<(), CommandError> {
    let files = find(&context.index_to_ask().await?, &args.want, args.providers).await?;
    if context.out.is_json() {
        context.out.object(&Objects { files: &files })?;
    }
    if files.is_empty() {
        return Err(unknown(&args.want));
    }
    if !context.out.is_json() && files.len() > MOST_IN_FULL {
        context.out.lines(search::lines(&files, context.out.width()))?;
        context.out.note("who has one of them: potluck query ID");
    } else if !context.out.is_json() {
        for (i, found) in files.iter().enumerate() {
            if i > 0 {
                context.out.line("")?;
            }
            context.out.lines(lines(found))?;
        }
    }
    Ok(())
}

/// Files as JSON. Serialized one at a time to save memory.
#[derive(serde::Serialize)]
pub(crate) struct Objects<'a> {
    #[serde(serialize_with = "objects")]
    pub(crate) files: &'a [IndexedFile],
}

fn objects<S: serde::Serializer>(files: &&[IndexedFile], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(files.iter().map(object))
}

/// Approximate size of a result in memory, in bytes.
fn weight(found: &IndexedFile) -> usize {
    let names: usize = found.names.iter().map(|name| name.len() + 32).sum();
    256 + names + found.providers.len() * 128
}

/// All files that match the query, up to [`MAX_FILES`] and [`MOST_BYTES`].
///
/// # Errors
/// As `IndexService.Query`.
pub(crate) async fn find(
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
        bytes += answer.files.iter().map(weight).sum::<usize>();
        files.extend(answer.files);
        page = answer.next;
        let is_enough = files.len() >= MAX_FILES || bytes >= MOST_BYTES;
        if page.is_none() || empty == MAX_EMPTY || is_enough {
            return Ok(files);
        }
    }
}

/// The not-found error, with a hint.
pub(crate) fn unknown(query: &FileQuery) -> CommandError {
    let error = CommandError::new(Reason::NotFound, format!("no peer that is up has {query}"));
    match (query, query.damaged_id()) {
        (_, Some(hint)) => error.hint(hint),
        (FileQuery::Name(name), None) => error.hint(format!(
            "names must fit exactly here; try: potluck search {}",
            quoted(name)
        )),
        (_, None) => error.hint("whoever has it must be running and registered with this index"),
    }
}

/// Quotes a name for the shell.
fn quoted(name: &str) -> String {
    shlex::try_quote(name).map_or_else(|_| name.to_owned(), Into::into)
}

/// A file as JSON.
pub(crate) fn object(found: &IndexedFile) -> serde_json::Value {
    let providers: Vec<_> = found
        .providers
        .iter()
        .map(|provider| {
            json!({
                "peer": provider.peer,
                "address": provider.address.to_string(),
                "complete": !provider.partial,
            })
        })
        .collect();
    json!({
        "id": found.file.id,
        "root": found.file.root,
        "size": found.file.size,
        "kind": found.file.kind,
        "names": found.names,
        "sha256": found.file.sha256,
        "provider_count": found.provider_count,
        "providers": providers,
    })
}

fn lines(found: &IndexedFile) -> Vec<String> {
    let name = found
        .names
        .first()
        .map_or_else(|| "(no name)".into(), |name| text::shown(name));
    let mut lines = vec![style(name).bold().to_string()];
    let mut fact = |what: &str, value: String| lines.push(format!("  {:<7} {value}", style(what).dim()));
    fact("id", found.file.id.to_string());
    match found.file.kind {
        FileKind::File => fact(
            "size",
            format!("{} ({} bytes)", text::size(found.file.size), found.file.size),
        ),
        FileKind::Collection => fact(
            "kind",
            format!("folder (its list of files has {})", text::size(found.file.size)),
        ),
    }
    if let Some(sum) = found.file.sha256 {
        fact("sha256", format!("{sum} (claimed)"));
    }
    if found.names.len() > 1 {
        let others: Vec<_> = found.names[1..].iter().map(|name| text::shown(name)).collect();
        fact("also", others.join(", "));
    }
    let listed = found.providers.len() as u64;
    let more = match listed < found.provider_count {
        true => format!(", {listed} of them:"),
        false => String::new(),
    };
    fact("peers", format!("{}{more}", found.provider_count));
    let mut table = Table::bare(vec![Align::Left, Align::Left, Align::Left]);
    for provider in &found.providers {
        let part = if provider.partial { "has a part" } else { "has all" };
        table.row([
            format!("    {}", text::shown(&provider.address.to_string())),
            part.to_owned(),
            style(format!("peer {}", provider.peer.short())).dim().to_string(),
        ]);
    }
    lines.extend(table.lines());
    lines
}
