//! `potluck verify`: whether a file or folder is what an id says, without any network.

use std::path::PathBuf;

use clap::Args;
use potluck_core::{FileId, Reason};
use serde_json::json;

use super::local;
use crate::{context::Context, fail::Fail, text};

const EXAMPLES: &str = "\
Examples:
  potluck verify 3f9a…(64 digits) model.bin   exit code 0 if it is, 4 if not
  potluck verify 3f9a…(64 digits) photos/     a folder, every file in it";

/// Check a file or folder against an id, without any network
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VerifyArgs {
    /// The id it should have
    id: FileId,
    /// The file or folder
    path: PathBuf,
}

/// Hashes and compares.
pub(crate) async fn run(context: &Context, args: VerifyArgs) -> Result<(), Fail> {
    let hashed = local::hash(context, &args.path).await?;
    let path = local::absolute(&args.path)?;
    if hashed.record.id != args.id {
        let message = format!(
            "{} is not {}: its id is {}",
            args.path.display(),
            args.id,
            hashed.record.id
        );
        return Err(Fail::new(Reason::VerificationFailed, message));
    }
    match context.out.is_json() {
        true => context.out.object(&json!({
            "id": hashed.record.id,
            "path": path,
            "kind": hashed.record.kind,
            "size": hashed.record.size,
            "content_size": hashed.content_size,
            "verified": true,
        })),
        false => context.out.line(format_args!(
            "{}  {} is what the id says",
            console::style("verified").green(),
            text::shown(&args.path.to_string_lossy())
        )),
    }
}
