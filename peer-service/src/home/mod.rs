//! The peer's home folder: created on the first start, and locked while the peer runs.
//!
//! ```text
//! HOME/           mode 0700
//!   files/        shared; downloads land here
//!   cache/        fetched on behalf of others; may be removed again
//!   state/        token and peer.key (mode 0600), machine, lock, database, manifests
//!   control.sock  created by the control service
//! ```
//!
//! Invariants:
//!
//! - At most one [`Home`] is open for a folder at any time, in this process or another.
//! - Only its owner and root can write to it.
//! - A home that is found on another machine becomes another peer (docs/decisions/0021).

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use potluck_core::{PeerId, Token, files::open_regular};
use rustix::{
    fs::OFlags,
    process::{getegid, geteuid, getgroups},
};

mod machine;

use machine::MachineId;

use crate::fs::durable;

/// Name of the folder for the peer's own state.
pub(crate) const STATE: &str = "state";
const TOKEN: &str = "token";
const LOCK: &str = "lock";

/// Name of the file that identifies the machine that the token belongs to.
const MACHINE: &str = "machine";

/// Name of the file that keeps the token from before the home was found on another machine, so that
/// the owner can restore it.
const PREVIOUS_TOKEN: &str = "token.previous";

/// The stem of the names of the files with this peer's key and certificate in a private network.
pub const NETWORK_KEY: &str = "peer";

/// Mode bits that let other users write.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;

/// The reason why a home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another peer uses the home.
    #[error(
        "{home} is in use by another peer{}: stop it, or choose another folder with --home",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Locked {
        /// The home folder.
        home: PathBuf,
        /// The other peer's process id, if known.
        pid: Option<u32>,
    },
    /// The operating system denies access.
    #[error(
        "no permission to use {path}: give this user access to it, or choose another folder with \
         --home"
    )]
    Permission {
        /// The path that cannot be accessed.
        path: PathBuf,
    },
    /// The path exists and is not a folder.
    #[error("{path} is not a folder: remove it, or choose another folder with --home")]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// Other users can write there, and could thereby share any of the owner's files.
    #[error(
        "{path} {why}, who could make the peer share any of your files: {remedy}, or choose \
         another folder with --home"
    )]
    WritableByOthers {
        /// The path that others can write to.
        path: PathBuf,
        /// The reason why they can.
        why: String,
        /// The remedy.
        remedy: String,
    },
    /// The token file is malformed.
    #[error(
        "{path} does not contain a token of 64 hex digits: restore it from a copy, or remove it to \
         become a new peer"
    )]
    Token {
        /// The token file.
        path: PathBuf,
    },
    /// Any other I/O error.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The path that failed.
        path: PathBuf,
        /// The cause.
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

/// An open home. Dropping it releases the lock.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    token: Token,
    previous: Option<PeerId>,
    _lock: HomeLock,
}

/// The lock on a home. It is released explicitly, because a child process that is being started may
/// hold a copy of the file descriptor a little longer.
#[derive(Debug)]
struct HomeLock(File);

impl Drop for HomeLock {
    fn drop(&mut self) {
        // On failure, the lock ends when the last copy of the descriptor is closed.
        let _ = self.0.unlock();
    }
}

impl Home {
    /// Opens the folder at `path` and creates what is missing.
    ///
    /// # Errors
    /// [`HomeError::Locked`] if another peer uses it; otherwise the reason why it cannot be used.
    pub fn open(path: &Path) -> Result<Self, HomeError> {
        Self::open_on(MachineId::of_this().as_ref(), path)
    }

    /// Opens a home as on the given machine.
    fn open_on(machine: Option<&MachineId>, path: &Path) -> Result<Self, HomeError> {
        let absolute = std::path::absolute(path).map_err(|error| HomeError::io(path, error))?;
        create_dir(&absolute)?;
        let path = absolute
            .canonicalize()
            .map_err(|error| HomeError::io(&absolute, error))?;
        let (files, state) = (path.join("files"), path.join(STATE));
        create_dir(&files)?;
        create_dir(&state)?;
        for folder in [&path, &files, &state] {
            ensure_private(folder)?;
        }
        let lock = lock(&path, &state.join(LOCK))?;
        let token = load_or_create_token(&state)?;
        let (token, previous) = match machine {
            Some(machine) => token_of_machine(&state, token, machine)?,
            None => (token, None),
        };
        Ok(Self {
            path,
            token,
            previous,
            _lock: lock,
        })
    }

    /// The home folder: absolute, with symlinks resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder whose files are shared, and where downloads are saved.
    pub fn files(&self) -> PathBuf {
        self.path.join("files")
    }

