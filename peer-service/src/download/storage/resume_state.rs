//! The resume state of a download: a small file next to the data that lists the verified units on
//! disk.
//!
//! Invariant: the state is written only after its data was flushed, and it is replaced atomically
//! (temporary file, flush, rename, flush of the folder). It can be behind the data but never ahead
//! of it. A damaged or foreign state is ignored, and the data is verified by hashing.
//!
//! Layout: the 8 bytes of [`MAGIC`], the file id, the size and the inode of the part (u64
//! little-endian each), the number of units (u32 little-endian), the bitfield of units, and the
//! SHA-256 of everything before it.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use potluck_core::{FileId, bitfield::Bitfield, files::open_own};
use sha2::{Digest as _, Sha256};

use crate::fs::durable;

/// First bytes of a state file; the digit is the version.
const MAGIC: &[u8; 8] = b"PLPART3\n";

/// First bytes of the second version: a collection had other units.
const OTHER_UNITS: &[u8; 8] = b"PLPART2\n";

/// First bytes of the first version, which had no inode either.
const WITHOUT_INODE: &[u8; 8] = b"PLPART1\n";

const HEADER: usize = MAGIC.len() + 32 + 2 * 8 + 4;
const CHECKSUM: usize = 32;

/// Maximum size of a state file, in bytes: the bitfield of the largest file, with a margin.
const MAX_STATE: u64 = (1 << 28) + 4096;

/// The content of a state file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResumeState {
    /// The id of the content.
    pub(crate) id: FileId,
    /// Total bytes.
    pub(crate) size: u64,
    /// Inode of the part file or folder. A copy, which may be truncated, has a different one. 0,
    /// which no file has, marks a state that must not be trusted.
    pub(crate) inode: u64,
    /// Units verified and flushed.
    pub(crate) have: Bitfield,
}

impl ResumeState {
    pub(crate) fn encode(&self) -> Vec<u8> {
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

    /// Decodes a state; `None` if the bytes are not what [`ResumeState::encode`] writes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, checksum) = bytes.split_last_chunk::<CHECKSUM>()?;
        if Sha256::digest(body).as_slice() != checksum {
            return None;
        }
        let (magic, rest) = body.split_first_chunk::<8>()?;
        let (id, rest) = rest.split_first_chunk::<32>()?;
        let (size, rest) = rest.split_first_chunk::<8>()?;
        let (inode, rest) = match magic {
            MAGIC => rest.split_first_chunk::<8>()?,
            OTHER_UNITS => (&[0; 8], rest.get(8..)?),
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

    /// Reads a state file; `Ok(None)` if it does not exist or is damaged.
    ///
    /// # Errors
    /// If the file exists and cannot be read; `InvalidInput` if it is not a regular file.
    pub(crate) fn load(path: &Path) -> io::Result<Option<Self>> {
        // Opened with care, because other users may write in the target's folder.
        let file = match open_own(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX_STATE).read_to_end(&mut bytes)?;
        Ok(Self::decode(&bytes))
    }

    /// Replaces the state file; it is on disk when this returns. Its data must have been flushed
    /// before.
    ///
    /// # Errors
    /// The file system's error; the old state then remains.
    pub(crate) fn store(&self, path: &Path) -> io::Result<()> {
        durable::write(path, &self.encode(), 0o600)
    }
}

/// The path with a suffix appended to its last component.
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
        fn any_damage_is_detected(at in 0usize..80, bit in 0u8..8, cut in 0usize..80) {
            let good = sample(50, &[1, 2, 30]).encode();
            let mut flipped = good.clone();
            let at = at % flipped.len();
            flipped[at] ^= 1 << bit;
            prop_assert_eq!(ResumeState::decode(&flipped), None);
            prop_assert_eq!(ResumeState::decode(&good[..cut.min(good.len() - 1)]), None);
        }
    }

    #[test]
    fn a_state_of_an_earlier_version_is_read_but_not_trusted() {
        for (magic, has_inode) in [(WITHOUT_INODE, false), (OTHER_UNITS, true)] {
            let state = sample(9, &[1, 2]);
            let mut bytes = state.encode();
            if !has_inode {
                bytes.drain(HEADER - 12..HEADER - 4);
            }
            bytes[..8].copy_from_slice(magic);
            let body = bytes.len() - CHECKSUM;
            let checksum = Sha256::digest(&bytes[..body]);
            bytes[body..].copy_from_slice(&checksum);
            assert_eq!(
                ResumeState::decode(&bytes),
                Some(ResumeState { inode: 0, ..state })
            );
        }
    }

    #[test]
    fn a_state_is_replaced_atomically() {
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
