//! The Hugging Face Hub: from a repository and a revision to a commit, its files, and their hashes.
//!
//! A commit never changes, so all addresses that follow from one lookup name the commit. Files in
//! Git LFS state their SHA-256. Small files state the SHA-1 of their Git blob, which protects
//! against damage but not against an attacker: they come only from the hub.
//!
//! Invariant: every path is relative and has normal components only, and no path occurs twice.

use std::collections::HashSet;

use http::HeaderMap;
use potluck_core::{Sha256, collection::path::RelPath};
use serde::Deserialize;
use sha1::{Digest as _, Sha1};
use sha2::Sha256 as Sha256Hash;
use url::Url;

use crate::{
    client::{OriginClient, OriginFile},
    error::OriginError,
    policy::host_of,
    reference::{HubReference, RepositoryKind, is_commit},
    secret::Secret,
};

/// The hub, unless `HF_ENDPOINT` names another.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Maximum files of a repository: as many as a collection has.
const MAX_FILES: usize = 1 << 20;

/// Maximum pages of a listing; a page of the hub has 1,000 entries.
const MAX_PAGES: usize = 4096;

/// How a hub identifies the bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubHash {
    /// The file is in Git LFS.
    Sha256(Sha256),
    /// The id of the Git blob: SHA-1 over a header and the bytes.
    GitBlob([u8; 20]),
}

impl HubHash {
    /// Whether these are the bytes.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Sha256(sum) => <[u8; 32]>::from(Sha256Hash::digest(bytes)) == sum.0,
            Self::GitBlob(id) => git_blob_id(bytes) == *id,
        }
    }
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// Its path in the repository.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Identifies its bytes.
    pub hash: HubHash,
}

/// A commit of a repository, and its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubCommit {
    /// The kind of the repository.
    pub kind: RepositoryKind,
    /// `ORG/NAME`.
    pub repository: String,
    /// The commit, 40 hex digits.
    pub commit: String,
    /// Its files, in the order of the hub.
    pub files: Vec<HubFile>,
}

/// Asks one hub.
#[derive(Debug, Clone)]
pub struct HubClient {
    client: OriginClient,
    endpoint: Url,
    token: Option<Secret>,
}

#[derive(Deserialize)]
struct RevisionAnswer {
    sha: String,
}

#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<LfsEntry>,
}

#[derive(Deserialize)]
struct LfsEntry {
    oid: String,
    size: u64,
}

impl HubClient {
    /// A client of the hub at `endpoint`, which may have a path.
    pub const fn new(client: OriginClient, endpoint: Url, token: Option<Secret>) -> Self {
        Self {
            client,
            endpoint,
            token,
        }
    }

    /// The commit of a reference, and its files; only the named file if it names one.
    ///
    /// # Errors
    /// Any of [`OriginError`]; [`OriginError::NotFound`] if the commit does not have the file.
    pub async fn look_up(&self, reference: &HubReference) -> Result<HubCommit, OriginError> {
        let commit = match reference.is_commit() {
            true => reference.revision.to_ascii_lowercase(),
            false => self.commit_of(reference).await?,
        };
        let mut files = self.tree(reference, &commit).await?;
        if let Some(path) = &reference.path {
            files.retain(|file| file.path == *path);
            if files.is_empty() {
                return Err(OriginError::NotFound {
                    host: host_of(&self.endpoint),
                    what: reference.to_string(),
                    status: 404,
                });
            }
        }
        Ok(HubCommit {
            kind: reference.kind,
            repository: reference.repository.clone(),
            commit,
            files,
        })
    }

    /// A file of a commit, to read it.
    ///
    /// # Errors
    /// [`OriginError::InvalidReference`] if the endpoint cannot have a path.
    pub fn file(&self, commit: &HubCommit, file: &HubFile) -> Result<OriginFile, OriginError> {
        let HubCommit {
            kind,
            repository,
            commit,
            ..
        } = commit;
        let start = format!("{}{repository}/resolve/{commit}", kind.prefix());
        let url = self.url(start.split('/').chain(file.path.split('/')))?;
        let sha256 = match file.hash {
            HubHash::Sha256(sum) => Some(sum),
            HubHash::GitBlob(_) => None,
        };
        Ok(OriginFile::new(url, file.size, sha256, self.token.clone()))
    }

    async fn commit_of(&self, reference: &HubReference) -> Result<String, OriginError> {
        let api = ["api", reference.kind.api()].into_iter();
        let repository = reference.repository.split('/');
        let url = self.url(api.chain(repository).chain(["revision", &reference.revision]))?;
        let (bytes, _) = self.client.document(&url, self.token.as_ref()).await?;
        let answer: RevisionAnswer = self.parse(&bytes)?;
        match is_commit(&answer.sha) {
            true => Ok(answer.sha.to_ascii_lowercase()),
            false => Err(self.invalid("a commit that is not 40 hex digits")),
        }
    }

