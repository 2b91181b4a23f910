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

mod event;

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

pub(crate) use self::event::{
    Enrollment, Enrolment, Event, Invite, MemberEntry, MemberState, MembershipError, PeerEntry,
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
            // With several indexes, a change that their store lost comes again after later ones.
            Event::Invited { secret_hash, invite } => {
                let by = invite.invited_by.and_then(|by| self.members.get(&by));
                if by.is_none_or(|by| by.state == MemberState::Active) {
                    self.invites.insert(secret_hash, invite);
                }
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
                let owner = peer.and_then(|peer| self.owners.get(&peer));
                if owner.is_none_or(|owner| *owner == member)
                    && let Some(entry) = self.members.get_mut(&member)
                {
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
pub(super) mod tests;
