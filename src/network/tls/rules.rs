//! Who may be at the other end of a connection.

use std::{sync::Arc, time::SystemTime};

use rustls::{
    client::verify_server_name,
    pki_types::{CertificateDer, ServerName},
    server::ParsedCertificate,
};

use crate::{
    PeerId,
    network::{
        authority::CaHash,
        certificate::{CertificateInfo, CertificateSubject, ForeignCertificate, public_key_of},
        identity::{CertifiedIdentity, INDEX_NAME, MemberId, peer_name, peer_with_name},
        own_pki::RoleTable,
        revocations::RevocationList,
    },
};

/// The name that stands for any peer of the network; no certificate has it.
const ANY_PEER: &str = "peer.potluck.internal";

/// The name that stands for any server of the network; no certificate has it.
const ANY: &str = "potluck.internal";

/// The server that a client expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerIdentity {
    /// The network's index.
    Index,
    /// This peer.
    Peer(PeerId),
    /// Any peer of the network: a person gave only its address.
    AnyPeer,
    /// The index or any peer.
    Any,
}

/// How certificates name servers and clients.
#[derive(Debug, Clone)]
pub enum Naming {
    /// The network's CA chose the names.
    Network {
        /// Revoked members and peers.
        revocations: Arc<RevocationList>,
    },
    /// A machine that joins knows only the hash of the CA's key. The server sends the CA's
    /// certificate.
    Joining(CaHash),
    /// A PKI of one's own chose the names.
    OwnPki {
        /// The roles of names, on an index.
        roles: Arc<RoleTable>,
    },
}

/// What a verified certificate says about the other end.
#[derive(Debug, Clone)]
pub(super) struct VerifiedClient {
    pub(super) identity: CertifiedIdentity,
    pub(super) not_after: SystemTime,
}

/// The reason why a verified chain does not suffice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The certificate is for another name or kind.
    Name,
    /// The certificate is revoked.
    Revoked,
}

impl ServerIdentity {
    /// The name under which the verifier gets to know the expectation. Nothing is sent. `None` if the
    /// host of the index's URL is not a valid name.
    pub(super) fn name(&self, naming: &Naming, host: &str) -> Option<ServerName<'static>> {
        if matches!((self, naming), (Self::Index, Naming::OwnPki { .. })) {
            return ServerName::try_from(host.to_owned()).ok();
        }
        let name = match self {
            Self::Index => INDEX_NAME.to_owned(),
            Self::Peer(peer) => peer_name(*peer),
            Self::AnyPeer => ANY_PEER.to_owned(),
            Self::Any => ANY.to_owned(),
        };
        ServerName::try_from(name).ok()
    }

    /// The expectation with this name.
    fn from_name(name: &ServerName<'_>) -> Option<Self> {
        let ServerName::DnsName(name) = name else {
            return None;
        };
        match name.as_ref() {
            INDEX_NAME => Some(Self::Index),
            ANY_PEER => Some(Self::AnyPeer),
            ANY => Some(Self::Any),
            name => peer_with_name(name).map(Self::Peer),
        }
    }
}

impl Naming {
    /// Checks the certificate of a server, whose chain is valid.
    pub(super) fn check_server(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
    ) -> Result<(), Refusal> {
        let expected = ServerIdentity::from_name(name);
        if matches!(self, Self::OwnPki { .. }) {
            return check_foreign_server(certificate, name, expected);
        }
        let expected = expected.ok_or(Refusal::Name)?;
        let info = CertificateInfo::parse(certificate).map_err(|_| Refusal::Name)?;
        match (info.subject, expected) {
            (CertificateSubject::Index, ServerIdentity::Index | ServerIdentity::Any)
            | (CertificateSubject::Peer { .. }, ServerIdentity::AnyPeer | ServerIdentity::Any) => {}
            (CertificateSubject::Peer { peer, .. }, ServerIdentity::Peer(expected))
                if peer == expected => {}
            _ => return Err(Refusal::Name),
        }
        self.check_revocation(&info)
    }

    /// Checks the certificate of a client, whose chain is valid.
    pub(super) fn check_client(
        &self,
        certificate: &CertificateDer<'_>,
    ) -> Result<VerifiedClient, Refusal> {
        if let Self::OwnPki { roles } = self {
            let foreign = ForeignCertificate::parse(certificate).map_err(|_| Refusal::Name)?;
            return Ok(VerifiedClient {
                identity: CertifiedIdentity {
                    member: MemberId::of_subject(&foreign.subject),
                    peer: Some(PeerId::of_public_key(&foreign.public_key)),
                    role: roles.role_of(&foreign),
                },
                not_after: foreign.not_after,
            });
        }
        let info = CertificateInfo::parse(certificate).map_err(|_| Refusal::Name)?;
        self.check_revocation(&info)?;
        Ok(VerifiedClient {
            identity: info.identity().ok_or(Refusal::Name)?,
            not_after: info.not_after,
        })
    }

    fn check_revocation(&self, info: &CertificateInfo) -> Result<(), Refusal> {
        let identity = info.identity();
        match identity.is_some_and(|identity| self.revokes(&identity)) {
            true => Err(Refusal::Revoked),
            false => Ok(()),
        }
    }

    /// Whether this member or peer is revoked.
    pub(super) fn revokes(&self, identity: &CertifiedIdentity) -> bool {
        match self {
            Self::Network { revocations } => revocations.revokes(identity),
            Self::Joining(_) | Self::OwnPki { .. } => false,
        }
    }

    /// The certificate of the CA among those that the server sent, for a machine that joins.
    pub(super) fn find_ca<'a>(
        &self,
        sent: &'a [CertificateDer<'a>],
    ) -> Option<&'a CertificateDer<'a>> {
        let Self::Joining(hash) = self else {
            return None;
        };
        sent.iter().find(|certificate| {
            public_key_of(certificate).is_ok()
                && CaHash::of_certificate(certificate).is_ok_and(|found| found == *hash)
        })
    }
}

/// Checks the certificate of a server in a PKI of one's own: the key of the expected peer, or the host
/// of the index's URL.
fn check_foreign_server(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
    expected: Option<ServerIdentity>,
) -> Result<(), Refusal> {
    let is_expected = match expected {
        Some(ServerIdentity::Peer(peer)) => {
            public_key_of(certificate).is_ok_and(|key| PeerId::of_public_key(&key) == peer)
        }
        Some(ServerIdentity::AnyPeer | ServerIdentity::Any) => true,
        Some(ServerIdentity::Index) | None => ParsedCertificate::try_from(certificate)
            .is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok()),
    };
    match is_expected {
        true => Ok(()),
        false => Err(Refusal::Name),
    }
}
