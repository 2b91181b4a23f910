//! `potluck ls`: lists what the peer shares.

use clap::Args;

use crate::{
    context::{CommandContext, PeerHandle},
    control::model::Item,
    error::CommandError,
    output::{
        Output,
        table::{Align, Table},
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
            context.out.print_lines(lines(&context.out, &some))?;
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

fn lines(out: &Output, items: &[Item]) -> Vec<String> {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("SIZE", Align::Right),
        ("KIND", Align::Left),
        ("PATH", Align::Elastic),
    ]);
    let ids = out.id_format(items.iter().map(|item| &item.record.id));
    for item in items {
        table.row([
            ids.text(&item.record.id),
            text::size(item.content_size),
            library_items::kind_text(item),
            library_items::path_text(item),
        ]);
    }
    table.lines(out.width())
}
