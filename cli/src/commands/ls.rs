//! `potluck ls`: lists what the peer shares.

use clap::Args;
use potluck_core::model::FileKind;
use serde_json::json;

use crate::{
    context::{CommandContext, PeerHandle},
    control::model::Item,
    error::CommandError,
    output::{
        table::{self, Align},
        text,
    },
};

const EXAMPLES: &str = "\
Examples:
  potluck ls              what this machine's peer shares
  potluck ls --json       one JSON object a line";

/// List what the peer shares
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LsArgs {}

/// Prints the library page by page.
pub(crate) async fn run(context: &CommandContext, _: LsArgs) -> Result<(), CommandError> {
    let peer = context.stoppable(context.library_peer()).await?;
    let done = context.stoppable(list(context, &peer)).await;
    peer.close().await;
    done
}

async fn list(context: &CommandContext, peer: &PeerHandle) -> Result<(), CommandError> {
    let mut page = None;
    let mut items = 0;
    loop {
        let (some, next) = peer.control.library(page).await?;
        items += some.len();
        if context.out.is_json() {
            for item in &some {
                context.out.object(&object(item))?;
            }
        } else if !some.is_empty() {
            context.out.lines(lines(&some, context.out.width()))?;
        }
        page = next;
        if page.is_none() {
            break;
        }
    }
    if items == 0 {
        context.out.note("nothing is shared yet: potluck share PATH");
    }
    Ok(())
}

/// An item as JSON. For a collection, `size` is the size of its manifest, and `content_size` the
/// sum of its files.
pub(crate) fn object(item: &Item) -> serde_json::Value {
    json!({
        "id": item.record.id,
        "root": item.record.root,
        "size": item.record.size,
        "name": item.name,
        "path": item.path,
        "kind": item.record.kind,
        "sha256": item.record.sha256,
        "file_count": item.file_count,
        "content_size": item.content_size,
        "damaged_paths": item.damaged_paths,
    })
}

fn lines(items: &[Item], width: Option<usize>) -> Vec<String> {
    let columns = [
        ("SIZE", Align::Right),
        ("WHAT", Align::Left),
        ("NAME", Align::Left),
        ("PATH", Align::Left),
    ];
    let rows = items.iter().map(|item| {
        let cells = vec![
            text::size(item.content_size),
            what(item),
            text::shown(&item.name).into_owned(),
            text::shown(&item.path).into_owned(),
        ];
        (cells, item.record.id.to_string())
    });
    table::with_ids(&columns, rows, width)
}

/// The kind of an item: `file`, or the number of files in the folder; and whether it is damaged.
pub(crate) fn what(item: &Item) -> String {
    let what = match item.record.kind {
        FileKind::File => "file".to_owned(),
        FileKind::Collection => format!("folder, {}", text::count(item.file_count, "file")),
    };
    match item.damaged_paths.is_empty() {
        true => what,
        false => format!("{what}, damaged"),
    }
}
