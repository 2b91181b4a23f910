//! The kept inputs of each target: one file each in `fuzz/corpus/TARGET/`, and inputs that failed
//! in `fuzz/artifacts/TARGET/`. Both are the folders of `cargo fuzz`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// The folder of the kept inputs of a target.
pub fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// The kept inputs of a target, in the order of their names; none if the folder is missing.
///
/// # Errors
/// A file cannot be read.
pub fn load(target: &str) -> io::Result<Vec<Vec<u8>>> {
    let entries = match fs::read_dir(folder(target)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    paths.into_iter().map(fs::read).collect()
}

/// Stores inputs in the corpus of a target, under names that follow from their content.
///
/// # Errors
/// A file cannot be written.
pub fn store(target: &str, inputs: &[Vec<u8>]) -> io::Result<()> {
    let folder = folder(target);
    fs::create_dir_all(&folder)?;
    for input in inputs {
        fs::write(folder.join(name(input)), input)?;
    }
    Ok(())
}

/// Stores an input that failed, and returns its path.
///
/// # Errors
/// The file cannot be written.
pub fn store_failure(target: &str, input: &[u8]) -> io::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("artifacts")
        .join(target);
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("crash-{}", name(input)));
    fs::write(&path, input)?;
    Ok(path)
}

/// The name of an input: the start of its hash.
fn name(input: &[u8]) -> String {
    hex::encode(&Sha256::digest(input)[..10])
}
