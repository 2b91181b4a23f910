//! Files, folders and manifests with content that a seed determines.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use potluck_core::{
    FileId,
    collection::{
        manifest::{EntryContent, Manifest, ManifestEntry},
        path::RelPath,
    },
    identity::hash::hash_bytes,
};

/// One mebibyte, in bytes.
pub const MIB: usize = 1 << 20;

/// Pseudo-random bytes, determined by the seed (xorshift64*).
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Writes a file, with its folders; returns its path.
pub fn write_file(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path
}

/// Creates a file of this size without disk usage: slow to hash, and all zeros.
pub fn sparse_file(path: &Path, len: u64) {
    File::create(path).unwrap().set_len(len).unwrap();
}

/// The id of a file with this content.
pub fn id_of(content: &[u8]) -> FileId {
    hash_bytes(content).id()
}

/// The manifest of a folder of plain files, each given by path, id and size.
pub fn manifest<'a>(files: impl IntoIterator<Item = (&'a str, FileId, u64)>) -> Manifest {
    let entries = files.into_iter().map(|(path, id, size)| ManifestEntry {
        path: RelPath::parse(path).unwrap(),
        content: EntryContent::File {
            id,
            size,
            executable: false,
        },
    });
    Manifest::new(entries).unwrap()
}
