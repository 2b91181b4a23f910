//! Requests to the hub, and metadata that it has sent.
//!
//! Invariant: cached metadata is returned only to a client with the credentials with which the hub
//! sent it.

use std::{num::NonZeroUsize, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use potluck_core::Problem;
use potluck_origins::{
    OriginClient, OriginError, OriginSettings,
    client::{ApiAnswer, ApiRequest},
    policy,
    reference::HubReference,
    secret::Secret,
};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use url::Url;

use crate::{config::GatewayConfig, route::FileRoute};

/// Maximum answers and facts that are kept, of each.
const MAX_KEPT: usize = 4096;

/// Maximum bytes of all answers that are kept.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// Largest answer that is kept, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// The field of metadata that leads clients to Xet.
const XET_HASH: &str = "xetHash";

/// Longest chain of redirects inside the hub, as for a renamed repository.
const MAX_REDIRECTS: usize = 4;

/// The hub.
#[derive(Debug)]
pub(crate) struct Upstream {
    client: OriginClient,
    hub: Url,
    grace: Duration,
    answers: Mutex<KeptAnswers>,
    facts: Mutex<LruCache<FactsKey, (FileFacts, Instant)>>,
}

/// A file, and the hash of the credentials with which it was asked for.
type FactsKey = (FileRoute, Option<[u8; 32]>);

/// A file, as the hub describes it.
#[derive(Debug, Clone)]
pub(crate) struct FileFacts {
    /// Where it is.
    pub(crate) url: Url,
    pub(crate) commit: String,
    /// The validator without quotes: the SHA-256, or the id of the Git blob.
    pub(crate) etag: String,
    pub(crate) size: u64,
    /// Whether access needed the client's credentials.
    pub(crate) is_gated: bool,
}

/// An answer that is passed on.
pub(crate) enum Passed<T> {
    /// What was asked for.
    Fine(T),
    /// The hub's refusal.
    Refused(ApiAnswer),
}

/// Answers of the hub, by the hash of their request; the least recently used one goes first.
#[derive(Debug)]
struct KeptAnswers {
    answers: LruCache<[u8; 32], (ApiAnswer, Instant)>,
    /// The sum of their bodies.
    bytes: usize,
}

impl KeptAnswers {
    /// The answer to a request, unless it is older than `max_age`.
    fn get(&mut self, key: &[u8; 32], max_age: Duration) -> Option<ApiAnswer> {
        let (answer, at) = self.answers.get(key)?;
        (at.elapsed() < max_age).then(|| answer.clone())
    }

    fn put(&mut self, key: [u8; 32], answer: ApiAnswer) {
        self.bytes += answer.bytes.len();
        // The answer that it replaces, or the oldest one if there are too many.
        if let Some((_, (old, _))) = self.answers.push(key, (answer, Instant::now())) {
            self.bytes -= old.bytes.len();
        }
        while self.bytes > MAX_KEPT_BYTES
            && let Some((_, (old, _))) = self.answers.pop_lru()
        {
            self.bytes -= old.bytes.len();
        }
    }
}

impl Upstream {
    pub(crate) fn new(config: &GatewayConfig) -> Result<Self, Problem> {
        policy::check_origin(&config.hub)?;
        let max = NonZeroUsize::new(MAX_KEPT).expect("it is not zero");
        Ok(Self {
            client: OriginClient::new(OriginSettings {
                // Many clients ask for metadata at once.
                max_requests: 64,
                ..OriginSettings::default()
            })?,
            hub: config.hub.clone(),
            grace: config.auth_grace,
            answers: Mutex::new(KeptAnswers {
                answers: LruCache::new(max),
                bytes: 0,
            }),
            facts: Mutex::new(LruCache::new(max)),
        })
    }

    pub(crate) const fn client(&self) -> &OriginClient {
        &self.client
    }

    /// Asks the API. An immutable answer is asked for once; if the hub is away, the last answer is
    /// returned for a while. The flag says whether the answer is a kept one.
    pub(crate) async fn api(
        &self,
        method: Method,
        path_and_query: &str,
        is_immutable: bool,
        authorization: Option<&Secret>,
        body: Option<(&str, Bytes)>,
    ) -> Result<(ApiAnswer, bool), OriginError> {
        let url = self.join(path_and_query)?;
        let mut key = Sha256::new();
        for part in [
            method.as_str().as_bytes(),
            url.as_str().as_bytes(),
            authorization.map_or("", Secret::expose).as_bytes(),
            body.as_ref().map_or(&[][..], |(_, bytes)| bytes),
        ] {
            key.update((part.len() as u64).to_le_bytes());
            key.update(part);
        }
        let key: [u8; 32] = key.finalize().into();
        let kept = self.answers.lock().get(&key, self.grace);
        if let Some(answer) = kept.clone().filter(|_| is_immutable) {
            return Ok((answer, true));
        }
        let request = ApiRequest {
            body,
            ..ApiRequest::new(method, &url, authorization)
        };
        match self.client.exchange(request).await {
            Ok(answer) if is_away(answer.status) => {
                Ok(kept.map_or((answer, false), |answer| (answer, true)))
            }
            Ok(mut answer) => {
                hide_xet(&mut answer.bytes);
                if answer.status == StatusCode::OK && answer.bytes.len() <= MAX_ANSWER {
                    self.answers.lock().put(key, answer.clone());
                }
                Ok((answer, false))
            }
            Err(error) if error.is_temporary() => kept.map(|answer| (answer, true)).ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// Asks for the facts of a file. If the hub is away, the last facts that it sent for these
    /// credentials are returned for a while; the flag says so.
    pub(crate) async fn file(
        &self,
        route: &FileRoute,
        authorization: Option<&Secret>,
    ) -> Result<(Passed<FileFacts>, bool), OriginError> {
        let key = (
            route.clone(),
            authorization.map(|secret| Sha256::digest(secret.expose()).into()),
        );
        match self.ask_for_file(route, authorization).await {
            Ok(Passed::Fine(facts)) => {
                self.facts.lock().put(key, (facts.clone(), Instant::now()));
                Ok((Passed::Fine(facts), false))
            }
            Ok(Passed::Refused(answer)) if is_away(answer.status) => {
                Ok(match self.kept_facts(&key) {
                    Some(facts) => (Passed::Fine(facts), true),
                    None => (Passed::Refused(answer), false),
                })
            }
            Ok(refused) => {
                self.facts.lock().pop(&key);
                Ok((refused, false))
            }
            Err(error) => match self.kept_facts(&key).filter(|_| error.is_temporary()) {
                Some(facts) => Ok((Passed::Fine(facts), true)),
                None => Err(error),
            },
        }
    }

    /// What the hub said a short time ago.
    fn kept_facts(&self, key: &FactsKey) -> Option<FileFacts> {
        let mut kept = self.facts.lock();
        let (facts, at) = kept.get(key)?;
        (at.elapsed() < self.grace).then(|| facts.clone())
    }

    /// Asks first without credentials.
    async fn ask_for_file(
        &self,
        route: &FileRoute,
        authorization: Option<&Secret>,
    ) -> Result<Passed<FileFacts>, OriginError> {
        let first = self.describe(route, None).await?;
        match (first, authorization) {
            (Passed::Refused(answer), Some(secret))
                if matches!(answer.status.as_u16(), 401 | 403 | 404) =>
            {
                Ok(match self.describe(route, Some(secret)).await? {
                    Passed::Fine(facts) => Passed::Fine(FileFacts {
                        is_gated: true,
                        ..facts
                    }),
                    refused => refused,
                })
            }
            (first, _) => Ok(first),
        }
    }

    async fn describe(
        &self,
        route: &FileRoute,
        authorization: Option<&Secret>,
    ) -> Result<Passed<FileFacts>, OriginError> {
        let mut url = self.file_url(route)?;
        for _ in 0..=MAX_REDIRECTS {
            let request = ApiRequest::new(Method::HEAD, &url, authorization);
            let answer = self.client.exchange(request).await?;
            let has_facts = answer.headers.contains_key("x-repo-commit");
            if answer.status.is_redirection() && !has_facts {
                let target =
                    text(&answer.headers, header::LOCATION).and_then(|to| url.join(to).ok());
                // A repository that was renamed; storage is asked by the peer.
                match target.filter(|target| policy::host_of(target) == policy::host_of(&url)) {
                    Some(target) => url = target,
                    None => return Ok(Passed::Refused(answer)),
                }
                continue;
            }
            if !answer.status.is_success() && !answer.status.is_redirection() {
                return Ok(Passed::Refused(answer));
            }
            return facts(&url, &answer.headers).map(Passed::Fine).ok_or_else(|| {
                OriginError::Invalid {
                    host: policy::host_of(&url),
                    what: "it does not describe the file".into(),
                }
            });
        }
        Err(OriginError::Refused("the hub redirects too often".into()))
    }

    /// The address of a file.
    fn file_url(&self, route: &FileRoute) -> Result<Url, OriginError> {
        let reference = HubReference {
            kind: route.kind,
            repository: route.repository.clone(),
            revision: route.revision.clone(),
            path: Some(route.path.clone()),
        };
        let mut url = self.hub.clone();
        let start = format!("{}{}", reference.kind.prefix(), reference.repository);
        url.path_segments_mut()
            .map_err(|()| OriginError::InvalidReference("the hub is not a web address".into()))?
            .pop_if_empty()
            .extend(start.split('/'))
            .extend(["resolve", &route.revision])
            .extend(route.path.split('/'));
        Ok(url)
    }

    fn join(&self, path_and_query: &str) -> Result<Url, OriginError> {
        let base = self.hub.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}{path_and_query}"))
            .map_err(|error| OriginError::InvalidReference(format!("{path_and_query}: {error}")))
    }

    /// The headers of an answer that clients may see: none that lead past the gateway.
    pub(crate) fn visible_headers(&self, headers: &HeaderMap) -> HeaderMap {
        let mut visible = HeaderMap::new();
        for name in [
            header::CONTENT_TYPE,
            header::ETAG,
            header::RETRY_AFTER,
            HeaderName::from_static("x-repo-commit"),
            HeaderName::from_static("x-error-code"),
            HeaderName::from_static("x-error-message"),
        ] {
            if let Some(value) = headers.get(&name) {
                visible.insert(name, value.clone());
            }
        }
        // The next page of a listing, without the host.
        let base = self.hub.as_str().trim_end_matches('/');
        if let Some(link) = text(headers, header::LINK).filter(|link| link.contains("rel=\"next\""))
            && let Ok(link) = HeaderValue::from_str(&link.replace(base, ""))
        {
            visible.insert(header::LINK, link);
        }
        visible
    }
}

/// Whether an answer means that the origin is overloaded, which counts as away.
pub(crate) fn is_away(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

/// Removes the hashes of Xet from an answer: clients that see them fetch the content past the
/// gateway.
fn hide_xet(bytes: &mut Vec<u8>) {
    let has_hash = bytes
        .windows(XET_HASH.len())
        .any(|window| window == XET_HASH.as_bytes());
    if !has_hash {
        return;
    }
    if let Ok(mut value) = serde_json::from_slice(bytes) {
        remove_key(&mut value, XET_HASH);
        *bytes = value.to_string().into_bytes();
    }
}

fn remove_key(value: &mut serde_json::Value, key: &str) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.remove(key);
            fields.values_mut().for_each(|field| remove_key(field, key));
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| remove_key(item, key)),
        _ => {}
    }
}

