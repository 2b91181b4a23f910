//! Tests of `network/membership.rs`.

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
