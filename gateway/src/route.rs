//! What a path asks for. Pure.

use potluck_origins::reference::{RepositoryKind, decode, is_commit, is_name, is_revision};

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// Metadata: the path as it is.
    Api {
        /// Whether the answer never changes, because the path names a commit.
        is_immutable: bool,
    },
    /// A file of a repository.
    File(FileRoute),
    /// Something that the gateway hides, so that clients use what it has: the protocol of Xet.
    Hidden,
    /// Nothing that the gateway knows.
    Unknown,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FileRoute {
    pub(crate) kind: RepositoryKind,
    pub(crate) repository: String,
    pub(crate) revision: String,
    pub(crate) path: String,
}

/// The route of an escaped path.
pub(crate) fn parse(path: &str) -> Route {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    if segments
        .iter()
        .any(|segment| matches!(decode(segment).as_str(), "." | ".."))
    {
        return Route::Unknown;
    }
    match &segments[..] {
        ["api", "models" | "datasets" | "spaces", rest @ ..] => api(rest),
        // What clients ask for to see who they are.
        ["api", "whoami-v2"] => Route::Api { is_immutable: false },
        ["datasets", rest @ ..] => file(RepositoryKind::Dataset, rest),
        ["spaces", rest @ ..] => file(RepositoryKind::Space, rest),
        rest => file(RepositoryKind::Model, rest),
    }
}

fn api(rest: &[&str]) -> Route {
    if rest.iter().any(|segment| segment.starts_with("xet-")) {
        return Route::Hidden;
    }
    let is_immutable = rest
        .windows(2)
        .any(|pair| matches!(pair[0], "revision" | "tree" | "paths-info") && is_commit(pair[1]));
    Route::Api { is_immutable }
}

fn file(kind: RepositoryKind, rest: &[&str]) -> Route {
    let (name, rest) = match rest {
        [name, "resolve", rest @ ..] => ((*name).to_owned(), rest),
        [org, name, "resolve", rest @ ..] if is_name(org) => (format!("{org}/{name}"), rest),
        _ => return Route::Unknown,
    };
    let [revision, path @ ..] = rest else {
        return Route::Unknown;
    };
    let revision = decode(revision);
    let path: Vec<String> = path.iter().map(|segment| decode(segment)).collect();
    let is_valid = name.split('/').all(is_name)
        && is_revision(&revision)
        && !path.is_empty()
        && path
            .iter()
            .all(|part| !part.is_empty() && !part.contains(['/', '\0']));
    match is_valid {
        true => Route::File(FileRoute {
            kind,
            repository: name,
            revision,
            path: path.join("/"),
        }),
        false => Route::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> FileRoute {
        match parse(path) {
            Route::File(file) => file,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn files_of_repositories_are_found() {
        let model = file("/org/repo/resolve/main/a%20b/model.safetensors");
        assert_eq!(
            (model.kind, &*model.repository),
            (RepositoryKind::Model, "org/repo")
        );
        assert_eq!(
            (&*model.revision, &*model.path),
            ("main", "a b/model.safetensors")
        );
        let pull = file("/datasets/org/data/resolve/refs%2Fpr%2F1/x.parquet");
        assert_eq!(
            (pull.kind, &*pull.revision),
            (RepositoryKind::Dataset, "refs/pr/1")
        );
        assert_eq!(file("/gpt2/resolve/main/config.json").repository, "gpt2");
    }

    #[test]
    fn tricks_in_paths_lead_nowhere() {
        for path in [
            "/",
            "/org/repo",
            "/org/repo/resolve/main",
            "/org/repo/resolve/main/",
            "/org/repo/resolve/main/../../x",
            "/org/repo/resolve/main/%2e%2e/x",
            "/org/repo/resolve/main/a%2F..%2Fb",
            "/org/repo/resolve/main/a//b",
            "/../etc/passwd",
            "/org/re%20po/resolve/main/a",
        ] {
            assert_eq!(parse(path), Route::Unknown, "{path}");
        }
    }

    #[test]
    fn metadata_of_a_commit_never_changes() {
        let commit = "0a".repeat(20);
        let of = |path: &str| parse(path);
        assert_eq!(
            of(&format!("/api/models/o/r/tree/{commit}")),
            Route::Api { is_immutable: true }
        );
        assert_eq!(
            of("/api/models/o/r/revision/main"),
            Route::Api { is_immutable: false }
        );
        assert_eq!(of("/api/models/o/r/xet-read-token/main"), Route::Hidden);
    }
}
