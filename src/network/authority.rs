//! The certificate authority (CA) of a network: issues certificates, and signs revocation lists.
//!
//! The index runs it. Its folder holds `ca.key` (mode 0600) and `ca.crt`.
//!
//! Invariant: the authority alone chooses the names, the role and the uses in a certificate. A
//! signing request contributes only its key.

use std::{
    fmt,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, SigningKey as _,
};
use rustls::pki_types::CertificateDer;
use sha2::Digest as _;
use time::OffsetDateTime;

use crate::{
    durable,
    network::{
        certificate::{self, CertificateError},
        identity::{INDEX_NAME, MAX_NAME, MemberId, Role, is_valid_name, member_uri, peer_name},
        key::{IdentityKey, SigningRequest},
        pem_file,
        revocations::{RevocationList, SignedRevocations},
    },
};

/// Name of the file with the CA's private key.
pub const CA_KEY: &str = "ca.key";

/// Name of the file with the CA's certificate.
pub const CA_CERTIFICATE: &str = "ca.crt";

/// Validity of the CA's certificate: nobody wants to rejoin all machines, and there is no other root
/// that it must change with.
const CA_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Default validity of a certificate: long enough that a weekend without the index harms nobody,
/// short enough that a machine that no list of revocations reaches is soon out.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(7 * 24 * 3600);

/// How far the start of a certificate's validity lies in the past, for machines whose clock is
/// behind; at most a [`MAX_BACKDATED`]th of its validity, so that half of it lies ahead.
const BACKDATED: Duration = Duration::from_secs(3600);

/// See [`BACKDATED`].
const MAX_BACKDATED: u32 = 10;

/// SHA-256 of the DER of a CA's SubjectPublicKeyInfo, which identifies a network.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaHash(pub [u8; 32]);

impl CaHash {
    /// The hash of the key in a CA's certificate.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`].
    pub fn of_certificate(der: &[u8]) -> Result<Self, CertificateError> {
        let key = certificate::public_key_of(der)?;
        Ok(Self(sha2::Sha256::digest(key).into()))
    }
}

impl fmt::Display for CaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for CaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaHash({self})")
    }
}

/// Whom to issue a certificate to. The key of the signing request determines the id of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant<'a> {
    /// The network's index.
    Index,
    /// A member.
    Member {
        /// The member.
        member: MemberId,
        /// Its name for people.
        name: &'a str,
        /// Its role.
        role: Role,
    },
    /// A peer of a member.
    Peer {
        /// The member that it belongs to.
        member: MemberId,
        /// The member's name for people.
        name: &'a str,
        /// The member's role.
        role: Role,
    },
}

/// The reason why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The folder already holds a network.
    #[error(
        "{} already exists: this folder holds a network; serve it with `potluck index --network`, or \
         choose another folder", path.display()
    )]
    Exists {
        /// The file that exists.
        path: PathBuf,
    },
    /// The folder holds no network.
    #[error(
        "{} does not exist: create a network there with `potluck network create`, or restore a \
         backup with `potluck network restore`", path.display()
    )]
    Missing {
        /// The file that is missing.
        path: PathBuf,
    },
    /// A file is damaged.
    #[error("{} is damaged: {source}; restore it with `potluck network restore`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The key and the certificate of the CA do not belong together.
    #[error(
        "{CA_KEY} and {CA_CERTIFICATE} in {} do not belong together: restore both with `potluck \
         network restore`", folder.display()
    )]
    Mismatch {
        /// The folder.
        folder: PathBuf,
    },
    /// A name for people that is empty, too long or not printable.
    #[error("a name has 1 to {MAX_NAME} bytes, and no control characters")]
    Name,
    /// The system failed.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Signing failed.
    #[error("cannot sign: {0}")]
    Signing(#[source] rcgen::Error),
}

