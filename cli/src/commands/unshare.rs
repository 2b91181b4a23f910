//! `potluck unshare`: stops sharing files and folders.

use std::path::Path;

use clap::Args;

use crate::{
    arguments::id::IdArgument,
    context::{CommandContext, PeerHandle},
    control::{SharedTarget, model::Item},
    error::CommandError,
    local_files, lookup,
    views::{
        id_matches::{self, IdMatch},
        library_items,
    },
};

const EXAMPLES: &str = "\
Examples:
  potluck unshare model.bin     stop sharing this path
  potluck unshare 3f9a…         stop sharing the item with this id

The files themselves stay where they are.";

/// Stop sharing files and folders
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

async fn remove(
    context: &CommandContext,
    peer: &PeerHandle,
    targets: &[String],
) -> Result<(), CommandError> {
    for target in targets {
        let target = find_shared(context, peer, target).await?;
        let removed = peer.control.unshare(target).await.map_err(|problem| {
            CommandError::from(problem).hint("`potluck ls` lists what is shared")
        })?;
        for item in &removed {
            match context.out.is_json() {
                true => context.out.print_object(&library_items::object(item))?,
                false => context.out.print_line(format_args!(
                    "no longer shared: {}",
                    library_items::path_text(item)
                ))?,
            }
        }
    }
    Ok(())
}

/// The meaning of an argument: an id, the first digits of an id, or a path. A path that looks like
/// an id can be given as `./PATH`.
async fn find_shared(
    context: &CommandContext,
    peer: &PeerHandle,
    argument: &str,
) -> Result<SharedTarget, CommandError> {
    let id = argument.parse::<IdArgument>();
    if let Ok(IdArgument::Whole(id)) = id {
        return Ok(SharedTarget::File(id));
    }
    let path = local_files::absolute(Path::new(argument))?;
    let Ok(prefix) = id else {
        return Ok(SharedTarget::Path(path));
    };
    let is_match = |item: &Item| prefix.matches(&item.record.id) || item.path == path;
    let items = lookup::find_items(&peer.control, is_match).await?;
    let mut matches: Vec<IdMatch> = items.iter().map(Into::into).collect();
    id_matches::dedup(&mut matches);
    match &matches[..] {
        [only] if prefix.matches(&only.id) => Ok(SharedTarget::File(only.id)),
        // The path is shared, or nothing matches.
        [] | [_] => Ok(SharedTarget::Path(path)),
        _ => Err(id_matches::ambiguous(&context.out, argument, &matches)),
    }
}
