//! Finds names that a file system may treat as equal: `Readme` and `README`, composed and
//! decomposed `é`, `a` and `a.`.
//!
//! A manifest may contain both, since most file systems distinguish them. exFAT, vfat, SMB shares,
//! HFS+ and ext4 folders with `casefold` do not. [`fold`] is coarser than each of these, so that
//! names with different folds are distinct everywhere. Only the file system can tell whether names
//! with the same fold are one file. Pure.

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use unicode_normalization::UnicodeNormalization as _;

use crate::collection::manifest::{entries::EncodedEntries, folders::new_folders};

/// A file, link or folder, identified by the prefix of an entry's path.
#[derive(Debug, Clone, Copy)]
struct PathPrefix {
    /// Hash of the parent folder's path and the folded name.
    key: u64,
    /// Index of the first entry whose path has this prefix.
    entry: u32,
    /// Length of the prefix in bytes.
    len: u16,
}

/// Groups of paths in the same folder whose names have the same [`fold`].
pub(crate) fn lookalikes(entries: &EncodedEntries) -> Vec<Vec<&str>> {
    let mut prefixes = Vec::with_capacity(entries.len());
    let mut previous = "";
    for (index, entry) in (0..).zip(entries.iter()) {
        let path = entry.path.as_str();
        for end in new_folders(previous, path).chain([path.len()]) {
            prefixes.push(PathPrefix {
                key: key(&path[..end]),
                entry: index,
                // Fits: a path has at most 4,096 bytes.
                len: end as u16,
            });
        }
        previous = path;
    }
    prefixes.sort_unstable_by_key(|prefix| (prefix.key, prefix.entry, prefix.len));
    let text = |prefix: &PathPrefix| {
        let entry = entries.get(prefix.entry).expect("was read above");
        &entry.path.as_str()[..usize::from(prefix.len)]
    };
    let mut groups = Vec::new();
    for same_key in prefixes
        .chunk_by(|a, b| a.key == b.key)
        .filter(|same_key| same_key.len() > 1)
    {
        // Equal hashes do not prove equal names.
        let mut paths: Vec<(&str, Cow<'_, str>, &str)> = same_key
            .iter()
            .map(|prefix| {
                let (folder, name) = split(text(prefix));
                (folder, fold(name), text(prefix))
            })
            .collect();
        paths.sort_unstable();
        let same_name = paths.chunk_by(|a, b| (a.0, &a.1) == (b.0, &b.1));
        let alike = same_name.filter(|group| group.len() > 1);
        groups.extend(alike.map(|group| group.iter().map(|&(.., path)| path).collect()));
    }
    groups
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn key(path: &str) -> u64 {
    let (folder, name) = split(path);
    let mut hasher = DefaultHasher::new();
    folder.hash(&mut hasher);
    fold(name).hash(&mut hasher);
    hasher.finish()
}

/// Removes what file systems may ignore in a name: case, Unicode form, invisible characters, and
/// trailing dots and spaces.
pub fn fold(name: &str) -> Cow<'_, str> {
    let trimmed = match name.trim_end_matches(['.', ' ']) {
        "" => name,
        trimmed => trimmed,
    };
    if trimmed.is_ascii() {
        return match trimmed.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => trimmed.to_ascii_lowercase().into(),
            false => trimmed.into(),
        };
    }
    // Lower, upper and lower case: some characters share only their other case, such as `ı` and
    // `i`, or `ſ` and `s`.
    let folded = trimmed
        .nfkd()
        .filter(|&c| !is_invisible(c))
        .flat_map(char::to_lowercase)
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase);
    let folded: String = folded.nfkd().filter(|&c| !is_invisible(c)).collect();
    // Some characters decompose into dots and spaces.
    match folded.trim_end_matches(['.', ' ']) {
        "" => folded.into(),
        trimmed => trimmed.to_owned().into(),
    }
}