/// The certificate authority of a network. `Debug` does not show its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the authority of a new network in `folder`, which is created if it is missing. `name` is
    /// the network's name for people.
    ///
    /// # Errors
    /// [`AuthorityError::Exists`] if the folder holds a network; [`AuthorityError::Name`];
    /// [`AuthorityError::Io`].
    pub fn create(folder: &Path, name: &str, now: SystemTime) -> Result<Self, AuthorityError> {
        if !is_valid_name(name) {
            return Err(AuthorityError::Name);
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| match source.kind() {
                ErrorKind::AlreadyExists => AuthorityError::Exists { path },
                _ => AuthorityError::Io { path, source },
            }
        };
        durable::create_folders(folder, 0o700).map_err(failed(folder))?;
        let (key_path, path) = (folder.join(CA_KEY), folder.join(CA_CERTIFICATE));
        let key = IdentityKey::generate().map_err(failed(&key_path))?;
        let mut params = params(name, now, CA_VALIDITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(key.pair()).map_err(AuthorityError::Signing)?;
        key.store(&key_path).map_err(failed(&key_path))?;
        let pem = pem_file::encode_certificates(&[certificate.der().clone()]);
        durable::create(&path, pem.as_bytes(), 0o644).map_err(failed(&path))?;
        Self::new(key, certificate.der().clone(), folder)
    }

    /// Loads the authority in `folder`.
    ///
    /// # Errors
    /// [`AuthorityError`]; its message says what to do.
    pub fn load(folder: &Path) -> Result<Self, AuthorityError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| match source.kind() {
                ErrorKind::NotFound => AuthorityError::Missing { path },
                ErrorKind::InvalidData => AuthorityError::Damaged { path, source },
                _ => AuthorityError::Io { path, source },
            }
        };
        let (key_path, path) = (folder.join(CA_KEY), folder.join(CA_CERTIFICATE));
        let key = IdentityKey::load(&key_path).map_err(failed(&key_path))?;
        let text = pem_file::read_text(&path).map_err(failed(&path))?;
        let mut chain = pem_file::certificates(&text).map_err(failed(&path))?;
        Self::new(key, chain.swap_remove(0), folder)
    }

    fn new(
        key: IdentityKey,
        certificate: CertificateDer<'static>,
        folder: &Path,
    ) -> Result<Self, AuthorityError> {
        let mismatch = || AuthorityError::Mismatch {
            folder: folder.to_owned(),
        };
        let public_key = certificate::public_key_of(&certificate).map_err(|_| mismatch())?;
        if public_key != key.public_key() {
            return Err(mismatch());
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key.into_pair())
            .map_err(AuthorityError::Signing)?;
        Ok(Self { issuer, certificate })
    }

    /// The CA's certificate.
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The hash of the CA's public key, which identifies the network.
    pub fn hash(&self) -> CaHash {
        CaHash(sha2::Sha256::digest(self.issuer.key().subject_public_key_info()).into())
    }

    /// Issues a certificate for the key of `request`, valid for `validity` from `now`. Returns its
    /// DER.
    ///
    /// # Errors
    /// [`AuthorityError::Name`], [`AuthorityError::Signing`].
    pub fn issue(
        &self,
        request: &SigningRequest,
        grant: Grant<'_>,
        validity: Duration,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let dns = |name: String| name.try_into().map(SanType::DnsName);
        let uri = |member, role| member_uri(member, role).try_into().map(SanType::URI);
        let (name, names) = match grant {
            Grant::Index => ("index", vec![dns(INDEX_NAME.to_owned())]),
            Grant::Member { member, name, role } => (name, vec![uri(member, role)]),
            Grant::Peer { member, name, role } => {
                (name, vec![dns(peer_name(request.peer_id())), uri(member, role)])
            }
        };
        if !is_valid_name(name) {
            return Err(AuthorityError::Name);
        }
        let mut params = params(name, now, validity);
        params.subject_alt_names = names
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(AuthorityError::Signing)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match grant {
            Grant::Index => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Grant::Member { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Grant::Peer { .. } => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        };
        params.use_authority_key_identifier_extension = true;
        let issued = params.signed_by(request.key(), &self.issuer);
        Ok(issued.map_err(AuthorityError::Signing)?.into())
    }

    /// A secret that all who have the CA's key know, and nobody else. `purpose` tells apart what it is
    /// used for.
    pub fn shared_secret(&self, purpose: &str) -> [u8; 32] {
        let mut hash = sha2::Sha256::new();
        hash.update(b"potluck/shared-secret/v1\0");
        hash.update((purpose.len() as u64).to_be_bytes());
        hash.update(purpose);
        hash.update(self.issuer.key().serialize_der());
        hash.finalize().into()
    }

    /// Signs a list of revocations.
    ///
    /// # Errors
    /// [`AuthorityError::Signing`].
    pub fn sign_revocations(
        &self,
        list: RevocationList,
    ) -> Result<SignedRevocations, AuthorityError> {
        let message = list.encode();
        let signature = self
            .issuer
            .key()
            .sign(&message)
            .map_err(AuthorityError::Signing)?;
        Ok(SignedRevocations::from_parts(list, &message, &signature))
    }
}

