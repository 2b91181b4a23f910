//! The calls on a peer's cache.

use potluck_core::{FileId, Problem, Reason, Sha256, convert::file_id, model::FileKind, proto::v1};

use super::{CALL_TIMEOUT, ControlClient, PAGE, SLOW_CALL_TIMEOUT};

/// A file or folder in the cache.
#[derive(Debug, Clone)]
pub(crate) struct CacheEntry {
    pub(crate) name: String,
    pub(crate) label: String,
    pub(crate) bytes: u64,
    pub(crate) kind: FileKind,
    pub(crate) id: Option<FileId>,
    pub(crate) sha256: Option<Sha256>,
    pub(crate) is_complete: bool,
    pub(crate) is_pinned: bool,
    pub(crate) is_in_use: bool,
    /// In seconds since 1970, as is `last_used`.
    pub(crate) added: u64,
    pub(crate) last_used: u64,
    pub(crate) path: String,
}

/// The cache of a peer.
#[derive(Debug)]
pub(crate) struct CacheList {
    pub(crate) entries: Vec<CacheEntry>,
    pub(crate) bytes: u64,
    /// 0: no limit.
    pub(crate) max_bytes: u64,
}

/// What was removed from the cache.
#[derive(Debug)]
pub(crate) struct Collected {
    /// Some of the entries, if there are many.
    pub(crate) removed: Vec<CacheEntry>,
    pub(crate) removed_count: u64,
    pub(crate) removed_bytes: u64,
    /// Bytes that remain.
    pub(crate) bytes: u64,
}

impl TryFrom<v1::CacheEntry> for CacheEntry {
    type Error = Problem;

    fn try_from(entry: v1::CacheEntry) -> Result<Self, Problem> {
        let sha256 = match &*entry.sha256 {
            [] => None,
            bytes => Some(Sha256(bytes.try_into().map_err(|_| {
                Problem::new(Reason::Internal, "the peer sent a SHA-256 of another length")
            })?)),
        };
        Ok(Self {
            kind: entry.kind().into(),
            id: match &*entry.file_id {
                [] => None,
                bytes => Some(file_id(bytes, "file_id")?),
            },
            sha256,
            name: entry.name,
            label: entry.label,
            bytes: entry.bytes,
            is_complete: entry.complete,
            is_pinned: entry.pinned,
            is_in_use: entry.in_use,
            added: entry.added_unix_seconds,
            last_used: entry.last_used_unix_seconds,
            path: entry.path,
        })
    }
}

fn entries(messages: Vec<v1::CacheEntry>) -> Result<Vec<CacheEntry>, Problem> {
    messages.into_iter().map(TryInto::try_into).collect()
}

impl ControlClient {
    /// Lists the cache.
    pub(crate) async fn cache(&self) -> Result<CacheList, Problem> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListCacheRequest {
                page_size: PAGE,
                page_token: page_token.clone(),
            };
            let page = self
                .call(CALL_TIMEOUT, self.client.clone().list_cache(request))
                .await?;
            all.extend(entries(page.entries)?);
            if page.next_page_token.is_empty() || page.next_page_token == page_token {
                return Ok(CacheList {
                    entries: all,
                    bytes: page.bytes,
                    max_bytes: page.max_bytes,
                });
            }
            page_token = page.next_page_token;
        }
    }

    /// Removes what is above the limit or old, and what is above `max_bytes` if that is given.
    pub(crate) async fn collect_cache(&self, max_bytes: Option<u64>) -> Result<Collected, Problem> {
        let request = v1::CollectCacheRequest { max_bytes };
        let answer = self
            .call(SLOW_CALL_TIMEOUT, self.client.clone().collect_cache(request))
            .await?;
        Ok(Collected {
            removed: entries(answer.removed)?,
            removed_count: answer.removed_count,
            removed_bytes: answer.removed_bytes,
            bytes: answer.bytes,
        })
    }

    /// Pins or unpins entries by their names.
    pub(crate) async fn pin_cache(
        &self,
        names: Vec<String>,
        pinned: bool,
    ) -> Result<Vec<CacheEntry>, Problem> {
        let request = v1::PinCacheRequest { names, pinned };
        let answer = self
            .call(CALL_TIMEOUT, self.client.clone().pin_cache(request))
            .await?;
        entries(answer.entries)
    }
}
