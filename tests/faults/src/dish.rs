//! What peers share: files and folders whose bytes follow from two numbers, so that every copy
//! anywhere can be compared with what it should be.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use crate::random::Random;

/// One content: a dish in one of its editions. A user who changes a file writes another edition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Edition {
    /// The number of the dish.
    pub(crate) dish: u8,
    /// The number of the edition.
    pub(crate) number: u32,
}

/// The size of each dish that is a file.
const SIZES: [usize; 6] = [0, 3, 70_000, 900_000, 5_000_000, 14_000_000];

/// The only file of a folder that differs between editions.
const CHANGING: &str = "changing.bin";

impl Edition {
    /// Whether it is a folder.
    pub(crate) const fn is_folder(self) -> bool {
        self.dish as usize >= SIZES.len()
    }

    /// Its name, the same for all editions.
    pub(crate) fn name(self) -> String {
        match self.is_folder() {
            true => format!("menu-{}", self.dish),
            false => format!("dish-{}.bin", self.dish),
        }
    }

    /// Its files by path in the folder; a file has the empty path.
    pub(crate) fn files(self) -> BTreeMap<String, Vec<u8>> {
        let dish = u64::from(self.dish);
        let mut random = Random::new((dish << 32) | u64::from(self.number));
        if !self.is_folder() {
            return [(String::new(), random.bytes(SIZES[self.dish as usize]))].into();
        }
        let mut fixed = Random::new(dish << 48);
        let mut files: BTreeMap<String, Vec<u8>> = [
            ("sub/deep/one.bin".to_owned(), fixed.bytes(1_200_000)),
            ("sub/two.txt".to_owned(), fixed.bytes(100)),
            (CHANGING.to_owned(), random.bytes(150_000)),
        ]
        .into();
        // Not empty: the empty file is a dish, and files of folders are shared under their ids too.
        for number in 1..30 {
            files.insert(format!("many/{number:02}"), fixed.bytes(number * 700));
        }
        files
    }

    /// The files that a download of chosen files asks for.
    pub(crate) const CHOSEN: &'static str = "sub";

    /// Writes it to a path and syncs it, as a careful user would: so a power cut must not change
    /// it. Files that are there are written over.
    pub(crate) fn write(self, path: &Path) -> io::Result<()> {
        for (name, bytes) in self.files() {
            let file = file_path(path, &name);
            let parent = file.parent().expect("it is not the root");
            fs::create_dir_all(parent)?;
            if fs::read(&file).is_ok_and(|present| present == bytes) {
                continue;
            }
            let mut file = File::create(&file)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
        }
        sync_folders(path)
    }

    /// Whether the path holds exactly this.
    pub(crate) fn is_at(self, path: &Path) -> bool {
        let wanted = self.files();
        let Ok(present) = read_tree(path) else {
            return false;
        };
        present == wanted
    }

    /// Whether the path holds exactly the files that a download of chosen files asks for.
    pub(crate) fn is_chosen_at(self, path: &Path) -> bool {
        let mut wanted = self.files();
        wanted.retain(|name, _| name.starts_with("sub/"));
        read_tree(path).is_ok_and(|present| present == wanted)
    }
}

fn file_path(path: &Path, name: &str) -> std::path::PathBuf {
    match name {
        "" => path.to_owned(),
        name => path.join(name),
    }
}

/// All files at or below a path.
fn read_tree(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut left = vec![String::new()];
    while let Some(name) = left.pop() {
        let at = file_path(path, &name);
        if !at.symlink_metadata()?.is_dir() {
            files.insert(name, fs::read(at)?);
            continue;
        }
        for entry in fs::read_dir(&at)? {
            let entry = entry?.file_name().to_string_lossy().into_owned();
            left.push(match &*name {
                "" => entry,
                name => format!("{name}/{entry}"),
            });
        }
    }
    Ok(files)
}

/// Syncs the folders at, below and directly above a path.
fn sync_folders(path: &Path) -> io::Result<()> {
    let mut left = vec![path.to_owned()];
    while let Some(folder) = left.pop() {
        if folder.is_dir() {
            File::open(&folder)?.sync_all()?;
            for entry in fs::read_dir(&folder)? {
                left.push(entry?.path());
            }
        }
    }
    path.parent()
        .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::DISHES;

    #[test]
    fn a_dish_is_recognized_and_a_damaged_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        for dish in 0..DISHES {
            let (first, second) = (Edition { dish, number: 0 }, Edition { dish, number: 1 });
            let path = dir.path().join(first.name());
            first.write(&path).unwrap();
            assert!(first.is_at(&path));
            assert_eq!(
                second.is_at(&path),
                dish == 0,
                "only the empty file has one edition"
            );
            second.write(&path).unwrap();
            assert!(second.is_at(&path));
            if first.is_folder() {
                fs::remove_file(path.join("many/01")).unwrap();
                assert!(!second.is_at(&path));
            }
        }
    }
}
