//! The state of the index compared with the announce set.

/// Maximum files per batch, well below the index's limit. A batch in memory, with its message,
/// takes about 500 bytes per file.
pub(crate) const MAX_BATCH: usize = 2_500;

/// The part of the announce set that the index has acknowledged.
#[derive(Debug)]
pub(crate) struct SyncState {
    /// Number of the last change that the index has acknowledged.
    pub(crate) acknowledged: u64,
    /// Whether the next batch replaces all registrations of this peer. Set only if the index is
    /// found to have registrations that this peer does not have; otherwise the index would rewrite
    /// unchanged data.
    pub(crate) must_replace: bool,
    /// Whether this pass has already replaced all registrations.
    pub(crate) has_replaced: bool,
    /// Whether this pass announces everything, from the first change on.
    pub(crate) is_full: bool,
    /// Maximum files in the next batch; smaller after a refusal.
    pub(crate) batch_size: usize,
    /// Number of files that the index refused individually.
    pub(crate) refused_files: usize,
    /// The number of files that the index should report; `None` if unknown.
    pub(crate) expected_files: Option<u64>,
}

impl SyncState {
    /// The index has nothing. With `replace`, the first batch replaces its registrations.
    pub(crate) const fn start(replace: bool) -> Self {
        Self {
            acknowledged: 0,
            must_replace: replace,
            has_replaced: replace,
            is_full: true,
            batch_size: MAX_BATCH,
            refused_files: 0,
            expected_files: None,
        }
    }
}
