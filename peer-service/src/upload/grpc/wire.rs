//! Conversions between the messages of PeerService and domain types.
//!
//! Invariant: a parsed request is within the contract's limits, and its ranges do not overflow.
//! Whether they lie within their files is checked later.

use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};
use potluck_core::{
    FileId, Problem, Reason,
    availability::{Availability, AvailabilityChange, AvailabilityUpdate},
    bitfield::Bitfield,
    convert,
    identity::merkle::Hash,
    model::Labels,
    proto::v1::{self, watch_availability_response::Event},
};
use prost::Message as _;

use crate::{
    content::{BadPieces, FileRange},
    upload::piece_hashes::RequestedHashes,
};

/// Maximum spans in a request, as the contract specifies.
pub(crate) const MAX_SPANS: usize = 4096;

/// Maximum bytes in a request, as the contract specifies.
pub(crate) const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Parses a request for ranges of files.
///
/// # Errors
/// `INVALID_ID`; `OUT_OF_RANGE` for too many spans, too many bytes, or a range that overflows.
pub(crate) fn parse_download(request: v1::DownloadRequest) -> Result<Vec<FileRange>, Problem> {
    let out_of_range =
        |message: String, field: String| Problem::new(Reason::OutOfRange, message).field(field);
    if request.spans.len() > MAX_SPANS {
        let message = format!(
            "a request has at most {MAX_SPANS} spans, but this one has {}",
            request.spans.len()
        );
        return Err(out_of_range(message, "spans".into()));
    }
    let mut total = 0u64;
    let ranges = request.spans.into_iter().enumerate().map(|(index, span)| {
        let field = |name: &str| format!("spans[{index}].{name}");
        let id = convert::file_id(&span.file_id, &field("file_id"))?;
        let end = span.offset.checked_add(span.length);
        let end =
            end.ok_or_else(|| out_of_range("no file is that large".into(), field("offset")))?;
        total = total.saturating_add(span.length);
        if total > MAX_BYTES {
            let message = format!("a request is for at most {MAX_BYTES} bytes in total");
            return Err(out_of_range(message, field("length")));
        }
        let range: Range<u64> = span.offset..end;
        Ok(FileRange { id, range })
    });
    ranges.collect()
}

/// Parses a request for piece hashes.
///
/// # Errors
/// `INVALID_ID`.
pub(crate) fn parse_piece_hashes(
    request: &v1::GetPieceHashesRequest,
) -> Result<RequestedHashes, Problem> {
    Ok(RequestedHashes {
        id: convert::file_id(&request.file_id, "file_id")?,
        of_large_files: request.large_files,
        first: request.first_piece,
        // 0 means all.
        count: Some(request.count).filter(|&count| count > 0),
    })
}

/// Parses a report of bad pieces.
///
/// # Errors
/// `INVALID_ID`.
pub(crate) fn parse_bad_pieces(request: &v1::ReportBadPiecesRequest) -> Result<BadPieces, Problem> {
    Ok(BadPieces {
        id: convert::file_id(&request.file_id, "file_id")?,
        first: request.first_piece,
        count: request.count.max(1),
    })
}

/// Encodes piece hashes as a message with its gRPC prefix: the compression flag (0) and the length.
/// `first` is the index of the first hash.
pub(crate) fn encode_piece_hashes(first: usize, hashes: &[Hash]) -> Bytes {
    let message = v1::GetPieceHashesResponse {
        first_piece: u32::try_from(first).unwrap_or(u32::MAX),
        hashes: Bytes::copy_from_slice(hashes.as_flattened()),
    };
    let len = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + len);
    bytes.put_u8(0);
    // At most 64 KiB of hashes and a number, so it fits.
    bytes.put_u32(len as u32);
    bytes.put_slice(&message.encode_to_vec());
    bytes.freeze()
}

/// The message for a report of this peer's availability of a file.
pub(crate) fn availability_message(
    id: &FileId,
    update: AvailabilityUpdate,
    labels: &Labels,
) -> v1::WatchAvailabilityResponse {
    let event = match update {
        AvailabilityUpdate::Snapshot(units) => {
            Event::Snapshot(availability_snapshot(id, &units, labels))
        }
        AvailabilityUpdate::Change(AvailabilityChange {
            have,
            fetching,
            abandoned,
        }) => Event::Change(v1::AvailabilityChange {
            have,
            fetching,
            abandoned,
        }),
    };
    v1::WatchAvailabilityResponse { event: Some(event) }
}

fn availability_snapshot(
    id: &FileId,
    units: &Availability,
    labels: &Labels,
) -> v1::AvailabilitySnapshot {
    let complete = units.have.is_full();
    let bytes = |bits: &Bitfield| match complete {
        true => Bytes::new(),
        false => Bytes::copy_from_slice(bits.as_bytes()),
    };
    v1::AvailabilitySnapshot {
        units: units.have.len(),
        complete,
        have: bytes(&units.have),
        fetching: bytes(&units.fetching),
        file_id: id.to_bytes(),
        labels: convert::labels_message(labels),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(spans: Vec<(usize, u64, u64)>) -> v1::DownloadRequest {
        let spans = spans.into_iter().map(|(id_len, offset, length)| v1::Span {
            file_id: vec![7; id_len].into(),
            offset,
            length,
        });
        v1::DownloadRequest {
            spans: spans.collect(),
            ..Default::default()
        }
    }

    fn refused(spans: Vec<(usize, u64, u64)>) -> (Reason, Option<String>) {
        let problem = parse_download(request(spans)).unwrap_err();
        (problem.reason, problem.field)
    }

    #[test]
    fn a_request_beyond_any_file_is_refused_naming_the_field() {
        assert_eq!(
            refused(vec![(32, 0, 1), (31, 0, 1)]),
            (Reason::InvalidId, Some("spans[1].file_id".into()))
        );
        assert_eq!(
            refused(vec![(32, u64::MAX, 1)]),
            (Reason::OutOfRange, Some("spans[0].offset".into()))
        );
        assert_eq!(
            refused(vec![(32, 0, MAX_BYTES), (32, 0, 1)]),
            (Reason::OutOfRange, Some("spans[1].length".into()))
        );
        assert_eq!(
            refused(vec![(32, 0, 0); MAX_SPANS + 1]),
            (Reason::OutOfRange, Some("spans".into()))
        );
        let most = parse_download(request(vec![(32, 0, 0); MAX_SPANS]));
        assert_eq!(most.unwrap().len(), MAX_SPANS);
    }

    proptest! {
        /// For any request, parsing neither panics nor lets anything over the limits through.
        #[test]
        fn nothing_over_the_limits_gets_through(
            spans in proptest::collection::vec(
                (30usize..34, any::<u64>(), prop_oneof![any::<u64>(), 0u64..1 << 24]),
                0..20,
            ),
        ) {
            if let Ok(ranges) = parse_download(request(spans)) {
                prop_assert!(ranges.iter().all(|it| it.range.start <= it.range.end));
                prop_assert!(ranges.iter().map(FileRange::len).sum::<u64>() <= MAX_BYTES);
            }
        }
    }
}
