//! The cache as messages.

use potluck_core::proto::v1;

use crate::cache::{Cache, CacheEntry, Evicted};

/// Maximum removed entries in an answer, as the contract specifies.
const MAX_REMOVED: usize = 1_000;

/// An entry as a message.
pub(super) fn message(cache: &Cache, entry: &CacheEntry) -> v1::CacheEntry {
    v1::CacheEntry {
        name: entry.name.clone(),
        label: entry.label.clone(),
        bytes: entry.bytes,
        kind: v1::FileKind::from(entry.kind).into(),
        file_id: entry.id.map(|id| id.to_bytes()).unwrap_or_default(),
        sha256: entry.sha256.map(|sum| sum.to_bytes()).unwrap_or_default(),
        complete: entry.is_complete,
        pinned: entry.is_pinned,
        in_use: entry.is_in_use,
        added_unix_seconds: entry.added,
        last_used_unix_seconds: entry.last_used,
        path: cache.path(&entry.name).to_string_lossy().into_owned(),
    }
}

/// A page of entries; the token is the last name of the page before.
pub(super) fn list(cache: &Cache, size: usize, token: &str) -> v1::ListCacheResponse {
    let entries = cache.list();
    let start = match token {
        "" => 0,
        token => entries.partition_point(|entry| entry.name.as_str() <= token),
    };
    let page = &entries[start..];
    let next = page.get(size).is_some();
    let page = &page[..page.len().min(size)];
    let last = page.last().filter(|_| next);
    v1::ListCacheResponse {
        entries: page.iter().map(|entry| message(cache, entry)).collect(),
        next_page_token: last.map(|entry| entry.name.clone()).unwrap_or_default(),
        bytes: cache.totals().bytes,
        max_bytes: cache.settings().max_bytes,
    }
}

/// What was removed.
pub(super) fn collected(cache: &Cache, removed: &[Evicted]) -> v1::CollectCacheResponse {
    let listed = removed.iter().take(MAX_REMOVED);
    v1::CollectCacheResponse {
        removed: listed.map(|evicted| message(cache, &evicted.entry)).collect(),
        removed_count: removed.len() as u64,
        removed_bytes: removed.iter().map(|evicted| evicted.entry.bytes).sum(),
        bytes: cache.totals().bytes,
    }
}