/// Parameters with a common name and a validity that starts a little before `now`.
fn params(name: &str, now: SystemTime, validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::from(now - BACKDATED.min(validity / MAX_BACKDATED));
    params.not_after = OffsetDateTime::from(now + validity);
    params
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::network::certificate::{CertificateInfo, CertificateSubject};

    fn authority() -> Authority {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path(), "kitchen", SystemTime::now()).unwrap()
    }

    #[test]
    fn a_network_is_created_once_and_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep/network");
        let made = Authority::create(&folder, "kitchen", SystemTime::now()).unwrap();
        let mode = folder.join(CA_KEY).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let loaded = Authority::load(&folder).unwrap();
        assert_eq!(loaded.hash(), made.hash());
        assert_eq!(CaHash::of_certificate(made.certificate()).unwrap(), made.hash());
        assert!(matches!(
            Authority::create(&folder, "kitchen", SystemTime::now()),
            Err(AuthorityError::Exists { .. })
        ));
        let other = dir.path().join("other");
        Authority::create(&other, "garden", SystemTime::now()).unwrap();
        std::fs::copy(other.join(CA_CERTIFICATE), folder.join(CA_CERTIFICATE)).unwrap();
        assert!(matches!(
            Authority::load(&folder),
            Err(AuthorityError::Mismatch { .. })
        ));
        assert!(matches!(
            Authority::load(dir.path()),
            Err(AuthorityError::Missing { .. })
        ));
    }

    #[test]
    fn the_authority_chooses_every_name() {
        let (authority, key) = (authority(), IdentityKey::generate().unwrap());
        // The request asks for more than it gets.
        let mut params = CertificateParams::new(vec![INDEX_NAME.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = params.serialize_request(key.pair()).unwrap();
        let request = SigningRequest::parse(request.der()).unwrap();
        let (member, role) = (MemberId([7; 16]), Role::Reader);
        let now = SystemTime::now();
        let issue = |grant| {
            let der = authority.issue(&request, grant, DEFAULT_VALIDITY, now).unwrap();
            CertificateInfo::parse(&der).unwrap()
        };
        let name = "ann's laptop";
        let info = issue(Grant::Peer { member, name, role });
        let peer = key.peer_id();
        assert_eq!(info.subject, CertificateSubject::Peer { peer, member, role });
        assert_eq!(info.name, name);
        assert!(info.not_before < now && info.not_after <= now + DEFAULT_VALIDITY);
        let info = issue(Grant::Member { member, name, role });
        assert_eq!(info.subject, CertificateSubject::Member { member, role });
        assert_eq!(issue(Grant::Index).subject, CertificateSubject::Index);
        for bad in ["", " ", "a\nb", &"x".repeat(MAX_NAME + 1)] {
            let grant = Grant::Member {
                member,
                name: bad,
                role,
            };
            let issued = authority.issue(&request, grant, DEFAULT_VALIDITY, now);
            assert!(matches!(issued, Err(AuthorityError::Name)), "{bad:?}");
        }
    }
}
