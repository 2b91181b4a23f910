//! P-256 keys of the index, members and peers, and their signing requests.
//!
//! P-256, because gRPC core rejects certificates with Ed25519 keys.
//!
//! Invariant: a private key never appears in logs or errors, and its file has mode 0600.

use std::{
    fmt,
    io::{self, ErrorKind},
    path::Path,
};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::{
    PeerId, durable,
    network::{identity::MemberId, pem_file},
};

/// Maximum length of a signing request, in bytes; one with a P-256 key has about 200.
pub const MAX_SIGNING_REQUEST: usize = 4096;

/// A private key of the index, a member or a peer. `Debug` prints a placeholder.
pub struct IdentityKey {
    pair: KeyPair,
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentityKey(secret)")
    }
}

impl IdentityKey {
    /// Generates a key with the system's generator.
    ///
    /// # Errors
    /// The system's generator failed.
    pub fn generate() -> io::Result<Self> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?;
        Ok(Self { pair })
    }

    /// Reads a key from a PEM file.
    ///
    /// # Errors
    /// Those of the system; [`ErrorKind::InvalidData`] if the file does not hold a P-256 key.
    pub fn load(path: &Path) -> io::Result<Self> {
        let text = Zeroizing::new(pem_file::read_text(path)?);
        let pair = KeyPair::from_pkcs8_pem_and_sign_algo(&text, &PKCS_ECDSA_P256_SHA256);
        let pair = pair.map_err(|_| {
            io::Error::new(
                ErrorKind::InvalidData,
                "it does not contain a P-256 key in PEM (PKCS#8)",
            )
        })?;
        Ok(Self { pair })
    }

    /// Stores the key in a new file with mode 0600, durably.
    ///
    /// # Errors
    /// Those of the system; [`ErrorKind::AlreadyExists`] if there is a file.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let text = Zeroizing::new(self.pair.serialize_pem());
        durable::create(path, text.as_bytes(), 0o600)
    }

    /// Reads the key, or generates and stores one if there is no file.
    ///
    /// # Errors
    /// Those of [`IdentityKey::load`] and [`IdentityKey::store`].
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        match Self::load(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let key = Self::generate()?;
                key.store(path)?;
                Ok(key)
            }
            loaded => loaded,
        }
    }

    /// The DER of the public key's SubjectPublicKeyInfo.
    pub fn public_key(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    /// The id of the peer with this key.
    pub fn peer_id(&self) -> PeerId {
        PeerId::of_public_key(&self.public_key())
    }

    /// The id of the member with this key.
    pub fn member_id(&self) -> MemberId {
        MemberId::of_public_key(&self.public_key())
    }

    /// A signing request (PKCS#10, DER), which proves possession of the key. It names nobody: the CA
    /// chooses the names.
    ///
    /// # Errors
    /// The system's generator failed.
    pub fn signing_request(&self) -> io::Result<Vec<u8>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.pair).map_err(io::Error::other)?;
        Ok(request.der().to_vec())
    }

    /// The key as TLS wants it.
    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pair.serialize_der()).into()
    }

    pub(super) const fn pair(&self) -> &KeyPair {
        &self.pair
    }

    pub(super) fn into_pair(self) -> KeyPair {
        self.pair
    }
}

/// The reason why a signing request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SigningRequestError {
    /// It is longer than [`MAX_SIGNING_REQUEST`].
    #[error("a signing request has at most {MAX_SIGNING_REQUEST} bytes")]
    TooLong,
    /// It is not PKCS#10 in DER.
    #[error("the signing request is not PKCS#10 in DER")]
    Malformed,
    /// Its signature does not prove possession of the key.
    #[error("the signature of the signing request does not match its key")]
    Signature,
    /// The key is not a P-256 key.
    #[error("the key of the signing request is not a P-256 key")]
    KeyType,
}

/// A signing request whose signature proves possession of its key. Everything else in it is ignored:
/// the CA chooses names and uses.
#[derive(Debug)]
pub struct SigningRequest {
    params: CertificateSigningRequestParams,
}

impl SigningRequest {
    /// Parses PKCS#10 in DER, and verifies its signature.
    ///
    /// # Errors
    /// [`SigningRequestError`].
    pub fn parse(der: &[u8]) -> Result<Self, SigningRequestError> {
        if der.len() > MAX_SIGNING_REQUEST {
            return Err(SigningRequestError::TooLong);
        }
        let params =
            CertificateSigningRequestParams::from_der(&der.into()).map_err(
                |error| match error {
                    rcgen::Error::InvalidCertificationRequestSignature => {
                        SigningRequestError::Signature
                    }
                    rcgen::Error::UnsupportedSignatureAlgorithm => SigningRequestError::KeyType,
                    _ => SigningRequestError::Malformed,
                },
            )?;
        // The name of the signature algorithm decides how the key is encoded, so the key must be on
        // this curve: an uncompressed point has 65 bytes, the first of which is 4.
        let point = params.public_key.der_bytes();
        let is_p256 = params.public_key.algorithm() == &PKCS_ECDSA_P256_SHA256
            && point.len() == 65
            && point[0] == 4;
        match is_p256 {
            true => Ok(Self { params }),
            false => Err(SigningRequestError::KeyType),
        }
    }

    /// The DER of the public key's SubjectPublicKeyInfo.
    pub fn public_key(&self) -> Vec<u8> {
        self.params.public_key.subject_public_key_info()
    }

    /// The id of the peer with this key.
    pub fn peer_id(&self) -> PeerId {
        PeerId::of_public_key(&self.public_key())
    }

    /// The id of the member with this key.
    pub fn member_id(&self) -> MemberId {
        MemberId::of_public_key(&self.public_key())
    }

    pub(super) const fn key(&self) -> &rcgen::PublicKey {
        &self.params.public_key
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_stored_privately_once_and_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peer.key");
        let key = IdentityKey::load_or_create(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            IdentityKey::load_or_create(&path).unwrap().peer_id(),
            key.peer_id()
        );
        let again = key.store(&path).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        assert_eq!(format!("{key:?}"), "IdentityKey(secret)");
        std::fs::write(&path, "nonsense").unwrap();
        assert_eq!(
            IdentityKey::load(&path).unwrap_err().kind(),
            ErrorKind::InvalidData
        );
    }

    #[test]
    fn a_signing_request_proves_possession_of_its_key() {
        let key = IdentityKey::generate().unwrap();
        let mut der = key.signing_request().unwrap();
        let request = SigningRequest::parse(&der).unwrap();
        assert_eq!(request.peer_id(), key.peer_id());
        assert_eq!(request.member_id(), key.member_id());
        *der.last_mut().unwrap() ^= 1;
        assert!(SigningRequest::parse(&der).is_err());
        assert_eq!(
            SigningRequest::parse(&[0; MAX_SIGNING_REQUEST + 1]).unwrap_err(),
            SigningRequestError::TooLong
        );
        assert_eq!(
            SigningRequest::parse(b"nonsense").unwrap_err(),
            SigningRequestError::Malformed
        );
    }

    #[test]
    fn a_key_on_another_curve_is_refused() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        assert_eq!(
            SigningRequest::parse(request.der()).unwrap_err(),
            SigningRequestError::KeyType
        );
    }
}
