//! Pages of results, and the limits of one page.
//!
//! A caller advances a page in short slices, so that each holds the catalog's lock only briefly.
//! The page counts its steps; a step takes about 30 nanoseconds. A page ends when it has taken
//! [`PAGE_STEPS`] or has enough files or bytes. A page may be empty. Its cursor is the position
//! where the next page begins. However broad the query, one call takes at most [`MAX_CALL_STEPS`].
//!
//! The catalog may change between two slices. A file that stays in it throughout is found; a file
//! that is added or removed meanwhile may be found or not.

use potluck_core::model::IndexedFile;

use crate::catalog::query::{
    describe::{self, MAX_MATCHING_STEPS},
    sample::MAX_SAMPLED,
};

/// Maximum estimated bytes of a page: a quarter of the maximum message, so that a long result needs
/// few pages.
const PAGE_BYTES: usize = 1024 * 1024;

/// Steps after which a page ends: about 4 milliseconds.
pub(crate) const PAGE_STEPS: usize = 120_000;

/// Maximum steps of a page: it finishes its current item after it reaches [`PAGE_STEPS`].
pub(crate) const MAX_CALL_STEPS: usize = PAGE_STEPS + MAX_ITEM_STEPS;

/// Maximum steps of an item that cannot be interrupted: checking and describing one file and
/// sampling its providers, or looking up one term.
pub(crate) const MAX_ITEM_STEPS: usize =
    2 * MAX_MATCHING_STEPS + describe::MAX_STEPS + 2 * MAX_SAMPLED + MAX_TERM_STEPS + 8_000;

// About 5 milliseconds: as long as a query may take while searches run.
const _: () = assert!(MAX_CALL_STEPS <= 160_000);

/// Maximum steps for looking up one term in one block of names. A prefix of very many words
/// needs more; for such a term it is cheaper to check every name.
const MAX_TERM_STEPS: usize = 8_192;

/// Maximum files with one name or SHA-256 that are ranked together. The files beyond it form
/// further groups, which follow this one.
const MAX_RANKED: usize = 16_384;

/// Limits of one page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageBounds {
    /// Steps after which the page ends, by default [`PAGE_STEPS`].
    pub(crate) steps: usize,
    /// Maximum steps per term and block, by default [`MAX_TERM_STEPS`].
    pub(crate) term_steps: usize,
    /// Maximum files ranked together, by default [`MAX_RANKED`].
    pub(crate) ranked: usize,
}

impl Default for PageBounds {
    fn default() -> Self {
        Self {
            steps: PAGE_STEPS,
            term_steps: MAX_TERM_STEPS,
            ranked: MAX_RANKED,
        }
    }
}

/// The results of a page so far.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) files: Vec<IndexedFile>,
    /// Estimated size of the files, in bytes.
    bytes: usize,
    pub(crate) max_files: usize,
    pub(crate) steps: usize,
    pub(crate) bounds: PageBounds,
}

impl Page {
    /// An empty page of at most `max_files` files.
    pub(crate) const fn new(max_files: usize, bounds: PageBounds) -> Self {
        Self {
            files: Vec::new(),
            bytes: 0,
            max_files,
            steps: 0,
            bounds,
        }
    }

    /// Adds a file.
    pub(crate) fn push(&mut self, file: IndexedFile) {
        self.bytes += encoded_size(&file);
        self.files.push(file);
    }

    /// Whether the page has reached a limit.
    pub(crate) fn is_full(&self) -> bool {
        self.files.len() >= self.max_files
            || self.bytes > PAGE_BYTES
            || self.steps >= self.bounds.steps
    }
}

/// Estimated size of a result in a response, in bytes; rather too large.
fn encoded_size(file: &IndexedFile) -> usize {
    let names: usize = file.names.iter().map(|name| name.len() + 4).sum();
    let providers: usize = file
        .providers
        .iter()
        .map(|provider| provider.address.host.len() + 56)
        .sum();
    160 + names + providers
}
