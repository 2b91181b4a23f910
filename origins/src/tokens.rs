//! Tokens that registries' token servers gave, for a short time.
//!
//! Invariant: a token is returned only for the repository and the credentials for which it was given.

use std::{num::NonZeroUsize, time::Duration};

use lru::LruCache;
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::{sync::MutexGuard, time::Instant};
use url::Url;

use crate::secret::Secret;

/// Maximum tokens that are kept.
const MAX_KEPT: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");

/// Requests for tokens at a time; those for one repository wait for each other.
const TURNS: usize = 16;

/// How long a token is used if its server does not say.
const DEFAULT_TTL: u64 = 60;

/// Longest use of a token, in seconds.
const MAX_TTL: u64 = 3600;

/// A token is not used in its last seconds.
const MARGIN: u64 = 10;

/// Longest token, in bytes. Those with many claims have some thousand.
const MAX_TOKEN: usize = 16 * 1024;

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TokenKey([u8; 32]);

impl TokenKey {
    /// The key for requests to this address with these credentials. Addresses of a repository differ
    /// in their last two components.
    pub(crate) fn new(url: &Url, credentials: Option<&Secret>) -> Self {
        let mut hash = Sha256::new();
        let segments: Vec<&str> = url.path_segments().map(Iterator::collect).unwrap_or_default();
        let repository = &segments[..segments.len().saturating_sub(2)];
        let port = url.port_or_known_default().unwrap_or(0).to_string();
        for part in [
            url.scheme(),
            url.host_str().unwrap_or_default(),
            &port,
            credentials.map_or("", Secret::expose),
        ]
        .iter()
        .chain(repository)
        {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

/// Tokens by what they are good for; the least recently used one goes first.
#[derive(Debug)]
pub(crate) struct TokenStore {
    kept: Mutex<LruCache<TokenKey, (Secret, Instant)>>,
    turns: [tokio::sync::Mutex<()>; TURNS],
}

impl Default for TokenStore {
    fn default() -> Self {
        Self {
            kept: Mutex::new(LruCache::new(MAX_KEPT)),
            turns: Default::default(),
        }
    }
}

impl TokenStore {
    /// A token that did not expire.
    pub(crate) fn get(&self, key: &TokenKey) -> Option<Secret> {
        let mut kept = self.kept.lock();
        let (token, end) = kept.get(key)?;
        (*end > Instant::now()).then(|| token.clone())
    }

    /// Keeps a token, and returns it as a header.
    pub(crate) fn put(&self, key: TokenKey, answer: &TokenAnswer) -> Option<Secret> {
        let token = answer.token.as_ref().or(answer.access_token.as_ref())?;
        let is_valid = !token.is_empty()
            && token.len() <= MAX_TOKEN
            && token.bytes().all(|byte| byte.is_ascii_graphic());
        let token = is_valid.then(|| Secret::bearer(token))?;
        let ttl = answer
            .expires_in
            .unwrap_or(DEFAULT_TTL)
            .clamp(DEFAULT_TTL, MAX_TTL)
            - MARGIN;
        let end = Instant::now() + Duration::from_secs(ttl);
        self.kept.lock().put(key, (token.clone(), end));
        Some(token)
    }

    /// Waits until no other request for this token runs.
    pub(crate) async fn turn(&self, key: &TokenKey) -> MutexGuard<'_, ()> {
        self.turns[usize::from(key.0[0]) % TURNS].lock().await
    }
}

/// What a token server answers.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(token: &str) -> TokenAnswer {
        TokenAnswer {
            token: Some(token.to_owned()),
            access_token: None,
            expires_in: Some(1),
        }
    }

    #[test]
    fn a_token_is_for_one_repository_and_one_client() {
        let key = |url: &str, credentials: Option<&str>| {
            let credentials = credentials.map(|text| Secret::header(text.to_owned()));
            TokenKey::new(&Url::parse(url).unwrap(), credentials.as_ref())
        };
        let blob = key("https://r.example/v2/a/b/blobs/sha256:1", None);
        assert_eq!(blob, key("https://r.example/v2/a/b/manifests/latest?x", None));
        assert_ne!(
            blob,
            key("https://r.example/v2/a/b/manifests/latest", Some("Basic x"))
        );
        assert_ne!(blob, key("https://r.example/v2/a/c/manifests/latest", None));
        assert_ne!(blob, key("https://r.example:444/v2/a/b/manifests/latest", None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_expires_and_must_fit_a_header() {
        let store = TokenStore::default();
        let key = TokenKey::new(&Url::parse("https://r.example/v2/a/blobs/x").unwrap(), None);
        assert!(store.put(key, &answer("two words")).is_none());
        assert!(store.put(key, &answer(&"x".repeat(MAX_TOKEN + 1))).is_none());
        assert!(store.put(key, &answer("abc")).is_some());
        assert_eq!(store.get(&key), Some(Secret::bearer("abc")));
        tokio::time::advance(Duration::from_secs(DEFAULT_TTL)).await;
        assert_eq!(store.get(&key), None);
    }
}
