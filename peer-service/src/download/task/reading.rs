//! Sends the bytes of a file in order while they are downloaded, and keeps nothing.
//!
//! The swarm requests the earliest missing unit first, and only units in a window ahead of the
//! reader. They are verified, written to a file without a name, read again when it is their turn,
//! and their disk space is freed. If the library has the file, its copy is verified and sent.
//!
//! Invariants:
//!
//! - Bytes are sent only after their unit was verified.
//! - Memory: the bytes in flight, which all downloads of the peer share (64 MiB), and at most
//!   [`QUEUE`] chunks and two units (32 MiB for the largest files) of this one. Disk: the window.
//! - Nothing remains when the run ends, even if the process is killed.

use std::sync::Arc;

use bytes::Bytes;
use potluck_core::{
    FileId, Problem, Reason, Sha256, bitfield::Bitfield, collection::plan::Plan, model::FileKind,
};
use sha2::Digest as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    content::{Content, ContentSource as _},
    download::{
        engine::{
            active::ActiveDownload, chunk_list::ChunkList, driver::AttemptOutcome,
            verifier::UnitVerifier,
        },
        peers::bootstrap::BootstrapPool,
        status::{DownloadState, DownloadStatus},
        storage::{part_file::PartFile, target},
        task::{
            fetching, metadata, piece_layers, recovery, run::start_discovery,
            run_context::RunContext,
        },
    },
    fs::blocking::blocking,
};

/// Bytes that may be downloaded ahead of the reader: enough for several peers, as
/// [`potluck_swarm::MAX_IN_FLIGHT_BYTES`].
const READ_AHEAD: u64 = 64 << 20;

/// Minimum units ahead of the reader, so that several peers serve large units.
const MIN_UNITS_AHEAD: u32 = 4;

/// Maximum length of a chunk, in bytes, as the API specifies.
const MAX_CHUNK: usize = 256 * 1024;

/// Chunks that wait for the reader.
const QUEUE: usize = 4;

/// The reader's end of a run; dropping it ends the run.
#[derive(Debug)]
pub(crate) struct FileReader {
    /// The next chunks. A problem is the last element; without one, the file is complete.
    pub(crate) chunks: mpsc::Receiver<Result<Bytes, Problem>>,
    /// The state of the run.
    pub(crate) status: watch::Receiver<DownloadStatus>,
    _stop: DropGuard,
}

impl FileReader {
    /// A reader of the run with this context, and the sender of its chunks.
    pub(crate) fn new(context: &RunContext) -> (Self, mpsc::Sender<Result<Bytes, Problem>>) {
        let (sender, chunks) = mpsc::channel(QUEUE);
        let reader = Self {
            chunks,
            status: context.channels.status.subscribe(),
            _stop: context.stop.clone().drop_guard(),
        };
        (reader, sender)
    }
}

/// Sends all bytes of the file, or the problem that ended the run.
pub(crate) async fn read(context: RunContext, chunks: mpsc::Sender<Result<Bytes, Problem>>) {
    let ended = context.stop.child_token();
    // Stops discovery and the swarm.
    let _guard = ended.clone().drop_guard();
    let sent = tokio::select! {
        // Both futures can be dropped: nothing of the run has a name.
        () = context.stop.cancelled() => return,
        sent = send_file(&context, &chunks, &ended) => sent,
    };
    match sent {
        Ok(()) => context.channels.status.send_modify(|status| {
            status.show_inactive(DownloadState::Done);
            status.bytes_done = status.bytes_total;
        }),
        Err(problem) => {
            // The reader may be gone.
            let _ = chunks.send(Err(problem)).await;
        }
    }
}

async fn send_file(
    context: &RunContext,
    chunks: &mpsc::Sender<Result<Bytes, Problem>>,
    ended: &CancellationToken,
) -> Result<(), Problem> {
    let (library, id) = (context.peer.library.clone(), context.spec.id);
    match blocking(move || library.find(&id)).await? {
        Some(content) => send_own_copy(context, content, chunks).await,
        None => send_from_peers(context, chunks, ended).await,
    }
}

