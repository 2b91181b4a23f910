//! The peer's folder: made on first start, locked for as long as the peer runs, holding its secret.
//!
//! ```text
//! HOME/           mode 0700
//!   files/        shared; downloads land here
//!   state/        token (mode 0600), lock, database, manifests
//!   control.sock  made by the control service
//! ```
//!
//! Invariant: at most one [`Home`] is open for a folder at any time, in this process or another.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use potluck_core::{PeerId, Token};

use crate::durable::create_folders;

const TOKEN: &str = "token";
const LOCK: &str = "lock";

/// Why a home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another peer has it.
    #[error("{home} is in use by another peer{}: stop that one, or give this one a folder of its own with --home",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Locked {
        /// The folder.
        home: PathBuf,
        /// The other's process, if it could be read.
        pid: Option<u32>,
    },
    /// The operating system does not allow it.
    #[error("no permission to use {path}: give this user access to it, or choose another folder with --home")]
    Permission {
        /// What could not be used.
        path: PathBuf,
    },
    /// Something stands there that is no folder.
    #[error("{path} is not a folder: remove it, or choose another folder with --home")]
    NotAFolder {
        /// What stands there.
        path: PathBuf,
    },
    /// The secret's file holds something else.
    #[error(
        "{path} does not hold a token of 64 hex digits: restore it from a copy, or remove it and become a new peer"
    )]
    Token {
        /// The token's file.
        path: PathBuf,
    },
    /// Anything else of the file system.
    #[error("cannot use {path}: {source}")]
    Io {
        /// What could not be used.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl HomeError {
    fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission { path },
            io::ErrorKind::NotADirectory => Self::NotAFolder { path },
            _ => Self::Io { path, source },
        }
    }
}

/// An open home; dropping it lets another peer have it.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    token: Token,
    _lock: Lock,
}

/// The lock on a home, while this is held. Given up by name: where a program is started at that moment, it has the open file a little longer
/// than this one.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // With the last that has it open it goes in any case.
        let _ = self.0.unlock();
    }
}

impl Home {
    /// Opens the folder at `path`, making what is not there yet.
    ///
    /// # Errors
    /// [`HomeError::Locked`] where another peer has it.
    pub fn open(path: &Path) -> Result<Self, HomeError> {
        let absolute = std::path::absolute(path).map_err(|error| HomeError::io(path, error))?;
        make_folder(&absolute)?;
        let path = absolute
            .canonicalize()
            .map_err(|error| HomeError::io(&absolute, error))?;
        make_folder(&path.join("files"))?;
        let state = path.join("state");
        make_folder(&state)?;
        let lock = lock(&path, &state.join(LOCK))?;
        let token = load_or_make_token(&state)?;
        Ok(Self {
            path,
            token,
            _lock: lock,
        })
    }

    /// The folder, absolute, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is dropped in here is shared; downloads land here.
    pub fn files(&self) -> PathBuf {
        self.path.join("files")
    }

    /// What the peer remembers.
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// Where the control service listens unless told otherwise.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The peer's secret.
    pub const fn token(&self) -> &Token {
        &self.token
    }

    /// The peer's public id.
    pub fn peer_id(&self) -> PeerId {
        self.token.peer_id()
    }
}

fn make_folder(path: &Path) -> Result<(), HomeError> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(HomeError::NotAFolder {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_folders(path, 0o700).map_err(|error| HomeError::io(path, error))
        }
        Err(error) => Err(HomeError::io(path, error)),
    }
}

/// Takes the lock and writes this process into it. The file stays when the peer ends; the operating system frees the lock.
fn lock(home: &Path, path: &Path) -> Result<Lock, HomeError> {
    let failed = |error| HomeError::io(path, error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file
                .take(32)
                .read_to_string(&mut text)
                .ok()
                .and_then(|_| text.trim().parse().ok());
            return Err(HomeError::Locked {
                home: home.to_owned(),
                pid,
            });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let mut lock = Lock(file);
    lock.0.set_len(0).map_err(failed)?;
    lock.0.rewind().map_err(failed)?;
    writeln!(lock.0, "{}", std::process::id()).map_err(failed)?;
    Ok(lock)
}

fn load_or_make_token(state: &Path) -> Result<Token, HomeError> {
    let path = state.join(TOKEN);
    let failed = |error| HomeError::io(&path, error);
    let damaged = || HomeError::Token { path: path.clone() };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let token = Token::generate();
            let text = format!("{}\n", hex::encode(token.expose()));
            write_durably(&path, text.as_bytes(), 0o600).map_err(failed)?;
            return Ok(token);
        }
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(damaged());
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the token could be read by other users: its mode is set to 0600");
        file.set_permissions(std::fs::Permissions::from_mode(0o600))
            .map_err(failed)?;
    }
    let mut text = Vec::new();
    file.take(256).read_to_end(&mut text).map_err(failed)?;
    let bytes = hex::decode(text.trim_ascii()).map_err(|_| damaged())?;
    Token::try_from(bytes.as_slice()).map_err(|_| damaged())
}

pub(crate) use crate::durable::write as write_durably;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_home_is_private_and_keeps_its_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/home");
        let first = Home::open(&path).unwrap();
        let id = first.peer_id();
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("state/token")), 0o600);
        assert!(first.files().is_dir() && first.state().is_dir());
        drop(first);
        assert_eq!(Home::open(&path).unwrap().peer_id(), id);
    }

    #[test]
    fn a_second_peer_is_refused_naming_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Home::open(dir.path()).unwrap();
        let error = Home::open(dir.path()).unwrap_err();
        assert!(matches!(error, HomeError::Locked { pid: Some(pid), .. } if pid == std::process::id()));
        assert!(error.to_string().contains("--home"), "{error}");
    }

    #[test]
    fn what_was_started_meanwhile_does_not_keep_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        // What a program that is being started has of this one.
        let inherited = home._lock.0.try_clone().unwrap();
        drop(home);
        drop(Home::open(dir.path()).unwrap());
        drop(inherited);
    }

    #[test]
    fn a_damaged_token_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        drop(Home::open(dir.path()).unwrap());
        let path = dir.path().join("state/token");
        std::fs::write(&path, "nonsense").unwrap();
        assert!(matches!(Home::open(dir.path()), Err(HomeError::Token { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"nonsense");
    }

    #[test]
    fn a_token_open_to_others_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        drop(Home::open(dir.path()).unwrap());
        let path = dir.path().join("state/token");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        drop(Home::open(dir.path()).unwrap());
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("files"), "").unwrap();
        assert!(matches!(
            Home::open(dir.path()),
            Err(HomeError::NotAFolder { .. })
        ));
    }
}
