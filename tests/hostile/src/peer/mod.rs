//! Attacks of a peer on those that download from it.
//!
//! A [`HostilePeer`] registers with an index as a provider of a file, like any peer, and answers in
//! one hostile way.

mod answers;
mod listener;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use potluck_core::{
    PeerId,
    identity::{hash::hash_bytes, merkle::FileTree},
    model::{FileKind, FileRecord, Registration},
    network::tls::TlsContext,
};
use tokio::{net::TcpListener, task::JoinSet};

use crate::membership::{Attacker, AttackingPeer};

/// How a peer answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conduct {
    // Bytes of the file.
    FlipsBits,
    WrongOffset,
    WrongSpan,
    OverlappingChunks,
    MissingChunk,
    ReversedChunks,
    TooManyBytes,
    EndlessStream,
    EmptyChunks,
    OneByteChunks,
    ShortAnswer,
    // Messages.
    LyingLength,
    CompressedFlag,
    GarbageMessages,
    // Metadata.
    LyingSize,
    OtherFile,
    HugeName,
    OtherHashes,
    EndlessHashes,
    FewHashes,
    // Availability.
    AvailabilityFlood,
    SnapshotFlood,
    UnitsOutOfRange,
    WrongUnitCount,
    ShortBitfield,
    ClaimsAndRefuses,
    // Time.
    SilentStream,
    SilentCalls,
    ByteASecond,
    ResetAfterChunk,
    HangUpAfterChunk,
    // HTTP/2.
    PingFlood,
    SettingsFlood,
    EndlessHeaders,
    WindowOverflow,
    // Not a peer.
    WebServer,
    SshServer,
    BlackHole,
    ClosesAtOnce,
    OtherCertificate,
}

impl Conduct {
    /// The call that the peer answers in a hostile way; `None` for all of them.
    fn call(self) -> Option<&'static str> {
        match self {
            Self::LyingSize | Self::OtherFile | Self::HugeName => Some("Describe"),
            Self::OtherHashes | Self::EndlessHashes | Self::FewHashes => Some("GetPieceHashes"),
            Self::AvailabilityFlood
            | Self::SnapshotFlood
            | Self::UnitsOutOfRange
            | Self::WrongUnitCount
            | Self::ShortBitfield => Some("WatchAvailability"),
            Self::GarbageMessages | Self::SilentCalls => None,
            _ => Some("Download"),
        }
    }
}

