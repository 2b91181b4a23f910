//! Limits of collections and their units. All peers must agree on them (docs/protocol.md).

/// Maximum manifest size in bytes, which a peer holds in memory to read it. Enough for about
/// 700,000 files with paths of usual length.
pub const MAX_MANIFEST_SIZE: u64 = 64 * 1024 * 1024;

/// Maximum entries, regardless of their size. Limits the memory for reading a manifest.
pub const MAX_ENTRIES: usize = 1 << 20;

/// Maximum distinct folders, including implied ones: a quarter of [`MAX_ENTRIES`]. Source trees
/// have about five files per folder.
pub const MAX_FOLDERS: usize = 1 << 18;

/// Number of folders that any manifest may have, regardless of its entries.
pub const FREE_FOLDERS: usize = 4096;

/// Additional folders per entry, beyond [`FREE_FOLDERS`]. A path may imply 255 folders, so that a
/// small manifest could create a hundred thousand; in real trees a single file in a deep package
/// needs about ten.
pub const FOLDERS_PER_ENTRY: usize = 16;

/// Maximum files in a bundle. Each is a span of about 45 bytes in the request, and a request has
/// at most 4,096 spans.
pub const BUNDLE_FILES: usize = 1024;

/// Maximum units of a transfer: one bit per unit is a bitfield of 512 KiB per peer, which fits a
/// message. Files of any valid size have fewer pieces; a manifest that could have more units is
/// rejected.
pub const MAX_UNITS: u32 = 1 << 22;
