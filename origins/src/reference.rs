//! What a user types for an origin: `https://HOST/PATH#sha256=HEX`, or
//! `hf://[datasets/|spaces/]ORG/REPO[@REVISION][/PATH]` as `huggingface_hub` writes it. Pure.
//!
//! Invariants: a URL has no user, no password and no fragment; a path inside a repository is
//! relative and has normal components only.

use std::{fmt, str::FromStr};

use potluck_core::{Sha256, collection::path::RelPath};
use url::Url;

use crate::{error::OriginError, policy};

/// The scheme of references to the Hugging Face Hub.
const HUB_SCHEME: &str = "hf://";

/// The revision if none is given.
const DEFAULT_REVISION: &str = "main";

/// Maximum length of a name of an organisation, a repository or a revision.
const MAX_NAME: usize = 255;

/// A reference to content at an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginReference {
    /// A file of a web server.
    File(FileUrl),
    /// A file or a repository of the Hugging Face Hub.
    Hub(HubReference),
}

/// A file of a web server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileUrl {
    /// The address, without a fragment.
    pub url: Url,
    /// The SHA-256 that its bytes must have, if the user gave one.
    pub sha256: Option<Sha256>,
}

/// The kind of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RepositoryKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
    /// A space.
    Space,
}

impl RepositoryKind {
    /// The first component of its addresses in the API.
    pub const fn api(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
            Self::Space => "spaces",
        }
    }

    /// The prefix of its other addresses.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
            Self::Space => "spaces/",
        }
    }
}

/// A file or a repository of the Hugging Face Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubReference {
    /// The kind of the repository.
    pub kind: RepositoryKind,
    /// `ORG/NAME`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The file; `None`: the whole repository.
    pub path: Option<String>,
}

impl OriginReference {
    /// Whether the text is meant as a reference to an origin, valid or not.
    pub fn is_meant(text: &str) -> bool {
        ["https://", "http://", HUB_SCHEME].iter().any(|scheme| {
            text.get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        })
    }
}

impl FromStr for OriginReference {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        match text.get(..HUB_SCHEME.len()) {
            Some(start) if start.eq_ignore_ascii_case(HUB_SCHEME) => {
                text[HUB_SCHEME.len()..].parse().map(Self::Hub)
            }
            _ => text.parse().map(Self::File),
        }
    }
}

impl FromStr for FileUrl {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let mut url = Url::parse(text)
            .map_err(|error| invalid(format!("{error}: give https://HOST/PATH")))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid(
                "a URL with a user or password ends up in logs: put them into ~/.netrc".into(),
            ));
        }
        policy::check_origin(&url)?;
        let sha256 = match url.fragment() {
            None | Some("") => None,
            Some(fragment) => match fragment.strip_prefix("sha256=").map(str::parse) {
                Some(Ok(sum)) => Some(sum),
                _ => {
                    return Err(invalid(
                        "after `#` give the SHA-256 of the file: #sha256= and 64 hex digits".into(),
                    ));
                }
            },
        };
        url.set_fragment(None);
        Ok(Self { url, sha256 })
    }
}

impl FileUrl {
    /// The last component of the path, decoded, as the name of the file.
    pub fn file_name(&self) -> Option<String> {
        let last = self.url.path_segments()?.next_back()?;
        Some(decode(last)).filter(|name| !name.is_empty())
    }
}

impl FromStr for HubReference {
    type Err = OriginError;

    /// Parses what follows `hf://`.
    fn from_str(text: &str) -> Result<Self, OriginError> {
        let (kind, rest) = match text.split_once('/') {
            Some(("datasets", rest)) => (RepositoryKind::Dataset, rest),
            Some(("spaces", rest)) => (RepositoryKind::Space, rest),
            Some(("models", rest)) => (RepositoryKind::Model, rest),
            _ => (RepositoryKind::Model, text),
        };
        let wanted = || invalid("give hf://ORG/REPO[@REVISION][/PATH]".into());
        let (org, rest) = rest.split_once('/').ok_or_else(wanted)?;
        let (name, path) = match rest.split_once('/') {
            Some((name, path)) => (name, Some(path).filter(|path| !path.is_empty())),
            None => (rest, None),
        };
        let (name, revision) = match name.split_once('@') {
            Some((name, revision)) => (name, decode(revision)),
            None => (name, DEFAULT_REVISION.to_owned()),
        };
        if !is_name(org) || !is_name(name) {
            return Err(wanted());
        }
        if !is_revision(&revision) {
            return Err(invalid(format!("`{revision}` cannot be a revision")));
        }
        if let Some(path) = path {
            RelPath::parse(path).map_err(|error| invalid(format!("{path}: {error}")))?;
        }
        Ok(Self {
            kind,
            repository: format!("{org}/{name}"),
            revision,
            path: path.map(ToOwned::to_owned),
        })
    }
}

