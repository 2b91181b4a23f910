//! Chooses files of a collection by globs over their paths. Pure.
//!
//! A glob with a slash matches whole paths from the top of the collection; any other glob matches
//! names at any depth, as in `.gitignore`. A glob that matches a folder matches everything in it.
//! `*` and `?` do not match a slash, `**` matches any number of folders, and case counts. `?` matches
//! one byte, also in `.gitignore`: a letter such as `ü` has two.

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use potluck_core::{
    Problem, Reason,
    bitfield::Bitfield,
    collection::manifest::{EntryContent, Manifest, ManifestEntry},
};

/// Maximum globs in each list: more than a person types, and few to match against a path.
pub const MAX_GLOBS: usize = 256;

/// Maximum length of a glob, in bytes: longer than any sensible path.
pub const MAX_GLOB: usize = 1024;

/// Number of paths that an error suggests.
const SUGGESTIONS: usize = 3;

/// Minimum similarity of a suggested path, from 0 to 1.
const MIN_SIMILARITY: f64 = 0.6;

/// Globs of paths to download, and of paths to leave out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathFilter {
    include: Vec<String>,
    exclude: Vec<String>,
}

/// The entries of a collection that a download needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// One bit for each entry of the manifest.
    pub(crate) entries: Bitfield,
    /// Number of files among them.
    pub(crate) files: u64,
}

/// One glob, compiled.
struct Matcher<'a> {
    text: &'a str,
    globs: GlobSet,
}

impl PathFilter {
    /// A filter that chooses the paths that match any of `include`, or all paths if that is empty,
    /// and match none of `exclude`.
    ///
    /// # Errors
    /// [`Reason::InvalidArgument`] if there are more than [`MAX_GLOBS`] globs in a list, a glob is
    /// empty or longer than [`MAX_GLOB`], or its syntax is wrong.
    pub fn new(include: Vec<String>, exclude: Vec<String>) -> Result<Self, Problem> {
        for (field, globs) in [("include", &include), ("exclude", &exclude)] {
            let invalid =
                |message: String| Problem::new(Reason::InvalidArgument, message).field(field);
            if globs.len() > MAX_GLOBS {
                return Err(invalid(format!("at most {MAX_GLOBS} globs can be given")));
            }
            for glob in globs {
                if glob.len() > MAX_GLOB {
                    return Err(invalid(format!("a glob has at most {MAX_GLOB} bytes")));
                }
                compile(glob).map_err(invalid)?;
            }
        }
        Ok(Self { include, exclude })
    }

    /// Whether the filter chooses everything.
    pub const fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// The globs of paths to download.
    pub fn include(&self) -> &[String] {
        &self.include
    }

    /// The globs of paths to leave out.
    pub fn exclude(&self) -> &[String] {
        &self.exclude
    }

    /// Which of these paths the filter chooses, in their order.
    ///
    /// # Errors
    /// [`Reason::InvalidArgument`] if a glob matches nothing.
    pub fn choose_paths(&self, paths: &[&str]) -> Result<Vec<bool>, Problem> {
        let (include, exclude) = (matchers(&self.include)?, matchers(&self.exclude)?);
        let matches = |matcher: &Matcher<'_>| paths.iter().any(|path| matcher.globs.is_match(path));
        if let Some(unused) = include.iter().chain(&exclude).find(|matcher| !matches(matcher)) {
            return Err(matches_nothing(unused.text, paths.iter().copied()));
        }
        let is_chosen = |path: &&str| {
            let is_match = |matcher: &Matcher<'_>| matcher.globs.is_match(path);
            (include.is_empty() || include.iter().any(is_match)) && !exclude.iter().any(is_match)
        };
        Ok(paths.iter().map(is_chosen).collect())
    }

