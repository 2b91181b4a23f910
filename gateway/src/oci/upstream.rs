//! Questions to registries, and what they answered.
//!
//! Invariant: what was answered before is returned only to a client with the credentials with which
//! the registry answered.

use std::{num::NonZeroUsize, time::Duration};

use axum::http::{Method, StatusCode, header};
use lru::LruCache;
use parking_lot::Mutex;
use potluck_core::Sha256;
use potluck_origins::{
    OriginError, OriginFile,
    client::ApiAnswer,
    registry::{Asked, ManifestReference, Registry, RepositoryName, parse_digest},
    secret::Secret,
};
use sha2::Digest as _;
use tokio::time::Instant;
use url::Url;

use super::route::Item;
use crate::upstream::is_away;

/// Maximum facts that are kept.
const MAX_KEPT: NonZeroUsize = NonZeroUsize::new(16_384).expect("it is not zero");

/// Longest type of a manifest that is kept.
const MAX_TYPE: usize = 255;

/// Something of a repository that a client asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) repository: &'a RepositoryName,
    /// The client's own credentials.
    pub(crate) authorization: Option<&'a Secret>,
}

/// What a registry said about a manifest or a blob.
#[derive(Debug, Clone)]
pub(crate) struct Fact {
    pub(crate) digest: Sha256,
    /// Of a manifest.
    pub(crate) content_type: String,
    /// Of a blob; of a manifest if the registry said so.
    pub(crate) size: Option<u64>,
    /// Of a blob: where it is.
    pub(crate) url: Option<Url>,
    /// Whether access needed the client's credentials.
    pub(crate) is_gated: bool,
}

/// The answer to a question.
pub(crate) enum Told {
    /// What is asked for. The flag says whether the registry is away, and said so before.
    Fact(Fact, bool),
    /// It may be had, but only the manifest itself says what it is.
    Granted,
    /// The registry's refusal.
    Refused(ApiAnswer),
}

/// Answers of registries. The least recently used one goes first.
#[derive(Debug)]
pub(crate) struct KeptFacts {
    grace: Duration,
    facts: Mutex<LruCache<[u8; 32], (Fact, Instant)>>,
}

impl KeptFacts {
    /// `grace`: how long answers are used while a registry is away.
    pub(crate) fn new(grace: Duration) -> Self {
        Self {
            grace,
            facts: Mutex::new(LruCache::new(MAX_KEPT)),
        }
    }

    /// Asks for a manifest's digest.
    pub(crate) async fn manifest(
        &self,
        question: Question<'_>,
        reference: &ManifestReference,
        accept: &str,
    ) -> Result<Told, OriginError> {
        let key = question.key(&Item::Manifest(reference.clone()), accept);
        match question.manifest(Method::HEAD, reference, accept).await {
            Ok((answer, is_gated)) if answer.status == StatusCode::OK => {
                Ok(match fact_of(&answer, reference, is_gated) {
                    Some(fact) => {
                        self.put(key, fact.clone());
                        Told::Fact(fact, false)
                    }
                    None => Told::Granted,
                })
            }
            Ok((answer, _)) => Ok(self.refused(key, answer)),
            Err(error) => self.offline(key, error),
        }
    }

    /// Asks whether a blob may be had, and for its size.
    pub(crate) async fn blob(
        &self,
        question: Question<'_>,
        digest: Sha256,
    ) -> Result<Told, OriginError> {
        let key = question.key(&Item::Blob(digest), "");
        let size = self.facts.lock().get(&key).and_then(|(fact, _)| fact.size);
        match question.blob(digest, size).await {
            Ok((Asked::Granted(file), is_gated)) => {
                let fact = Fact {
                    digest,
                    content_type: "application/octet-stream".to_owned(),
                    size: Some(file.size),
                    url: Some(file.url),
                    is_gated,
                };
                self.put(key, fact.clone());
                Ok(Told::Fact(fact, false))
            }
            Ok((Asked::Refused(answer), _)) => Ok(self.refused(key, answer)),
            Err(error) => self.offline(key, error),
        }
    }

