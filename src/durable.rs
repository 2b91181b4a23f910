//! Writes files and folders so that they survive a power failure.
//!
//! A sync of the file makes its bytes durable; a sync of its folder makes its name durable.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Replaces a file atomically: after a crash it has its old or its new content. Writes a temporary
/// file next to it, syncs it, and renames it.
///
/// # Errors
/// Any error of the file system; the old file is then unchanged, unless only the final sync of the
/// folder failed.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = folder_of(path);
    let mut name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let temporary = folder.join(name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // `create_new` never follows a planted link.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        // Remove the incomplete file: on a full disk it takes up space.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_folder(folder)
}

/// Creates a new file with this content, durably.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] if there is a file; otherwise any error of the file system, after
/// which there is no file.
pub fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    if let Err(error) = file.write_all(bytes).and_then(|()| file.sync_all()) {
        let _ = fs::remove_file(path);
        return Err(error);
    }
    sync_folder(folder_of(path))
}

/// Creates a folder and its missing parents with these mode bits, durably.
///
/// # Errors
/// Any error of the file system.
pub fn create_folders(path: &Path, mode: u32) -> io::Result<()> {
    let missing = path.ancestors().take_while(|folder| {
        !folder.as_os_str().is_empty()
            && matches!(folder.symlink_metadata(),
            Err(error) if error.kind() == ErrorKind::NotFound)
    });
    let highest_missing = missing.last().map(Path::to_owned);
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
    let Some(highest) = highest_missing else {
        return Ok(());
    };
    // Each new folder's name is stored in its parent, so the parent is synced.
    for folder in path.ancestors() {
        sync_folder(folder_of(folder))?;
        if folder == highest {
            break;
        }
    }
    Ok(())
}

/// Makes the names in a folder durable.
///
/// # Errors
/// Any error of the file system. Succeeds without a sync if the file system does not support it, or
/// if this user may not read the folder.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    match File::open(path).and_then(|folder| folder.sync_all()) {
        Err(error) if is_harmless(&error) => {
            tracing::debug!(path = %path.display(), %error, "a folder could not be synced");
            Ok(())
        }
        synced => synced,
    }
}

/// The folder that holds the name of `path`.
fn folder_of(path: &Path) -> &Path {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    above.unwrap_or_else(|| Path::new("."))
}

fn is_harmless(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied | ErrorKind::InvalidInput | ErrorKind::Unsupported
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn missing_folders_are_created_at_any_depth_and_existing_ones_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_folders(&deep, 0o700).unwrap();
        assert_eq!(deep.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        create_folders(&deep, 0o755).unwrap();
        assert_eq!(deep.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(create_folders(&dir.path().join("file/x"), 0o700).is_err());
    }

    #[test]
    fn a_file_is_created_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, b"first", 0o600).unwrap();
        let error = create(&path, b"second", 0o600).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_is_replaced_atomically_and_no_temporary_file_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for text in ["one", "another"] {
            write(&path, text.as_bytes(), 0o600).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