    /// The entries that the filter chooses.
    ///
    /// # Errors
    /// [`Reason::InvalidArgument`] if a glob matches nothing, with similar paths, or if nothing is
    /// chosen.
    pub(crate) fn choose(&self, manifest: &Manifest) -> Result<Chosen, Problem> {
        let include = matchers(&self.include)?;
        let exclude = matchers(&self.exclude)?;
        let mut used = vec![false; include.len() + exclude.len()];
        let mut chosen = Chosen {
            // Fits: a manifest has at most 2^20 entries.
            entries: Bitfield::new(manifest.len() as u32),
            files: 0,
        };
        for (index, entry) in (0..).zip(manifest.entries()) {
            let path = entry.path.as_str();
            let mut is_included = include.is_empty();
            let mut is_excluded = false;
            for (at, matcher) in include.iter().chain(&exclude).enumerate() {
                if matcher.globs.is_match(path) {
                    used[at] = true;
                    match at < include.len() {
                        true => is_included = true,
                        false => is_excluded = true,
                    }
                }
            }
            if is_included && !is_excluded {
                chosen.entries.set(index, true);
                chosen.files += u64::from(is_file(&entry));
            }
        }
        let unused = include.iter().chain(&exclude).zip(used).find(|(_, used)| !used);
        if let Some((matcher, _)) = unused {
            let paths: Vec<_> = manifest
                .entries()
                .map(|entry| entry.path.as_str().to_owned())
                .collect();
            return Err(matches_nothing(matcher.text, paths.iter().map(String::as_str)));
        }
        if chosen.entries.count() == 0 && !manifest.is_empty() {
            return Err(Problem::new(
                Reason::InvalidArgument,
                "all files that --include chooses are left out by --exclude: nothing to download",
            )
            .field("exclude"));
        }
        Ok(chosen)
    }
}

impl Chosen {
    /// All entries.
    pub(crate) fn all(manifest: &Manifest) -> Self {
        Self {
            entries: Bitfield::full(manifest.len() as u32),
            files: manifest.file_count(),
        }
    }
}

/// The manifest of these entries only.
pub(crate) fn manifest_of(manifest: &Manifest, entries: &Bitfield) -> Result<Manifest, Problem> {
    let entries = entries.ones().filter_map(|index| manifest.get(index));
    // A part of a valid manifest is valid.
    Manifest::new(entries).map_err(|error| Problem::new(Reason::Internal, error.to_string()))
}

fn is_file(entry: &ManifestEntry<'_>) -> bool {
    matches!(entry.content, EntryContent::File { .. })
}

fn matchers(globs: &[String]) -> Result<Vec<Matcher<'_>>, Problem> {
    let compiled = globs.iter().map(|text| {
        let globs = compile(text);
        globs
            .map(|globs| Matcher { text, globs })
            .map_err(|message| Problem::new(Reason::InvalidArgument, message))
    });
    compiled.collect()
}

/// Compiles a glob: for the path itself, and for everything beneath it.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn compile(text: &str) -> Result<GlobSet, String> {
    let path = text.strip_prefix("./").unwrap_or(text);
    let path = path.strip_suffix('/').unwrap_or(path);
    let is_anchored = path.contains('/');
    let path = path.strip_prefix('/').unwrap_or(path);
    if path.is_empty() {
        return Err("a glob must not be empty: give a path, such as docs/*.md".to_owned());
    }
    let path = if is_anchored {
        path.to_owned()
    } else {
        format!("**/{path}")
    };
    let glob = |path: &str| -> Result<Glob, globset::Error> {
        let mut builder = GlobBuilder::new(path);
        builder.literal_separator(true).backslash_escape(true).build()
    };
    let all = || {
        let mut set = GlobSetBuilder::new();
        set.add(glob(&path)?);
        set.add(glob(&format!("{path}/**"))?);
        set.build()
    };
    all().map_err(|error| format!("`{text}` is not a valid glob: {}", error.kind()))
}

/// The error for a glob without matches, with similar paths.
fn matches_nothing<'a>(glob: &str, paths: impl Iterator<Item = &'a str>) -> Problem {
    let wanted = glob.trim_matches(['*', '/']).to_lowercase();
    let name = |text: &str| text.rsplit('/').next().unwrap_or_default().to_lowercase();
    let mut similar: Vec<(f64, &str)> = paths
        .map(|path| {
            let whole = strsim::jaro_winkler(&wanted, &path.to_lowercase());
            let of_names = strsim::jaro_winkler(&name(&wanted), &name(path));
            let contains = !wanted.is_empty() && path.to_lowercase().contains(&wanted);
            (if contains { 2.0 } else { whole.max(of_names) }, path)
        })
        .filter(|&(similarity, _)| similarity >= MIN_SIMILARITY)
        .collect();
    similar.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    similar.truncate(SUGGESTIONS);
    let similar: Vec<_> = similar.iter().map(|(_, path)| format!("`{path}`")).collect();
    let advice = match similar.is_empty() {
        true => "matching is case-sensitive, and `**` matches any number of folders".to_owned(),
        false => format!("similar paths: {}", similar.join(", ")),
    };
    Problem::new(
        Reason::InvalidArgument,
        format!("no path in the folder matches `{glob}`; {advice}"),
    )
    .field("include")
}

