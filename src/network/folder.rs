//! The folder of `potluck index --network`: the network's CA, and the index's key and certificate.
//!
//! ```text
//! DIR/          mode 0700
//!   ca.key      mode 0600
//!   ca.crt
//!   index.key   mode 0600
//!   index.crt   renewed by the index itself
//! ```
//!
//! The index keeps its members and join codes here too (`potluck-index`, module `network`).

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    Problem, Reason,
    network::{
        authority::{Authority, AuthorityError, DEFAULT_VALIDITY, Grant},
        credentials_error::CredentialsError,
        key::SigningRequest,
        stored_identity::StoredIdentity,
    },
};

/// The stem of the names of the index's key and certificate.
const INDEX: &str = "index";

/// The reason why a network's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetworkFolderError {
    /// The CA cannot be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The index's key or certificate cannot be used.
    #[error(transparent)]
    Index(#[from] CredentialsError),
    /// The system's generator failed.
    #[error("cannot make a signing request: {0}")]
    Request(#[source] std::io::Error),
}

impl From<NetworkFolderError> for Problem {
    fn from(error: NetworkFolderError) -> Self {
        Self::new(Reason::InvalidArgument, error.to_string())
    }
}

/// The folder of a network, on the machine of its index.
#[derive(Debug)]
pub struct NetworkFolder {
    path: PathBuf,
    authority: Authority,
    index: StoredIdentity,
}

impl NetworkFolder {
    /// Makes a new network with this name for people.
    ///
    /// # Errors
    /// [`NetworkFolderError`]; [`AuthorityError::Exists`] if the folder holds a network.
    pub fn create(path: &Path, name: &str, now: SystemTime) -> Result<Self, NetworkFolderError> {
        Self::with_authority(path, Authority::create(path, name, now)?, now)
    }

    /// Opens the folder of a network, and renews the index's certificate if it is due.
    ///
    /// # Errors
    /// [`NetworkFolderError`]; [`AuthorityError::Missing`] if the folder holds no network.
    pub fn open(path: &Path, now: SystemTime) -> Result<Self, NetworkFolderError> {
        Self::with_authority(path, Authority::load(path)?, now)
    }

    fn with_authority(
        path: &Path,
        authority: Authority,
        now: SystemTime,
    ) -> Result<Self, NetworkFolderError> {
        let mut folder = Self {
            path: path.to_owned(),
            index: StoredIdentity::open(path, INDEX)?,
            authority,
        };
        folder.renew_index(now)?;
        Ok(folder)
    }

    /// Issues a new certificate for the index if there is none, or if it is in the second half of its
    /// validity, or of another CA. Returns whether it did.
    ///
    /// # Errors
    /// [`NetworkFolderError`].
    pub fn renew_index(&mut self, now: SystemTime) -> Result<bool, NetworkFolderError> {
        let ca = self.authority.certificate();
        if !self.index.needs_renewal(now) && self.index.check(ca, now).is_ok() {
            return Ok(false);
        }
        let request = self.index.key().signing_request();
        let request = request.map_err(NetworkFolderError::Request)?;
        let request = SigningRequest::parse(&request)
            .map_err(|error| NetworkFolderError::Request(std::io::Error::other(error)))?;
        let issued = self
            .authority
            .issue(&request, Grant::Index, DEFAULT_VALIDITY, now)?;
        self.index.store_certificate(&issued, ca, now)?;
        Ok(true)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The network's CA.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The index's key and certificate.
    pub const fn index(&self) -> &StoredIdentity {
        &self.index
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_certificate_of_the_index_is_renewed_at_half_of_its_validity() {
        let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
        let mut folder = NetworkFolder::create(dir.path(), "kitchen", now).unwrap();
        assert!(!folder.renew_index(now).unwrap());
        let later = now + DEFAULT_VALIDITY / 2 + Duration::from_secs(3600);
        assert!(folder.renew_index(later).unwrap());
        let again = NetworkFolder::open(dir.path(), later).unwrap();
        let key = |folder: &NetworkFolder| folder.index().key().peer_id();
        assert_eq!(key(&again), key(&folder), "the key stays");
        assert_eq!(again.index().certificate(), folder.index().certificate());
    }
}
