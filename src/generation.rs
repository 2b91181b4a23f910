//! The number of the last acknowledged change of a store, in a file next to it.
//!
//! A store that loses its end, or is replaced by an older copy of itself, is consistent: nothing in
//! it shows that later changes are missing. So each change has a number, the store contains its
//! last one, and this file contains the last one that was acknowledged. A store whose number is
//! lower has lost changes.
//!
//! The file is written after the store was synced and is not synced itself, so it costs one write
//! into the page cache. After a power failure it may be older than the store, which is no error; it
//! is never newer.
//!
//! Non-goal: an older copy of the store together with this file, such as a backup of the whole
//! folder.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};

use crate::durable;

/// Digits of the number: those of the largest one.
const DIGITS: usize = 20;

/// Hex digits of the checksum.
const CHECKSUM: usize = 16;

/// Length of the file: the number, a space, the checksum, a line feed.
const LEN: usize = DIGITS + 1 + CHECKSUM + 1;

/// The file with the number of the last acknowledged change.
#[derive(Debug)]
pub struct GenerationFile {
    file: File,
    acknowledged: Option<u64>,
}

impl GenerationFile {
    /// Opens the file, which is created if it is missing. A damaged file counts as a new one: it
    /// says nothing about the store.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let is_new = !path.try_exists()?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let mut bytes = Vec::with_capacity(LEN);
        (&mut file).take(LEN as u64 + 1).read_to_end(&mut bytes)?;
        let acknowledged = decode(&bytes);
        if acknowledged.is_none() {
            file.set_len(0)?;
        }
        if is_new && let Some(folder) = path.parent() {
            durable::sync_folder(folder)?;
        }
        Ok(Self { file, acknowledged })
    }

    /// Reads the number without creating the file; `None` if the file is missing or damaged.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn read(path: &Path) -> io::Result<Option<u64>> {
        match File::open(path) {
            Ok(file) => {
                let mut bytes = Vec::with_capacity(LEN);
                file.take(LEN as u64 + 1).read_to_end(&mut bytes)?;
                Ok(decode(&bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The number of the last change that is known to be acknowledged; `None` if there was none, or
    /// the file was missing or damaged.
    pub const fn acknowledged(&self) -> Option<u64> {
        self.acknowledged
    }

    /// Records that this change is durable. A failure only weakens the check at the next start, so
    /// the change may be acknowledged all the same.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn record(&mut self, generation: u64) -> io::Result<()> {
        self.file.write_all_at(&encode(generation), 0)?;
        self.acknowledged = Some(generation);
        Ok(())
    }
}

fn encode(generation: u64) -> Vec<u8> {
    let number = format!("{generation:0DIGITS$}");
    format!("{number} {}\n", checksum(&number)).into_bytes()
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (number, sum) = text.strip_suffix('\n')?.split_once(' ')?;
    let is_valid = number.len() == DIGITS && sum == checksum(number);
    number.parse().ok().filter(|_| is_valid)
}

fn checksum(number: &str) -> String {
    let mut sum = hex::encode(Sha256::digest(number));
    sum.truncate(CHECKSUM);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("generation");
        assert_eq!(GenerationFile::read(&path).unwrap(), None);
        for generation in [0, 7, u64::MAX, 8] {
            let mut file = GenerationFile::open(&path).unwrap();
            file.record(generation).unwrap();
            assert_eq!(
                GenerationFile::open(&path).unwrap().acknowledged(),
                Some(generation)
            );
            assert_eq!(GenerationFile::read(&path).unwrap(), Some(generation));
        }
    }

    #[test]
    fn a_damaged_file_says_nothing_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("generation");
        let whole = encode(1234);
        assert_eq!((whole.len(), decode(&whole)), (LEN, Some(1234)));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(GenerationFile::open(&path).unwrap().acknowledged(), None, "{at}");
            std::fs::write(&path, [&whole[..=at], &whole].concat()).unwrap();
            let mut file = GenerationFile::open(&path).unwrap();
            assert_eq!(file.acknowledged(), None, "{at}");
            file.record(5).unwrap();
            assert_eq!(GenerationFile::read(&path).unwrap(), Some(5));
        }
    }
}