fn facts(url: &Url, headers: &HeaderMap) -> Option<FileFacts> {
    let etag = text(headers, HeaderName::from_static("x-linked-etag"))
        .or_else(|| text(headers, header::ETAG))?;
    let size = text(headers, HeaderName::from_static("x-linked-size"))
        .or_else(|| text(headers, header::CONTENT_LENGTH))?;
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    let is_hash =
        matches!(etag.len(), 40 | 64) && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some(FileFacts {
        url: url.clone(),
        commit: text(headers, HeaderName::from_static("x-repo-commit"))?.to_owned(),
        etag: is_hash.then(|| etag.to_ascii_lowercase())?,
        size: size.parse().ok()?,
        is_gated: false,
    })
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_answers_take_bounded_memory() {
        let mut kept = KeptAnswers {
            answers: LruCache::new(NonZeroUsize::new(MAX_KEPT).unwrap()),
            bytes: 0,
        };
        let answer = |len| ApiAnswer {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            bytes: vec![0; len],
        };
        let key = |n: u8| [n; 32];
        for n in 0..200 {
            kept.put(key(n), answer(MAX_ANSWER));
            kept.put(key(n), answer(MAX_ANSWER - 1));
        }
        let sum: usize = kept
            .answers
            .iter()
            .map(|(_, (answer, _))| answer.bytes.len())
            .sum();
        assert_eq!(kept.bytes, sum);
        assert!(sum <= MAX_KEPT_BYTES && sum > MAX_KEPT_BYTES - MAX_ANSWER);
        assert!(kept.get(&key(0), Duration::MAX).is_none());
        assert!(kept.get(&key(199), Duration::MAX).is_some());
        assert!(kept.get(&key(199), Duration::ZERO).is_none());
    }

    #[test]
    fn hashes_of_xet_are_removed_everywhere() {
        let mut bytes =
            br#"[{"path":"a","xetHash":"1","lfs":{"xetHash":"2","size":3}},4]"#.to_vec();
        hide_xet(&mut bytes);
        assert_eq!(bytes, br#"[{"path":"a","lfs":{"size":3}},4]"#);
    }
}
