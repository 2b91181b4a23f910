//! The metadata that a download needs before the swarm starts: size, root, kind, the manifest of a
//! collection. All of it comes from untrusted peers and is verified against the id.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use potluck_core::{
    FileId, FileLayout, Problem, Reason,
    collection::{
        limits::MAX_MANIFEST_SIZE,
        manifest::{MAGIC, Manifest},
        path::Label,
        plan::Plan,
    },
    identity::merkle::FileTree,
    model::{FileKind, FileRecord, QueryKey},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    content::ContentSource as _,
    download::{
        context::DownloadContext,
        engine::{assembler::UnitAssembler, verifier::UnitVerifier},
        peers::{bootstrap::BootstrapPool, rpc::client::PeerClient},
        task::piece_layers,
    },
    fs::blocking::blocking,
};

/// Bytes of a manifest per call; bounds the memory in addition to the bytes received so far.
const MANIFEST_REQUEST_BYTES: u64 = 2 * 1024 * 1024;

/// Time limit for one such call; units that arrived by then are kept, and the next call requests
/// the rest.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The metadata of a file.
#[derive(Debug, Clone)]
pub(crate) struct FileMetadata {
    /// Size and root match the id; the kind is an unverified claim.
    pub(crate) record: FileRecord,
    /// The name that others use; untrusted.
    pub(crate) name: Option<String>,
}

/// The verified manifest of a collection.
#[derive(Debug, Clone)]
pub(crate) struct CollectionManifest {
    /// The decoded manifest.
    pub(crate) manifest: Arc<Manifest>,
    /// The Merkle tree of the manifest's bytes.
    pub(crate) tree: FileTree,
}

/// Finds size, root and name of a file: in the library, at the index, or from a peer.
pub(crate) async fn identify(
    context: &DownloadContext,
    id: FileId,
    pool: &BootstrapPool,
    waiting: impl Fn(Problem) + Send + Sync,
) -> Result<FileMetadata, Problem> {
    let library = context.library.clone();
    let shared = blocking(move || {
        let content = library.find(&id);
        let known = content.map(|content| content.record().map(|record| (record, content.name())));
        known.transpose()
    })
    .await??;
    if let Some((record, name)) = shared {
        return Ok(FileMetadata {
            record,
            name: Some(name),
        });
    }
    if let Some(index) = &context.index {
        match index.query(&QueryKey::Id(id), 1, None).await {
            Ok(page) => {
                // The conversion from the wire checked that id, size and root match.
                if let Some(found) = page.files.into_iter().find(|found| found.file.id == id) {
                    return Ok(FileMetadata {
                        record: found.file,
                        name: found.names.into_iter().next(),
                    });
                }
            }
            Err(problem) => {
                tracing::debug!(file = %id.short(), %problem, "could not query the index")
            }
        }
    }
    let answer = pool
        .ask_any(|client| async move { client.describe(id).await }.boxed(), waiting)
        .await;
    Ok(FileMetadata {
        record: answer.record,
        name: Some(answer.name),
    })
}

/// The name of a file if no name is known.
pub(crate) fn fallback_name(id: FileId) -> Label {
    Label::sanitize(&format!("potluck-{}", id.short()))
}

/// The manifest of an id whose claimed kind is a collection. `None` if the verified bytes are not a
/// manifest, so the content is a plain file.
pub(crate) async fn fetch_collection(
    context: &DownloadContext,
    record: &FileRecord,
    pool: &BootstrapPool,
    waiting: impl Fn(Problem) + Send + Sync,
) -> Result<Option<CollectionManifest>, Problem> {
    if record.size > MAX_MANIFEST_SIZE {
        return Ok(None);
    }
    let Some(plan) = Plan::of_file(record.id, record.size).map(Arc::new) else {
        return Ok(None);
    };
    let verifier = Arc::new(UnitVerifier::new(Arc::clone(&plan)));
    let bytes = match local_bytes(context, record).await? {
        Some(bytes) => bytes,
        None => {
            piece_layers::fetch(context, record.id, &verifier, pool, &waiting).await?;
            fetch_manifest(&plan, &verifier, pool, &waiting).await
        }
    };
    let id = record.id;
    blocking(move || {
        let tree = potluck_core::identity::hash::hash_bytes(&bytes);
        match Manifest::decode(bytes) {
            Ok(manifest) => Some(CollectionManifest {
                manifest: Arc::new(manifest),
                tree,
            }),
            Err(error) => {
                tracing::warn!(
                    file = %id.short(), %error,
                    "its record says collection, but it is not a manifest: downloads it as a plain file"
                );
                None
            }
        }
    })
    .await
}