/// Sends the library's copy.
async fn send_own_copy(
    context: &RunContext,
    content: Arc<dyn Content>,
    chunks: &mpsc::Sender<Result<Bytes, Problem>>,
) -> Result<(), Problem> {
    let (id, library) = (context.spec.id, context.peer.library.clone());
    let (record, name, layer) = blocking(move || {
        let record = content.record()?;
        let layer = match record.kind {
            FileKind::File | FileKind::Provisional => content.piece_hashes()?,
            FileKind::Collection => Arc::new([]),
        };
        Ok::<_, Problem>((record, content.name(), layer))
    })
    .await??;
    if record.kind == FileKind::Collection {
        return Err(is_collection(&name));
    }
    let plan = Arc::new(plan_of(id, record.size)?);
    context.reporter.set_identity(&name, record.size);
    context.reporter.set_plan(FileKind::File, &plan, 0);
    let verifier = Arc::new(UnitVerifier::new(Arc::clone(&plan)));
    if !layer.is_empty() && !verifier.add_layer(0, layer.to_vec()) {
        return Err(copy_changed(&name));
    }
    let mut output = Output::new(chunks, context.spec.sha256, plan.unit_count());
    for unit in 0..plan.unit_count() {
        let (library, plan, verifier) = (library.clone(), Arc::clone(&plan), Arc::clone(&verifier));
        let data = blocking(move || {
            recovery::local_unit(&library, &plan, unit).filter(|data| verifier.verify(unit, data))
        });
        let data = data.await?.ok_or_else(|| copy_changed(&name))?;
        let len = data.len() as u64;
        output.send(unit, data).await?;
        context.channels.status.send_modify(|status| {
            status.state = DownloadState::Running;
            status.bytes_done += len;
            status.resumed_bytes += len;
        });
    }
    Ok(())
}

/// Downloads the file and sends it.
async fn send_from_peers(
    context: &RunContext,
    chunks: &mpsc::Sender<Result<Bytes, Problem>>,
    ended: &CancellationToken,
) -> Result<(), Problem> {
    let RunContext { peer, spec, .. } = context;
    let candidates = start_discovery(context, ended.clone());
    let outgoing = peer.local.outgoing.clone();
    let pool = BootstrapPool::new(candidates.clone(), outgoing, peer.counters.clone());
    let waiting = |problem: Problem| context.show_waiting(problem);
    let known = metadata::identify(peer, spec.id, &pool, waiting).await?;
    let record = known.record;
    let name = known
        .name
        .unwrap_or_else(|| metadata::fallback_name(spec.id).as_str().to_owned());
    context.reporter.set_identity(&name, record.size);
    if metadata::claims_collection(&record)
        && metadata::fetch_collection(peer, &record, &pool, waiting)
            .await?
            .is_some()
    {
        return Err(is_collection(&name));
    }
    let plan = Arc::new(plan_of(spec.id, record.size)?);
    context.reporter.set_plan(FileKind::File, &plan, 0);
    let verifier = Arc::new(UnitVerifier::new(Arc::clone(&plan)));
    piece_layers::fetch(peer, spec.id, &verifier, &pool, &waiting).await?;
    let (id, folder, of_part) = (spec.id, peer.files_folder.clone(), Arc::clone(&plan));
    let part = blocking(move || PartFile::temporary(id, &folder, of_part)).await??;
    let have = Bitfield::new(plan.unit_count());
    let download = ActiveDownload::new(record, name.clone(), Arc::new(part), verifier, None, have)
        .map_err(|error| target::target_problem(&peer.files_folder, &error))?;
    let download = Arc::new(download);
    let ahead = units_ahead(&plan);
    let (window, window_end) = watch::channel(ahead);
    let fetch = async {
        if download.have().is_full() {
            return Ok(());
        }
        let known_peers = pool.into_known_peers();
        let run =
            fetching::run_reader(context, &download, known_peers, candidates, window_end, ended);
        match run.await? {
            AttemptOutcome::Complete => Ok(()),
            AttemptOutcome::Stopped | AttemptOutcome::KindDoubted => Err(target::stopped()),
        }
    };
    let send = async {
        let mut output = Output::new(chunks, spec.sha256, plan.unit_count());
        for unit in 0..plan.unit_count() {
            let mut changes = download.changes();
            // The sender lives in `download`.
            let _ = changes.wait_for(|_| download.has(unit)).await;
            let part = Arc::clone(&download.part_file);
            let data = blocking(move || {
                let data = part.read(unit);
                part.release(unit);
                data
            });
            let data = data.await?;
            let data = data.map_err(|error| target::target_problem(&peer.files_folder, &error))?;
            output.send(unit, data).await?;
            window.send_replace((unit + 1).saturating_add(ahead));
        }
        Ok(())
    };
    tokio::try_join!(fetch, send).map(drop)
}

