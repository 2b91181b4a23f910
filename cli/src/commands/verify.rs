//! `potluck verify`: checks a file or folder against an id, without network access.

use std::path::PathBuf;

use clap::Args;
use potluck_core::Reason;
use potluck_peer::library::stored_manifest;
use serde_json::json;

use crate::{
    arguments::{folder_options::FolderOptions, id::IdArgument},
    context::CommandContext,
    error::CommandError,
    local_files,
    output::text,
    views::omissions::{self, MAX_NAMED, max_listed},
};

const EXAMPLES: &str = "\
Examples:
  potluck verify 3f9a… model.bin     check a file
  potluck verify 3f9a… photos/       check a folder and every file in it
  potluck verify --exclude target/ 3f9a… src
                                     a folder that was shared with this option

Exit codes: 0 it has this id, 4 it has another id";

/// Check a file or folder against an id, without using the network
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VerifyArgs {
    /// Expected id, or its first 8 digits or more
    id: IdArgument,
    /// File or folder to check
    path: PathBuf,

    #[command(flatten)]
    options: FolderOptions,
}

/// Hashes the path and compares the ids.
pub(crate) async fn run(context: &CommandContext, args: VerifyArgs) -> Result<(), CommandError> {
    let hashed = local_files::hash(context, &args.path, &args.options.into()).await?;
    let path = local_files::absolute(&args.path)?;
    let is_same = args.id.matches(&hashed.record.id);
    let not_kept = match args.id {
        IdArgument::Prefix(_) => None,
        IdArgument::Whole(_) if is_same => None,
        // The manifest that the downloading peer kept has the modes and links that the file system
        // could not store.
        IdArgument::Whole(id) => crate::peer::default_home()
            .ok()
            .and_then(|home| stored_manifest(&home, id))
            .filter(|manifest| hashed.holds_all_of(manifest))
            .map(|_| "permissions and links were not compared: the file system cannot store them"),
    };
    if !is_same && not_kept.is_none() {
        let message = format!(
            "{} does not have the id {}: its id is {}",
            args.path.display(),
            args.id,
            hashed.record.id
        );
        return Err(CommandError::new(Reason::VerificationFailed, message));
    }
    // The whole id, even if only its first digits were given.
    let id = match args.id {
        IdArgument::Whole(id) => id,
        IdArgument::Prefix(_) => hashed.record.id,
    };
    let omitted = omissions::of_hashed(&args.path, &hashed.omitted, max_listed(&context.out));
    omissions::report(&context.out, &omitted, &mut MAX_NAMED.clone());
    match context.out.is_json() {
        true => context.out.print_object(&json!({
            "id": id,
            "path": path,
            "kind": hashed.record.kind,
            "size": hashed.record.size,
            "content_size": hashed.content_size,
            "verified": true,
            "not_kept": not_kept.into_iter().collect::<Vec<_>>(),
        })),
        false => {
            if let Some(what) = not_kept {
                context.out.warn(what);
            }
            context.out.print_line(format_args!(
                "{}  {} has the id {id}",
                console::style("verified").green(),
                text::escape(&args.path.to_string_lossy())
            ))
        }
    }
}
