//! Finds the requested piece hashes.
//!
//! Invariant: a call's permit is released only when the last of its messages has been freed,
//! however slowly the receiver reads.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use potluck_core::{
    FileId, FileLayout, Problem, Reason, grpc::limiter::LimitError, identity::merkle::Hash,
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
    /// The file.
    pub(crate) id: FileId,
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
) -> Result<impl Stream<Item = Bytes> + Send + use<>, Problem> {
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
    let RequestedHashes { id, first, count } = request;
    let hashes = blocking(move || piece_hashes(&*shared.find(&id)?)).await??;
    let first = first as usize;
    let end = match count {
        None => hashes.len(),
        Some(count) => first.saturating_add(count as usize),
    };
    if first > hashes.len() || end > hashes.len() {
        let message = format!("{id} has {} piece hashes", hashes.len());
        return Err(Problem::new(Reason::OutOfRange, message).field("first_piece"));
    }
    let starts = (first..end).step_by(HASHES_PER_MESSAGE);
    Ok(stream::iter(starts).map(move |start| {
        let message = encode(start, &hashes[start..end.min(start + HASHES_PER_MESSAGE)]);
        connection
            .unscheduled()
            .attach_guard(message, Arc::clone(&permit))
    }))
}

/// The piece layer. A file of one piece has one hash, its root; an empty file has none.
fn piece_hashes(content: &dyn Content) -> Result<Arc<[Hash]>, Problem> {
    let layout = FileLayout::new(content.size());
    match layout.map_or(0, |layout| layout.piece_count()) {
        0 => Ok(Arc::from([])),
        1 => Ok(Arc::from([content.record()?.root.0])),
        _ => content.piece_hashes(),
    }
}
