//! Estimates of memory use, in bytes and rather too high, for the memory quota.

use potluck_core::model::Registration;

use crate::catalog::tables::words;

/// A peer: its entry, its slot and the set of its files.
pub(crate) const PEER: u64 = 256;

/// A registration of one file by one peer.
pub(crate) const REGISTRATION: u64 = 24;

/// A file: its entry and its slot.
pub(crate) const FILE: u64 = 192;

/// A claim, shared by one or more registrations.
pub(crate) const CLAIM_COST: u64 = 112;

/// A file in the index by SHA-256.
pub(crate) const SHA256_COST: u64 = 96;

/// A file in the list of a name.
pub(crate) const NAME_OF_FILE: u64 = 24;

/// A name in the posting list of a word.
pub(crate) const POSTING: u64 = 8;

/// A name.
pub(crate) fn name(text: &str) -> u64 {
    96 + text.len() as u64
}

/// A word.
pub(crate) fn word(text: &str) -> u64 {
    96 + text.len() as u64
}

/// Maximum memory that a registration of a known peer can add.
pub(crate) fn max_cost(registration: &Registration) -> u64 {
    let names: u64 = registration
        .names
        .iter()
        .map(|text| {
            let mut bytes = name(text) + NAME_OF_FILE;
            words::each_word(text, |text| bytes += word(text) + POSTING);
            bytes
        })
        .sum();
    REGISTRATION + FILE + CLAIM_COST + SHA256_COST + names
}