#[cfg(test)]
mod tests {
    use potluck_core::{FileId, collection::path::RelPath};

    use super::*;

    fn manifest(paths: &[&str]) -> Manifest {
        let entries = (1..).zip(paths).map(|(n, path)| ManifestEntry {
            path: RelPath::parse(path).unwrap(),
            content: EntryContent::File {
                id: FileId([n; 32]),
                size: 1,
                executable: false,
            },
        });
        Manifest::new(entries).unwrap()
    }

    const PATHS: [&str; 6] = [
        "README.md",
        "a/b/c.json",
        "a/b/d.bin",
        "a/e.json",
        "config.json",
        "docs/b/readme.txt",
    ];

    fn choose(include: &[&str], exclude: &[&str]) -> Result<Vec<String>, Problem> {
        let globs = |globs: &[&str]| globs.iter().map(|&glob| glob.to_owned()).collect();
        let manifest = manifest(&PATHS);
        let filter = PathFilter::new(globs(include), globs(exclude))?;
        let chosen = filter.choose(&manifest)?;
        assert_eq!(chosen.files, u64::from(chosen.entries.count()));
        let paths = chosen.entries.ones().filter_map(|index| manifest.get(index));
        Ok(paths.map(|entry| entry.path.as_str().to_owned()).collect())
    }

    #[test]
    fn a_glob_without_a_slash_matches_names_at_any_depth() {
        assert_eq!(
            choose(&["*.json"], &[]).unwrap(),
            ["a/b/c.json", "a/e.json", "config.json"]
        );
        assert_eq!(
            choose(&["b"], &[]).unwrap(),
            ["a/b/c.json", "a/b/d.bin", "docs/b/readme.txt"]
        );
    }

    #[test]
    fn a_glob_with_a_slash_matches_whole_paths() {
        assert_eq!(choose(&["/*.json"], &[]).unwrap(), ["config.json"]);
        assert_eq!(choose(&["a/*.json"], &[]).unwrap(), ["a/e.json"]);
        assert_eq!(choose(&["a/**/*.json"], &[]).unwrap(), ["a/b/c.json", "a/e.json"]);
        assert_eq!(choose(&["a/b/"], &[]).unwrap(), ["a/b/c.json", "a/b/d.bin"]);
        assert_eq!(choose(&["**"], &[]).unwrap(), PATHS);
    }

    #[test]
    fn excluded_paths_are_left_out() {
        assert_eq!(choose(&["a"], &["*.json"]).unwrap(), ["a/b/d.bin"]);
        assert_eq!(choose(&[], &["a", "docs"]).unwrap(), ["README.md", "config.json"]);
        let nothing = choose(&["docs"], &["*.txt"]).unwrap_err();
        assert_eq!(nothing.reason, Reason::InvalidArgument);
    }

    #[test]
    fn a_glob_that_matches_nothing_names_similar_paths() {
        for (glob, similar) in [
            ("readme.md", "`README.md`"),
            ("*.jsn", "`a/b/c.json`"),
            ("a/c.json", "`a/e.json`"),
        ] {
            let problem = choose(&[glob], &[]).unwrap_err();
            assert_eq!(problem.reason, Reason::InvalidArgument);
            assert!(problem.message.contains(similar), "{}", problem.message);
        }
        assert!(
            choose(&[], &["zzz"])
                .unwrap_err()
                .message
                .contains("case-sensitive")
        );
    }

    #[test]
    fn invalid_and_excessive_globs_are_refused() {
        let many = vec!["a".to_owned(); MAX_GLOBS + 1];
        for globs in [
            many,
            vec!["a".repeat(MAX_GLOB + 1)],
            vec![String::new()],
            vec!["/".to_owned()],
            vec!["a[".to_owned()],
            vec!["{a".to_owned()],
        ] {
            let problem = PathFilter::new(Vec::new(), globs).unwrap_err();
            assert_eq!(problem.reason, Reason::InvalidArgument);
        }
    }
}
