//! Events as they stand in a line of the journal. A later version may add fields with a default.

use std::{fmt, str::FromStr};

use potluck_core::{
    PeerId, Sha256,
    network::identity::{MemberId, Role},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::network::membership::{Enrolment, Event, Invite, MemberEntry, MemberState, PeerEntry};

/// A value that is stored as the text that people see.
#[derive(Debug)]
pub(super) struct Text<T>(T);

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// Bytes, stored as hex digits.
#[derive(Debug)]
pub(super) struct Hex(Vec<u8>);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl FromStr for Hex {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex::decode(text).map(Self)
    }
}

/// An [`Event`] as it is stored. A later version may add fields with a default.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum EventLine {
    Invited {
        secret_hash: Text<Sha256>,
        invited_by: Option<Text<MemberId>>,
        role: Text<Role>,
        uses: u32,
        expires: u64,
    },
    Joined {
        member: Text<MemberId>,
        name: String,
        role: Text<Role>,
        secret_hash: Text<Sha256>,
        invited_by: Option<Text<MemberId>>,
        at: u64,
        certificate: Text<Hex>,
        expires: u64,
    },
    Certified {
        member: Text<MemberId>,
        peer: Option<Text<PeerId>>,
        expires: u64,
    },
    Revoked {
        member: Text<MemberId>,
        left: bool,
        at: u64,
    },
    PeerLeft {
        peer: Text<PeerId>,
        at: u64,
    },
    PeerListed {
        peer: Text<PeerId>,
        until: u64,
    },
    Restored {
        member: Text<MemberId>,
        name: String,
        role: Text<Role>,
        state: StateWord,
        joined: u64,
        own_expires: u64,
        expires: u64,
        invited_by: Option<Text<MemberId>>,
        peers: Vec<(Text<PeerId>, u64)>,
        secret_hash: Text<Sha256>,
        certificate: Text<Hex>,
        certificate_expires: u64,
        listed_until: Option<u64>,
    },
    Numbered {
        revocations_number: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StateWord {
    Active,
    Revoked,
    Left,
}

impl From<Event> for EventLine {
    fn from(event: Event) -> Self {
        match event {
            Event::Invited {
                secret_hash,
                invite:
                    Invite {
                        invited_by,
                        role,
                        uses,
                        expires,
                    },
            } => Self::Invited {
                secret_hash: Text(secret_hash),
                invited_by: invited_by.map(Text),
                role: Text(role),
                uses,
                expires,
            },
            Event::Joined {
                member,
                name,
                role,
                secret_hash,
                invited_by,
                at,
                certificate,
                expires,
            } => Self::Joined {
                member: Text(member),
                name,
                role: Text(role),
                secret_hash: Text(secret_hash),
                invited_by: invited_by.map(Text),
                at,
                certificate: Text(Hex(certificate)),
                expires,
            },
            Event::Certified {
                member,
                peer,
                expires,
            } => Self::Certified {
                member: Text(member),
                peer: peer.map(Text),
                expires,
            },
            Event::Revoked { member, left, at } => Self::Revoked {
                member: Text(member),
                left,
                at,
            },
            Event::PeerLeft { peer, at } => Self::PeerLeft { peer: Text(peer), at },
            Event::PeerListed { peer, until } => Self::PeerListed {
                peer: Text(peer),
                until,
            },
            Event::Restored {
                member,
                entry,
                listed_until,
            } => {
                let entry = *entry;
                Self::Restored {
                    member: Text(member),
                    name: entry.name,
                    role: Text(entry.role),
                    state: match entry.state {
                        MemberState::Active => StateWord::Active,
                        MemberState::Revoked => StateWord::Revoked,
                        MemberState::Left => StateWord::Left,
                    },
                    joined: entry.joined,
                    own_expires: entry.own_expires,
                    expires: entry.expires,
                    invited_by: entry.invited_by.map(Text),
                    peers: entry
                        .peers
                        .into_iter()
                        .map(|(peer, PeerEntry { expires })| (Text(peer), expires))
                        .collect(),
                    secret_hash: Text(entry.enrolment.secret_hash),
                    certificate: Text(Hex(entry.enrolment.certificate)),
                    certificate_expires: entry.enrolment.expires,
                    listed_until,
                }
            }
            Event::Numbered { revocations_number } => Self::Numbered { revocations_number },
        }
    }
}

impl From<EventLine> for Event {
    fn from(line: EventLine) -> Self {
        match line {
            EventLine::Invited {
                secret_hash,
                invited_by,
                role,
                uses,
                expires,
            } => Self::Invited {
                secret_hash: secret_hash.0,
                invite: Invite {
                    invited_by: invited_by.map(|by| by.0),
                    role: role.0,
                    uses,
                    expires,
                },
            },
            EventLine::Joined {
                member,
                name,
                role,
                secret_hash,
                invited_by,
                at,
                certificate,
                expires,
            } => Self::Joined {
                member: member.0,
                name,
                role: role.0,
                secret_hash: secret_hash.0,
                invited_by: invited_by.map(|by| by.0),
                at,
                certificate: certificate.0.0,
                expires,
            },
            EventLine::Certified {
                member,
                peer,
                expires,
            } => Self::Certified {
                member: member.0,
                peer: peer.map(|peer| peer.0),
                expires,
            },
            EventLine::Revoked { member, left, at } => Self::Revoked {
                member: member.0,
                left,
                at,
            },
            EventLine::PeerLeft { peer, at } => Self::PeerLeft { peer: peer.0, at },
            EventLine::PeerListed { peer, until } => Self::PeerListed { peer: peer.0, until },
            EventLine::Restored {
                member,
                name,
                role,
                state,
                joined,
                own_expires,
                expires,
                invited_by,
                peers,
                secret_hash,
                certificate,
                certificate_expires,
                listed_until,
            } => Self::Restored {
                member: member.0,
                entry: Box::new(MemberEntry {
                    name,
                    role: role.0,
                    state: match state {
                        StateWord::Active => MemberState::Active,
                        StateWord::Revoked => MemberState::Revoked,
                        StateWord::Left => MemberState::Left,
                    },
                    joined,
                    own_expires,
                    expires,
                    invited_by: invited_by.map(|by| by.0),
                    peers: peers
                        .into_iter()
                        .map(|(peer, expires)| (peer.0, PeerEntry { expires }))
                        .collect(),
                    enrolment: Enrolment {
                        secret_hash: secret_hash.0,
                        certificate: certificate.0.0,
                        expires: certificate_expires,
                    },
                }),
                listed_until,
            },
            EventLine::Numbered { revocations_number } => Self::Numbered { revocations_number },
        }
    }
}
