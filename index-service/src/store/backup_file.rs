//! The format of backups: lines of JSON, which other programs can read, with a checksum. Pure but for
//! the reader and the writer that come in.
//!
//! | line | content |
//! |---|---|
//! | first | `potluck_backup`: the version of the format; `cluster_id` |
//! | others | a peer with up to [`MAX_FILES`] of its files; a large peer has several lines in a row |
//! | last | `peers`, `registrations`, and `sha256` of all bytes before this line |
//!
//! A file without its last line, or with another checksum, is refused as a whole.

use std::{
    io::{self, BufRead, Write},
    time::Duration,
};

use potluck_core::{
    FileId, PeerId, Root, Sha256,
    model::{Address, ClusterId, FileKind, FileRecord, Registration},
};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::store::{PeerRecord, StoredPeer};

/// The version of the format.
const VERSION: u32 = 1;

/// Maximum files in one line: about a megabyte.
const MAX_FILES: usize = 2_000;

/// Maximum length of a line, in bytes: the longest that is written has [`MAX_FILES`] files with 16
/// names of 255 bytes, each of which may be escaped.
const MAX_LINE: u64 = 64 * 1024 * 1024;

/// The reason why a backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The system returned an error.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is no backup, or of a later version.
    #[error("{0}")]
    Format(String),
}

#[derive(Serialize, Deserialize)]
struct Head {
    potluck_backup: u32,
    cluster_id: String,
}

#[derive(Serialize, Deserialize)]
struct PeerLine {
    peer: String,
    host: String,
    port: u16,
    ttl_ms: u64,
    files: Vec<FileLine>,
}

#[derive(Serialize, Deserialize)]
struct FileLine {
    size: u64,
    root: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    sha256: Option<String>,
    #[serde(skip_serializing_if = "is_false", default)]
    collection: bool,
    /// The root is not known: it is the SHA-256 instead.
    #[serde(skip_serializing_if = "is_false", default)]
    provisional: bool,
    #[serde(skip_serializing_if = "is_false", default)]
    partial: bool,
    names: Vec<String>,
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Totals {
    peers: u64,
    registrations: u64,
}

#[derive(Serialize, Deserialize)]
struct Tail {
    #[serde(flatten)]
    totals: Totals,
    sha256: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Writes a backup.
pub(crate) struct BackupWriter<W> {
    out: W,
    hash: sha2::Sha256,
    totals: Totals,
}

impl<W: Write> BackupWriter<W> {
    /// Begins a backup.
    pub(crate) fn new(out: W, cluster_id: ClusterId) -> io::Result<Self> {
        let mut writer = Self {
            out,
            hash: sha2::Sha256::new(),
            totals: Totals::default(),
        };
        writer.line(&Head {
            potluck_backup: VERSION,
            cluster_id: cluster_id.to_string(),
        })?;
        Ok(writer)
    }

    /// Adds a peer.
    pub(crate) fn add(&mut self, peer: &StoredPeer) -> io::Result<()> {
        self.totals.peers += 1;
        self.totals.registrations += peer.files.len() as u64;
        let mut pages = peer.files.chunks(MAX_FILES);
        // A peer without files has a line, too.
        let first = pages.next().unwrap_or_default();
        for files in std::iter::once(first).chain(pages) {
            self.line(&PeerLine {
                peer: peer.record.id.to_string(),
                host: peer.record.address.host.clone(),
                port: peer.record.address.port,
                ttl_ms: u64::try_from(peer.record.ttl.as_millis()).unwrap_or(u64::MAX),
                files: files.iter().map(FileLine::new).collect(),
            })?;
        }
        Ok(())
    }

