//! Manifests in the cache: a line with the type, then the bytes, in a file named by the digest.
//!
//! Invariant: a manifest that is returned has the digest.

use potluck_core::Sha256;
use potluck_peer::cache::{Cache, NewEntry};
use sha2::Digest as _;

/// Largest manifest, in bytes: what registries accept.
pub(crate) const MAX_MANIFEST: usize = 4 << 20;

/// Largest file: a manifest and its type.
const MAX_FILE: u64 = MAX_MANIFEST as u64 + 1024;

/// The manifests that were fetched.
#[derive(Debug, Clone)]
pub(crate) struct Manifests {
    cache: Cache,
}

/// A manifest and its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) content_type: String,
    pub(crate) bytes: Vec<u8>,
}

impl Manifest {
    /// Its digest.
    pub(crate) fn digest(&self) -> Sha256 {
        Sha256(sha2::Sha256::digest(&self.bytes).into())
    }
}

impl Manifests {
    /// The manifests of this cache.
    pub(crate) const fn new(cache: Cache) -> Self {
        Self { cache }
    }

    /// The manifest with this digest, if it is here.
    pub(crate) async fn get(&self, digest: Sha256) -> Option<Manifest> {
        let file = self.cache.read_small(&name(digest), MAX_FILE).await?;
        let end = file.iter().position(|&byte| byte == b'\n')?;
        let manifest = Manifest {
            content_type: String::from_utf8(file[..end].to_vec()).ok()?,
            bytes: file[end + 1..].to_vec(),
        };
        (manifest.digest() == digest).then_some(manifest)
    }

    /// Keeps a manifest. Without room for it, it is fetched again the next time.
    pub(crate) async fn put(&self, manifest: &Manifest) {
        let digest = manifest.digest();
        let file = [manifest.content_type.as_bytes(), b"\n", &manifest.bytes].concat();
        let entry = NewEntry {
            name: name(digest),
            label: format!("manifest sha256:{digest}"),
            bytes: file.len() as u64,
            sha256: None,
        };
        let _ = self.cache.put_small(entry, file).await;
    }
}

fn name(digest: Sha256) -> String {
    format!("manifest-{digest}")
}
