//! Work on the folder of a network, on the machine of its index. The index may run meanwhile: both
//! change the same journal.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use potluck_core::{
    Sha256, durable,
    files::read_own,
    network::{
        authority::{CA_CERTIFICATE, CA_KEY},
        folder::{NetworkFolder, NetworkFolderError},
        identity::{MemberId, Role},
        join_code::JoinCode,
    },
};
use serde::{Deserialize, Serialize};

use crate::network::{
    audit::{self, AuditEntry},
    journal::{Journal, JournalError, MEMBERS},
    membership::{DEFAULT_USES, Event, MemberState, MembershipError},
    private_network::{NetworkError, unix},
};

/// Name of the file with the address of the index.
const SETTINGS: &str = "network.json";

/// Version of the settings and of a backup.
const VERSION: u32 = 1;

/// Maximum size of a file in a backup, in bytes: more than the members of the largest network.
const MAX_FILE: u64 = 256 * 1024 * 1024;

/// The reason why work on a network's folder failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkAdminError {
    /// The folder or its journal.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The address does not fit a join code.
    #[error("the address of the index is too long for a join code: give a shorter --index")]
    LongAddress,
    /// A file of the folder.
    #[error("cannot use {}: {source}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file does not have the expected content.
    #[error("{} is damaged or of a newer version: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The folder to restore to holds something.
    #[error("{} exists already: restore into a new folder, nothing is overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// No member, or several, match what was typed.
    #[error("{0}")]
    Member(String),
}

impl From<MembershipError> for NetworkAdminError {
    fn from(error: MembershipError) -> Self {
        Self::Network(error.into())
    }
}

impl From<JournalError> for NetworkAdminError {
    fn from(error: JournalError) -> Self {
        Self::Network(error.into())
    }
}

impl From<NetworkFolderError> for NetworkAdminError {
    fn from(error: NetworkFolderError) -> Self {
        Self::Network(error.into())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    version: u32,
    index: String,
}

/// A copy of what cannot be made again, by the name of its file.
#[derive(Debug, Serialize, Deserialize)]
struct Backup {
    potluck_network_backup: u32,
    files: BTreeMap<String, String>,
}

/// What a backup holds. The index makes itself a new key and certificate.
const IN_BACKUP: [&str; 4] = [CA_KEY, CA_CERTIFICATE, SETTINGS, MEMBERS];

/// A join code, and when it expires.
#[derive(Debug)]
pub struct NewCode {
    /// The code.
    pub code: JoinCode,
    /// When it expires.
    pub expires: SystemTime,
}

/// A member, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberSummary {
    /// Its id.
    pub id: MemberId,
    /// The name that it chose.
    pub name: String,
    /// Its rights.
    pub role: Role,
    /// `active`, `revoked` or `left`.
    pub state: &'static str,
    /// Number of its peers.
    pub peers: usize,
    /// When it joined.
    pub joined: SystemTime,
    /// When its last certificate expires.
    pub expires: SystemTime,
}

/// The folder of a network.
#[derive(Debug)]
pub struct NetworkAdmin {
    path: PathBuf,
    folder: NetworkFolder,
    journal: Journal,
    settings: Settings,
}

impl NetworkAdmin {
    /// Makes a network whose index has this address, with a name for people.
    ///
    /// # Errors
    /// [`NetworkAdminError`]; its message says what to do.
    pub fn create(path: &Path, name: &str, index: &str) -> Result<Self, NetworkAdminError> {
        let folder = NetworkFolder::create(path, name, SystemTime::now())?;
        let admin = Self {
            path: path.to_owned(),
            folder,
            journal: Journal::open(path)?,
            settings: Settings {
                version: VERSION,
                index: index.to_owned(),
            },
        };
        admin.write_settings()?;
        Ok(admin)
    }

    /// Opens the folder of a network.
    ///
    /// # Errors
    /// [`NetworkAdminError`]; its message says what to do.
    pub fn open(path: &Path) -> Result<Self, NetworkAdminError> {
        let folder = NetworkFolder::open(path, SystemTime::now())?;
        let file = path.join(SETTINGS);
        let bytes = read_own(&file, MAX_FILE).map_err(|source| NetworkAdminError::System {
            path: file.clone(),
            source,
        })?;
        let settings: Settings = serde_json::from_slice(&bytes)
            .ok()
            .filter(|settings: &Settings| settings.version == VERSION)
            .ok_or_else(|| NetworkAdminError::Damaged {
                path: file,
                reason: "restore it with `potluck network restore`".to_owned(),
            })?;
        Ok(Self {
            path: path.to_owned(),
            folder,
            journal: Journal::open(path)?,
            settings,
        })
    }

    /// The address of the index, for join codes.
    pub fn index(&self) -> &str {
        &self.settings.index
    }

    /// Changes the address of the index. Codes that were made before keep the old one.
    ///
    /// # Errors
    /// [`NetworkAdminError::System`].
    pub fn set_index(&mut self, index: &str) -> Result<(), NetworkAdminError> {
        index.clone_into(&mut self.settings.index);
        self.write_settings()
    }

    fn write_settings(&self) -> Result<(), NetworkAdminError> {
        let path = self.path.join(SETTINGS);
        let text = serde_json::to_vec(&self.settings).expect("settings are text and numbers");
        durable::write(&path, &text, 0o600)
            .map_err(|source| NetworkAdminError::System { path, source })
    }

