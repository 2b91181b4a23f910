//! What peers register with an index: tokens, file records and registrations, each from a number.

use potluck_core::{
    FileId, Root, Sha256, Token,
    model::{Address, FileKind, FileRecord, Registration},
};

/// The token of peer `n`.
pub fn token(n: u8) -> Token {
    Token::try_from([n; 32].as_slice()).unwrap()
}

/// The address of the caller itself, on this port: the index fills in the host.
pub const fn own_address(port: u16) -> Address {
    Address {
        host: String::new(),
        port,
    }
}

/// The record of file `n`, of `n + 1` bytes.
pub fn record(n: u64) -> FileRecord {
    let mut root = [3; 32];
    root[..8].copy_from_slice(&n.to_le_bytes());
    let root = Root(root);
    FileRecord {
        id: FileId::derive(n + 1, &root),
        size: n + 1,
        root,
        sha256: None,
        kind: FileKind::File,
    }
}

/// File `n`, complete, under one name.
pub fn registration(n: u64, name: &str) -> Registration {
    Registration {
        file: record(n),
        names: vec![name.to_owned()],
        is_complete: true,
    }
}

/// File `n` with a SHA-256 that consists of the byte `sum`.
pub fn with_sha256(n: u64, name: &str, sum: u8) -> Registration {
    let mut registration = registration(n, name);
    registration.file.sha256 = Some(Sha256([sum; 32]));
    registration
}
