//! `potluck unshare`: stops sharing files and folders.

use std::path::Path;

use clap::Args;
use potluck_core::FileId;

use crate::{
    context::{CommandContext, PeerHandle},
    control::SharedTarget,
    error::CommandError,
    local_files,
    output::text,
    views::library_items,
};

const EXAMPLES: &str = "\
Examples:
  potluck unshare model.bin     stop sharing this path
  potluck unshare 3f9a…         stop sharing the item with this id

The files themselves stay where they are.";

/// Stop sharing files or folders; deletes nothing
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UnshareArgs {
    /// Ids or paths of shared items; `potluck ls` lists them
    #[arg(value_name = "ID|PATH", required = true)]
    targets: Vec<String>,
}

/// Stops sharing each target.
pub(crate) async fn run(context: &CommandContext, args: UnshareArgs) -> Result<(), CommandError> {
    let peer = context.stoppable(context.library_peer()).await?;
    let done = context.stoppable(remove(context, &peer, &args.targets)).await;
    peer.close().await;
    done
}

async fn remove(context: &CommandContext, peer: &PeerHandle, targets: &[String]) -> Result<(), CommandError> {
    for target in targets {
        // A path that looks like an id can be given as `./PATH`.
        let what = match target.parse::<FileId>() {
            Ok(id) => SharedTarget::File(id),
            Err(_) => SharedTarget::Path(local_files::absolute(Path::new(target))?),
        };
        let removed = peer
            .control
            .unshare(what)
            .await
            .map_err(|problem| CommandError::from(problem).hint("`potluck ls` lists what is shared"))?;
        for item in &removed {
            match context.out.is_json() {
                true => context.out.print_object(&library_items::object(item))?,
                false => context.out.print_line(format_args!(
                    "no longer shared: {} ({})",
                    text::escape(&item.name),
                    text::path(&item.path)
                ))?,
            }
        }
    }
    Ok(())
}
