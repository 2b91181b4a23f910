//! Answers `GetPieceHashes` with messages that list piece hashes.
//!
//! Invariant: a call's permit is released only when the last of its messages has been freed,
//! however slowly the receiver reads.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, stream};
use potluck_core::{Problem, Reason, convert, grpc::limiter::LimitError, identity::merkle::Hash, proto::v1};
use prost::Message as _;
use tonic::Status;

use crate::{
    content::Content,
    fs::blocking::blocking,
    upload::{STALL_BEFORE_EVICTION, UploadShared, busy, scheduler::ConnectionHandle},
};

/// Hashes per message: 64 KiB, as the contract specifies.
const HASHES_PER_MESSAGE: usize = 2048;

/// The encoded messages that answer a request.
///
/// # Errors
/// `BUSY`, `INVALID_ID`, `NOT_FOUND`, `OUT_OF_RANGE`, and `PIECE_NOT_AVAILABLE` if the hashes are
/// not known yet.
pub(crate) async fn stream(
    shared: Arc<UploadShared>,
    request: v1::GetPieceHashesRequest,
    connection: ConnectionHandle,
) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<>, Problem> {
    let permit = shared
        .hash_streams
        .try_acquire(connection.client_address())
        .map_err(|why| {
            if why == LimitError::Full {
                // The evicted connection frees its permit for others; its peer can reconnect.
                connection.evict_slowest(STALL_BEFORE_EVICTION);
            }
            busy("lists of piece hashes", why)
        })?;
    let permit = Arc::new(permit);
    let id = convert::file_id(&request.file_id, "file_id")?;
    let hashes = blocking(move || piece_hashes(&*shared.find(&id)?)).await??;
    let first = request.first_piece as usize;
    let end = match request.count {
        0 => hashes.len(),
        count => first.saturating_add(count as usize),
    };
    if first > hashes.len() || end > hashes.len() {
        let message = format!("{id} has {} piece hashes", hashes.len());
        return Err(Problem::new(Reason::OutOfRange, message).field("first_piece"));
    }
    let starts = (first..end).step_by(HASHES_PER_MESSAGE);
    Ok(stream::iter(starts).map(move |start| {
        let run = &hashes[start..end.min(start + HASHES_PER_MESSAGE)];
        let message = v1::GetPieceHashesResponse {
            first_piece: u32::try_from(start).unwrap_or(u32::MAX),
            hashes: Bytes::copy_from_slice(run.as_flattened()),
        };
        Ok(connection
            .unscheduled()
            .attach_guard(framed(&message), Arc::clone(&permit)))
    }))
}

/// Encodes a message with its gRPC prefix: the compression flag (0) and the length.
fn framed(message: &v1::GetPieceHashesResponse) -> Bytes {
    let len = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + len);
    bytes.put_u8(0);
    // At most 64 KiB of hashes and a number, so it fits.
    bytes.put_u32(len as u32);
    bytes.put_slice(&message.encode_to_vec());
    bytes.freeze()
}

/// The piece layer. A file of one piece has one hash, its root; an empty file has none.
fn piece_hashes(content: &dyn Content) -> Result<Arc<[Hash]>, Problem> {
    let layout = potluck_core::FileLayout::new(content.size());
    match layout.map_or(0, |layout| layout.piece_count()) {
        0 => Ok(Arc::from([])),
        1 => Ok(Arc::from([content.record()?.root.0])),
        _ => content.piece_hashes(),
    }
}