/// What becomes of the peer in the download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is banned, for a reason that contains this text.
    Banned(&'static str),
    /// It is not used, or used less, and not banned: a fault of the network looks the same. The
    /// reason contains this text.
    NotBanned(&'static str),
}

/// An attack of a peer.
#[derive(Debug)]
pub struct PeerAttack {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub description: &'static str,
    conduct: Conduct,
    /// What becomes of it.
    pub outcome: Outcome,
}

impl PeerAttack {
    /// Whether a downloader must be told the address, because the index knows nothing of the peer:
    /// it asks a provider to describe a file only if the index does not.
    pub fn is_named(&self) -> bool {
        self.conduct.call() == Some("Describe")
    }

    /// Whether the attack needs TLS.
    pub fn needs_tls(&self) -> bool {
        self.conduct == Conduct::OtherCertificate
    }
}

const fn attack(
    name: &'static str,
    description: &'static str,
    conduct: Conduct,
    outcome: Outcome,
) -> PeerAttack {
    PeerAttack {
        name,
        description,
        conduct,
        outcome,
    }
}

use Outcome::{Banned, NotBanned};

/// All attacks.
pub const ATTACKS: &[PeerAttack] = &[
    attack(
        "wrong-bytes",
        "flips a bit of each unit",
        Conduct::FlipsBits,
        Banned("failed verification"),
    ),
    attack(
        "wrong-offset",
        "sends chunks with other offsets",
        Conduct::WrongOffset,
        Banned("out of order"),
    ),
    attack(
        "wrong-span",
        "sends chunks of spans that were not requested",
        Conduct::WrongSpan,
        Banned("out of order"),
    ),
    attack(
        "overlapping-chunks",
        "sends each chunk twice",
        Conduct::OverlappingChunks,
        Banned("out of order"),
    ),
    attack(
        "missing-chunk",
        "leaves out a chunk",
        Conduct::MissingChunk,
        Banned("out of order"),
    ),
    attack(
        "reversed-chunks",
        "sends the chunks in reverse order",
        Conduct::ReversedChunks,
        Banned("out of order"),
    ),
    attack(
        "too-many-bytes",
        "sends a chunk more than was requested",
        Conduct::TooManyBytes,
        Banned("more data"),
    ),
    attack(
        "endless-stream",
        "sends the last chunk without end",
        Conduct::EndlessStream,
        Banned("more data"),
    ),
    attack(
        "empty-chunks",
        "sends chunks without bytes, without end",
        Conduct::EmptyChunks,
        Banned("empty chunk"),
    ),
    attack(
        "one-byte-chunks",
        "sends each byte as a chunk of its own",
        Conduct::OneByteChunks,
        NotBanned(""),
    ),
    attack(
        "short-answer",
        "ends each stream regularly after half of the bytes",
        Conduct::ShortAnswer,
        NotBanned("ended the stream"),
    ),
    attack(
        "lying-length",
        "announces a message of 4 GiB",
        Conduct::LyingLength,
        NotBanned("too long"),
    ),
    attack(
        "compressed-message",
        "sets the flag of a compressed message",
        Conduct::CompressedFlag,
        NotBanned("compressed"),
    ),
    attack(
        "garbage-messages",
        "answers every call with random bytes",
        Conduct::GarbageMessages,
        NotBanned(""),
    ),
    attack(
        "lying-size",
        "describes the file with another size",
        Conduct::LyingSize,
        Banned("invalid description"),
    ),
    attack(
        "other-file",
        "describes another file than the requested one",
        Conduct::OtherFile,
        Banned("described another file"),
    ),
    attack(
        "huge-name",
        "describes the file with a name of 3 MiB",
        Conduct::HugeName,
        NotBanned(""),
    ),
    attack(
        "other-hashes",
        "sends piece hashes that do not fold into the root",
        Conduct::OtherHashes,
        Banned("do not belong"),
    ),
    attack(
        "endless-hashes",
        "sends piece hashes without end",
        Conduct::EndlessHashes,
        Banned("more piece hashes"),
    ),
    attack(
        "few-hashes",
        "sends fewer piece hashes than the file has",
        Conduct::FewHashes,
        Banned("fewer piece hashes"),
    ),
    attack(
        "availability-flood",
        "sends changes of its availability without pause",
        Conduct::AvailabilityFlood,
        NotBanned(""),
    ),
    attack(
        "snapshot-flood",
        "sends snapshots of its availability without pause",
        Conduct::SnapshotFlood,
        NotBanned(""),
    ),
    attack(
        "units-out-of-range",
        "has units that the file does not have, 500,000 in one message",
        Conduct::UnitsOutOfRange,
        Banned("more units than there are"),
    ),
    attack(
        "wrong-unit-count",
        "counts four billion units",
        Conduct::WrongUnitCount,
        NotBanned("units"),
    ),
    attack(
        "short-bitfield",
        "sends a bitfield that is too short",
        Conduct::ShortBitfield,
        Banned("bitfield of the wrong length"),
    ),
    attack(
        "claims-and-refuses",
        "claims all units and serves none",
        Conduct::ClaimsAndRefuses,
        NotBanned(""),
    ),
    attack(
        "silent-stream",
        "sends headers and nothing more",
        Conduct::SilentStream,
        NotBanned(""),
    ),
    attack(
        "silent-calls",
        "answers no call",
        Conduct::SilentCalls,
        NotBanned(""),
    ),
    attack(
        "byte-a-second",
        "sends a byte a second",
        Conduct::ByteASecond,
        NotBanned(""),
    ),
    attack(
        "reset-after-chunk",
        "resets each stream after a chunk",
        Conduct::ResetAfterChunk,
        NotBanned(""),
    ),
    attack(
        "hang-up-after-chunk",
        "closes the connection after a chunk",
        Conduct::HangUpAfterChunk,
        NotBanned(""),
    ),
    attack(
        "ping-flood",
        "sends PINGs without pause and reads no answer",
        Conduct::PingFlood,
        NotBanned(""),
    ),
    attack(
        "settings-flood",
        "sends SETTINGS without pause and reads no acknowledgement",
        Conduct::SettingsFlood,
        NotBanned(""),
    ),
    attack(
        "endless-headers",
        "answers with headers that never end",
        Conduct::EndlessHeaders,
        NotBanned(""),
    ),
    attack(
        "window-overflow",
        "opens windows beyond 2^31 - 1",
        Conduct::WindowOverflow,
        NotBanned(""),
    ),
    attack(
        "web-server",
        "a registered address where an HTTP/1 server answers",
        Conduct::WebServer,
        NotBanned(""),
    ),
    attack(
        "ssh-server",
        "a registered address where an SSH server greets",
        Conduct::SshServer,
        NotBanned(""),
    ),
    attack(
        "black-hole",
        "a registered address that accepts connections and reads nothing",
        Conduct::BlackHole,
        NotBanned(""),
    ),
    attack(
        "closes-at-once",
        "a registered address that closes every connection",
        Conduct::ClosesAtOnce,
        NotBanned(""),
    ),
    attack(
        "other-certificate",
        "a member's peer with the certificate of another peer",
        Conduct::OtherCertificate,
        NotBanned("certificate"),
    ),
];

/// What a hostile peer knows.
#[derive(Debug)]
struct Shared {
    conduct: Conduct,
    id: PeerId,
    data: Bytes,
    tree: FileTree,
    tls: Option<TlsContext>,
    /// Hostile answers so far.
    attacks: AtomicU64,
}

impl Shared {
    fn count_attack(&self) {
        self.attacks.fetch_add(1, Ordering::Relaxed);
    }
}

/// A running hostile peer. It stops when it is dropped.
#[derive(Debug)]
pub struct HostilePeer {
    /// Its address.
    pub address: SocketAddr,
    /// The id under which it is registered.
    pub id: PeerId,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
    _registered: AttackingPeer,
}

impl HostilePeer {
    /// Starts a peer that has a file with this content, and registers it with the index under
    /// `name`, unless it is to be named ([`PeerAttack::is_named`]).
    ///
    /// # Errors
    /// The index refuses or does not answer.
    pub async fn start(
        attack: &PeerAttack,
        attacker: &Attacker,
        index: &str,
        data: Bytes,
        name: &str,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let peer = attacker.new_peer(index).await?;
        let other = match attack.needs_tls() {
            true => Some(attacker.new_peer(index).await?),
            false => None,
        };
        let tree = hash_bytes(&data);
        let registration = Registration {
            file: FileRecord {
                id: tree.id(),
                size: tree.size,
                root: tree.root,
                sha256: None,
                kind: FileKind::File,
            },
            names: vec![name.to_owned()],
            is_complete: true,
        };
        let shared = Arc::new(Shared {
            conduct: attack.conduct,
            id: peer.id,
            data,
            tree,
            tls: other.as_ref().map_or(&peer, |other| other).tls.clone(),
            attacks: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(listener::serve(listener, Arc::clone(&shared)));
        if !attack.is_named() {
            peer.register(&address.into(), vec![registration]).await?;
        }
        Ok(Self {
            address,
            id: peer.id,
            shared,
            _tasks: tasks,
            _registered: peer,
        })
    }

    /// Number of its hostile answers so far.
    pub fn attacks(&self) -> u64 {
        self.shared.attacks.load(Ordering::Relaxed)
    }
}