/// Characters that ext4 with `casefold` and HFS+ ignore.
const fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'
            ..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fff8}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        FileId,
        collection::{
            manifest::{EntryContent, Manifest, ManifestEntry},
            path::RelPath,
        },
    };

    fn manifest(paths: &BTreeSet<String>) -> Option<Manifest> {
        let entries = paths.iter().map(|path| ManifestEntry {
            path: RelPath::parse(path).unwrap(),
            content: EntryContent::File {
                id: FileId([1; 32]),
                size: 1,
                executable: false,
            },
        });
        // Invalid if one path lies beneath another.
        Manifest::new(entries).ok()
    }

    fn of(paths: &[&str]) -> Vec<Vec<String>> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let manifest = manifest(&paths).unwrap();
        let groups = manifest.lookalikes().into_iter();
        groups
            .map(|group| group.into_iter().map(ToOwned::to_owned).collect())
            .collect()
    }

    /// A model file system that merges names with the same fold: returns the paths whose creation
    /// collides with another name.
    fn clashes_of_model(paths: &BTreeSet<String>) -> BTreeSet<String> {
        let mut there: BTreeMap<String, String> = BTreeMap::new();
        let mut clashes = BTreeSet::new();
        for path in paths {
            let parts: Vec<&str> = path.split('/').collect();
            for depth in 1..=parts.len() {
                let actual = parts[..depth].join("/");
                let folded: Vec<_> = parts[..depth].iter().map(|part| fold(part)).collect();
                let known = there.entry(folded.join("/")).or_insert_with(|| actual.clone());
                if *known != actual {
                    clashes.insert(known.clone());
                    clashes.insert(actual);
                }
            }
        }
        clashes
    }

    proptest! {
        #[test]
        fn names_that_a_folding_file_system_would_merge_are_found(
            paths in proptest::collection::btree_set(
                proptest::collection::vec(
                    proptest::sample::select(vec![
                        "a", "A", "b", "a.", "a-", "é", "e\u{301}", "É", "ß", "SS", "ss", "\u{130}", "i", "I", "ı", "k",
                        "\u{212a}", "x\u{200d}", "x",
                    ]),
                    1..4,
                ).prop_map(|parts| parts.join("/")),
                0..12,
            ),
        ) {
            let Some(manifest) = manifest(&paths) else { return Ok(()) };
            let model = clashes_of_model(&paths);
            let groups = manifest.lookalikes();
            prop_assert_eq!(groups.is_empty(), model.is_empty());
            for group in &groups {
                prop_assert!(group.len() > 1);
                let (folder, name) = split(group[0]);
                for path in group {
                    prop_assert!(model.contains(*path), "{path}");
                    prop_assert_eq!(split(path).0, folder);
                    prop_assert_eq!(fold(split(path).1), fold(name));
                }
            }
        }

        #[test]
        fn a_fold_folds_to_itself(name in "\\PC{1,12}") {
            let once = fold(&name).into_owned();
            prop_assert_eq!(fold(&once).into_owned(), once);
        }

        #[test]
        fn case_and_form_make_no_difference(name in "[a-zäöüéèêñ]{1,12}") {
            let folded = fold(&name).into_owned();
            for other in [name.to_uppercase(), name.nfd().collect(), name.nfc().collect(), format!("{name}. .")] {
                prop_assert_eq!(fold(&other).into_owned(), folded.clone());
            }
        }

        #[test]
        fn each_folder_comes_once_and_after_its_parent(
            paths in proptest::collection::btree_set("[ab-]{1,2}(/[ab-]{1,2}){0,3}", 0..20),
        ) {
            let Some(manifest) = manifest(&paths) else { return Ok(()) };
            let mut expected = BTreeSet::new();
            for path in &paths {
                expected.extend(path.match_indices('/').map(|(at, _)| path[..at].to_owned()));
            }
            let folders: Vec<String> = manifest.folders().map(ToOwned::to_owned).collect();
            let mut seen = BTreeSet::new();
            for folder in &folders {
                prop_assert!(folder.rsplit_once('/').is_none_or(|(parent, _)| seen.contains(parent)));
                prop_assert!(seen.insert(folder.clone()), "{folder} comes twice");
            }
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn names_that_differ_only_in_case_or_form_are_grouped_by_folder() {
        assert_eq!(of(&["README", "Readme", "x"]), [["README", "Readme"]]);
        assert_eq!(of(&["e\u{301}", "é"]), [["e\u{301}", "é"]]);
        assert_eq!(of(&["Src/a", "src/b", "src/c"]), [["Src", "src"]]);
        assert_eq!(of(&["d/a", "d/a. "]), [["d/a", "d/a. "]]);
        assert!(of(&["a/x", "b/X", "a-x", "c"]).is_empty());
    }
}
