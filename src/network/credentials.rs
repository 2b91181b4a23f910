//! What a member keeps on disk, in a folder.
//!
//! ```text
//! FOLDER/          mode 0700
//!   network.json   the network's name, and the URLs of its index
//!   ca.crt         the certificate of the network's CA
//!   member.key     mode 0600
//!   member.crt
//!   revocations    the newest list of revocations, signed by the CA
//! ```
//!
//! The folder is complete once `network.json` exists: it is written last.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{
    durable,
    files::read_own,
    network::{
        authority::{CA_CERTIFICATE, CaHash},
        certificate::common_name_of,
        credentials_error::CredentialsError,
        pem_file,
        revocations::{MAX_SIGNED, SignedRevocations},
        stored_identity::StoredIdentity,
    },
};

const NETWORK_FILE: &str = "network.json";
const REVOCATIONS_FILE: &str = "revocations";

/// The stem of the names of a member's key and certificate.
const MEMBER: &str = "member";

/// Version of `network.json`.
const VERSION: u32 = 1;

/// The content of `network.json`.
#[derive(Debug, Serialize, Deserialize)]
struct NetworkFile {
    version: u32,
    name: String,
    indexes: Vec<String>,
}

/// The credentials of a member.
#[derive(Debug, Clone)]
pub struct Credentials {
    folder: PathBuf,
    name: String,
    indexes: Vec<String>,
    ca: CertificateDer<'static>,
    member: StoredIdentity,
    revocations: Option<SignedRevocations>,
}

/// The default folder of credentials: `network` in the user's configuration folder for potluck.
/// `None` if the user has none.
pub fn default_folder() -> Option<PathBuf> {
    let dirs = directories::ProjectDirs::from("", "", "potluck")?;
    Some(dirs.config_dir().join("network"))
}

/// The credentials that a program uses: those in `folder` if it is given, none with `no_network`, and
/// otherwise those in the default folder, if this machine joined a network.
///
/// # Errors
/// [`CredentialsError`].
pub fn find(
    folder: Option<&Path>,
    no_network: bool,
) -> Result<Option<Credentials>, CredentialsError> {
    match (folder, no_network) {
        (_, true) => Ok(None),
        (Some(folder), false) => Credentials::load(folder).map(Some),
        (None, false) => {
            let default = default_folder().filter(|folder| Credentials::exist(folder));
            default.map(|folder| Credentials::load(&folder)).transpose()
        }
    }
}

impl Credentials {
    /// Whether the folder holds credentials.
    pub fn exist(folder: &Path) -> bool {
        folder.join(NETWORK_FILE).symlink_metadata().is_ok()
    }

    /// The key with which a machine enrols, for [`Credentials::create`]. An enrolment that was
    /// interrupted continues with the same key, so that the index returns the same certificate.
    ///
    /// # Errors
    /// [`CredentialsError::Exists`] if the folder holds credentials; [`CredentialsError::Damaged`],
    /// [`CredentialsError::Io`].
    pub fn prepare(folder: &Path) -> Result<StoredIdentity, CredentialsError> {
        if Self::exist(folder) {
            let name = Self::load(folder)?.name;
            return Err(CredentialsError::Exists {
                folder: folder.to_owned(),
                name,
            });
        }
        durable::create_folders(folder, 0o700)
            .map_err(|error| CredentialsError::io(folder, error))?;
        StoredIdentity::open(folder, MEMBER)
    }

    /// Stores the result of an enrolment: the CA's certificate, the member's certificate for the key
    /// of [`Credentials::prepare`], and the URLs of the index.
    ///
    /// # Errors
    /// Those of [`Credentials::prepare`] and [`StoredIdentity::store_certificate`].
    pub fn create(
        folder: &Path,
        ca: &CertificateDer<'_>,
        certificate: &[u8],
        indexes: Vec<String>,
        now: SystemTime,
    ) -> Result<Self, CredentialsError> {
        let mut member = Self::prepare(folder)?;
        let path = folder.join(CA_CERTIFICATE);
        let pem = pem_file::encode_certificates(std::slice::from_ref(ca));
        durable::write(&path, pem.as_bytes(), 0o644)
            .map_err(|error| CredentialsError::io(&path, error))?;
        member.store_certificate(certificate, ca, now)?;
        let credentials = Self {
            folder: folder.to_owned(),
            name: common_name_of(ca).unwrap_or_default(),
            indexes,
            ca: ca.clone().into_owned(),
            member,
            revocations: None,
        };
        credentials.write_network_file()?;
        Ok(credentials)
    }

