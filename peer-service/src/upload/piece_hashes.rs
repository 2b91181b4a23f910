//! Finds the requested piece hashes.
//!
//! Invariant: a call's permit is released only when the last of its messages has been freed,
//! however slowly the receiver reads.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use potluck_core::{
    FileId, FileLayout, Problem, Reason, collection::plan::Plan, grpc::limiter::LimitError,
    identity::merkle::Hash,
};

use crate::{
    content::Content,
    fs::blocking::blocking,
    upload::{
        refusal::busy,
        scheduling::{STALL_BEFORE_EVICTION, scheduler::ConnectionHandle},
        shared::UploadShared,
    },
};

/// Hashes per message: 64 KiB, as the contract specifies.
const HASHES_PER_MESSAGE: usize = 2048;

/// The piece hashes that a caller requests.
#[derive(Debug)]
pub(crate) struct RequestedHashes {
    /// The file, or a collection.
    pub(crate) id: FileId,
    /// Whether the pieces are those of the collection's large files, numbered through all of them.
    pub(crate) of_large_files: bool,
    /// Index of the first piece.
    pub(crate) first: u32,
    /// Number of pieces; `None`: all that follow.
    pub(crate) count: Option<u32>,
}

/// The messages that answer a request. `encode` makes a message from the index of its first hash,
/// and its hashes.
///
/// # Errors
/// `BUSY`, `NOT_FOUND`, `OUT_OF_RANGE`, and `PIECE_NOT_AVAILABLE` if the hashes are not known yet.
pub(crate) async fn stream(
    shared: Arc<UploadShared>,
    request: RequestedHashes,
    connection: ConnectionHandle,
    encode: fn(usize, &[Hash]) -> Bytes,
) -> Result<impl Stream<Item = Result<Bytes, Problem>> + Send + use<>, Problem> {
    let permit = shared
        .hash_streams
        .try_acquire(connection.client_address())
        .map_err(|limit| {
            if limit == LimitError::Full {
                // The evicted connection frees its permit for others; its peer can reconnect.
                connection.evict_slowest(STALL_BEFORE_EVICTION);
            }
            busy("lists of piece hashes", limit)
        })?;
    let permit = Arc::new(permit);
    let (id, first, count) = (request.id, request.first as usize, request.count);
    let list = Arc::clone(&shared);
    let list = blocking(move || HashList::find(&list, &request)).await??;
    let list = Arc::new(list);
    let len = list.len();
    let end = match count {
        None => len,
        Some(count) => first.saturating_add(count as usize),
    };
    if first > len || end > len {
        let message = format!("{id} has {len} piece hashes");
        return Err(Problem::new(Reason::OutOfRange, message).field("first_piece"));
    }
    let runs = (first..end).step_by(HASHES_PER_MESSAGE);
    let runs = runs.map(move |start| start..end.min(start + HASHES_PER_MESSAGE));
    Ok(stream::iter(runs).then(move |run| {
        let (list, shared) = (Arc::clone(&list), Arc::clone(&shared));
        let (connection, permit) = (connection.clone(), Arc::clone(&permit));
        async move {
            let start = run.start;
            let message = match &*list {
                HashList::File(hashes) => encode(start, &hashes[run]),
                HashList::LargeFiles(plan) => {
                    let plan = Arc::clone(plan);
                    encode(start, &blocking(move || hashes_of(&plan, run, &shared)).await??)
                }
            };
            Ok(connection.unscheduled().attach_guard(message, permit))
        }
    }))
}

/// A list of piece hashes.
#[derive(Debug)]
enum HashList {
    /// The piece layer of a file.
    File(Arc<[Hash]>),
    /// The piece layers of a collection's large files, one after the other. They are read as they
    /// are sent, since together they can be large.
    LargeFiles(Arc<Plan>),
}

impl HashList {
    fn find(shared: &UploadShared, request: &RequestedHashes) -> Result<Self, Problem> {
        let content = shared.find(&request.id)?;
        if !request.of_large_files {
            return piece_layer(&*content).map(Self::File);
        }
        let plan = content.plan().filter(|plan| plan.manifest().is_some());
        plan.map(Self::LargeFiles).ok_or_else(|| {
            let message = format!("{} is not shared as a collection here", request.id);
            Problem::new(Reason::NotFound, message)
        })
    }

    fn len(&self) -> usize {
        match self {
            Self::File(hashes) => hashes.len(),
            Self::LargeFiles(plan) => {
                let last = plan.large_files().last();
                last.map_or(0, |file| plan.pieces_of(file).end as usize)
            }
        }
    }
}

/// The hashes of a run of pieces of a plan's large files.
fn hashes_of(plan: &Plan, run: Range<usize>, shared: &UploadShared) -> Result<Vec<Hash>, Problem> {
    let mut hashes = Vec::with_capacity(run.len());
    while hashes.len() < run.len() {
        // Fits: the numbers of pieces are `u32`.
        let next = (run.start + hashes.len()) as u32;
        let file = plan.file_of_piece(next);
        let Some((file, id)) = file.and_then(|file| Some((file, plan.file(file)?.id))) else {
            return Err(Problem::new(Reason::OutOfRange, "there is no such piece"));
        };
        let layer = shared.find(&id)?.piece_hashes()?;
        let first = (next - plan.pieces_of(file).start) as usize;
        let end = layer.len().min(first + run.len() - hashes.len());
        let Some(rest @ [_, ..]) = layer.get(first..end) else {
            let message = format!("the piece hashes of {id} are not known here");
            return Err(Problem::new(Reason::PieceNotAvailable, message));
        };
        hashes.extend_from_slice(rest);
    }
    Ok(hashes)
}

/// The piece layer. A file of one piece has one hash, its root; an empty file has none.
fn piece_layer(content: &dyn Content) -> Result<Arc<[Hash]>, Problem> {
    let layout = FileLayout::new(content.size());
    match layout.map_or(0, |layout| layout.piece_count()) {
        0 => Ok(Arc::from([])),
        1 => Ok(Arc::from([content.record()?.root.0])),
        _ => content.piece_hashes(),
    }
}
