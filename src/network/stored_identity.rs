//! A private key with its certificate, in two files: `NAME.key` (mode 0600) and `NAME.crt`.
//!
//! Invariant: a stored certificate belongs to the key, and the network's CA issued it.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, ring::ECDSA_P256_SHA256};

use crate::{
    durable,
    network::{
        certificate::{CertificateInfo, CertificateSubject},
        credentials_error::CredentialsError,
        key::IdentityKey,
        pem_file,
    },
};

/// A key with its certificate.
#[derive(Debug, Clone)]
pub struct StoredIdentity {
    key: Arc<IdentityKey>,
    key_path: PathBuf,
    certificate_path: PathBuf,
    certificate: Option<StoredCertificate>,
}

#[derive(Debug, Clone)]
struct StoredCertificate {
    der: CertificateDer<'static>,
    info: CertificateInfo,
}

impl StoredIdentity {
    /// Loads `NAME.key` and `NAME.crt` from `folder`. A missing key is generated and stored; a
    /// missing certificate is for [`StoredIdentity::store_certificate`] to add.
    ///
    /// # Errors
    /// [`CredentialsError::Damaged`], [`CredentialsError::Io`].
    pub fn open(folder: &Path, name: &str) -> Result<Self, CredentialsError> {
        Self::with_key(folder, name, IdentityKey::load_or_create)
    }

    /// Like [`StoredIdentity::open`], but generates no key.
    ///
    /// # Errors
    /// Those of [`StoredIdentity::open`]; [`CredentialsError::Io`] if there is no key.
    pub fn load(folder: &Path, name: &str) -> Result<Self, CredentialsError> {
        Self::with_key(folder, name, IdentityKey::load)
    }

    fn with_key(
        folder: &Path,
        name: &str,
        key: impl Fn(&Path) -> io::Result<IdentityKey>,
    ) -> Result<Self, CredentialsError> {
        let key_path = folder.join(format!("{name}.key"));
        let certificate_path = folder.join(format!("{name}.crt"));
        let key = key(&key_path).map_err(|error| CredentialsError::io(&key_path, error))?;
        let failed = |error| CredentialsError::io(&certificate_path, error);
        let certificate = match pem_file::read_text(&certificate_path) {
            Ok(text) => {
                let der = pem_file::certificates(&text).map_err(failed)?.swap_remove(0);
                let info = CertificateInfo::parse(&der)
                    .map_err(|error| failed(io::Error::new(ErrorKind::InvalidData, error)))?;
                if info.public_key != key.public_key() {
                    return Err(CredentialsError::OtherKey {
                        path: certificate_path,
                    });
                }
                Some(StoredCertificate { der, info })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self {
            key: Arc::new(key),
            key_path,
            certificate_path,
            certificate,
        })
    }

    /// The key.
    pub const fn key(&self) -> &Arc<IdentityKey> {
        &self.key
    }

    /// The certificate.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.certificate.as_ref().map(|certificate| &certificate.der)
    }

    /// The certificate.
    ///
    /// # Errors
    /// [`CredentialsError::NoCertificate`].
    pub fn require_certificate(&self) -> Result<&CertificateDer<'static>, CredentialsError> {
        self.certificate().ok_or_else(|| CredentialsError::NoCertificate {
            path: self.certificate_path.clone(),
        })
    }

    /// What the certificate says.
    pub fn info(&self) -> Option<&CertificateInfo> {
        self.certificate.as_ref().map(|certificate| &certificate.info)
    }

    /// Whether there is no certificate, or one in the second half of its validity.
    pub fn needs_renewal(&self, now: SystemTime) -> bool {
        self.info().is_none_or(|info| info.renew_at() <= now)
    }

    /// Replaces the certificate, atomically.
    ///
    /// # Errors
    /// [`CredentialsError::OtherKey`] if it is for another key, otherwise those of
    /// [`StoredIdentity::check`] and [`CredentialsError::Io`]. The old certificate then remains.
    pub fn store_certificate(
        &mut self,
        der: &[u8],
        ca: &CertificateDer<'_>,
        now: SystemTime,
    ) -> Result<(), CredentialsError> {
        let path = &self.certificate_path;
        let failed = |error| CredentialsError::io(path, error);
        let info = CertificateInfo::parse(der)
            .map_err(|error| failed(io::Error::new(ErrorKind::InvalidData, error)))?;
        if info.public_key != self.key.public_key() {
            return Err(CredentialsError::OtherKey { path: path.clone() });
        }
        let der = CertificateDer::from(der.to_vec());
        verify(&der, &info, ca, path, now)?;
        let pem = pem_file::encode_certificates(std::slice::from_ref(&der));
        durable::write(path, pem.as_bytes(), 0o644).map_err(failed)?;
        self.certificate = Some(StoredCertificate { der, info });
        Ok(())
    }

    /// Checks that there is a certificate, that this CA issued it, and that it is valid now.
    ///
    /// # Errors
    /// [`CredentialsError::NoCertificate`], [`CredentialsError::OtherNetwork`],
    /// [`CredentialsError::Expired`], [`CredentialsError::NotYetValid`].
    pub fn check(&self, ca: &CertificateDer<'_>, now: SystemTime) -> Result<(), CredentialsError> {
        let path = &self.certificate_path;
        let certificate = self
            .certificate
            .as_ref()
            .ok_or_else(|| CredentialsError::NoCertificate { path: path.clone() })?;
        verify(&certificate.der, &certificate.info, ca, path, now)
    }

    /// Removes key and certificate.
    ///
    /// # Errors
    /// [`CredentialsError::Io`]. A file that is missing already is no error.
    pub fn remove(self) -> Result<(), CredentialsError> {
        for path in [&self.certificate_path, &self.key_path] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(CredentialsError::io(path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Checks that this CA issued the certificate, and that it is valid now.
fn verify(
    der: &CertificateDer<'_>,
    info: &CertificateInfo,
    ca: &CertificateDer<'_>,
    path: &Path,
    now: SystemTime,
) -> Result<(), CredentialsError> {
    let other = || CredentialsError::OtherNetwork {
        path: path.to_owned(),
    };
    let anchors = [anchor_from_trusted_cert(ca).map_err(|_| other())?];
    let certificate = EndEntityCert::try_from(der).map_err(|_| other())?;
    let usage = match info.subject {
        CertificateSubject::Index => KeyUsage::server_auth(),
        _ => KeyUsage::client_auth(),
    };
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let verified = certificate.verify_for_usage(
        &[ECDSA_P256_SHA256],
        &anchors,
        &[],
        UnixTime::since_unix_epoch(since_epoch),
        usage,
        None,
        None,
    );
    match verified {
        Ok(_) => Ok(()),
        Err(webpki::Error::CertExpired { .. }) => Err(CredentialsError::Expired {
            path: path.to_owned(),
            since: now.duration_since(info.not_after).unwrap_or_default(),
        }),
        Err(webpki::Error::CertNotValidYet { .. }) => Err(CredentialsError::NotYetValid {
            path: path.to_owned(),
            starts_in: info.not_before.duration_since(now).unwrap_or_default(),
        }),
        Err(_) => Err(other()),
    }
}
