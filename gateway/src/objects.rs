//! Content in the cache, or on its way there.
//!
//! The cache is the peer's. Content with a SHA-256 has it as its name; the peer downloads it there and
//! shares it. Small files have the id of their Git blob.
//!
//! Invariants: many clients of one object share one download; a file under a SHA-256 was verified.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use potluck_core::{
    FileId, FileLayout, Problem, Reason, Sha256, durable, index_client::IndexClient,
    model::QueryKey,
};
use potluck_origins::{OriginClient, OriginFile, hub::git_blob_id, secret::Secret};
use potluck_peer::{
    Running,
    cache::{Cache, CacheUse, NewEntry},
    download::{
        manager::{DownloadManager, PartReader},
        origin::{
            early::{EarlyBytes, EarlyState},
            spec::OriginSpec,
        },
        status::{DownloadSpec, DownloadState},
    },
};
use tokio::task::spawn_blocking;
use url::Url;

use crate::config::GatewayConfig;

/// Providers asked for at the index; only the id counts.
const PROVIDERS: u32 = 1;

/// Downloads listed at a time.
const PAGE: usize = 200;

/// Largest file without a SHA-256, in bytes.
const MAX_SMALL: u64 = 32 << 20;

/// Number of places for downloads from which on unused ones are removed.
const MAX_SLOTS: usize = 1024;

/// An object that a client may have.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) url: Url,
    pub(crate) size: u64,
    pub(crate) sha256: Sha256,
    /// The credentials that it needs.
    pub(crate) authorization: Option<Secret>,
}

/// Where the bytes of an object are.
#[derive(Debug)]
pub(crate) enum Content {
    /// Here, verified; it stays while it is sent.
    Cached { file: Arc<File>, _cache_use: CacheUse },
    /// On their way.
    Arriving(Box<Arriving>),
}

/// An object that is being downloaded.
#[derive(Debug)]
pub(crate) struct Arriving {
    pub(crate) reader: PartReader,
    pub(crate) client: OriginClient,
    pub(crate) file: OriginFile,
    /// If the root is not known: where the last piece begins. Bytes before it may be read from the
    /// origin itself.
    pub(crate) last_piece: Option<u64>,
}

/// The cache, and the downloads into it.
#[derive(Debug)]
pub(crate) struct Objects {
    downloads: DownloadManager,
    cache: Cache,
    index: Option<IndexClient>,
    client: OriginClient,
    share_gated: bool,
    /// The download of each object. Its lock is held while one is started, so that there is one.
    downloading: Mutex<HashMap<Sha256, Arc<DownloadSlot>>>,
    /// The runs of which bytes were sent before their SHA-256 was compared, by object.
    early: Mutex<HashMap<Sha256, Vec<Arc<EarlyBytes>>>>,
}

/// The download of one object, if there is one.
type DownloadSlot = tokio::sync::Mutex<Option<RunningDownload>>;

#[derive(Debug, Clone, Copy)]
struct RunningDownload {
    number: u64,
    id: FileId,
}

impl Objects {
    /// Opens the cache of this peer.
    pub(crate) fn open(
        config: &GatewayConfig,
        peer: &Running,
        client: OriginClient,
    ) -> Result<Self, Problem> {
        let running = unfinished(&peer.downloads, peer.cache.folder())?;
        Ok(Self {
            downloads: peer.downloads.clone(),
            cache: peer.cache.clone(),
            index: peer.index.clone(),
            client,
            share_gated: config.share_gated,
            downloading: Mutex::new(running),
            early: Mutex::default(),
        })
    }

    /// The content of an object; starts a download if it is not here.
    pub(crate) async fn get(&self, object: &Object) -> Result<Content, Problem> {
        let name = object.sha256.to_string();
        if let Some(content) = self.cached(&name, object.size).await {
            return Ok(content);
        }
        let slot = self.slot(object);
        let mut running = slot.lock().await;
        let mut refused = None;
        if let Some(download) = *running {
            match self
                .downloads
                .get(download.number)
                .ok()
                .map(|status| status.state)
            {
                Some(DownloadState::Done) | None => {
                    *running = None;
                    if let Some(content) = self.cached(&name, object.size).await {
                        return Ok(content);
                    }
                }
                Some(DownloadState::Failed | DownloadState::Cancelled) => {
                    *running = None;
                    // Perhaps a false claim at the index.
                    refused = Some(download.id);
                }
                Some(_) => return self.arriving(object, download),
            }
        }
        // The download keeps the entry from here on.
        let _reserved = self
            .cache
            .reserve(NewEntry {
                name: name.clone(),
                label: label_of(&object.url),
                bytes: object.size,
                sha256: Some(object.sha256),
            })
            .await?;
        let id = self.id_of(object, refused).await;
        let spec = DownloadSpec {
            target: Some(self.cache.path(&name)),
            sha256: Some(object.sha256),
            origin: Some(OriginSpec {
                url: object.url.clone(),
                size: object.size,
                sha256: object.sha256,
                validator: None,
                authorization: object.authorization.clone(),
                share_gated: self.share_gated,
            }),
            detach: true,
            in_order: true,
            ..DownloadSpec::new(id)
        };
        let watch = self.downloads.start_download(spec).await?;
        let download = RunningDownload {
            number: watch.number,
            id,
        };
        *running = Some(download);
        self.arriving(object, download)
    }

