//! The members of a private network, their peers, the open codes, and who was revoked.
//!
//! An operation has two steps. A method that takes `&self` decides: it returns an error, or the
//! [`Event`] that makes the change. [`Membership::apply`] then makes it. Between the two, the caller
//! signs a certificate and stores the event. So the members are the result of all stored events, in
//! order, and reading them again gives the same members.
//!
//! Invariants, checked after each event in debug builds:
//!
//! - Each peer has one owner, and its owner knows it.
//! - A code is open only while it has uses left and its maker is active.
//! - The number of the revocation list never decreases, and increases with each revocation.
//!
//! Pure: time and randomness are parameters. Times are in seconds since the Unix epoch. Non-goals:
//! certificates and signatures, which the core makes.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    time::Duration,
};

use potluck_core::{
    PeerId, Sha256,
    network::{
        identity::{MemberId, Role, is_valid_name},
        revocations::MAX_REVOKED,
    },
};

/// Maximum number of members: as many as a revocation list can name. The journal then has a few MiB.
pub(crate) const MAX_MEMBERS: usize = MAX_REVOKED;

/// Maximum number of peers of one member: a member is one machine or user.
pub(crate) const MAX_PEERS: usize = 1_000;

/// Maximum number of open codes.
pub(crate) const MAX_INVITES: usize = 10_000;

/// How many members may join with one code, as the contract defines it.
pub(crate) const USES: RangeInclusive<u32> = 1..=10_000;

/// Uses of a code if its maker gives no number.
pub(crate) const DEFAULT_USES: u32 = 1;

/// How long a code may be valid, as the contract defines it: long enough for machines that are set
/// up next month, short enough that a forgotten code does not open the network for ever.
pub(crate) const CODE_TTL: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 3600);

/// Validity of a code if its maker gives none: enough to walk to another machine.
pub(crate) const DEFAULT_CODE_TTL: Duration = Duration::from_secs(3600);

/// For how long a certificate can be renewed after it has expired: a machine may be off for a month.
pub(crate) const RENEWABLE: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a revoked member stays in the revocation list after its last certificate has expired,
/// because clocks differ.
const REVOCATION_MARGIN: Duration = Duration::from_secs(24 * 3600);

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
    /// Certify the member, then make the event with [`Membership::joined`].
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

/// The members, peers, codes and revocations of one network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Membership {
    members: BTreeMap<MemberId, MemberEntry>,
    owners: HashMap<PeerId, MemberId>,
    invites: HashMap<Sha256, Invite>,
    revocations_number: u64,
    /// The members in the revocation list, and when each may be dropped from it.
    revoked: BTreeMap<MemberId, u64>,
    /// The peers in the list whose member is not revoked.
    revoked_peers: BTreeMap<PeerId, u64>,
}