/// The bytes of a small file from the library.
async fn local_bytes(
    context: &DownloadContext,
    record: &FileRecord,
) -> Result<Option<Vec<u8>>, Problem> {
    use std::os::unix::fs::FileExt as _;
    let (library, id, size) = (context.library.clone(), record.id, record.size);
    blocking(move || {
        let content = library.find(&id)?;
        let file = content.open(0..size).ok()?;
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, 0).ok()?;
        (potluck_core::identity::hash::hash_bytes(&bytes).id() == id).then_some(bytes)
    })
    .await
}

/// The verified bytes of a manifest, in memory. Stops after the first unit if the content is not a
/// manifest; otherwise a false claim would make a large file download twice.
async fn fetch_manifest(
    plan: &Arc<Plan>,
    verifier: &Arc<UnitVerifier>,
    pool: &BootstrapPool,
    waiting: &(impl Fn(Problem) + Send + Sync),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let layout = FileLayout::new(plan.total());
    let max_units =
        layout.map_or(1, |layout| (MANIFEST_REQUEST_BYTES / layout.piece_size()).max(1)) as usize;
    let units: Vec<u32> = (0..plan.unit_count()).collect();
    let mut received = 0;
    while received < units.len() {
        // The first unit alone shows whether the content is a manifest.
        let max = if received == 0 { 1 } else { max_units };
        let units = &units[received..units.len().min(received + max)];
        if !bytes.is_empty() {
            if !bytes.starts_with(MAGIC) {
                break;
            }
            bytes.reserve_exact((plan.total() as usize).saturating_sub(bytes.len()));
        }
        let op = |client: PeerClient| {
            let (plan, verifier, units) = (Arc::clone(plan), Arc::clone(verifier), units.to_vec());
            fetch_units(client, plan, verifier, units).boxed()
        };
        let arrived = pool.ask_any(op, waiting).await;
        received += arrived.len();
        for unit in arrived {
            bytes.extend_from_slice(&unit);
        }
    }
    bytes
}

/// Downloads a prefix of these units from one peer and verifies it: at least one unit, and as many
/// as arrive in time.
async fn fetch_units(
    client: PeerClient,
    plan: Arc<Plan>,
    verifier: Arc<UnitVerifier>,
    units: Vec<u32>,
) -> Result<Vec<Bytes>, Problem> {
    let violation = |what: String| Problem::new(Reason::VerificationFailed, what);
    let deadline = Instant::now() + MANIFEST_TIMEOUT;
    let timed_out =
        |_| Problem::new(Reason::TimedOut, "the peer took too long to send the manifest");
    let mut assembler = UnitAssembler::new(&plan, &units);
    let ranges = assembler.next_ranges(u64::MAX);
    let opened = timeout_at(deadline, client.download(&ranges)).await;
    let mut stream = opened.map_err(timed_out)??;
    let mut done = Vec::with_capacity(units.len());
    while assembler.current().is_some() {
        let chunk = match timeout_at(deadline, stream.next()).await.map_err(timed_out) {
            Ok(Ok(Some(chunk))) => chunk,
            _ if !done.is_empty() => break,
            Ok(Err(problem)) | Err(problem) => return Err(problem),
            Ok(Ok(None)) => {
                let message = "the peer ended the stream early";
                return Err(Problem::new(Reason::NotPotluck, message));
            }
        };
        let complete = assembler.push(chunk);
        if let Some((index, data)) = complete.map_err(|error| violation(error.to_string()))? {
            let (verifier, unit) = (Arc::clone(&verifier), units[index]);
            let verified = blocking(move || verifier.verify(unit, &data).then_some(data)).await?;
            let verified = verified.ok_or_else(|| {
                violation(format!("piece {unit} of the manifest failed verification"))
            })?;
            done.push(verified.into_bytes());
        }
    }
    Ok(done)
}

/// Whether the claimed kind justifies examining the bytes as a manifest.
pub(crate) fn claims_collection(record: &FileRecord) -> bool {
    record.kind == FileKind::Collection
}
