//! `potluck query`: shows the files that match an id, a SHA-256 or a name, with their providers.

use clap::Args;
use console::style;
use potluck_core::model::{FileKind, IndexedFile};

use crate::{
    arguments::file_query::FileQuery,
    context::CommandContext,
    error::CommandError,
    lookup,
    output::{
        table::{Align, Table},
        text,
    },
    views::indexed_files::{self, QueryObject},
};

/// Maximum number of files shown with their providers; a longer list is shown as a table.
const MAX_IN_FULL: usize = 20;

const EXAMPLES: &str = "\
Examples:
  potluck query model.bin        every file of this name, with its peers
  potluck query 3f9a…            one file, by its id
  potluck query sha256:e3b0…     files whose providers claim this SHA-256";

/// Show which peers have a file
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct QueryArgs {
    /// Id, exact name, or sha256:HEX
    #[arg(value_name = "ID|NAME|sha256:HEX")]
    query: FileQuery,

    /// Maximum peers to list per file; they are a random sample
    #[arg(
        long,
        value_name = "N",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    providers: u32,
}

/// Queries the index and prints the files.
pub(crate) async fn run(context: &CommandContext, args: QueryArgs) -> Result<(), CommandError> {
    let files =
        lookup::find_files(&context.lookup_index().await?, &args.query, args.providers).await?;
    if context.out.is_json() {
        context.out.print_object(&QueryObject { files: &files })?;
    }
    if files.is_empty() {
        return Err(lookup::not_found(&args.query));
    }
    if !context.out.is_json() && files.len() > MAX_IN_FULL {
        context
            .out
            .print_lines(indexed_files::table_lines(&context.out, &files))?;
        context
            .out
            .note("to show the peers of one file: potluck query ID");
    } else if !context.out.is_json() {
        for (i, found) in files.iter().enumerate() {
            if i > 0 {
                context.out.print_line("")?;
            }
            context.out.print_lines(lines(found, context.out.width()))?;
        }
    }
    Ok(())
}

fn lines(found: &IndexedFile, width: Option<usize>) -> Vec<String> {
    let name = found
        .names
        .first()
        .map_or_else(|| "(no name)".into(), |name| text::escape(name));
    let mut lines = vec![style(name).bold().to_string()];
    let mut fact =
        |what: &str, value: String| lines.push(format!("  {:<7} {value}", style(what).dim()));
    fact("id", found.file.id.to_string());
    match found.file.kind {
        FileKind::File | FileKind::Provisional => fact("size", exact_size(found.file.size)),
        FileKind::Collection => fact(
            "kind",
            format!("folder (its manifest has {})", text::size(found.file.size)),
        ),
    }
    if let Some(sum) = found.file.sha256 {
        fact("sha256", sum.to_string());
    }
    if found.names.len() > 1 {
        let others: Vec<_> = found.names[1..].iter().map(|name| text::escape(name)).collect();
        fact("also", others.join(", "));
    }
    let listed = found.providers.len() as u64;
    let more = match listed < found.provider_count {
        true => format!(", {listed} of them:"),
        false => String::new(),
    };
    fact("peers", format!("{}{more}", found.provider_count));
    let mut table = Table::without_header(vec![Align::Left, Align::Left, Align::Left]);
    for provider in &found.providers {
        let part = if provider.is_complete {
            "has all"
        } else {
            "has a part"
        };
        table.row([
            format!("    {}", text::escape(&provider.address.to_string())),
            part.to_owned(),
            style(format!("peer {}", provider.peer.short())).dim().to_string(),
        ]);
    }
    lines.extend(table.lines(width));
    lines
}

/// A size in a unit for people, and in bytes if that differs.
fn exact_size(bytes: u64) -> String {
    match bytes {
        0..1024 => text::size(bytes),
        _ => format!("{} ({} bytes)", text::size(bytes), indicatif::HumanCount(bytes)),
    }
}