impl Membership {
    /// The members in the order of their ids, from the one after `after`.
    pub(crate) fn members(
        &self,
        after: Option<MemberId>,
    ) -> impl Iterator<Item = (&MemberId, &MemberEntry)> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.members.range((after.map_or(Unbounded, Excluded), Unbounded))
    }

    /// A member that may use the network.
    ///
    /// # Errors
    /// [`MembershipError::Revoked`], [`MembershipError::UnknownMember`].
    pub(crate) fn active(&self, member: &MemberId) -> Result<&MemberEntry, MembershipError> {
        let entry = self.members.get(member).ok_or(MembershipError::UnknownMember)?;
        match entry.state {
            MemberState::Active => Ok(entry),
            MemberState::Revoked | MemberState::Left => Err(MembershipError::Revoked),
        }
    }

    /// Checks that an active member has at least this role.
    ///
    /// # Errors
    /// Those of [`Self::active`]; [`MembershipError::RoleRequired`].
    pub(crate) fn require(&self, member: &MemberId, required: Role) -> Result<(), MembershipError> {
        let actual = self.active(member)?.role;
        match actual >= required {
            true => Ok(()),
            false => Err(MembershipError::RoleRequired { required, actual }),
        }
    }

    /// Number of the revocation list; 0 before the first revocation.
    pub(crate) const fn revocations_number(&self) -> u64 {
        self.revocations_number
    }

    /// The members in the revocation list.
    pub(crate) fn revoked(&self) -> impl Iterator<Item = &MemberId> {
        self.revoked.keys()
    }

    /// The peers in the revocation list.
    pub(crate) fn revoked_peers(&self) -> impl Iterator<Item = &PeerId> {
        self.revoked_peers.keys()
    }

    /// Decides about a new code. `by` is its maker; `None` is the operator of the index.
    ///
    /// # Errors
    /// [`MembershipError`] if the maker is no admin, a value is out of range, or too many codes are
    /// open.
    pub(crate) fn invite(
        &self,
        by: Option<MemberId>,
        secret_hash: Sha256,
        role: Role,
        uses: Option<u32>,
        ttl: Option<Duration>,
        now: u64,
    ) -> Result<Event, MembershipError> {
        if let Some(by) = &by {
            self.require(by, Role::Admin)?;
        }
        let uses = uses.unwrap_or(DEFAULT_USES);
        if !USES.contains(&uses) {
            return Err(MembershipError::OutOfRange(format!(
                "a code has {} to {} uses, not {uses}",
                USES.start(),
                USES.end()
            )));
        }
        let ttl = ttl.unwrap_or(DEFAULT_CODE_TTL);
        if !CODE_TTL.contains(&ttl) {
            return Err(MembershipError::OutOfRange(
                "a code is valid for 1 second to 30 days".to_owned(),
            ));
        }
        let open = self.invites.values().filter(|invite| invite.expires > now);
        if open.count() >= MAX_INVITES {
            return Err(MembershipError::TooMany(format!(
                "{MAX_INVITES} codes are open, which is the maximum: wait until some expire"
            )));
        }
        if self.invites.contains_key(&secret_hash) {
            return Err(MembershipError::OutOfRange(
                "this code exists already: make a new one".to_owned(),
            ));
        }
        Ok(Event::Invited {
            secret_hash,
            invite: Invite {
                invited_by: by,
                role,
                uses,
                expires: now.saturating_add(ttl.as_secs().max(1)),
            },
        })
    }

    /// Decides whether the holder of a code's secret and of a member's key may join.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub(crate) fn enroll(
        &self,
        secret_hash: &Sha256,
        member: &MemberId,
        name: &str,
        now: u64,
    ) -> Result<Enrollment, MembershipError> {
        let known = self.members.get(member);
        if let Some(entry) = known
            && entry.enrolment.secret_hash == *secret_hash
        {
            return match entry.state {
                MemberState::Active if entry.enrolment.expires > now => Ok(Enrollment::Repeated {
                    certificate: entry.enrolment.certificate.clone(),
                    role: entry.role,
                }),
                MemberState::Active => Err(MembershipError::Expired),
                MemberState::Revoked | MemberState::Left => Err(MembershipError::Revoked),
            };
        }
        let invite = self.open_invite(secret_hash, now)?;
        if !is_valid_name(name) {
            return Err(MembershipError::OutOfRange(
                "the name of a member has 1 to 64 bytes without control characters".to_owned(),
            ));
        }
        match known {
            Some(entry) if entry.state != MemberState::Active => Err(MembershipError::Revoked),
            None if self.members.len() >= MAX_MEMBERS => Err(MembershipError::TooMany(format!(
                "the network has {MAX_MEMBERS} members, which is the maximum: ask an admin to \
                 revoke some"
            ))),
            _ => Ok(Enrollment::New { role: invite.role }),
        }
    }

    /// The event for an enrolment that [`Self::enroll`] permitted.
    ///
    /// # Errors
    /// [`MembershipError::InvalidCode`] if the code is no longer open.
    pub(crate) fn joined(
        &self,
        secret_hash: Sha256,
        member: MemberId,
        name: &str,
        certificate: Vec<u8>,
        expires: u64,
        now: u64,
    ) -> Result<Event, MembershipError> {
        let invite = self.open_invite(&secret_hash, now)?;
        Ok(Event::Joined {
            member,
            name: name.to_owned(),
            role: invite.role,
            secret_hash,
            invited_by: invite.invited_by,
            at: now,
            certificate,
            expires,
        })
    }

    fn open_invite(&self, secret_hash: &Sha256, now: u64) -> Result<&Invite, MembershipError> {
        self.invites
            .get(secret_hash)
            .filter(|invite| invite.expires > now && invite.uses > 0)
            .ok_or(MembershipError::InvalidCode)
    }

    /// Decides whether an active member may get a certificate for a peer, and returns its role.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub(crate) fn enroll_peer(
        &self,
        member: &MemberId,
        peer: &PeerId,
    ) -> Result<Role, MembershipError> {
        let entry = self.active(member)?;
        if self.revoked_peers.contains_key(peer) {
            return Err(MembershipError::Revoked);
        }
        match self.owners.get(peer) {
            Some(owner) if owner != member => Err(MembershipError::PeerOfAnotherMember),
            None if entry.peers.len() >= MAX_PEERS => Err(MembershipError::TooMany(format!(
                "this member has {MAX_PEERS} peers, which is the maximum: join as another member"
            ))),
            _ => Ok(entry.role),
        }
    }

    /// Decides whether the holder of a key may renew the certificate for it. The key is that of a
    /// member or of a peer. Returns whose it is, and the role of the member.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub(crate) fn renew(
        &self,
        as_member: &MemberId,
        as_peer: &PeerId,
        now: u64,
    ) -> Result<(MemberId, Option<PeerId>, Role), MembershipError> {
        let (member, peer) = match self.owners.get(as_peer) {
            Some(owner) => (owner, Some(*as_peer)),
            None => (as_member, None),
        };
        let entry = self.active(member)?;
        let expires = match peer.and_then(|peer| entry.peers.get(&peer)) {
            Some(peer) => peer.expires,
            None => entry.own_expires,
        };
        match expires.saturating_add(RENEWABLE.as_secs()) <= now {
            true => Err(MembershipError::Expired),
            false => Ok((*member, peer, entry.role)),
        }
    }

    /// Decides about a revocation. `by` is an admin; `None` is the operator of the index. Returns
    /// `None` if the member was revoked before.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub(crate) fn revoke(
        &self,
        by: Option<&MemberId>,
        member: &MemberId,
        now: u64,
    ) -> Result<Option<Event>, MembershipError> {
        if let Some(by) = by {
            self.require(by, Role::Admin)?;
        }
        let entry = self.members.get(member).ok_or(MembershipError::NoSuchMember)?;
        let event = Event::Revoked {
            member: *member,
            left: false,
            at: now,
        };
        Ok((entry.state != MemberState::Revoked).then_some(event))
    }

    /// Decides about a member that leaves.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub(crate) fn leave(&self, member: &MemberId, now: u64) -> Result<Event, MembershipError> {
        self.active(member)?;
        Ok(Event::Revoked {
            member: *member,
            left: true,
            at: now,
        })
    }

    /// Decides about a peer that gives up its key.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub(crate) fn peer_leaves(
        &self,
        member: &MemberId,
        peer: PeerId,
        now: u64,
    ) -> Result<Option<Event>, MembershipError> {
        self.active(member)?;
        let is_known = self.owners.get(&peer) == Some(member);
        Ok(is_known.then_some(Event::PeerLeft { peer, at: now }))
    }

    /// Number of open codes that this member made.
    pub(crate) fn open_codes_of(&self, member: &MemberId, now: u64) -> usize {
        let made = |invite: &&Invite| {
            invite.invited_by.as_ref() == Some(member) && invite.expires > now && invite.uses > 0
        };
        self.invites.values().filter(made).count()
    }

    /// Makes a change.
    pub(crate) fn apply(&mut self, event: Event) {
        match event {
            Event::Invited { secret_hash, invite } => {
                self.invites.insert(secret_hash, invite);
            }
            Event::Joined {
                member,
                name,
                role,
                secret_hash,
                invited_by,
                at,
                certificate,
                expires,
            } => {
                if let Some(invite) = self.invites.get_mut(&secret_hash) {
                    invite.uses = invite.uses.saturating_sub(1);
                    if invite.uses == 0 {
                        self.invites.remove(&secret_hash);
                    }
                }
                let enrolment = Enrolment {
                    secret_hash,
                    certificate,
                    expires,
                };
                let entry = self.members.entry(member).or_insert_with(|| MemberEntry {
                    name: String::new(),
                    role,
                    state: MemberState::Active,
                    joined: at,
                    own_expires: expires,
                    expires,
                    invited_by,
                    peers: BTreeMap::new(),
                    enrolment: enrolment.clone(),
                });
                entry.name = name;
                entry.role = role;
                entry.invited_by = invited_by;
                entry.own_expires = expires;
                entry.expires = entry.expires.max(expires);
                entry.enrolment = enrolment;
            }
            Event::Certified {
                member,
                peer,
                expires,
            } => {
                if let Some(entry) = self.members.get_mut(&member) {
                    entry.expires = entry.expires.max(expires);
                    match peer {
                        Some(peer) => {
                            entry.peers.insert(peer, PeerEntry { expires });
                            self.owners.insert(peer, member);
                        }
                        None => entry.own_expires = expires,
                    }
                }
            }
            Event::Revoked { member, left, at } => self.apply_revocation(member, left, at),
            Event::PeerLeft { peer, at } => {
                self.raise_number(at);
                if let Some(owner) = self.owners.remove(&peer)
                    && let Some(entry) = self.members.get_mut(&owner)
                    && let Some(PeerEntry { expires }) = entry.peers.remove(&peer)
                {
                    let until = expires.saturating_add(REVOCATION_MARGIN.as_secs());
                    self.revoked_peers.insert(peer, until);
                }
                drop_earliest(&mut self.revoked_peers);
            }
            Event::PeerListed { peer, until } => {
                self.revoked_peers.insert(peer, until);
            }
            Event::Restored {
                member,
                entry,
                listed_until,
            } => {
                self.owners.extend(entry.peers.keys().map(|peer| (*peer, member)));
                self.members.insert(member, *entry);
                if let Some(until) = listed_until {
                    self.revoked.insert(member, until);
                }
            }
            Event::Numbered { revocations_number } => self.revocations_number = revocations_number,
        }
        self.check_invariants();
    }

    /// Events that make the same members from none.
    pub(crate) fn snapshot(&self) -> impl Iterator<Item = Event> {
        let number = Event::Numbered {
            revocations_number: self.revocations_number,
        };
        let members = self.members.iter().map(|(member, entry)| Event::Restored {
            member: *member,
            entry: Box::new(entry.clone()),
            listed_until: self.revoked.get(member).copied(),
        });
        let invites = self.invites.iter().map(|(secret_hash, invite)| Event::Invited {
            secret_hash: *secret_hash,
            invite: *invite,
        });
        let peers = self.revoked_peers.iter().map(|(peer, until)| Event::PeerListed {
            peer: *peer,
            until: *until,
        });
        std::iter::once(number).chain(peers).chain(members).chain(invites)
    }

    fn apply_revocation(&mut self, member: MemberId, left: bool, at: u64) {
        self.invites.retain(|_, invite| invite.invited_by != Some(member));
        self.raise_number(at);
        if let Some(entry) = self.members.get_mut(&member) {
            entry.state = match left {
                true => MemberState::Left,
                false => MemberState::Revoked,
            };
            let until = entry.expires.saturating_add(REVOCATION_MARGIN.as_secs());
            self.revoked.insert(member, until);
        }
        drop_earliest(&mut self.revoked);
    }

    /// Begins a new revocation list.
    fn raise_number(&mut self, at: u64) {
        self.revoked.retain(|_, until| *until > at);
        self.revoked_peers.retain(|_, until| *until > at);
        // A folder that was restored from a copy must not reuse the number of a later list.
        self.revocations_number = at.max(self.revocations_number + 1);
    }

    /// Forgets what no longer matters: expired codes, and members that were revoked, left or did not
    /// renew, once no certificate of theirs can be used or renewed.
    pub(crate) fn prune(&mut self, now: u64) {
        self.invites.retain(|_, invite| invite.expires > now);
        let renewable = RENEWABLE.as_secs() + REVOCATION_MARGIN.as_secs();
        let is_over = |expires: u64| expires.saturating_add(renewable) <= now;
        let revoked = &self.revoked;
        self.members
            .retain(|id, entry| !is_over(entry.expires) || revoked.contains_key(id));
        for entry in self.members.values_mut() {
            entry.peers.retain(|_, peer| !is_over(peer.expires));
        }
        let members = &self.members;
        self.owners.retain(|peer, owner| {
            members
                .get(owner)
                .is_some_and(|entry| entry.peers.contains_key(peer))
        });
        self.check_invariants();
    }

    fn check_invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let peers: usize = self.members.values().map(|entry| entry.peers.len()).sum();
        assert_eq!(peers, self.owners.len());
        for (peer, owner) in &self.owners {
            assert!(self.members[owner].peers.contains_key(peer));
        }
        for invite in self.invites.values() {
            assert!(invite.uses > 0);
            // A maker that was pruned had no open codes left but those that did not expire yet.
            if let Some(entry) = invite.invited_by.and_then(|by| self.members.get(&by)) {
                assert_eq!(entry.state, MemberState::Active);
            }
        }
        for member in self.revoked.keys() {
            assert_ne!(self.members[member].state, MemberState::Active);
        }
    }
}

