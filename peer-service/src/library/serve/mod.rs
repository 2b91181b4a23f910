//! Serves shared files to uploads: finds their copies, opens them, and verifies piece hashes.

pub(crate) mod content;
pub(crate) mod copies;