    /// Ends the backup, and returns the number of peers and of registrations.
    pub(crate) fn finish(mut self) -> io::Result<(W, u64, u64)> {
        let sha256 = hex::encode(self.hash.clone().finalize());
        let totals = self.totals;
        self.line(&Tail { totals, sha256 })?;
        self.out.flush()?;
        Ok((self.out, totals.peers, totals.registrations))
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.hash.update(&bytes);
        self.out.write_all(&bytes)
    }
}

/// Reads a backup: passes each line's peer to `each`, and returns the number of peers and of
/// registrations. Peers count only if this succeeds.
///
/// # Errors
/// [`BackupError`].
pub(crate) fn read<E: From<BackupError>>(
    mut input: impl BufRead,
    mut each: impl FnMut(StoredPeer) -> Result<(), E>,
) -> Result<(u64, u64), E> {
    let bad = |why: &str| E::from(BackupError::Format(why.to_owned()));
    let mut hash = sha2::Sha256::new();
    let mut line = Vec::new();
    let head = next_line(&mut input, &mut line)?;
    let head: Head = parse(head).ok_or_else(|| bad("it is not a backup of an index"))?;
    if head.potluck_backup != VERSION {
        return Err(bad(
            "it was written by a later version of potluck: restore it with that one",
        ));
    }
    let mut totals = Totals::default();
    let mut last_peer = None;
    loop {
        hash.update(&line);
        let text = next_line(&mut input, &mut line)?;
        if let Some(tail) = parse::<Tail>(text) {
            let is_same = tail.totals == totals && tail.sha256 == hex::encode(hash.finalize());
            if !is_same || !next_line(&mut input, &mut line)?.is_empty() {
                return Err(bad("it is damaged: its checksum does not match"));
            }
            return Ok((totals.peers, totals.registrations));
        }
        let peer = parse::<PeerLine>(text).and_then(PeerLine::into_peer);
        let peer = peer.ok_or_else(|| bad("it is damaged or incomplete"))?;
        totals.registrations += peer.files.len() as u64;
        if last_peer != Some(peer.record.id) {
            totals.peers += 1;
        }
        last_peer = Some(peer.record.id);
        each(peer)?;
    }
}

/// Reads a line with its end into `line`; empty at the end of the file.
fn next_line<'a>(input: &mut impl BufRead, line: &'a mut Vec<u8>) -> Result<&'a [u8], BackupError> {
    line.clear();
    io::Read::take(input, MAX_LINE).read_until(b'\n', line)?;
    Ok(line)
}

fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Option<T> {
    serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
}

impl FileLine {
    fn new(file: &Registration) -> Self {
        Self {
            size: file.file.size,
            root: file.file.root.to_string(),
            sha256: file.file.sha256.map(|sha256| sha256.to_string()),
            collection: file.file.kind == FileKind::Collection,
            provisional: file.file.is_provisional(),
            partial: !file.is_complete,
            names: file.names.clone(),
        }
    }

    fn into_registration(self) -> Option<Registration> {
        let root: Root = self.root.parse().ok()?;
        let sha256 = match self.sha256 {
            Some(sha256) => Some(sha256.parse::<Sha256>().ok()?),
            None => None,
        };
        let kind = match (self.provisional, self.collection) {
            (true, _) => FileKind::Provisional,
            (false, true) => FileKind::Collection,
            (false, false) => FileKind::File,
        };
        let id = match self.provisional {
            true => FileId::provisional(self.size, &Sha256(root.0)),
            false => FileId::derive(self.size, &root),
        };
        let file = FileRecord {
            id,
            size: self.size,
            root,
            sha256,
            kind,
        };
        Some(Registration {
            file,
            names: self.names,
            is_complete: !self.partial,
        })
    }
}

impl PeerLine {
    fn into_peer(self) -> Option<StoredPeer> {
        let files = self.files.into_iter().map(FileLine::into_registration);
        Some(StoredPeer {
            record: PeerRecord {
                id: self.peer.parse::<PeerId>().ok()?,
                address: Address {
                    host: self.host,
                    port: self.port,
                },
                ttl: Duration::from_millis(self.ttl_ms),
            },
            files: files.collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{peer, registration};

    fn backup(peers: &[StoredPeer]) -> Vec<u8> {
        let mut writer = BackupWriter::new(Vec::new(), ClusterId::generate()).unwrap();
        peers.iter().for_each(|peer| writer.add(peer).unwrap());
        writer.finish().unwrap().0
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<StoredPeer>, BackupError> {
        let mut peers: Vec<StoredPeer> = Vec::new();
        read(bytes, |peer| {
            match peers.last_mut() {
                Some(last) if last.record == peer.record => last.files.extend(peer.files),
                _ => peers.push(peer),
            }
            Ok::<_, BackupError>(())
        })?;
        Ok(peers)
    }

    fn peers() -> Vec<StoredPeer> {
        let with = |n, files: u64| StoredPeer {
            record: peer(n),
            files: (0..files).map(|n| registration(n, "näme \"x\"")).collect(),
        };
        vec![with(1, 0), with(2, 3), with(3, 2 * MAX_FILES as u64 + 1)]
    }

    #[test]
    fn a_backup_round_trips() {
        assert_eq!(read_all(&backup(&peers())).unwrap(), peers());
        assert_eq!(read_all(&backup(&[])).unwrap(), []);
    }

    #[test]
    fn a_backup_with_any_damage_is_refused() {
        let whole = backup(&peers()[..2]);
        for end in 0..whole.len() {
            assert!(read_all(&whole[..end]).is_err(), "cut at {end}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(read_all(&damaged).is_err(), "changed at {at}");
        }
        let mut longer = whole;
        longer.push(b'x');
        assert!(read_all(&longer).is_err());
    }
}