    /// Makes a join code. `index` is the address that it names, by default that of the network.
    ///
    /// # Errors
    /// [`NetworkAdminError`].
    pub fn invite(
        &mut self,
        role: Role,
        uses: Option<u32>,
        ttl: Option<Duration>,
        index: Option<&str>,
    ) -> Result<NewCode, NetworkAdminError> {
        let index = index.unwrap_or(&self.settings.index);
        let code = JoinCode::generate(index, self.folder.authority().hash())
            .ok_or(NetworkAdminError::LongAddress)?;
        let (now, hash) = (unix(SystemTime::now()), Sha256(code.secret.hash().0));
        let expires = self.journal.change(|members| {
            let event = members.invite(None, hash, role, uses, ttl, now)?;
            let expires = match &event {
                Event::Invited { invite, .. } => invite.expires,
                _ => now,
            };
            Ok::<_, NetworkAdminError>((expires, Some(event)))
        })?;
        self.record(AuditEntry::Invited {
            role,
            uses: uses.unwrap_or(DEFAULT_USES),
        })?;
        let expires = time(expires);
        Ok(NewCode { code, expires })
    }

    /// The members in the order of their ids.
    ///
    /// # Errors
    /// [`NetworkAdminError`].
    pub fn members(&mut self) -> Result<Vec<MemberSummary>, NetworkAdminError> {
        self.journal.refresh()?;
        let members = self.journal.members().members(None);
        let summaries = members.map(|(id, entry)| MemberSummary {
            id: *id,
            name: entry.name.clone(),
            role: entry.role,
            state: match entry.state {
                MemberState::Active => "active",
                MemberState::Revoked => "revoked",
                MemberState::Left => "left",
            },
            peers: entry.peers.len(),
            joined: time(entry.joined),
            expires: time(entry.expires),
        });
        Ok(summaries.collect())
    }

    /// Revokes a member. Returns the number of codes that this voided.
    ///
    /// # Errors
    /// [`NetworkAdminError`].
    pub fn revoke(&mut self, member: &MemberId) -> Result<usize, NetworkAdminError> {
        let now = unix(SystemTime::now());
        let voided = self.journal.change(|members| {
            let voided = members.open_codes_of(member, now);
            Ok::<_, NetworkAdminError>((voided, members.revoke(None, member, now)?))
        })?;
        self.record(AuditEntry::Revoked { member: *member })?;
        Ok(voided)
    }

    fn record(&self, entry: AuditEntry) -> Result<(), NetworkAdminError> {
        let path = audit::location(&self.path);
        let appended = audit::append(path.clone(), entry);
        appended.map_err(|source| NetworkAdminError::System { path, source })
    }

    /// Writes a copy of the CA and the members to a new file with mode 0600.
    ///
    /// # Errors
    /// [`NetworkAdminError`].
    pub fn backup(&self, file: &Path) -> Result<(), NetworkAdminError> {
        let mut files = BTreeMap::new();
        for name in IN_BACKUP {
            let path = self.path.join(name);
            match read_own(&path, MAX_FILE) {
                Ok(bytes) => {
                    let text =
                        String::from_utf8(bytes).map_err(|_| NetworkAdminError::Damaged {
                            path,
                            reason: "it is not text".to_owned(),
                        })?;
                    files.insert(name.to_owned(), text);
                }
                // A network without members has no journal yet.
                Err(error) if error.kind() == ErrorKind::NotFound && name == MEMBERS => {}
                Err(source) => return Err(NetworkAdminError::System { path, source }),
            }
        }
        let backup = Backup {
            potluck_network_backup: VERSION,
            files,
        };
        let text = serde_json::to_vec(&backup).expect("a backup is text");
        durable::create(file, &text, 0o600).map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists => NetworkAdminError::Exists {
                path: file.to_owned(),
            },
            _ => NetworkAdminError::System {
                path: file.to_owned(),
                source,
            },
        })
    }

    /// Makes the folder of a network from a copy.
    ///
    /// # Errors
    /// [`NetworkAdminError`]; [`NetworkAdminError::Exists`] if the folder holds a network.
    pub fn restore(path: &Path, file: &Path) -> Result<Self, NetworkAdminError> {
        let system = |path: &Path| {
            let path = path.to_owned();
            move |source| NetworkAdminError::System { path, source }
        };
        let damaged = |reason: &str| NetworkAdminError::Damaged {
            path: file.to_owned(),
            reason: reason.to_owned(),
        };
        let bytes = read_own(file, MAX_FILE).map_err(system(file))?;
        let backup: Backup = serde_json::from_slice(&bytes)
            .map_err(|_| damaged("it is not a backup of a network"))?;
        if backup.potluck_network_backup != VERSION {
            return Err(damaged("its version is not 1"));
        }
        for name in [CA_KEY, CA_CERTIFICATE, SETTINGS] {
            if !backup.files.contains_key(name) {
                return Err(damaged(&format!("it has no {name}")));
            }
        }
        for name in IN_BACKUP {
            let path = path.join(name);
            if fs::symlink_metadata(&path).is_ok() {
                return Err(NetworkAdminError::Exists { path });
            }
        }
        durable::create_folders(path, 0o700).map_err(system(path))?;
        // Only known names: a name from a file could lead elsewhere.
        for name in IN_BACKUP {
            if let Some(text) = backup.files.get(name) {
                let mode = if name == CA_CERTIFICATE { 0o644 } else { 0o600 };
                let path = path.join(name);
                durable::create(&path, text.as_bytes(), mode).map_err(system(&path))?;
            }
        }
        Self::open(path)
    }
}

fn time(unix: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(unix))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