    /// The folder for what is fetched on behalf of others.
    pub fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }

    /// The folder for the peer's own state.
    pub fn state(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// The default path of the control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The peer's secret token.
    pub const fn token(&self) -> &Token {
        &self.token
    }

    /// The peer's public id.
    pub fn peer_id(&self) -> PeerId {
        self.token.peer_id()
    }

    /// The previous peer id, if this start found the home on another machine.
    pub const fn previous_peer_id(&self) -> Option<PeerId> {
        self.previous
    }
}

fn create_dir(path: &Path) -> Result<(), HomeError> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(HomeError::NotAFolder {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            durable::create_folders(path, 0o700).map_err(|error| HomeError::io(path, error))
        }
        Err(error) => Err(HomeError::io(path, error)),
    }
}

/// Makes sure that only this user and root can write to a folder; others could place links or a
/// token there. Removes such rights if possible.
fn ensure_private(path: &Path) -> Result<(), HomeError> {
    let metadata = path.metadata().map_err(|error| HomeError::io(path, error))?;
    let (owner, user) = (metadata.uid(), geteuid().as_raw());
    let refuse = |why: String, remedy: String| HomeError::WritableByOthers {
        path: path.to_owned(),
        why,
        remedy,
    };
    if owner != user && owner != 0 {
        // Root may use folders of other users; a container gets its volume like that.
        if user == 0 {
            tracing::warn!(
                path = %path.display(), owner,
                "this folder of the peer belongs to a user who could make it share any file of root"
            );
            return Ok(());
        }
        let why = format!("belongs to another user (number {owner})");
        return Err(refuse(why, "become its owner".to_owned()));
    }
    let writers = metadata.mode() & (GROUP_WRITES | OTHERS_WRITE);
    if writers == 0 {
        return Ok(());
    }
    if owner == user {
        let mode = metadata.mode() & 0o7777 & !writers;
        let is_private = std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .and_then(|()| path.metadata())
            .is_ok_and(|now| now.mode() & writers == 0);
        if is_private {
            tracing::warn!(
                path = %path.display(),
                "other users could write to this folder of the peer: its mode is now {mode:04o}"
            );
            return Ok(());
        }
    } else if writers == GROUP_WRITES && is_in_group(metadata.gid()) {
        // A container's volume may belong to root and be writable by the container's group.
        return Ok(());
    }
    let remedy = format!("remove their write permission (chmod go-w {})", path.display());
    Err(refuse("is writable by other users".to_owned(), remedy))
}

fn is_in_group(group: u32) -> bool {
    let mine = getgroups().unwrap_or_default();
    getegid().as_raw() == group || mine.iter().any(|mine| mine.as_raw() == group)
}

/// The token of a home on this machine, and its previous id if the home comes from another machine.
/// Such a home was moved here, or copied with that machine's disk. In the latter case the original
/// may be running, and two peers with the same token would hide each other's files. So the home
/// gets a new token.
fn token_of_machine(
    state: &Path,
    token: Token,
    machine: &MachineId,
) -> Result<(Token, Option<PeerId>), HomeError> {
    let path = state.join(MACHINE);
    let write = |path: &Path, text: &str| {
        durable::write(path, text.as_bytes(), 0o600).map_err(|error| HomeError::io(path, error))
    };
    let known = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text),
        // It is not UTF-8, so it is not a machine id.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(HomeError::io(&path, error)),
    };
    match known.as_deref().map(str::trim) {
        Some(known) if known == machine.as_str() => return Ok((token, None)),
        // Malformed: record this machine, as if the file did not exist.
        Some(known) if !MachineId::is_valid(known) => {}
        None => {}
        Some(_) => {
            let (new, previous) = (Token::generate(), token.peer_id());
            write(&state.join(PREVIOUS_TOKEN), &token_text(&token))?;
            write(&state.join(TOKEN), &token_text(&new))?;
            set_network_key_aside(state)?;
            write(&path, &format!("{}\n", machine.as_str()))?;
            tracing::warn!(
                peer = %new.peer_id().short(), previous = %previous.short(),
                "this home was copied or moved from another machine: the peer has a new id, so that \
                 it does not conflict with a peer on the other machine"
            );
            return Ok((new, Some(previous)));
        }
    }
    write(&path, &format!("{}\n", machine.as_str()))?;
    Ok((token, None))
}