    async fn tree(
        &self,
        reference: &HubReference,
        commit: &str,
    ) -> Result<Vec<HubFile>, OriginError> {
        let api = ["api", reference.kind.api()].into_iter();
        let repository = reference.repository.split('/');
        let mut url = self.url(api.chain(repository).chain(["tree", commit]))?;
        url.set_query(Some("recursive=true&expand=false"));
        let (mut files, mut paths) = (Vec::new(), HashSet::new());
        for _ in 0..MAX_PAGES {
            let (bytes, headers) = self.client.document(&url, self.token.as_ref()).await?;
            let entries: Vec<TreeEntry> = self.parse(&bytes)?;
            for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
                let file = self.file_of(entry)?;
                if files.len() == MAX_FILES || !paths.insert(file.path.clone()) {
                    return Err(self.invalid("too many files, or one path twice"));
                }
                files.push(file);
            }
            match next_page(&url, &headers) {
                // The token goes only to the hub itself.
                Some(next) if host_of(&next) == host_of(&self.endpoint) => url = next,
                Some(_) => return Err(self.invalid("a listing that continues at another host")),
                None => return Ok(files),
            }
        }
        Err(self.invalid("a listing without an end"))
    }

    fn file_of(&self, entry: TreeEntry) -> Result<HubFile, OriginError> {
        if RelPath::parse(&entry.path).is_err() {
            return Err(self.invalid("a path that leads out of its repository"));
        }
        let hash = match &entry.lfs {
            Some(lfs) => {
                let sum = lfs.oid.strip_prefix("sha256:").unwrap_or(&lfs.oid).parse();
                HubHash::Sha256(sum.map_err(|_| self.invalid("an LFS id that is not a SHA-256"))?)
            }
            None => {
                let mut id = [0; 20];
                hex::decode_to_slice(&entry.oid, &mut id)
                    .map_err(|_| self.invalid("a blob id that is not a SHA-1"))?;
                HubHash::GitBlob(id)
            }
        };
        Ok(HubFile {
            size: entry.lfs.map_or(entry.size, |lfs| lfs.size),
            path: entry.path,
            hash,
        })
    }

    /// An address below the endpoint; each component is escaped.
    fn url<'a>(&self, components: impl IntoIterator<Item = &'a str>) -> Result<Url, OriginError> {
        let mut url = self.endpoint.clone();
        url.path_segments_mut()
            .map_err(|()| OriginError::InvalidReference("HF_ENDPOINT is not a web address".into()))?
            .pop_if_empty()
            .extend(components);
        Ok(url)
    }

    fn parse<T: for<'a> Deserialize<'a>>(&self, bytes: &[u8]) -> Result<T, OriginError> {
        serde_json::from_slice(bytes)
            .map_err(|error| self.invalid(&format!("an answer that cannot be read: {error}")))
    }

    fn invalid(&self, what: &str) -> OriginError {
        OriginError::Invalid {
            host: host_of(&self.endpoint),
            what: what.to_owned(),
        }
    }
}

/// The id that Git gives to a blob of these bytes.
pub fn git_blob_id(bytes: &[u8]) -> [u8; 20] {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hash.finalize().into()
}

/// The next page of a listing, from a `Link` header (RFC 8288) with the relation `next`.
fn next_page(from: &Url, headers: &HeaderMap) -> Option<Url> {
    let links = headers.get(http::header::LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| {
        let relation = link.split(';').skip(1).map(str::trim);
        relation
            .into_iter()
            .any(|it| it == "rel=\"next\"" || it == "rel=next")
    })?;
    let target = next
        .split(';')
        .next()?
        .trim()
        .strip_prefix('<')?
        .strip_suffix('>')?;
    from.join(target).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_ids_are_those_of_git() {
        // `printf 'hello\n' | git hash-object --stdin`
        let id = hex::encode(git_blob_id(b"hello\n"));
        assert_eq!(id, "ce013625030ba8dba906f756967f9e9ca394464a");
    }

    #[test]
    fn the_next_page_follows_from_the_link_header() {
        let from = Url::parse("https://hub.example/api/x").unwrap();
        let next = |link: &str| {
            let headers = HeaderMap::from_iter([(http::header::LINK, link.parse().unwrap())]);
            next_page(&from, &headers).map(String::from)
        };
        let link = "<https://hub.example/a>; rel=\"prev\", </b?cursor=1>; rel=\"next\"";
        assert_eq!(next(link).as_deref(), Some("https://hub.example/b?cursor=1"));
        assert_eq!(next("<https://hub.example/a>; rel=\"prev\""), None);
        assert_eq!(next("nonsense; rel=next"), None);
    }
}