    async fn cached(&self, name: &str, size: u64) -> Option<Content> {
        let (file, cache_use) = self.cache.open_file(name, size).await?;
        Some(Content::Cached {
            file,
            _cache_use: cache_use,
        })
    }

    /// The place for the download of an object. Places without a download go when there are many.
    fn slot(&self, object: &Object) -> Arc<DownloadSlot> {
        let mut downloading = self.downloading.lock();
        if downloading.len() >= MAX_SLOTS {
            let is_used = |slot: &Arc<DownloadSlot>| {
                Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|known| known.is_some())
            };
            downloading.retain(|_, slot| is_used(slot));
        }
        Arc::clone(downloading.entry(object.sha256).or_default())
    }

    fn arriving(&self, object: &Object, download: RunningDownload) -> Result<Content, Problem> {
        let gone = || Problem::new(Reason::Internal, "the download is no longer listed");
        let is_provisional = download.id == FileId::provisional(object.size, &object.sha256);
        let layout = FileLayout::new(object.size).filter(|_| is_provisional);
        let last_piece = layout
            .map(|layout| u64::from(layout.piece_count().saturating_sub(1)) * layout.piece_size());
        Ok(Content::Arriving(Box::new(Arriving {
            reader: self.downloads.reader(download.number).ok_or_else(gone)?,
            client: self.client.clone(),
            file: OriginFile::new(
                object.url.clone(),
                object.size,
                Some(object.sha256),
                object.authorization.clone(),
            ),
            last_piece,
        })))
    }

    /// The id under which to download: a real one if the index knows a peer with this SHA-256.
    async fn id_of(&self, object: &Object, refused: Option<FileId>) -> FileId {
        let provisional = FileId::provisional(object.size, &object.sha256);
        // What needs credentials is not for peers.
        let Some(index) = self.index.as_ref().filter(|_| object.authorization.is_none()) else {
            return provisional;
        };
        let key = QueryKey::Sha256(object.sha256);
        let found = index.query(&key, PROVIDERS, None).await.map(|page| page.files);
        let fits = |id, size, is_provisional: bool| {
            size == object.size && !is_provisional && Some(id) != refused
        };
        found
            .unwrap_or_default()
            .into_iter()
            .find(|found| fits(found.file.id, found.file.size, found.file.is_provisional()))
            .map_or(provisional, |found| found.file.id)
    }

    /// The bytes of a small file, from the cache or the hub.
    pub(crate) async fn small(&self, object: &SmallObject) -> Result<(Vec<u8>, bool), Problem> {
        if object.size > MAX_SMALL {
            let message = "the hub states no SHA-256 for a large file";
            return Err(Problem::new(Reason::OriginInvalid, message));
        }
        let name = format!("git-{}", hex::encode(object.blob));
        if let Some((file, _cache_use)) = self.cache.open_file(&name, object.size).await {
            let read = spawn_blocking(move || read_whole(&file)).await.ok().flatten();
            if let Some(bytes) = read.filter(|bytes| git_blob_id(bytes) == object.blob) {
                return Ok((bytes, true));
            }
        }
        let file = OriginFile::new(
            object.url.clone(),
            object.size,
            None,
            object.authorization.clone(),
        );
        let mut bytes = Vec::new();
        if object.size > 0 {
            let mut body = self.client.open(&file, 0..object.size).await?;
            while let Some(chunk) = body.next().await? {
                bytes.extend_from_slice(&chunk);
            }
        }
        if git_blob_id(&bytes) != object.blob {
            let message = "the hub sends other bytes than it states";
            return Err(Problem::new(Reason::VerificationFailed, message));
        }
        let entry = NewEntry {
            name,
            label: label_of(&object.url),
            bytes: object.size,
            sha256: None,
        };
        // Without room for it, it is fetched again the next time.
        let _ = self.cache.put_small(entry, bytes.clone()).await;
        Ok((bytes, false))
    }

    /// Whether ranges of this object are refused, because wrong bytes of it may have been sent.
    pub(crate) async fn is_tainted(&self, object: &Object) -> bool {
        let (mark, early) = (self.taint_mark(object), self.early_mark(object));
        let marks = spawn_blocking(move || (mark.exists(), early.exists()));
        match marks.await.unwrap_or((true, true)) {
            (true, _) => return true,
            (false, false) => return false,
            (false, true) => {}
        }
        match self.early_state(object) {
            Some(EarlyState::Pending) => false,
            Some(EarlyState::Right) => {
                self.forget_early(object).await;
                false
            }
            // Without a state, this process was started since.
            Some(EarlyState::Wrong) | None => {
                self.set_tainted(object, true).await;
                true
            }
        }
    }

    /// Refuses ranges of this object from now on, or allows them again.
    pub(crate) async fn set_tainted(&self, object: &Object, is_tainted: bool) {
        let mark = self.taint_mark(object);
        let change = move || match is_tainted {
            true => durable::write(&mark, b"", 0o600),
            false => fs::remove_file(&mark),
        };
        // A mark that is not there cannot be removed.
        let _ = spawn_blocking(change).await;
        self.forget_early(object).await;
    }

    /// Remembers, also across restarts, that bytes of this run are sent early.
    pub(crate) async fn note_early(&self, object: &Object, run: &Arc<EarlyBytes>) {
        let mark = self.early_mark(object);
        let _ = spawn_blocking(move || durable::write(&mark, b"", 0o600)).await;
        let mut early = self.early.lock();
        if early.len() >= MAX_SLOTS {
            // The mark of a file stays, so ranges of it are refused once.
            early.retain(|_, runs| state_of(runs) == EarlyState::Pending);
        }
        early.entry(object.sha256).or_default().push(Arc::clone(run));
    }

    /// What became of bytes that were sent early; `None` if there are none.
    pub(crate) fn early_state(&self, object: &Object) -> Option<EarlyState> {
        self.early.lock().get(&object.sha256).map(|runs| state_of(runs))
    }

    /// Forgets bytes that were right, or that are taken care of.
    pub(crate) async fn forget_early(&self, object: &Object) {
        let mark = self.early_mark(object);
        // A mark that is not there cannot be removed.
        let _ = spawn_blocking(move || fs::remove_file(mark)).await;
        self.early.lock().remove(&object.sha256);
    }

    /// The mark is no entry of the cache, and stays when the object is removed.
    fn taint_mark(&self, object: &Object) -> PathBuf {
        self.cache.path(&format!("{}.tainted", object.sha256))
    }

    fn early_mark(&self, object: &Object) -> PathBuf {
        self.cache.path(&format!("{}.early", object.sha256))
    }
}