    /// Loads credentials. Their certificate may have expired: see [`StoredIdentity::check`].
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn load(folder: &Path) -> Result<Self, CredentialsError> {
        let path = folder.join(NETWORK_FILE);
        let failed = |error| CredentialsError::io(&path, error);
        let network = match pem_file::read_text(&path) {
            Ok(text) => serde_json::from_str::<NetworkFile>(&text)
                .map_err(|error| failed(io::Error::new(ErrorKind::InvalidData, error)))?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(CredentialsError::Missing {
                    folder: folder.to_owned(),
                });
            }
            Err(error) => return Err(failed(error)),
        };
        if network.version != VERSION {
            let newer = "it was written by a newer version of potluck";
            return Err(failed(io::Error::new(ErrorKind::InvalidData, newer)));
        }
        let path = folder.join(CA_CERTIFICATE);
        let failed = |error| CredentialsError::io(&path, error);
        let ca = pem_file::read_text(&path).and_then(|text| pem_file::certificates(&text));
        let ca = ca.map_err(failed)?.swap_remove(0);
        let member = StoredIdentity::load(folder, MEMBER)?;
        let path = folder.join(REVOCATIONS_FILE);
        let revocations = match read_own(&path, MAX_SIGNED as u64) {
            Ok(bytes) => Some(SignedRevocations::verify(&bytes, &ca)?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(CredentialsError::io(&path, error)),
        };
        Ok(Self {
            folder: folder.to_owned(),
            name: network.name,
            indexes: network.indexes,
            ca,
            member,
            revocations,
        })
    }

    /// The folder of the credentials.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The network's name for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URLs of the network's index.
    pub fn indexes(&self) -> &[String] {
        &self.indexes
    }

    /// The certificate of the network's CA.
    pub const fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The hash of the public key of the network's CA.
    ///
    /// # Errors
    /// [`CredentialsError::Damaged`].
    pub fn ca_hash(&self) -> Result<CaHash, CredentialsError> {
        CaHash::of_certificate(&self.ca).map_err(|error| {
            let path = self.folder.join(CA_CERTIFICATE);
            CredentialsError::io(&path, io::Error::new(ErrorKind::InvalidData, error))
        })
    }

    /// The member's key and certificate.
    pub const fn member(&self) -> &StoredIdentity {
        &self.member
    }

    /// The newest known list of revocations.
    pub const fn revocations(&self) -> Option<&SignedRevocations> {
        self.revocations.as_ref()
    }

    /// Replaces the member's certificate, atomically.
    ///
    /// # Errors
    /// Those of [`StoredIdentity::store_certificate`].
    pub fn store_certificate(
        &mut self,
        certificate: &[u8],
        now: SystemTime,
    ) -> Result<(), CredentialsError> {
        self.member.store_certificate(certificate, &self.ca, now)
    }

    /// Replaces the URLs of the index.
    ///
    /// # Errors
    /// [`CredentialsError::Io`].
    pub fn set_indexes(&mut self, indexes: Vec<String>) -> Result<(), CredentialsError> {
        self.indexes = indexes;
        self.write_network_file()
    }

    /// Verifies and stores a list of revocations, if its number is higher than that of the known
    /// list. Returns whether it was stored.
    ///
    /// # Errors
    /// [`CredentialsError::Revocations`], [`CredentialsError::Io`].
    pub fn store_revocations(&mut self, signed: &[u8]) -> Result<bool, CredentialsError> {
        let signed = SignedRevocations::verify(signed, &self.ca)?;
        let known = self.revocations.as_ref().map_or(0, |known| known.list().number);
        if signed.list().number <= known {
            return Ok(false);
        }
        let path = self.folder.join(REVOCATIONS_FILE);
        durable::write(&path, signed.as_bytes(), 0o600)
            .map_err(|error| CredentialsError::io(&path, error))?;
        self.revocations = Some(signed);
        Ok(true)
    }

