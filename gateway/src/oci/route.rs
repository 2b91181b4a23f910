//! What a path below `/v2/` asks for. Pure.

use potluck_core::Sha256;
use potluck_origins::{
    reference::decode,
    registry::{ManifestReference, RepositoryName, parse_digest},
};

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OciRoute {
    /// Whether this is a registry.
    Root,
    /// Something of a repository.
    Repository(RepositoryName, Item),
    /// A name that no repository has.
    InvalidName,
    /// A digest of another algorithm, or none.
    InvalidDigest,
    /// A tag that no image has.
    InvalidTag,
    /// Nothing that the gateway knows.
    Unknown,
}

/// Something of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// A manifest.
    Manifest(ManifestReference),
    /// A blob.
    Blob(Sha256),
    /// The list of tags.
    Tags,
    /// The manifests that refer to this one.
    Referrers(Sha256),
}

/// Whether a path is meant for a registry.
pub(crate) fn is_meant(path: &str) -> bool {
    path == "/v2" || path.starts_with("/v2/")
}

/// The route of an escaped path.
pub(crate) fn parse(path: &str) -> OciRoute {
    let segments: Vec<String> = path
        .strip_prefix("/v2")
        .unwrap_or_default()
        .trim_start_matches('/')
        .split('/')
        .map(decode)
        .collect();
    let texts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (name, item) = match &texts[..] {
        [""] => return OciRoute::Root,
        [name @ .., "manifests", reference] => match ManifestReference::parse(reference) {
            Some(reference) => (name, Item::Manifest(reference)),
            None if reference.contains(':') => return OciRoute::InvalidDigest,
            None => return OciRoute::InvalidTag,
        },
        [name @ .., kind @ ("blobs" | "referrers"), digest] => match parse_digest(digest) {
            Some(sum) if *kind == "blobs" => (name, Item::Blob(sum)),
            Some(sum) => (name, Item::Referrers(sum)),
            None => return OciRoute::InvalidDigest,
        },
        [name @ .., "tags", "list"] => (name, Item::Tags),
        _ => return OciRoute::Unknown,
    };
    match RepositoryName::parse(&name.join("/")) {
        Some(name) => OciRoute::Repository(name, item),
        None => OciRoute::InvalidName,
    }
}

/// The registry that a query names, as containerd does.
pub(crate) fn namespace(query: Option<&str>) -> Option<String> {
    let pairs = url::form_urlencoded::parse(query?.as_bytes());
    pairs
        .into_iter()
        .find(|(name, _)| name == "ns")
        .map(|(_, value)| value.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found() {
        let sum = Sha256([0xab; 32]);
        let repository =
            |name: &str, item| OciRoute::Repository(RepositoryName::parse(name).unwrap(), item);
        assert_eq!(parse("/v2/"), OciRoute::Root);
        assert_eq!(parse("/v2"), OciRoute::Root);
        assert_eq!(
            parse("/v2/library/debian/manifests/latest"),
            repository(
                "library/debian",
                Item::Manifest(ManifestReference::Tag("latest".into()))
            )
        );
        for colon in [":", "%3A", "%3a"] {
            assert_eq!(
                parse(&format!("/v2/a/blobs/sha256{colon}{sum}")),
                repository("a", Item::Blob(sum))
            );
        }
        // Components of a name may be words of the protocol.
        assert_eq!(parse("/v2/a/blobs/tags/list"), repository("a/blobs", Item::Tags));
    }

    #[test]
    fn tricks_in_paths_lead_nowhere() {
        let sum = Sha256([0xab; 32]);
        for name in ["..", "a/..", "a%2F..%2Fb", "", "a//b", "A", "a%00", "a%3Fb"] {
            let path = format!("/v2/{name}/blobs/sha256:{sum}");
            assert_eq!(parse(&path), OciRoute::InvalidName, "{path}");
        }
        for digest in [
            "sha256:00",
            "sha512:00",
            "..",
            "sha256:..%2F..%2Fetc%2Fpasswd",
            "",
        ] {
            assert_eq!(
                parse(&format!("/v2/a/blobs/{digest}")),
                OciRoute::InvalidDigest,
                "{digest}"
            );
        }
        assert_eq!(parse("/v2/a/manifests/.."), OciRoute::InvalidTag);
        assert_eq!(parse("/v2/_catalog"), OciRoute::Unknown);
        assert_eq!(parse("/v2/a/blobs/sha256:../../etc/passwd"), OciRoute::Unknown);
        assert_eq!(parse("/v2/a/blobs/uploads/"), OciRoute::Unknown);
    }

    #[test]
    fn the_namespace_is_in_the_query() {
        assert_eq!(namespace(Some("ns=docker.io")).as_deref(), Some("docker.io"));
        let port = namespace(Some("n=5&ns=Registry.example%3A5000"));
        assert_eq!(port.as_deref(), Some("registry.example:5000"));
        assert_eq!(namespace(Some("n=5")), None);
        assert_eq!(namespace(None), None);
    }
}