/// Sets the key of a private network aside, so that the peer gets a new one.
fn set_network_key_aside(state: &Path) -> Result<(), HomeError> {
    for end in ["crt", "key"] {
        let path = state.join(format!("{NETWORK_KEY}.{end}"));
        let previous = state.join(format!("{NETWORK_KEY}.{end}.previous"));
        match std::fs::rename(&path, previous) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(HomeError::io(&path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn token_text(token: &Token) -> String {
    format!("{}\n", hex::encode(token.expose()))
}

/// Locks the file and writes this process's id into it. The file stays when the peer ends; the
/// operating system releases the lock.
fn lock(home: &Path, path: &Path) -> Result<HomeLock, HomeError> {
    let failed = |error| HomeError::io(path, error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // Opening a FIFO must not block.
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
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
    let mut lock = HomeLock(file);
    lock.0.set_len(0).map_err(failed)?;
    lock.0.rewind().map_err(failed)?;
    writeln!(lock.0, "{}", std::process::id()).map_err(failed)?;
    Ok(lock)
}

fn load_or_create_token(state: &Path) -> Result<Token, HomeError> {
    let path = state.join(TOKEN);
    let failed = |error| HomeError::io(&path, error);
    let damaged = || HomeError::Token { path: path.clone() };
    let file = match open_regular(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let token = Token::generate();
            durable::write(&path, token_text(&token).as_bytes(), 0o600).map_err(failed)?;
            return Ok(token);
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(damaged()),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(), "the token was readable by other users: its mode is now 0600"
        );
        file.set_permissions(std::fs::Permissions::from_mode(0o600))
            .map_err(failed)?;
    }
    let mut text = Vec::new();
    file.take(256).read_to_end(&mut text).map_err(failed)?;
    let bytes = hex::decode(text.trim_ascii()).map_err(|_| damaged())?;
    Token::try_from(bytes.as_slice()).map_err(|_| damaged())
}

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
    fn a_second_peer_is_refused_and_the_first_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Home::open(dir.path()).unwrap();
        let error = Home::open(dir.path()).unwrap_err();
        assert!(
            matches!(error, HomeError::Locked { pid: Some(pid), .. } if pid == std::process::id())
        );
        assert!(error.to_string().contains("--home"), "{error}");
    }

    #[test]
    fn a_child_process_does_not_keep_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        // The copy of the descriptor that a child process has while it starts.
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
    fn a_token_that_others_can_read_becomes_private() {
        let dir = tempfile::tempdir().unwrap();
        drop(Home::open(dir.path()).unwrap());
        let path = dir.path().join("state/token");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        drop(Home::open(dir.path()).unwrap());
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_home_on_another_machine_becomes_another_peer() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["1", "2"].map(|text| MachineId::from_text(text).unwrap());
        let open = |machine: Option<&MachineId>| Home::open_on(machine, dir.path()).unwrap();
        let id = open(Some(&first)).peer_id();
        assert_eq!(open(Some(&first)).peer_id(), id);
        // In a container, the machine has no permanent id.
        assert_eq!(open(None).peer_id(), id);
        let state = dir.path().join("state");
        std::fs::write(state.join("peer.key"), "the key in a private network").unwrap();
        let copy = open(Some(&second));
        assert!(!state.join("peer.key").exists() && state.join("peer.key.previous").exists());
        assert_ne!(copy.peer_id(), id);
        assert_eq!(copy.previous_peer_id(), Some(id));
        let other = copy.peer_id();
        drop(copy);
        let again = open(Some(&second));
        assert_eq!((again.peer_id(), again.previous_peer_id()), (other, None));
        drop(again);
        let previous = dir.path().join("state/token.previous");
        assert_eq!(previous.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_home_without_a_known_machine_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let machine = MachineId::from_text("1").unwrap();
        let id = Home::open_on(None, dir.path()).unwrap().peer_id();
        let known = dir.path().join("state/machine");
        assert!(!known.exists());
        for damaged in [None, Some(&b"nonsense"[..]), Some(b"\xff"), Some(b"")] {
            if let Some(damaged) = damaged {
                std::fs::write(&known, damaged).unwrap();
            }
            assert_eq!(Home::open_on(Some(&machine), dir.path()).unwrap().peer_id(), id);
            assert_eq!(std::fs::read_to_string(&known).unwrap().trim(), machine.as_str());
        }
    }

    #[test]
    fn a_home_that_others_can_write_to_becomes_private() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        drop(Home::open(&home).unwrap());
        for folder in ["", "files", "state"] {
            let path = home.join(folder);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
            drop(Home::open(&home).unwrap());
            assert_eq!(path.metadata().unwrap().mode() & 0o022, 0, "{folder}");
        }
    }

    #[test]
    fn a_home_of_another_user_is_refused() {
        // Root may use such folders, because a container's volume may belong to another user.
        if geteuid().is_root() {
            println!("skipped: root may use the folders of others");
            return;
        }
        // /tmp belongs to root and is writable by everyone.
        let error = ensure_private(Path::new("/tmp")).unwrap_err();
        assert!(matches!(error, HomeError::WritableByOthers { .. }), "{error}");
        assert!(error.to_string().contains("chmod go-w /tmp"), "{error}");
    }

    #[test]
    fn a_file_in_place_of_a_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("files"), "").unwrap();
        assert!(matches!(
            Home::open(dir.path()),
            Err(HomeError::NotAFolder { .. })
        ));
    }
}