    /// Removes the credentials: this machine leaves the network.
    ///
    /// # Errors
    /// [`CredentialsError::Io`].
    pub fn remove(self) -> Result<(), CredentialsError> {
        for name in [NETWORK_FILE, REVOCATIONS_FILE, CA_CERTIFICATE] {
            let path = self.folder.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(CredentialsError::io(&path, error));
                }
                _ => {}
            }
        }
        self.member.remove()?;
        let synced = durable::sync_folder(&self.folder);
        synced.map_err(|error| CredentialsError::io(&self.folder, error))
    }

    fn write_network_file(&self) -> Result<(), CredentialsError> {
        let path = self.folder.join(NETWORK_FILE);
        let content = NetworkFile {
            version: VERSION,
            name: self.name.clone(),
            indexes: self.indexes.clone(),
        };
        let written = serde_json::to_vec_pretty(&content)
            .map_err(io::Error::from)
            .and_then(|bytes| durable::write(&path, &bytes, 0o644));
        written.map_err(|error| CredentialsError::io(&path, error))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::network::{
        authority::{Authority, DEFAULT_VALIDITY, Grant},
        identity::Role,
        key::SigningRequest,
        revocations::RevocationList,
    };

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn authority(folder: &Path, name: &str) -> Authority {
        Authority::create(&folder.join(name), name, SystemTime::now()).unwrap()
    }

    fn issue(authority: &Authority, member: &StoredIdentity, now: SystemTime) -> Vec<u8> {
        let request = SigningRequest::parse(&member.key().signing_request().unwrap()).unwrap();
        let grant = Grant::Member {
            member: request.member_id(),
            name: "ann",
            role: Role::Reader,
        };
        let issued = authority.issue(&request, grant, DEFAULT_VALIDITY, now);
        issued.unwrap().to_vec()
    }

    fn join(folder: &Path, authority: &Authority) -> Credentials {
        let (member, now) = (Credentials::prepare(folder).unwrap(), SystemTime::now());
        let certificate = issue(authority, &member, now);
        let indexes = vec!["https://index.example:1313".to_owned()];
        Credentials::create(folder, authority.certificate(), &certificate, indexes, now).unwrap()
    }

    #[test]
    fn credentials_are_stored_renewed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (authority, folder) = (authority(dir.path(), "kitchen"), dir.path().join("mine"));
        assert!(matches!(
            Credentials::load(&folder),
            Err(CredentialsError::Missing { .. })
        ));
        let mut credentials = join(&folder, &authority);
        assert_eq!(credentials.name(), "kitchen");
        assert!(matches!(
            Credentials::prepare(&folder),
            Err(CredentialsError::Exists { name, .. }) if name == "kitchen"
        ));
        let later = SystemTime::now() + 4 * DAY;
        assert!(credentials.member().needs_renewal(later));
        let renewed = issue(&authority, credentials.member(), later);
        credentials.store_certificate(&renewed, later).unwrap();
        credentials
            .set_indexes(vec!["https://other.example:1".to_owned()])
            .unwrap();
        let loaded = Credentials::load(&folder).unwrap();
        assert!(!loaded.member().needs_renewal(later));
        assert_eq!(loaded.indexes(), ["https://other.example:1"]);
        assert_eq!(loaded.ca_hash().unwrap(), authority.hash());
        loaded.remove().unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn a_certificate_is_checked_against_the_network_and_the_clock() {
        let dir = tempfile::tempdir().unwrap();
        let (authority, other) =
            (authority(dir.path(), "kitchen"), authority(dir.path(), "garden"));
        let mut credentials = join(&dir.path().join("mine"), &authority);
        let (member, now) = (credentials.member().clone(), SystemTime::now());
        let check = |ca: &Authority, now| member.check(ca.certificate(), now).unwrap_err();
        let text = check(&authority, now - DAY).to_string();
        assert!(text.contains("set this machine's clock"), "{text}");
        let text = check(&authority, now + 10 * DAY).to_string();
        assert!(
            text.contains("expired 3 days ago") && text.contains("renewed by itself"),
            "{text}"
        );
        let text = check(&authority, now + 60 * DAY).to_string();
        assert!(text.contains("network invite"), "{text}");
        let text = check(&other, now).to_string();
        assert!(text.contains("not issued by this network"), "{text}");
        let foreign = issue(&other, &member, now);
        assert!(credentials.store_certificate(&foreign, now).is_err());
    }

    #[test]
    fn only_a_newer_list_of_revocations_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let (authority, folder) = (authority(dir.path(), "kitchen"), dir.path().join("mine"));
        let mut credentials = join(&folder, &authority);
        let sign = |number| {
            let list = RevocationList {
                number,
                ..RevocationList::empty()
            };
            authority.sign_revocations(list).unwrap().as_bytes().to_vec()
        };
        assert!(credentials.store_revocations(&sign(2)).unwrap());
        assert!(!credentials.store_revocations(&sign(2)).unwrap());
        assert!(!credentials.store_revocations(&sign(1)).unwrap());
        let loaded = Credentials::load(&folder).unwrap();
        assert_eq!(loaded.revocations().unwrap().list().number, 2);
    }
}
