//! `potluck id`: prints the ids of files and folders, without network access.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::{
    arguments::folder_options::FolderOptions,
    context::CommandContext,
    error::{CommandError, ExitStatus},
    local_files,
    output::text,
    views::omissions::{self, MAX_NAMED, max_listed},
};

const EXAMPLES: &str = "\
Examples:
  potluck id model.bin        the id under which `potluck share` shares it
  potluck id --json *.iso     one JSON object per file";

/// Print the ids of files and folders, without using the network
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct IdArgs {
    /// Files and folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    options: FolderOptions,
}

/// Hashes each path. A path that fails does not stop the others.
pub(crate) async fn run(context: &CommandContext, args: IdArgs) -> Result<(), CommandError> {
    let mut worst = None;
    let (options, mut left) = (args.options.into(), MAX_NAMED);
    for path in &args.paths {
        let hashed = match local_files::hash(context, path, &options).await {
            Ok(hashed) => hashed,
            Err(error)
                if args.paths.len() == 1 || error.exit() == Some(ExitStatus::Interrupted) =>
            {
                return Err(error);
            }
            Err(error) => {
                context.out.print_error(&error);
                worst = Some(ExitStatus::Failed);
                continue;
            }
        };
        let omitted = omissions::of_hashed(path, &hashed.omitted, max_listed(&context.out));
        omissions::report(&context.out, &omitted, &mut left);
        if context.out.is_json() {
            let absolute = local_files::absolute(path)?;
            let name = std::path::Path::new(&absolute)
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let mut object = json!({
                "id": hashed.record.id,
                "root": hashed.record.root,
                "size": hashed.record.size,
                "name": name,
                "path": absolute,
                "kind": hashed.record.kind,
                "file_count": hashed.file_count,
                "content_size": hashed.content_size,
            });
            omissions::add_to_object(&mut object, &omitted, &context.out);
            context.out.print_object(&object)?;
        } else {
            context.out.print_line(format_args!(
                "{}  {}",
                hashed.record.id,
                text::escape(&path.to_string_lossy())
            ))?;
        }
    }
    worst.map_or(Ok(()), |exit| Err(CommandError::AlreadyReported(exit)))
}
