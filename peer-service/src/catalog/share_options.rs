//! What becomes of links and of entries that cannot be shared when a folder is shared, and what is
//! left out of it.

/// How a folder is shared. The same path shared with other options can be another collection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShareOptions {
    /// What becomes of symbolic links.
    pub links: LinkPolicy,
    /// Whether one entry that cannot be shared refuses the whole folder, instead of being skipped.
    pub is_strict: bool,
    /// Patterns of entries to leave out, in the syntax of `.gitignore`, relative to the folder.
    pub exclude: Vec<String>,
}

/// What becomes of symbolic links in a shared folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LinkPolicy {
    /// Share links that stay inside the folder as links; skip absolute ones and those that lead out
    #[default]
    Keep,
    /// Share what links lead to, also outside of the folder
    Follow,
    /// Share no links
    Skip,
}
