//! Who may be at the other end of a connection.

use std::{sync::Arc, time::SystemTime};

use rustls::pki_types::{CertificateDer, ServerName};

use crate::{
    PeerId,
    network::{
        authority::CaHash,
        certificate::{CertificateInfo, CertificateSubject, public_key_of},
        identity::{CertifiedIdentity, INDEX_NAME, peer_name, peer_with_name},
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
    /// The name under which the verifier gets to know the expectation. Nothing is sent.
    pub(super) fn name(&self) -> ServerName<'static> {
        let name = match self {
            Self::Index => INDEX_NAME.to_owned(),
            Self::Peer(peer) => peer_name(*peer),
            Self::AnyPeer => ANY_PEER.to_owned(),
            Self::Any => ANY.to_owned(),
        };
        ServerName::try_from(name).expect("the names of a network are valid DNS names")
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
        let expected = ServerIdentity::from_name(name).ok_or(Refusal::Name)?;
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
            Self::Joining(_) => false,
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
