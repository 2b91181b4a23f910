//! How folders are shared: what becomes of links, and what is left out.

use clap::Args;
use potluck_peer::library::{LinkPolicy, ShareOptions};

/// How folders are shared.
#[derive(Debug, Clone, Args)]
pub(crate) struct FolderOptions {
    /// What becomes of symbolic links in a folder: `keep` those that stay inside, `follow` them to
    /// what they lead to, or `skip` them
    #[arg(
        long,
        value_name = "POLICY",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    links: LinkPolicy,

    /// Leave out what matches this pattern of .gitignore syntax, relative to each folder; may be
    /// repeated. Patterns in `.potluckignore` files in the folder apply as well.
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,

    /// Refuse a folder if an entry in it cannot be shared, instead of skipping the entry
    #[arg(long)]
    strict: bool,
}

impl From<FolderOptions> for ShareOptions {
    fn from(options: FolderOptions) -> Self {
        Self {
            links: options.links,
            is_strict: options.strict,
            exclude: options.exclude,
        }
    }
}
