//! The resume state of a transfer: which units are verified and on disk, in a small file beside the data.
//!
//! Invariant: the state is written only after the data it speaks of was flushed, and replaced whole (temporary file, flush,
//! rename, flush of the folder), so that it can be behind the data but never ahead of it. A damaged or foreign state is no state: the data is then
//! verified by hashing it.
//!
//! Layout: the 8 bytes of [`MAGIC`], the file id, the size and the inode of the part (u64 little-endian each), the number of units (u32
//! little-endian), the bitfield of units, and SHA-256 over all before it.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use potluck_core::{FileId, bitfield::Bitfield, files::open_own};
use sha2::{Digest as _, Sha256};

use crate::durable;

/// First bytes of a state file; the digit is the version.
const MAGIC: &[u8; 8] = b"PLPART2\n";

/// Of the version before, which had no inode.
const WITHOUT_INODE: &[u8; 8] = b"PLPART1\n";

const HEADER: usize = MAGIC.len() + 32 + 2 * 8 + 4;
const CHECKSUM: usize = 32;

/// Largest state file read, in bytes: the bitfield of the largest file, with room.
const MAX_STATE: u64 = (1 << 28) + 4096;

/// What a state file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResumeState {
    /// What is being fetched.
    pub(crate) id: FileId,
    /// Bytes in all.
    pub(crate) size: u64,
    /// Number of the part's file or folder: a copy of it has another, and may be cut short. 0, which none has: what is there is not to be
    /// believed.
    pub(crate) inode: u64,
    /// Units verified and flushed.
    pub(crate) have: Bitfield,
}

impl ResumeState {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.have.as_bytes().len() + CHECKSUM);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.inode.to_le_bytes());
        bytes.extend_from_slice(&self.have.len().to_le_bytes());
        bytes.extend_from_slice(self.have.as_bytes());
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    /// `None` where the bytes are not exactly what [`ResumeState::encode`] writes.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, checksum) = bytes.split_last_chunk::<CHECKSUM>()?;
        if Sha256::digest(body).as_slice() != checksum {
            return None;
        }
        let (magic, rest) = body.split_first_chunk::<8>()?;
        let (id, rest) = rest.split_first_chunk::<32>()?;
        let (size, rest) = rest.split_first_chunk::<8>()?;
        let (inode, rest) = match magic {
            MAGIC => rest.split_first_chunk::<8>()?,
            WITHOUT_INODE => (&[0; 8], rest),
            _ => return None,
        };
        let (units, bitfield) = rest.split_first_chunk::<4>()?;
        let have = Bitfield::from_bytes(u32::from_le_bytes(*units), bitfield)?;
        Some(Self {
            id: FileId(*id),
            size: u64::from_le_bytes(*size),
            inode: u64::from_le_bytes(*inode),
            have,
        })
    }

    /// Reads a state file; `Ok(None)` where there is none or it is damaged.
    ///
    /// # Errors
    /// Where it is there and cannot be read; `InvalidInput` where it is no file.
    pub(crate) fn load(path: &Path) -> io::Result<Option<Self>> {
        // Others may write in the target's folder.
        let file = match open_own(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX_STATE).read_to_end(&mut bytes)?;
        Ok(Self::decode(&bytes))
    }

    /// Replaces the state file; on the disk when this returns. The data it speaks of must have been
    /// flushed before.
    ///
    /// # Errors
    /// Whatever the file system says; the old state then still stands.
    pub(crate) fn store(&self, path: &Path) -> io::Result<()> {
        durable::write(path, &self.encode(), 0o600)
    }
}

/// The path with something appended to its last component.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn sample(units: u32, set: &[u32]) -> ResumeState {
        let mut have = Bitfield::new(units);
        for &unit in set {
            have.set(unit, true);
        }
        ResumeState {
            id: FileId([7; 32]),
            size: 123_456,
            inode: 7,
            have,
        }
    }

    proptest! {
        #[test]
        fn round_trips(units in 0u32..2000, set in proptest::collection::vec(0u32..2000, 0..50)) {
            let state = sample(units, &set);
            prop_assert_eq!(ResumeState::decode(&state.encode()), Some(state));
        }

        #[test]
        fn any_damage_is_noticed(at in 0usize..80, bit in 0u8..8, cut in 0usize..80) {
            let good = sample(50, &[1, 2, 30]).encode();
            let mut flipped = good.clone();
            let at = at % flipped.len();
            flipped[at] ^= 1 << bit;
            prop_assert_eq!(ResumeState::decode(&flipped), None);
            prop_assert_eq!(ResumeState::decode(&good[..cut.min(good.len() - 1)]), None);
        }
    }

    #[test]
    fn a_state_of_the_version_before_is_read_and_not_believed() {
        let state = sample(9, &[1, 2]);
        let mut bytes = state.encode();
        bytes.drain(HEADER - 12..HEADER - 4);
        bytes[..8].copy_from_slice(WITHOUT_INODE);
        let body = bytes.len() - CHECKSUM;
        let checksum = Sha256::digest(&bytes[..body]);
        bytes[body..].copy_from_slice(&checksum);
        assert_eq!(
            ResumeState::decode(&bytes),
            Some(ResumeState { inode: 0, ..state })
        );
    }

    #[test]
    fn is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.part.state");
        assert_eq!(ResumeState::load(&path).unwrap(), None);
        for set in [&[1][..], &[1, 2]] {
            let state = sample(9, set);
            state.store(&path).unwrap();
            assert_eq!(ResumeState::load(&path).unwrap(), Some(state));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::write(&path, "nonsense").unwrap();
        assert_eq!(ResumeState::load(&path).unwrap(), None);
    }
}
