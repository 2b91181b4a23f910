//! The entries of a folder that are not shared with it: how many of each kind, and which.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use potluck_core::{Problem, Reason};

/// Maximum number of entries of one kind that are kept by path; all are counted. Enough to read a
/// whole list, few enough to take only some MiB.
const MAX_LISTED: usize = 100_000;

/// Why an entry of a folder is not shared with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OmissionKind {
    /// A link that is absolute or leads out of the folder; or any link, if links are skipped.
    Link,
    /// A link to nothing, while links are followed.
    DanglingLink,
    /// A folder that is its own ancestor, while links are followed.
    LinkLoop,
    /// A pipe, a socket or a device.
    Special,
    /// A file or folder that the peer's user may not read.
    Unreadable,
    /// A name that a collection cannot hold: not UTF-8, too long, or with forbidden characters.
    InvalidName,
    /// A file or folder that was removed while the folder was read.
    Vanished,
    /// The peer's own state, which a followed link leads to.
    PeerState,
    /// A match of `.potluckignore` or of an exclude pattern.
    Excluded,
}

/// An entry that is not shared with its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Omission {
    /// Its path.
    pub path: PathBuf,
    /// Why, in general.
    pub kind: OmissionKind,
    /// Why, in particular.
    pub problem: Problem,
}

/// The entries of a folder that are not shared with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Omissions {
    counts: BTreeMap<OmissionKind, u64>,
    listed: BTreeMap<OmissionKind, Vec<(PathBuf, Problem)>>,
}

impl OmissionKind {
    /// The word for this kind in JSON output and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Link => "links",
            Self::DanglingLink => "dangling_links",
            Self::LinkLoop => "link_loops",
            Self::Special => "special_files",
            Self::Unreadable => "unreadable",
            Self::InvalidName => "invalid_names",
            Self::Vanished => "vanished",
            Self::PeerState => "peer_state",
            Self::Excluded => "excluded",
        }
    }

    /// The kind of a file that can no longer be opened or read; `None` if the failure says nothing
    /// about the file, or may pass: leaving the file out would then lose it silently.
    pub(crate) const fn of_unreadable(reason: Reason) -> Option<Self> {
        match reason {
            Reason::NotFound => Some(Self::Vanished),
            Reason::PermissionDenied => Some(Self::Unreadable),
            _ => None,
        }
    }
}

impl Omissions {
    /// Whether nothing is omitted.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// The number of omitted entries of each kind. Everything inside an omitted folder counts as
    /// one entry.
    pub fn counts(&self) -> impl Iterator<Item = (OmissionKind, u64)> {
        self.counts.iter().map(|(&kind, &count)| (kind, count))
    }

    /// The number of omitted entries.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Up to `max` entries: in turn one of each kind, and excluded ones only after all others.
    pub fn sample(&self, max: usize) -> Vec<Omission> {
        let mut lists: Vec<_> = self
            .listed
            .iter()
            .map(|(&kind, list)| (kind, list.iter()))
            .collect();
        // Excluded entries come last in the order of the kinds.
        let excluded = lists.pop_if(|(kind, _)| *kind == OmissionKind::Excluded);
        let mut sample = Vec::new();
        for mut lists in [lists, excluded.into_iter().collect()] {
            let mut last_len = None;
            while sample.len() < max && last_len != Some(sample.len()) {
                last_len = Some(sample.len());
                for (kind, list) in &mut lists {
                    let next = list.next().filter(|_| sample.len() < max);
                    sample.extend(next.map(|(path, problem)| Omission {
                        path: path.clone(),
                        kind: *kind,
                        problem: problem.clone(),
                    }));
                }
            }
        }
        sample.sort_by(|a, b| (a.kind, &a.path).cmp(&(b.kind, &b.path)));
        sample
    }

    pub(crate) fn add(&mut self, kind: OmissionKind, path: PathBuf, problem: Problem) {
        *self.counts.entry(kind).or_default() += 1;
        let listed = self.listed.entry(kind).or_default();
        if listed.len() < MAX_LISTED {
            listed.push((path, problem));
        }
    }

    pub(crate) fn append(&mut self, other: Self) {
        for (kind, count) in other.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        for (kind, mut list) in other.listed {
            let listed = self.listed.entry(kind).or_default();
            list.truncate(MAX_LISTED.saturating_sub(listed.len()));
            listed.append(&mut list);
        }
    }

    /// Sorts the listed entries by path.
    pub(crate) fn sort(&mut self) {
        for list in self.listed.values_mut() {
            list.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        }
    }

    /// Logs that a folder is shared without these entries.
    pub(crate) fn warn(&self, root: &Path) {
        /// Maximum number of entries named in the log.
        const MAX_LOGGED: usize = 3;
        let logged = self.sample(MAX_LOGGED).into_iter();
        let examples: Vec<_> = logged
            .filter(|omission| omission.kind != OmissionKind::Excluded)
            .map(|omission| format!("{}: {}", omission.path.display(), omission.problem))
            .collect();
        if !examples.is_empty() {
            let counts: Vec<_> = self
                .counts()
                .map(|(kind, count)| format!("{count} {}", kind.word()))
                .collect();
            tracing::warn!(
                path = %root.display(), skipped = counts.join(", "), ?examples,
                "entries of a folder cannot be shared and are skipped"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_entries_of_all_kinds_and_excluded_ones_last() {
        let mut omissions = Omissions::default();
        let problem = || Problem::new(Reason::UnsafePath, "why");
        for number in 0..20 {
            for kind in [OmissionKind::Excluded, OmissionKind::Unreadable] {
                omissions.add(kind, format!("{}{number:02}", kind.word()).into(), problem());
            }
        }
        omissions.add(OmissionKind::Link, "link".into(), problem());
        let names = |max| -> Vec<_> {
            let sample = omissions.sample(max).into_iter();
            sample
                .map(|omission| omission.path.to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(names(3), ["link", "unreadable00", "unreadable01"]);
        assert_eq!(names(22).last().unwrap(), "excluded00");
        assert_eq!((names(100).len(), omissions.total()), (41, 41));
    }

    #[test]
    fn a_long_list_is_counted_in_full() {
        let mut omissions = Omissions::default();
        for number in 0..MAX_LISTED {
            let problem = Problem::new(Reason::PermissionDenied, "why");
            omissions.add(OmissionKind::Unreadable, format!("{number}").into(), problem);
        }
        omissions.append(omissions.clone());
        assert_eq!(omissions.total(), 2 * MAX_LISTED as u64);
        assert_eq!(omissions.sample(usize::MAX).len(), MAX_LISTED);
    }
}