/// Number of units that may be downloaded ahead of the reader.
fn units_ahead(plan: &Plan) -> u32 {
    let units = READ_AHEAD / plan.unit_len(0).max(1);
    u32::try_from(units).unwrap_or(u32::MAX).max(MIN_UNITS_AHEAD)
}

fn plan_of(id: FileId, size: u64) -> Result<Plan, Problem> {
    Plan::of_file(id, size).ok_or_else(|| Problem::new(Reason::OutOfRange, "no file is that large"))
}

/// Sends verified units in order. Holds the last one back until the SHA-256 was compared.
struct Output<'a> {
    chunks: &'a mpsc::Sender<Result<Bytes, Problem>>,
    /// The requested SHA-256, and the state over the bytes so far.
    sha256: Option<(Sha256, sha2::Sha256)>,
    units: u32,
}

impl<'a> Output<'a> {
    fn new(
        chunks: &'a mpsc::Sender<Result<Bytes, Problem>>,
        sha256: Option<Sha256>,
        units: u32,
    ) -> Self {
        Self {
            chunks,
            sha256: sha256.map(|claim| (claim, sha2::Sha256::new())),
            units,
        }
    }

    async fn send(&mut self, unit: u32, data: ChunkList) -> Result<(), Problem> {
        let mut data = data.into_bytes();
        if let Some((claim, mut hasher)) = self.sha256.take() {
            let bytes = data.clone();
            let hasher = blocking(move || {
                hasher.update(&bytes);
                hasher
            });
            let hasher = hasher.await?;
            if unit + 1 == self.units {
                check_sha256(claim, Sha256(hasher.finalize().into()))?;
            } else {
                self.sha256 = Some((claim, hasher));
            }
        }
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(MAX_CHUNK));
            self.chunks.send(Ok(chunk)).await.map_err(|_| target::stopped())?;
        }
        Ok(())
    }
}

fn check_sha256(claim: Sha256, found: Sha256) -> Result<(), Problem> {
    match found == claim {
        true => Ok(()),
        false => Err(Problem::new(
            Reason::VerificationFailed,
            format!(
                "the file has the SHA-256 {found}, not the requested {claim}: the output is \
                 incomplete and must not be used"
            ),
        )),
    }
}

fn is_collection(name: &str) -> Problem {
    Problem::new(
        Reason::InvalidArgument,
        format!(
            "{name} is a folder, which has no order of bytes: get it with -o DIR, or one of its \
             files by its own id"
        ),
    )
    .field("file_id")
}

fn copy_changed(name: &str) -> Problem {
    Problem::new(
        Reason::FileChanged,
        format!(
            "the copy of {name} on this machine changed since it was shared: share it again or \
             unshare it, and try again"
        ),
    )
}
