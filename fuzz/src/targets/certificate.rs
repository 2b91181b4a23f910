//! Certificates, signing requests and the names in them.

use std::time::SystemTime;

use potluck_core::{
    PeerId,
    network::{
        authority::CaHash,
        certificate::{CertificateInfo, CertificateSubject, common_name_of, public_key_of},
        identity::Role,
        key::SigningRequest,
    },
};

/// The CA of the certificates and the list of revocations among the seeds.
pub const AUTHORITY: &[u8] = include_bytes!("../../data/ca.der");

/// A certificate that is accepted names the index, a member, or the peer of its key, and a role.
///
/// The input is a certificate in DER.
pub fn certificate(input: &[u8]) -> bool {
    let key = public_key_of(input);
    let name = common_name_of(input);
    let hash = CaHash::of_certificate(input);
    assert_eq!(key.is_ok(), name.is_ok());
    assert_eq!(key.is_ok(), hash.is_ok());
    let Ok(info) = CertificateInfo::parse(input) else {
        return false;
    };
    assert_eq!(key.as_ref(), Ok(&info.public_key));
    assert_eq!(name.as_ref(), Ok(&info.name));
    assert!(info.renew_at() >= info.not_before);
    assert!(info.not_after >= SystemTime::UNIX_EPOCH);
    match (info.subject, info.identity()) {
        (CertificateSubject::Index, None) => {}
        (CertificateSubject::Member { member, role }, Some(identity)) => {
            assert!(Role::ALL.contains(&role));
            let is_same = (identity.member, identity.role) == (member, role);
            assert!(is_same && identity.peer.is_none());
        }
        (CertificateSubject::Peer { peer, member, role }, Some(identity)) => {
            assert_eq!(peer, PeerId::of_public_key(&info.public_key));
            let is_same = (identity.member, identity.role) == (member, role);
            assert!(is_same && identity.peer == Some(peer));
        }
        (subject, identity) => panic!("{subject:?} as {identity:?}"),
    }
    true
}

/// Certificates of the index, a member and a peer, and the CA's own.
pub fn certificate_seeds() -> Vec<Vec<u8>> {
    let files: [&[u8]; 4] = [
        AUTHORITY,
        include_bytes!("../../data/index.der"),
        include_bytes!("../../data/member.der"),
        include_bytes!("../../data/peer.der"),
    ];
    files.map(<[u8]>::to_vec).into()
}

/// A signing request that is accepted has a key from which the ids follow.
///
/// The input is a request in DER.
pub fn signing_request(input: &[u8]) -> bool {
    let Ok(request) = SigningRequest::parse(input) else {
        return false;
    };
    assert_eq!(request.peer_id(), PeerId::of_public_key(&request.public_key()));
    true
}

/// A request.
pub fn signing_request_seeds() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../data/request.der").to_vec()]
}

/// Names and object identifiers.
pub const WORDS: &[&[u8]] = &[
    b"index.potluck.internal",
    b".peer.potluck.internal",
    b"potluck:member/",
    b"/admin",
    b"/reader",
    b"\x55\x1d\x11",
    b"\x55\x04\x03",
    b"\x82",
    b"\x86",
    b"\x30",
    b"\x30\x80",
    b"\x17\x0d",
    b"\x18\x0f99991231235959Z",
];
