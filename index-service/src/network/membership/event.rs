//! What is known of members, peers and codes, the changes of it, and why a change is refused.

use std::collections::BTreeMap;

use potluck_core::{
    PeerId, Sha256,
    network::identity::{MemberId, Role},
};

/// A member that joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberEntry {
    /// The name that it chose.
    pub(crate) name: String,
    /// Its present rights.
    pub(crate) role: Role,
    /// Whether it may use the network.
    pub(crate) state: MemberState,
    /// When it first joined.
    pub(crate) joined: u64,
    /// When its own last certificate expires.
    pub(crate) own_expires: u64,
    /// When the last certificate of the member or of one of its peers expires.
    pub(crate) expires: u64,
    /// Who made the code with which it joined last; `None` for the operator of the index.
    pub(crate) invited_by: Option<MemberId>,
    /// Its peers.
    pub(crate) peers: BTreeMap<PeerId, PeerEntry>,
    /// The answer to its last enrolment.
    pub(crate) enrolment: Enrolment,
}

/// A peer of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerEntry {
    /// When its last certificate expires.
    pub(crate) expires: u64,
}

/// The answer to the last enrolment of a member, kept so that a repetition gets the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Enrolment {
    /// The hash of the code's secret.
    pub(crate) secret_hash: Sha256,
    /// X.509 in DER.
    pub(crate) certificate: Vec<u8>,
    /// When the certificate expires.
    pub(crate) expires: u64,
}

/// Whether a member may use the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberState {
    /// It may.
    Active,
    /// An admin revoked it.
    Revoked,
    /// It left.
    Left,
}

/// A code that still admits members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Invite {
    /// Who made it; `None` for the operator of the index.
    pub(crate) invited_by: Option<MemberId>,
    /// The rights of the members that join with it.
    pub(crate) role: Role,
    /// How many more members may join.
    pub(crate) uses: u32,
    /// When it expires.
    pub(crate) expires: u64,
}

/// A change. The journal stores events, so a field keeps its meaning for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A code was made.
    Invited {
        /// The hash of its secret.
        secret_hash: Sha256,
        /// The code.
        invite: Invite,
    },
    /// A member joined, or joined again with the same key and another code.
    Joined {
        /// The member.
        member: MemberId,
        /// The name that it chose.
        name: String,
        /// Its rights, which are those of the code.
        role: Role,
        /// The hash of the code's secret.
        secret_hash: Sha256,
        /// Who made the code.
        invited_by: Option<MemberId>,
        /// When.
        at: u64,
        /// Its certificate, X.509 in DER.
        certificate: Vec<u8>,
        /// When the certificate expires.
        expires: u64,
    },
    /// A member got a certificate for a new or known peer, or renewed one.
    Certified {
        /// The member.
        member: MemberId,
        /// The peer; `None` for the member itself.
        peer: Option<PeerId>,
        /// When the certificate expires.
        expires: u64,
    },
    /// A member was revoked or left.
    Revoked {
        /// The member.
        member: MemberId,
        /// Whether it left by itself.
        left: bool,
        /// When.
        at: u64,
    },
    /// A peer left: its key is no longer used.
    PeerLeft {
        /// The peer.
        peer: PeerId,
        /// When.
        at: u64,
    },
    /// A peer in the revocation list when the journal was rewritten.
    PeerListed {
        /// The peer.
        peer: PeerId,
        /// When it may be dropped from the list.
        until: u64,
    },
    /// A member as it was when the journal was rewritten.
    Restored {
        /// The member.
        member: MemberId,
        /// All that is known of it.
        entry: Box<MemberEntry>,
        /// When it may be dropped from the revocation list; `None` if it is not in the list.
        listed_until: Option<u64>,
    },
    /// The number of the revocation list when the journal was rewritten.
    Numbered {
        /// The number.
        revocations_number: u64,
    },
}

/// The reason why an operation is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MembershipError {
    /// The code does not admit anyone. Does not tell a stranger why.
    #[error(
        "this join code is unknown, expired, used up or voided: ask an admin of the network for a \
         new one (`potluck network invite`)"
    )]
    InvalidCode,
    /// The member was revoked or left.
    #[error(
        "this member was revoked or left the network: ask an admin for a new join code, run \
         `potluck network leave`, and join again"
    )]
    Revoked,
    /// The index does not know the member, for example because its folder is older than the member.
    #[error("the index does not know this member: ask an admin for a new join code and join again")]
    UnknownMember,
    /// The certificate expired too long ago.
    #[error(
        "this certificate expired more than 30 days ago and can no longer be renewed: ask an admin \
         for a new join code and join again"
    )]
    Expired,
    /// The role of the member lacks the right.
    #[error(
        "this needs the role {required}, but this member has the role {actual}: ask an admin to do \
         it, or for a join code with `--role {required}`"
    )]
    RoleRequired {
        /// The least role with the right.
        required: Role,
        /// The role of the member.
        actual: Role,
    },
    /// The peer's key is that of another member's peer.
    #[error(
        "this peer belongs to another member: a home that was copied needs a key of its own, so \
         remove the copied key and start again"
    )]
    PeerOfAnotherMember,
    /// No member has this id.
    #[error("no member has this id: `potluck network members` lists them")]
    NoSuchMember,
    /// The value is outside the permitted range; the text names both.
    #[error("{0}")]
    OutOfRange(String),
    /// There are too many members, peers or codes.
    #[error("{0}")]
    TooMany(String),
}

/// The answer to an enrolment that is permitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Enrollment {
    /// Certify the member, then make the event with [`Membership::joined`](super::Membership::joined).
    New {
        /// The rights of the member.
        role: Role,
    },
    /// The member enrolled with this code before.
    Repeated {
        /// The same certificate as then.
        certificate: Vec<u8>,
        /// The present rights of the member.
        role: Role,
    },
}
