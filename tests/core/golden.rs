//! Compares roots and ids of generated files with those from libtorrent. tests/vectors/make.py
//! describes the content.

use std::{fs::File, io, io::Write as _};

use potluck_core::{FileId, Root, identity::hash};
use sha2::Digest as _;

/// Length of a content block: a prime, so that no two leaves begin with the same bytes.
const BLOCK: usize = 16_381;

/// Generated content with random access.
struct Content {
    /// The bytes after the number in every block.
    tail: Vec<u8>,
}

impl Content {
    fn new() -> Self {
        let mut tail: Vec<u8> = (0..=BLOCK as u64 / 32)
            .flat_map(|i| sha2::Sha256::digest(i.to_le_bytes()))
            .collect();
        tail.truncate(BLOCK - 8);
        Self { tail }
    }

    /// Fills the buffer with content from `offset`.
    fn read(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            let (block, at) = (offset / BLOCK as u64, offset as usize % BLOCK);
            let number = block.to_le_bytes();
            let source = if at < 8 {
                &number[at..]
            } else {
                &self.tail[at - 8..]
            };
            let len = source.len().min(buffer.len());
            buffer[..len].copy_from_slice(&source[..len]);
            buffer = &mut buffer[len..];
            offset += len as u64;
        }
        Ok(())
    }
}

struct Vector {
    size: u64,
    root: Root,
    id: FileId,
}

fn vectors() -> Vec<Vector> {
    let json: serde_json::Value =
        serde_json::from_str(include_str!("../vectors/roots.json")).unwrap();
    let vectors = json["vectors"].as_array().unwrap();
    vectors
        .iter()
        .map(|vector| Vector {
            size: vector["size"].as_u64().unwrap(),
            root: vector["root"].as_str().unwrap().parse().unwrap(),
            id: vector["id"].as_str().unwrap().parse().unwrap(),
        })
        .collect()
}

#[test]
fn there_are_vectors_around_every_boundary() {
    let sizes: Vec<u64> = vectors().iter().map(|vector| vector.size).collect();
    for size in [
        0,
        1,
        16_383,
        16_384,
        16_385,
        262_143,
        262_144,
        262_145,
        3_221_237_817,
    ] {
        assert!(sizes.contains(&size), "{size}");
    }
}

/// Hashes in memory, and from disk with one and several threads.
#[test]
fn roots_and_ids_equal_those_of_libtorrent() {
    let content = Content::new();
    for vector in vectors().into_iter().filter(|vector| vector.size < 8 << 20) {
        let mut bytes = vec![0; vector.size as usize];
        content.read(&mut bytes, 0).unwrap();
        let mut file: File = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let from_file =
            |threads| hash::hash_file(&file, vector.size, threads, &hash::ignore_progress).unwrap();
        for tree in [hash::hash_bytes(&bytes), from_file(1), from_file(3)] {
            assert_eq!(
                (tree.root, tree.id()),
                (vector.root, vector.id),
                "{} bytes",
                vector.size
            );
        }
    }
}

/// Sizes up to several GiB, generated on the fly without disk usage.
#[test]
fn roots_and_ids_of_large_files_equal_those_of_libtorrent() {
    let content = Content::new();
    for vector in vectors().into_iter().filter(|vector| vector.size >= 8 << 20) {
        let tree = hash::hash_with(vector.size, 2, &|buffer, offset| content.read(buffer, offset))
            .unwrap();
        assert_eq!(
            (tree.root, tree.id()),
            (vector.root, vector.id),
            "{} bytes",
            vector.size
        );
    }
}