/// Keeps a list within its bound. Nobody revokes so many within a week; if it happens, the
/// certificate that ends first is dropped, which the index refuses anyway.
fn drop_earliest<K: Copy + Ord>(listed: &mut BTreeMap<K, u64>) {
    while listed.len() > MAX_REVOKED
        && let Some((first, _)) = listed.iter().min_by_key(|(_, until)| **until)
    {
        let first = *first;
        listed.remove(&first);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn member(n: u8) -> MemberId {
        MemberId([n; 16])
    }

    fn secret(n: u8) -> Sha256 {
        Sha256([n; 32])
    }

    /// What a test does; refused steps are skipped, as the service does.
    #[derive(Debug, Clone)]
    pub(crate) enum Step {
        Invite(Option<u8>, u8, u8, u32, u64),
        Enroll(u8, u8),
        EnrollPeer(u8, u8),
        Renew(u8, Option<u8>),
        Revoke(Option<u8>, u8),
        Leave(u8),
        PeerLeaves(u8, u8),
        Wait(u64),
        Prune,
    }

    pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
        let by = || proptest::option::of(0..4u8);
        let step = prop_oneof![
            3 => (by(), 0..6u8, 0..3u8, 1..4u32, 1..100_000u64)
                .prop_map(|(by, code, role, uses, ttl)| Step::Invite(by, code, role, uses, ttl)),
            6 => (0..6u8, 0..4u8).prop_map(|(code, member)| Step::Enroll(code, member)),
            3 => (0..4u8, 0..6u8).prop_map(|(member, peer)| Step::EnrollPeer(member, peer)),
            2 => (0..4u8, proptest::option::of(0..6u8))
                .prop_map(|(member, peer)| Step::Renew(member, peer)),
            1 => (by(), 0..4u8).prop_map(|(by, member)| Step::Revoke(by, member)),
            1 => (0..4u8).prop_map(Step::Leave),
            1 => (0..4u8, 0..6u8).prop_map(|(member, peer)| Step::PeerLeaves(member, peer)),
            2 => (1..2_000_000u64).prop_map(Step::Wait),
            1 => Just(Step::Prune),
        ];
        prop::collection::vec(step, 0..80)
    }

    /// The event of a permitted step.
    pub(crate) fn decide(members: &Membership, step: &Step, now: u64) -> Option<Event> {
        let expires = now + 7 * 24 * 3600;
        match *step {
            Step::Invite(by, code, role, uses, ttl) => {
                let ttl = Some(Duration::from_secs(ttl));
                let role = Role::ALL[usize::from(role)];
                members
                    .invite(by.map(member), secret(code), role, Some(uses), ttl, now)
                    .ok()
            }
            Step::Enroll(code, n) => {
                let (code, who) = (secret(code), member(n));
                match members.enroll(&code, &who, "machine", now).ok()? {
                    Enrollment::New { .. } => {
                        let certificate = now.to_be_bytes().to_vec();
                        Some(
                            members
                                .joined(code, who, "machine", certificate, expires, now)
                                .unwrap(),
                        )
                    }
                    Enrollment::Repeated { .. } => None,
                }
            }
            Step::EnrollPeer(n, peer) => {
                let peer = PeerId([peer; 32]);
                members.enroll_peer(&member(n), &peer).ok()?;
                Some(Event::Certified {
                    member: member(n),
                    peer: Some(peer),
                    expires,
                })
            }
            Step::Renew(n, peer) => {
                let key = PeerId([peer.unwrap_or(99); 32]);
                let (member, peer, _) = members.renew(&member(n), &key, now).ok()?;
                Some(Event::Certified {
                    member,
                    peer,
                    expires,
                })
            }
            Step::Revoke(by, n) => members.revoke(by.map(member).as_ref(), &member(n), now).ok()?,
            Step::Leave(n) => members.leave(&member(n), now).ok(),
            Step::PeerLeaves(n, peer) => {
                members.peer_leaves(&member(n), PeerId([peer; 32]), now).ok()?
            }
            Step::Wait(_) | Step::Prune => None,
        }
    }

    /// Members after some events, all at [`NOW`].
    fn after(steps: &[Step]) -> Membership {
        let mut members = Membership::default();
        for step in steps {
            let event = decide(&members, step, NOW).unwrap_or_else(|| panic!("{step:?}"));
            members.apply(event);
        }
        members
    }

    const ADMIN: u8 = 2;
    const READER: u8 = 0;

    #[test]
    fn a_code_admits_as_many_members_as_it_has_uses() {
        let mut members = after(&[
            Step::Invite(None, 1, READER, 2, 60),
            Step::Enroll(1, 0),
            Step::Enroll(1, 1),
        ]);
        assert_eq!(
            members.enroll(&secret(1), &member(2), "machine", NOW),
            Err(MembershipError::InvalidCode)
        );
        members.apply(decide(&members, &Step::Invite(None, 2, READER, 1, 60), NOW).unwrap());
        for (at, expected) in [
            (NOW + 59, Ok(Enrollment::New { role: Role::Reader })),
            (NOW + 60, Err(MembershipError::InvalidCode)),
        ] {
            assert_eq!(members.enroll(&secret(2), &member(2), "machine", at), expected);
        }
    }

    #[test]
    fn repeating_an_enrolment_returns_the_same_certificate() {
        let members = after(&[Step::Invite(None, 1, READER, 1, 60), Step::Enroll(1, 0)]);
        let again = members.enroll(&secret(1), &member(0), "another name", NOW + 3600);
        let Ok(Enrollment::Repeated { certificate, role }) = again else {
            panic!("{again:?}");
        };
        assert_eq!((certificate, role), (NOW.to_be_bytes().to_vec(), Role::Reader));
        // Another key does not get it.
        assert!(members.enroll(&secret(1), &member(1), "machine", NOW).is_err());
    }

    #[test]
    fn a_second_code_changes_the_role_of_a_member() {
        let members = after(&[
            Step::Invite(None, 1, READER, 1, 60),
            Step::Enroll(1, 0),
            Step::EnrollPeer(0, 0),
            Step::Invite(None, 2, ADMIN, 1, 60),
            Step::Enroll(2, 0),
        ]);
        let entry = members.active(&member(0)).unwrap();
        assert_eq!((entry.role, entry.peers.len()), (Role::Admin, 1));
    }

    #[test]
    fn revoking_a_member_voids_its_codes_and_raises_the_number() {
        let mut members = after(&[
            Step::Invite(None, 1, ADMIN, 2, 60),
            Step::Enroll(1, 0),
            Step::Enroll(1, 1),
            Step::Invite(Some(0), 2, READER, 5, 60),
            Step::Invite(Some(1), 3, READER, 5, 60),
        ]);
        assert_eq!(members.open_codes_of(&member(0), NOW), 1);
        let number = members.revocations_number();
        members.apply(decide(&members, &Step::Revoke(Some(1), 0), NOW).unwrap());
        assert!(members.revocations_number() > number);
        assert_eq!(members.revoked().collect::<Vec<_>>(), [&member(0)]);
        let enroll = |code| members.enroll(&secret(code), &member(3), "machine", NOW);
        assert_eq!(enroll(2), Err(MembershipError::InvalidCode));
        assert!(enroll(3).is_ok());
        assert_eq!(
            members.renew(&member(0), &PeerId([9; 32]), NOW),
            Err(MembershipError::Revoked)
        );
        assert_eq!(members.revoke(None, &member(0), NOW), Ok(None), "again");
    }

    #[test]
    fn a_peer_that_left_does_not_come_back_with_its_key() {
        let mut members = after(&[
            Step::Invite(None, 1, READER, 1, 60),
            Step::Enroll(1, 0),
            Step::EnrollPeer(0, 7),
        ]);
        let peer = PeerId([7; 32]);
        members.apply(decide(&members, &Step::PeerLeaves(0, 7), NOW).unwrap());
        assert_eq!(members.revoked_peers().collect::<Vec<_>>(), [&peer]);
        assert_eq!(
            members.enroll_peer(&member(0), &peer),
            Err(MembershipError::Revoked)
        );
        assert_eq!(members.owners.get(&peer), None);
        assert!(members.active(&member(0)).is_ok());
    }

    #[test]
    fn only_an_admin_invites_and_revokes() {
        let members = after(&[Step::Invite(None, 1, READER, 2, 60), Step::Enroll(1, 0)]);
        let refused = MembershipError::RoleRequired {
            required: Role::Admin,
            actual: Role::Reader,
        };
        let invited = members.invite(Some(member(0)), secret(9), Role::Reader, None, None, NOW);
        assert_eq!(invited, Err(refused.clone()));
        assert_eq!(members.revoke(Some(&member(0)), &member(0), NOW), Err(refused));
        assert_eq!(
            members.revoke(None, &member(9), NOW),
            Err(MembershipError::NoSuchMember)
        );
        assert_eq!(
            members.require(&member(9), Role::Reader),
            Err(MembershipError::UnknownMember)
        );
    }

    #[test]
    fn a_certificate_is_renewed_up_to_30_days_after_it_expired() {
        let members = after(&[
            Step::Invite(None, 1, READER, 1, 60),
            Step::Enroll(1, 0),
            Step::EnrollPeer(0, 7),
        ]);
        let end = NOW + (7 + 30) * 24 * 3600;
        for (member_key, peer_key, expected) in [
            (member(0), PeerId([9; 32]), (member(0), None, Role::Reader)),
            (
                member(9),
                PeerId([7; 32]),
                (member(0), Some(PeerId([7; 32])), Role::Reader),
            ),
        ] {
            let renew = |now| members.renew(&member_key, &peer_key, now);
            assert_eq!(renew(end - 1), Ok(expected));
            assert_eq!(renew(end), Err(MembershipError::Expired));
        }
        let stranger = members.renew(&member(9), &PeerId([9; 32]), NOW);
        assert_eq!(stranger, Err(MembershipError::UnknownMember));
    }

    #[test]
    fn the_number_of_the_list_grows_although_an_older_folder_was_restored() {
        let steps = [
            Step::Invite(None, 1, READER, 3, 60),
            Step::Enroll(1, 0),
            Step::Enroll(1, 1),
        ];
        let copy = after(&steps);
        let mut members = copy.clone();
        for n in 0..2 {
            members.apply(decide(&members, &Step::Revoke(None, n), NOW + 5).unwrap());
        }
        let mut restored = copy;
        restored.apply(decide(&restored, &Step::Revoke(None, 0), NOW + 60).unwrap());
        assert!(restored.revocations_number() > members.revocations_number());
    }

    proptest! {
        /// The invariants are checked by `apply` and `prune`.
        #[test]
        fn the_members_are_consistent_and_a_snapshot_restores_them(steps in steps()) {
            let (mut members, mut now) = (Membership::default(), NOW);
            for step in steps {
                let before = members.revocations_number();
                let was_active = |n: u8| members.active(&member(n)).is_ok();
                let active: Vec<bool> = (0..4).map(was_active).collect();
                match step {
                    Step::Wait(seconds) => now += seconds,
                    Step::Prune => members.prune(now),
                    _ => if let Some(event) = decide(&members, &step, now) {
                        members.apply(event);
                    }
                }
                prop_assert!(members.revocations_number() >= before);
                // Nobody comes back by itself: only a code makes a member active.
                for n in 0..4 {
                    let is_active = members.active(&member(n)).is_ok();
                    if is_active && !active[usize::from(n)] {
                        prop_assert!(matches!(step, Step::Enroll(_, by) if by == n));
                    }
                }
            }
            let mut restored = Membership::default();
            for event in members.snapshot() {
                restored.apply(event);
            }
            prop_assert_eq!(restored, members);
        }
    }
}