impl HubReference {
    /// Whether the revision is a whole commit, which never changes.
    pub fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

/// Whether the text is a whole Git commit.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether the text can be a name of an organisation or a repository.
pub fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= MAX_NAME && !text.starts_with('.') && text.bytes().all(fits)
}

/// A revision goes into a URL as one component, so only what Git allows in one is left out.
pub fn is_revision(text: &str) -> bool {
    let fits = |byte: u8| {
        byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'?' | b'*' | b'[' | b'~' | b'^' | b':')
    };
    !text.is_empty() && text.len() <= MAX_NAME && !text.contains("..") && text.bytes().all(fits)
}

/// Decodes `%` escapes; text that does not decode stays as it is.
pub fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| tail.get(..2).and_then(|digits| hex::decode(digits).ok()))
            .flatten();
        match escaped {
            Some(byte) => {
                bytes.extend(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

const fn invalid(message: String) -> OriginError {
    OriginError::InvalidReference(message)
}

impl fmt::Display for OriginReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.fmt(f),
            Self::Hub(hub) => hub.fmt(f),
        }
    }
}

impl fmt::Display for FileUrl {
    /// Leaves out the query, which can hold a signature.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&policy::shown(&self.url))
    }
}

impl fmt::Display for HubReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            repository,
            revision,
            path,
        } = self;
        write!(f, "{HUB_SCHEME}{}{repository}", kind.prefix())?;
        if revision != DEFAULT_REVISION {
            write!(f, "@{}", revision.replace('/', "%2F"))?;
        }
        path.iter().try_for_each(|path| write!(f, "/{path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(text: &str) -> HubReference {
        match text.parse() {
            Ok(OriginReference::Hub(hub)) => hub,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_url_carries_its_sha256_in_the_fragment() {
        let hex = "ab".repeat(32);
        let text = format!("https://example.org/a/b%20c.bin?sign=x#sha256={hex}");
        let OriginReference::File(file) = text.parse().unwrap() else {
            panic!("not a file");
        };
        assert_eq!(file.sha256, Some(hex.parse().unwrap()));
        assert_eq!(file.file_name().as_deref(), Some("b c.bin"));
        assert_eq!(file.url.as_str(), "https://example.org/a/b%20c.bin?sign=x");
        assert_eq!(file.to_string(), "https://example.org/a/b%20c.bin");
    }

    #[test]
    fn urls_that_leak_or_lead_elsewhere_are_refused() {
        for text in [
            "https://user:secret@example.org/a",
            "https://example.org/a#sha256=12",
            "https://example.org/a#md5=12",
            "http://example.org/a",
            "ftp://example.org/a",
            "file:///etc/passwd",
        ] {
            assert!(text.parse::<OriginReference>().is_err(), "{text}");
        }
        assert!("http://127.0.0.1:80/a".parse::<OriginReference>().is_ok());
    }

    #[test]
    fn a_repository_a_revision_and_a_path_are_told_apart() {
        let all = hub("hf://org/repo");
        assert_eq!(
            (&*all.repository, &*all.revision, all.path),
            ("org/repo", "main", None)
        );
        let file = hub("hf://datasets/org/repo@refs%2Fpr%2F1/data/a.parquet");
        assert_eq!(file.kind, RepositoryKind::Dataset);
        assert_eq!(
            (&*file.revision, file.path.as_deref()),
            ("refs/pr/1", Some("data/a.parquet"))
        );
        assert_eq!(
            file.to_string(),
            "hf://datasets/org/repo@refs%2Fpr%2F1/data/a.parquet"
        );
        assert!(hub(&format!("hf://org/repo@{}", "0a".repeat(20))).is_commit());
    }

    #[test]
    fn tricks_in_repository_names_are_refused() {
        for text in [
            "hf://org",
            "hf://org/",
            "hf://../repo",
            "hf://org/repo/../../x",
            "hf://org/repo//x",
            "hf://org/repo@../x",
            "hf://org/re?po",
            "hf://org/repo@",
        ] {
            assert!(text.parse::<OriginReference>().is_err(), "{text}");
        }
    }
}
