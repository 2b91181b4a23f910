//! `potluck network`: makes private networks, joins them, and manages their members.
//!
//! Two modules do the work: `host` on the folder of a network, on the machine of its index, and
//! `member` through the index, with the credentials of this machine.

mod args;
mod host;
mod member;

pub(crate) use self::args::NetworkArgs;
use self::args::{DirArgs, NetworkCommand};
use crate::{context::CommandContext, error::CommandError};

/// Runs one of the commands.
pub(crate) async fn run(context: &CommandContext, args: NetworkArgs) -> Result<(), CommandError> {
    match args.command {
        NetworkCommand::Create(args) => host::create(context, &args),
        NetworkCommand::Backup(args) => host::backup(context, &args),
        NetworkCommand::Restore(args) => host::restore(context, &args),
        NetworkCommand::Invite(args) if args.dir.dir.is_some() => host::invite(context, &args),
        NetworkCommand::Members(DirArgs { dir: Some(dir) }) => host::members(context, &dir),
        NetworkCommand::Revoke(args) if args.dir.dir.is_some() => host::revoke(context, &args),
        NetworkCommand::SetIndex(args) if args.dir.dir.is_some() => host::set_index(context, &args),
        NetworkCommand::SetIndex(args) => member::set_index(context, &args),
        NetworkCommand::Join(args) => context.stoppable(member::join(context, args)).await,
        NetworkCommand::Invite(args) => context.stoppable(member::invite(context, &args)).await,
        NetworkCommand::Members(_) => context.stoppable(member::members(context)).await,
        NetworkCommand::Revoke(args) => context.stoppable(member::revoke(context, &args)).await,
        NetworkCommand::Leave(args) => context.stoppable(member::leave(context, &args)).await,
        NetworkCommand::Rekey(args) => context.stoppable(member::rekey(context, args)).await,
        NetworkCommand::Unbind(args) => context.stoppable(member::unbind(context, &args)).await,
        NetworkCommand::Unregister(args) => {
            context.stoppable(member::unregister(context, &args)).await
        }
    }
}
