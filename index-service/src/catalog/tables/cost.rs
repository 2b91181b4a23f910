//! Estimates of memory use, in bytes and rather too high, for the memory quota.

use potluck_core::model::Registration;

use crate::catalog::tables::words;

/// A peer: its entry, its slot and the set of its files.
pub(crate) const PEER: u64 = 256;

/// A registration of one file by one peer. The second one of a file also makes the lists of its
/// providers and claims.
pub(crate) const REGISTRATION: u64 = 32;

/// A file: its entry, its slot, and the lists above.
pub(crate) const FILE: u64 = 128;

/// A claim that is not plain, shared by one or more registrations.
pub(crate) const CLAIM_COST: u64 = 64;

/// A file in the index by SHA-256.
pub(crate) const SHA256_COST: u64 = 80;

/// A file in the list of a name.
pub(crate) const NAME_OF_FILE: u64 = 24;

/// A name in the posting list of a word, or a word that stays in one name.
const POSTING: u64 = 24;

/// Whether a byte is a part of a word, or of a character that may be.
const IS_IN_WORD: [bool; 256] = {
    let mut table = [true; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte as usize] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    table
};

/// A name, including its places in posting lists. The number of its words is estimated, because
/// this is computed often.
pub(crate) fn name(text: &str) -> u64 {
    let (mut words, mut was_in_word) = (0, false);
    for byte in text.bytes() {
        let is_in_word = IS_IN_WORD[usize::from(byte)];
        words += u64::from(is_in_word && !was_in_word);
        was_in_word = is_in_word;
    }
    40 + text.len() as u64 + words * POSTING
}

/// A word. Nobody is charged for it.
pub(crate) fn word(text: &str) -> u64 {
    64 + text.len() as u64
}

/// Maximum memory that a registration of a known peer can add.
pub(crate) fn max_cost(registration: &Registration) -> u64 {
    let names: u64 = registration
        .names
        .iter()
        .map(|text| {
            let mut bytes = name(text) + NAME_OF_FILE;
            words::each_word(text, |new| bytes += word(new.text));
            bytes
        })
        .sum();
    REGISTRATION + FILE + CLAIM_COST + SHA256_COST + names
}