    /// Keeps what a manifest is, which was read from it.
    pub(crate) fn keep_manifest(
        &self,
        question: Question<'_>,
        reference: &ManifestReference,
        accept: &str,
        fact: Fact,
    ) {
        self.put(question.key(&Item::Manifest(reference.clone()), accept), fact);
    }

    fn put(&self, key: [u8; 32], fact: Fact) {
        self.facts.lock().put(key, (fact, Instant::now()));
    }

    fn kept(&self, key: &[u8; 32]) -> Option<Fact> {
        let mut facts = self.facts.lock();
        let (fact, at) = facts.get(key)?;
        (at.elapsed() < self.grace).then(|| fact.clone())
    }

    /// A registry that is overloaded counts as away.
    fn refused(&self, key: [u8; 32], answer: ApiAnswer) -> Told {
        let is_away = is_away(answer.status);
        match self.kept(&key).filter(|_| is_away) {
            Some(fact) => Told::Fact(fact, true),
            None => {
                if !is_away {
                    self.facts.lock().pop(&key);
                }
                Told::Refused(answer)
            }
        }
    }

    fn offline(&self, key: [u8; 32], error: OriginError) -> Result<Told, OriginError> {
        match self.kept(&key).filter(|_| error.is_temporary()) {
            Some(fact) => Ok(Told::Fact(fact, true)),
            None => Err(error),
        }
    }
}

impl Question<'_> {
    /// A manifest, asked for without credentials first. The flag says whether it needed them.
    pub(crate) async fn manifest(
        &self,
        method: Method,
        reference: &ManifestReference,
        accept: &str,
    ) -> Result<(ApiAnswer, bool), OriginError> {
        let ask = |credentials| {
            self.registry
                .manifest(method.clone(), self.repository, reference, accept, credentials)
        };
        let first = ask(None).await?;
        match self.authorization.filter(|_| is_refusal(first.status)) {
            Some(credentials) => Ok((ask(Some(credentials)).await?, true)),
            None => Ok((first, false)),
        }
    }

    async fn blob(
        &self,
        digest: Sha256,
        size: Option<u64>,
    ) -> Result<(Asked<OriginFile>, bool), OriginError> {
        let ask = |credentials| self.registry.blob(self.repository, digest, credentials, size);
        let first = ask(None).await;
        let is_refused = match &first {
            Ok(Asked::Refused(answer)) => is_refusal(answer.status),
            Err(error) => {
                matches!(error, OriginError::Denied { .. } | OriginError::NotFound { .. })
            }
            Ok(Asked::Granted(_)) => false,
        };
        match self.authorization.filter(|_| is_refused) {
            Some(credentials) => Ok((ask(Some(credentials)).await?, true)),
            None => Ok((first?, false)),
        }
    }

    fn key(&self, item: &Item, accept: &str) -> [u8; 32] {
        let mut key = sha2::Sha256::new();
        let item = match item {
            Item::Manifest(reference) => format!("manifest {reference}"),
            Item::Blob(sum) => format!("blob {sum}"),
            Item::Tags => "tags".to_owned(),
            Item::Referrers(sum) => format!("referrers {sum}"),
        };
        for part in [
            self.registry.base(),
            self.repository.as_str(),
            &item,
            accept,
            self.authorization.map_or("", Secret::expose),
        ] {
            key.update((part.len() as u64).to_le_bytes());
            key.update(part);
        }
        key.finalize().into()
    }
}

/// Registries hide private repositories behind 404.
fn is_refusal(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401 | 403 | 404)
}

/// The type of a manifest in an answer.
pub(crate) fn type_of(answer: &ApiAnswer) -> Option<String> {
    let kind = answer.headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    (kind.len() <= MAX_TYPE).then(|| kind.to_owned())
}

fn fact_of(answer: &ApiAnswer, reference: &ManifestReference, is_gated: bool) -> Option<Fact> {
    let text = |name: &str| answer.headers.get(name)?.to_str().ok();
    let digest = match reference {
        ManifestReference::Digest(sum) => *sum,
        ManifestReference::Tag(_) => parse_digest(text("docker-content-digest")?)?,
    };
    Some(Fact {
        digest,
        content_type: type_of(answer)?,
        size: text("content-length").and_then(|size| size.parse().ok()),
        url: None,
        is_gated,
    })
}
