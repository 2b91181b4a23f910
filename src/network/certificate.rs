//! What a certificate of the network says: its kind, its member and role, and its validity.
//!
//! This module only reads certificates. It verifies no signature: TLS does
//! ([`crate::network::tls`]), and the authority knows its own.

use std::time::{Duration, SystemTime};

use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _, time::ASN1Time,
};

use crate::{
    PeerId,
    network::identity::{
        CertifiedIdentity, INDEX_NAME, MemberId, Role, member_with_uri, peer_with_name,
    },
};

/// Whom a certificate names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateSubject {
    /// The network's index.
    Index,
    /// A member, for calls without a peer.
    Member {
        /// The member.
        member: MemberId,
        /// Its role.
        role: Role,
    },
    /// A peer of a member. The certificate's key determines its id.
    Peer {
        /// The peer.
        peer: PeerId,
        /// The member that it belongs to.
        member: MemberId,
        /// The member's role.
        role: Role,
    },
}

/// The content of a certificate of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Whom it names.
    pub subject: CertificateSubject,
    /// The member's name for people; not verified to be unique.
    pub name: String,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// The DER of the public key's SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
}

/// The reason why a certificate is not one of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It is not an X.509 certificate in DER.
    #[error("it is not an X.509 certificate")]
    Malformed,
    /// Its names are not those of the index, a peer or a member.
    #[error("it does not name the index, a peer or a member")]
    Names,
    /// It names a peer whose id does not follow from its key.
    #[error("it names a peer whose id does not follow from its key")]
    PeerKey,
}

impl CertificateInfo {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let public_key = certificate.public_key().raw.to_vec();
        let (mut dns, mut uri) = (Vec::new(), Vec::new());
        if let Ok(Some(names)) = certificate.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::DNSName(name) => dns.push(*name),
                    GeneralName::URI(name) => uri.push(*name),
                    _ => return Err(CertificateError::Names),
                }
            }
        }
        let subject = match (dns[..].as_ref(), uri[..].as_ref()) {
            ([INDEX_NAME], []) => CertificateSubject::Index,
            ([], [uri]) => {
                let (member, role) = member_with_uri(uri).ok_or(CertificateError::Names)?;
                CertificateSubject::Member { member, role }
            }
            ([name], [uri]) => {
                let (member, role) = member_with_uri(uri).ok_or(CertificateError::Names)?;
                let peer = peer_with_name(name).ok_or(CertificateError::Names)?;
                if peer != PeerId::of_public_key(&public_key) {
                    return Err(CertificateError::PeerKey);
                }
                CertificateSubject::Peer { peer, member, role }
            }
            _ => return Err(CertificateError::Names),
        };
        let common_name = certificate.subject().iter_common_name().next();
        let name = common_name
            .and_then(|name| name.as_str().ok())
            .unwrap_or_default();
        Ok(Self {
            subject,
            name: name.to_owned(),
            not_before: system_time(certificate.validity().not_before),
            not_after: system_time(certificate.validity().not_after),
            public_key,
        })
    }

    /// The member or peer that it names; `None` for the index.
    pub const fn identity(&self) -> Option<CertifiedIdentity> {
        match self.subject {
            CertificateSubject::Index => None,
            CertificateSubject::Member { member, role } => Some(CertifiedIdentity {
                member,
                peer: None,
                role,
            }),
            CertificateSubject::Peer { peer, member, role } => Some(CertifiedIdentity {
                member,
                peer: Some(peer),
                role,
            }),
        }
    }

    /// The time from which it should be renewed: half of its validity.
    pub fn renew_at(&self) -> SystemTime {
        let validity = self.not_after.duration_since(self.not_before);
        self.not_before + validity.unwrap_or_default() / 2
    }
}

/// The content of a certificate of a PKI that somebody else runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ForeignCertificate {
    /// Its common name, DNS names and URI names.
    pub(super) names: Vec<String>,
    /// The DER of its subject.
    pub(super) subject: Vec<u8>,
    /// The DER of the public key's SubjectPublicKeyInfo.
    pub(super) public_key: Vec<u8>,
    /// End of its validity.
    pub(super) not_after: SystemTime,
}

impl ForeignCertificate {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`].
    pub(super) fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let common = certificate.subject().iter_common_name();
        let mut names: Vec<_> = common
            .filter_map(|name| name.as_str().ok())
            .map(ToOwned::to_owned)
            .collect();
        if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
            names.extend(
                alternative
                    .value
                    .general_names
                    .iter()
                    .filter_map(|name| match name {
                        GeneralName::DNSName(name) | GeneralName::URI(name) => {
                            Some((*name).to_owned())
                        }
                        _ => None,
                    }),
            );
        }
        Ok(Self {
            names,
            subject: certificate.subject().as_raw().to_vec(),
            public_key: certificate.public_key().raw.to_vec(),
            not_after: system_time(certificate.validity().not_after),
        })
    }
}

/// The DER of the public key in a certificate.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn public_key_of(der: &[u8]) -> Result<Vec<u8>, CertificateError> {
    Ok(parse(der)?.public_key().raw.to_vec())
}

/// The common name of a certificate's subject; empty if it has none.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn common_name_of(der: &[u8]) -> Result<String, CertificateError> {
    let certificate = parse(der)?;
    let name = certificate.subject().iter_common_name().next();
    Ok(name
        .and_then(|name| name.as_str().ok())
        .unwrap_or_default()
        .to_owned())
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateError::Malformed),
    }
}

fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
