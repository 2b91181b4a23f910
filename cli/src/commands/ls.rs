//! `potluck ls`: lists what the peer shares.

use clap::Args;

use crate::{
    context::{CommandContext, PeerHandle},
    control::model::Item,
    error::CommandError,
    output::{
        table::{self, Align},
        text,
    },
    views::library_items,
};

const EXAMPLES: &str = "\
Examples:
  potluck ls             what this machine's peer shares
  potluck ls --json      one JSON object per item";

/// List what this machine's peer shares
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
                context.out.print_object(&library_items::object(item))?;
            }
        } else if !some.is_empty() {
            context.out.print_lines(lines(&some, context.out.width()))?;
        }
        page = next;
        if page.is_none() {
            break;
        }
    }
    if items == 0 {
        context
            .out
            .note("nothing is shared yet; share something with: potluck share PATH");
    }
    Ok(())
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
            library_items::kind_text(item),
            text::escape(&item.name).into_owned(),
            text::escape(&item.path).into_owned(),
        ];
        (cells, item.record.id.to_string())
    });
    table::with_ids(&columns, rows, width)
}
