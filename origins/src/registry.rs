//! A registry of container images: the pull side of the OCI distribution specification.
//!
//! A blob is known by its SHA-256, so it is an [`OriginFile`] like any other. A manifest is a small
//! document, and is returned as the registry sends it.
//!
//! Invariant: a name, a tag and a digest are checked before they become part of an address.

use http::{Method, StatusCode, header};
use potluck_core::Sha256;
use url::Url;

use crate::{
    client::{ApiAnswer, ApiRequest, OriginClient},
    error::OriginError,
    file::OriginFile,
    policy,
    reference::FileUrl,
    reply,
    secret::Secret,
};

/// Longest name of a repository, as registries have it.
const MAX_NAME: usize = 255;

/// Longest tag.
const MAX_TAG: usize = 128;

/// The name of a repository, such as `library/debian`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepositoryName(String);

impl RepositoryName {
    /// Checks a name: components of lower-case letters and digits with single separators inside.
    pub fn parse(name: &str) -> Option<Self> {
        let is_component = |part: &str| {
            let ends = [part.bytes().next(), part.bytes().last()];
            let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            ends.into_iter().all(|end| end.is_some_and(fits))
                && part.bytes().all(|byte| fits(byte) || b"._-".contains(&byte))
                && !part.contains("..")
        };
        (name.len() <= MAX_NAME && name.split('/').all(is_component)).then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What names a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ManifestReference {
    /// A tag, which may name another manifest later.
    Tag(String),
    /// The manifest with this SHA-256.
    Digest(Sha256),
}

impl ManifestReference {
    /// Parses a tag or a digest.
    pub fn parse(text: &str) -> Option<Self> {
        if text.contains(':') {
            return parse_digest(text).map(Self::Digest);
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_tag = !text.is_empty()
            && text.len() <= MAX_TAG
            && !text.starts_with(['.', '-'])
            && text.bytes().all(fits);
        is_tag.then(|| Self::Tag(text.to_owned()))
    }
}

impl std::fmt::Display for ManifestReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(sum) => write!(f, "sha256:{sum}"),
        }
    }
}

/// Parses `sha256:HEX`, the only algorithm that registries use in practice.
pub fn parse_digest(text: &str) -> Option<Sha256> {
    let hex = text.strip_prefix("sha256:")?;
    let is_lower = !hex.bytes().any(|byte| byte.is_ascii_uppercase());
    hex.parse().ok().filter(|_| is_lower)
}

/// The answer to a question for something that may be refused.
#[derive(Debug)]
pub enum Asked<T> {
    /// What was asked for.
    Granted(T),
    /// The registry's refusal.
    Refused(ApiAnswer),
}

/// Asks one registry.
#[derive(Debug, Clone)]
pub struct Registry {
    client: OriginClient,
    endpoint: Url,
}

impl Registry {
    /// A client of the registry at `endpoint`, which has `/v2/` below it.
    ///
    /// # Errors
    /// [`OriginError::InvalidReference`] if the endpoint is not a web address.
    pub fn new(client: OriginClient, endpoint: Url) -> Result<Self, OriginError> {
        policy::check_origin(&endpoint)?;
        Ok(Self { client, endpoint })
    }

    /// The host and port, for people.
    pub fn host(&self) -> String {
        policy::host_of(&self.endpoint)
    }

    /// The endpoint as text, without a slash at its end.
    pub fn base(&self) -> &str {
        self.endpoint.as_str().trim_end_matches('/')
    }

    /// Asks for a manifest, or with `HEAD` only for its digest. Redirects are followed.
    ///
    /// # Errors
    /// [`OriginError::Unreachable`], [`OriginError::TimedOut`], [`OriginError::Refused`] and
    /// [`OriginError::Invalid`]. A refusal of the registry is no error.
    pub async fn manifest(
        &self,
        method: Method,
        name: &RepositoryName,
        reference: &ManifestReference,
        accept: &str,
        credentials: Option<&Secret>,
    ) -> Result<ApiAnswer, OriginError> {
        let url = self.address(name, &["manifests", &reference.to_string()])?;
        let request = ApiRequest {
            accept: Some(accept).filter(|accept| !accept.is_empty()),
            ..ApiRequest::new(method, &url, credentials)
        };
        self.client.follow(request).await
    }

    /// A list of a repository, such as `["tags", "list"]`, with this query.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub async fn list(
        &self,
        name: &RepositoryName,
        path: &[&str],
        query: Option<&str>,
        credentials: Option<&Secret>,
    ) -> Result<ApiAnswer, OriginError> {
        let mut url = self.address(name, path)?;
        url.set_query(query);
        let request = ApiRequest::new(Method::GET, &url, credentials);
        self.client.follow(request).await
    }

    /// Asks whether a blob may be had, and for its size. `size`: what is known already, so that a
    /// redirect to storage need not be followed.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub async fn blob(
        &self,
        name: &RepositoryName,
        digest: Sha256,
        credentials: Option<&Secret>,
        size: Option<u64>,
    ) -> Result<Asked<OriginFile>, OriginError> {
        let url = self.address(name, &["blobs", &format!("sha256:{digest}")])?;
        let request = ApiRequest::new(Method::HEAD, &url, credentials);
        let answer = self.client.exchange(request).await?;
        let stated = match answer.status {
            StatusCode::OK => reply::number(&answer.headers, header::CONTENT_LENGTH).or(size),
            status if status.is_redirection() => size,
            // Some storage refuses HEAD.
            StatusCode::METHOD_NOT_ALLOWED => None,
            _ => return Ok(Asked::Refused(answer)),
        };
        let named = FileUrl {
            url: url.clone(),
            sha256: Some(digest),
        };
        Ok(Asked::Granted(match stated {
            Some(size) => OriginFile::new(url, size, Some(digest), credentials.cloned()),
            None => self.client.look_up(&named, credentials.cloned()).await?,
        }))
    }

    fn address(&self, name: &RepositoryName, path: &[&str]) -> Result<Url, OriginError> {
        let mut url = self.endpoint.clone();
        url.path_segments_mut()
            .map_err(|()| {
                OriginError::InvalidReference("the registry is not a web address".into())
            })?
            .pop_if_empty()
            .push("v2")
            .extend(name.as_str().split('/'))
            .extend(path);
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tags_and_digests_are_checked() {
        for good in ["debian", "library/debian", "a/b/c", "a-b/c_d.e", "a--b"] {
            assert!(RepositoryName::parse(good).is_some(), "{good}");
        }
        for bad in [
            "", "/a", "a/", "a//b", "../a", "a/../b", "A/b", "a%2fb", "a b", "-a", "a/b?x",
        ] {
            assert_eq!(RepositoryName::parse(bad), None, "{bad}");
        }
        assert_eq!(RepositoryName::parse(&"a".repeat(256)), None);
        let sum = Sha256([0xab; 32]);
        let digest = ManifestReference::parse(&format!("sha256:{sum}"));
        assert_eq!(digest, Some(ManifestReference::Digest(sum)));
        for good in ["latest", "v1.2-3_x", "_a"] {
            assert!(matches!(
                ManifestReference::parse(good),
                Some(ManifestReference::Tag(_))
            ));
        }
        let upper = format!("sha256:{}", sum.to_string().to_uppercase());
        for bad in ["", ".", "..", "-a", "a/b", "sha256:", "sha512:00", "a b", &*upper] {
            assert_eq!(ManifestReference::parse(bad), None, "{bad}");
        }
    }
}
