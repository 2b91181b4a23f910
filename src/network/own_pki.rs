//! Certificates of a PKI that somebody else runs, and the roles that an index gives them.
//!
//! Such a PKI chooses its own names. So a client requires the host of the index's URL in the index's
//! certificate, and the key of the peer that the index returned. A member is the subject of a
//! certificate; its role is in the index's roles file:
//!
//! ```text
//! # role      name in the certificate: its common name, a DNS name or a URI name
//! admin       ops.example
//! publisher   builder.example
//! reader      *
//! ```

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

use crate::network::{
    certificate::ForeignCertificate, credentials_error::CredentialsError, identity::Role, pem_file,
};

/// Stands for any name in a roles file.
const ANYBODY: &str = "*";

/// The roles that an index gives to the names in certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoleTable {
    by_name: HashMap<String, Role>,
}

impl RoleTable {
    /// Parses a roles file.
    ///
    /// # Errors
    /// A message with the number of the line at fault.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut by_name = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (role, name) = line
                .split_once(char::is_whitespace)
                .ok_or_else(|| format!("line {number}: give a role and a name"))?;
            let role = role.parse().map_err(|error| format!("line {number}: {error}"))?;
            if by_name.insert(name.trim().to_owned(), role).is_some() {
                return Err(format!("line {number}: `{}` has a role already", name.trim()));
            }
        }
        Ok(Self { by_name })
    }

    /// The highest role of the names in a certificate; [`Role::Reader`] if none is listed.
    pub(super) fn role_of(&self, certificate: &ForeignCertificate) -> Role {
        let names = certificate.names.iter().map(String::as_str).chain([ANYBODY]);
        let listed = names.filter_map(|name| self.by_name.get(name));
        listed.max().copied().unwrap_or(Role::Reader)
    }
}

/// The files of a program in a PKI of one's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPki {
    /// The certificate, followed by intermediate ones, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// The certificates of the CAs whose certificates are accepted, in PEM.
    pub ca: PathBuf,
    /// The roles file of an index.
    pub roles: Option<PathBuf>,
}

/// The content of the files of [`OwnPki`].
#[derive(Debug)]
pub(super) struct LoadedPki {
    pub(super) chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) roots: Vec<rustls::pki_types::CertificateDer<'static>>,
    pub(super) roles: Arc<RoleTable>,
}

impl OwnPki {
    pub(super) fn load(&self) -> Result<LoadedPki, CredentialsError> {
        let read = |path: &Path| {
            pem_file::read_text(path).map_err(|source| CredentialsError::File {
                path: path.to_owned(),
                source,
            })
        };
        let invalid = |path: &Path, why: String| CredentialsError::File {
            path: path.to_owned(),
            source: io::Error::new(ErrorKind::InvalidData, why),
        };
        let certificates = |path: &Path| {
            let text = read(path)?;
            pem_file::certificates(&text).map_err(|error| invalid(path, error.to_string()))
        };
        let key = Zeroizing::new(read(&self.key)?);
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|_| invalid(&self.key, "it does not contain a private key in PEM".into()))?;
        let roles = match &self.roles {
            Some(path) => RoleTable::parse(&read(path)?).map_err(|why| invalid(path, why))?,
            None => RoleTable::default(),
        };
        Ok(LoadedPki {
            chain: certificates(&self.certificate)?,
            key,
            roots: certificates(&self.ca)?,
            roles: Arc::new(roles),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(table: &str, names: &[&str]) -> Role {
        RoleTable::parse(table).unwrap().role_of(&ForeignCertificate {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            subject: Vec::new(),
            public_key: Vec::new(),
            not_after: std::time::SystemTime::UNIX_EPOCH,
        })
    }

    #[test]
    fn the_highest_role_of_all_names_counts() {
        let table = "# roles\nadmin ops.example\n\npublisher  builder one\n";
        assert_eq!(role(table, &["ops.example"]), Role::Admin);
        assert_eq!(role(table, &["x", "builder one"]), Role::Publisher);
        assert_eq!(role(table, &["x"]), Role::Reader);
        assert_eq!(role("publisher *", &[]), Role::Publisher);
    }

    #[test]
    fn an_invalid_line_is_named() {
        for (table, expected) in [
            ("reader a\nowner b", "line 2: a role is"),
            ("reader", "line 1: give a role and a name"),
            ("reader a\nadmin a", "line 2: `a` has a role"),
        ] {
            let error = RoleTable::parse(table).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