/// The worst state of these runs.
fn state_of(runs: &[Arc<EarlyBytes>]) -> EarlyState {
    let has = |state| runs.iter().any(|run| run.state() == state);
    match (has(EarlyState::Wrong), has(EarlyState::Pending)) {
        (true, _) => EarlyState::Wrong,
        (false, true) => EarlyState::Pending,
        (false, false) => EarlyState::Right,
    }
}

/// The downloads of an earlier run into this folder. The peer goes on with them.
fn unfinished(
    downloads: &DownloadManager,
    folder: &Path,
) -> Result<HashMap<Sha256, Arc<DownloadSlot>>, Problem> {
    let mut found = HashMap::new();
    let mut token = Some(String::new());
    while let Some(page) = token {
        let (statuses, next) = downloads.list(PAGE, &page)?;
        for status in statuses {
            let name = status.path.file_name().and_then(|name| name.to_str());
            let sum = name.filter(|_| status.path.parent() == Some(folder));
            if let Some(Ok(sum)) = sum.map(str::parse) {
                let (number, id) = (status.number, status.id);
                let download = Some(RunningDownload { number, id });
                found
                    .entry(sum)
                    .or_insert_with(|| Arc::new(DownloadSlot::new(download)));
            }
        }
        token = next;
    }
    Ok(found)
}

/// A file that states only the id of its Git blob.
#[derive(Debug)]
pub(crate) struct SmallObject {
    pub(crate) url: Url,
    pub(crate) size: u64,
    pub(crate) blob: [u8; 20],
    pub(crate) authorization: Option<Secret>,
}

/// What people see of an object in the cache: its path at the origin.
fn label_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    format!("{host}{}", url.path())
}

/// The content of a small file.
fn read_whole(file: &File) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_SMALL).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
