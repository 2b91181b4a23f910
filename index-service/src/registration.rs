//! A registration whose parts are elsewhere.

use potluck_core::model::{FileRecord, Registration, RegistrationHash};
use smallvec::SmallVec;

/// A registration whose record and names are borrowed.
#[derive(Debug, Clone)]
pub(crate) struct RegistrationRef<'a> {
    pub(crate) file: &'a FileRecord,
    pub(crate) names: SmallVec<[&'a str; 2]>,
    pub(crate) is_complete: bool,
}

impl RegistrationRef<'_> {
    /// Its hash, for the digest of a peer.
    pub(crate) fn hash(&self) -> RegistrationHash {
        let mut names = self.names.clone();
        RegistrationHash::new(
            &self.file.id,
            self.file.sha256.as_ref(),
            self.file.kind,
            self.is_complete,
            &mut names,
        )
    }
}

impl<'a> From<&'a Registration> for RegistrationRef<'a> {
    fn from(registration: &'a Registration) -> Self {
        Self {
            file: &registration.file,
            names: registration.names.iter().map(String::as_str).collect(),
            is_complete: registration.is_complete,
        }
    }
}

impl From<&RegistrationRef<'_>> for Registration {
    fn from(registration: &RegistrationRef<'_>) -> Self {
        Self {
            file: *registration.file,
            names: registration.names.iter().map(|&name| name.to_owned()).collect(),
            is_complete: registration.is_complete,
        }
    }
}
