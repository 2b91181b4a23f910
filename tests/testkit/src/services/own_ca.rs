//! A PKI of one's own.

use std::{fs, path::PathBuf};

use potluck_core::network::own_pki::OwnPki;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// A CA, in a temporary folder.
#[derive(Debug)]
pub struct OwnCa {
    issuer: Issuer<'static, KeyPair>,
    dir: TempDir,
}

impl OwnCa {
    /// A new CA.
    pub fn create() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            dir,
        }
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The files of a program with this DNS name or IP address.
    pub fn issue(&self, name: &str) -> OwnPki {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        // A member is the subject of a certificate.
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (certificate_path, key_path) = (
            self.path(&format!("{name}.crt")),
            self.path(&format!("{name}.key")),
        );
        fs::write(&certificate_path, certificate.pem()).unwrap();
        fs::write(&key_path, key.serialize_pem()).unwrap();
        OwnPki {
            certificate: certificate_path,
            key: key_path,
            ca: self.path("ca.pem"),
            roles: None,
        }
    }
}
