//! Encodes and decodes `DownloadResponse` without copying its data.
//!
//! A generated codec copies each chunk into its message and out of it again. Here, a sender writes
//! a [`ChunkHeader`] in front of data that is already in a buffer, and a receiver's
//! [`ChunkDecoder`] returns slices of the received buffers. The wire format is standard gRPC: a
//! prefix of 5 bytes (gRPC over HTTP/2, "Length-Prefixed-Message"), then the protobuf message.
//!
//! Invariants:
//! - `prost` decodes a [`ChunkHeader`] followed by its data as the same message.
//! - [`ChunkDecoder`] buffers at most about [`MAX_CHUNK`] bytes for any input, and no data of a
//!   message that starts with a [`ChunkHeader`].

use bytes::{Buf as _, Bytes, BytesMut};
use prost::{
    Message as _,
    encoding::{WireType, decode_varint, encode_key, encode_varint},
};

use crate::proto::v1;

/// Maximum data in a chunk in bytes, as the contract defines it.
pub const MAX_CHUNK: usize = 1024 * 1024;

/// Maximum length of a header in bytes: the prefix and the keys and varints of three fields.
pub const MAX_HEADER: usize = PREFIX + 1 + 5 + 1 + 10 + 1 + 5;

/// Length of gRPC's prefix: a compression flag and the message length as four bytes, big-endian.
const PREFIX: usize = 5;

const SPAN: u32 = 1;
const OFFSET: u32 = 2;
const DATA: u32 = 3;

/// All of an encoded message except its data, which follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    bytes: [u8; MAX_HEADER],
    len: usize,
}

impl ChunkHeader {
    /// The header of a chunk with `data_len` bytes, at least one, at `offset` in the file of the
    /// request's span number `span`.
    pub fn new(span: u32, offset: u64, data_len: u32) -> Self {
        let mut bytes = [0; MAX_HEADER];
        let mut rest = &mut bytes[PREFIX..];
        for (field, value) in [(SPAN, u64::from(span)), (OFFSET, offset)] {
            // Protobuf omits fields with the value zero.
            if value != 0 {
                encode_key(field, WireType::Varint, &mut rest);
                encode_varint(value, &mut rest);
            }
        }
        encode_key(DATA, WireType::LengthDelimited, &mut rest);
        encode_varint(data_len.into(), &mut rest);
        let len = MAX_HEADER - rest.len();
        let message = (len - PREFIX) as u32 + data_len;
        bytes[1..PREFIX].copy_from_slice(&message.to_be_bytes());
        Self { bytes, len }
    }

    /// The encoded header.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// All or part of a chunk's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSlice {
    /// Index of the span in the request.
    pub span: u32,
    /// Offset in the file.
    pub offset: u64,
    /// The data; empty only if the sender sent an empty chunk.
    pub data: Bytes,
}

/// The reason why the received bytes are not a valid stream of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// A compressed message, although compression was not negotiated.
    #[error("it sent a compressed chunk")]
    Compressed,
    /// A message longer than a header and [`MAX_CHUNK`] bytes.
    #[error("it sent a chunk that is too long")]
    TooLong,
    /// The message does not decode as a chunk.
    #[error("it sent an invalid chunk")]
    NotAChunk,
    /// The stream ended inside a message.
    #[error("it ended in the middle of a chunk")]
    Truncated,
}

/// Decodes a stream of chunks from buffers of any size.
#[derive(Debug, Default)]
pub struct ChunkDecoder {
    /// The start of a message, or all of a message in another encoding than [`ChunkHeader`]'s.
    pending: BytesMut,
    /// Received bytes that are not parsed yet.
    unparsed: Bytes,
    /// The chunk whose data is being received.
    current: Option<CurrentChunk>,
}

#[derive(Debug)]
struct CurrentChunk {
    span: u32,
    offset: u64,
    remaining: usize,
}

impl ChunkDecoder {
    /// Adds received bytes. Call only after [`ChunkDecoder::next_slice`] returned `None`.
    pub fn push(&mut self, bytes: Bytes) {
        debug_assert!(self.unparsed.is_empty(), "earlier bytes were not parsed");
        self.unparsed = bytes;
    }

    /// The next slice of a chunk; `None` if more bytes are needed.
    ///
    /// # Errors
    /// The bytes are not a valid chunk. The decoder cannot be used after an error.
    pub fn next_slice(&mut self) -> Result<Option<ChunkSlice>, ChunkError> {
        loop {
            if self.unparsed.is_empty() {
                return Ok(None);
            }
            if let Some(current) = &mut self.current {
                let data = self.unparsed.split_to(current.remaining.min(self.unparsed.len()));
                let part = ChunkSlice {
                    span: current.span,
                    offset: current.offset,
                    data,
                };
                current.offset = current.offset.saturating_add(part.data.len() as u64);
                current.remaining -= part.data.len();
                if current.remaining == 0 {
                    self.current = None;
                }
                return Ok(Some(part));
            }
            // A header is so short that copying it costs little.
            let missing = match message_len(&self.pending)? {
                Some(len) if self.pending.len() >= MAX_HEADER => PREFIX + len - self.pending.len(),
                _ => MAX_HEADER - self.pending.len(),
            };
            let before = self.pending.len();
            let taken = missing.min(self.unparsed.len());
            self.pending.extend_from_slice(&self.unparsed[..taken]);
            let Some(len) = message_len(&self.pending)? else {
                self.unparsed.advance(taken);
                return Ok(None);
            };
            let end = self.pending.len().min(PREFIX + len);
            match MessageStart::read(&self.pending[PREFIX..end], len) {
                MessageStart::Header { current, len: header } => {
                    // Only the header belongs to this message; the remaining bytes are parsed
                    // again.
                    self.unparsed.advance(PREFIX + header - before);
                    self.pending.clear();
                    self.current = Some(current);
                }
                MessageStart::Unknown if self.pending.len() >= PREFIX + len => {
                    self.unparsed.advance(PREFIX + len - before);
                    let message = self.pending.split_to(PREFIX + len).freeze().slice(PREFIX..);
                    self.pending.clear();
                    return decode_whole(message).map(Some);
                }
                MessageStart::Unknown => self.unparsed.advance(taken),
            }
        }
    }

    /// Checks that the stream may end here.
    ///
    /// # Errors
    /// [`ChunkError::Truncated`] inside a message.
    pub fn finish(&self) -> Result<(), ChunkError> {
        match self.pending.is_empty() && self.current.is_none() {
            true => Ok(()),
            false => Err(ChunkError::Truncated),
        }
    }
}

/// The message length, if the prefix is complete.
fn message_len(pending: &[u8]) -> Result<Option<usize>, ChunkError> {
    let Some((prefix, _)) = pending.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let [compressed, len @ ..] = *prefix;
    if compressed != 0 {
        return Err(ChunkError::Compressed);
    }
    match u32::from_be_bytes(len) as usize {
        len if len > MAX_CHUNK + MAX_HEADER => Err(ChunkError::TooLong),
        len => Ok(Some(len)),
    }
}

/// The start of a message.
enum MessageStart {
    /// A complete [`ChunkHeader`] of `len` bytes; only the chunk's data follows.
    Header { current: CurrentChunk, len: usize },
    /// An incomplete header, or another encoding.
    Unknown,
}

impl MessageStart {
    fn read(mut bytes: &[u8], message: usize) -> Self {
        let all = bytes.len();
        let (mut span, mut offset, mut after) = (0, 0, 0);
        while let Ok(key) = decode_varint(&mut bytes) {
            let Ok(value) = decode_varint(&mut bytes) else {
                break;
            };
            match (key, u32::try_from(value)) {
                // Each field at most once, in ascending order.
                (8, Ok(value)) if after < SPAN => (span, after) = (value, SPAN),
                (16, _) if after < OFFSET => (offset, after) = (value, OFFSET),
                (26, _) => {
                    let len = all - bytes.len();
                    let left = message.saturating_sub(len);
                    return match left > 0 && value == left as u64 {
                        true => Self::Header {
                            current: CurrentChunk {
                                span,
                                offset,
                                remaining: left,
                            },
                            len,
                        },
                        false => Self::Unknown,
                    };
                }
                _ => break,
            }
        }
        Self::Unknown
    }
}

/// Decodes a message in another encoding than [`ChunkHeader`]'s, such as fields in another order
/// or unknown fields.
fn decode_whole(message: Bytes) -> Result<ChunkSlice, ChunkError> {
    let response = v1::DownloadResponse::decode(message).map_err(|_| ChunkError::NotAChunk)?;
    Ok(ChunkSlice {
        span: response.span,
        offset: response.offset,
        data: response.data,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Encodes messages as a generic gRPC sender does.
    fn encoded(messages: &[v1::DownloadResponse]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            bytes.push(0);
            bytes.extend((message.encoded_len() as u32).to_be_bytes());
            message.encode(&mut bytes).unwrap();
        }
        bytes
    }

    fn message(span: u32, offset: u64, data: Vec<u8>) -> v1::DownloadResponse {
        v1::DownloadResponse {
            span,
            offset,
            data: data.into(),
        }
    }

    /// Decodes the stream and joins adjacent slices.
    fn decoded(stream: &[u8], cuts: &[usize]) -> Result<Vec<ChunkSlice>, ChunkError> {
        let mut decoder = ChunkDecoder::default();
        let mut parts: Vec<ChunkSlice> = Vec::new();
        let mut rest = stream;
        for at in cuts.iter().copied().chain([usize::MAX]) {
            let (piece, after) = rest.split_at(at.min(rest.len()));
            rest = after;
            decoder.push(Bytes::copy_from_slice(piece));
            while let Some(part) = decoder.next_slice()? {
                match parts.last_mut() {
                    Some(last)
                        if last.span == part.span
                            && last.offset + last.data.len() as u64 == part.offset
                            && !part.data.is_empty() =>
                    {
                        last.data = [&last.data[..], &part.data[..]].concat().into();
                    }
                    _ => parts.push(part),
                }
            }
        }
        decoder.finish()?;
        Ok(parts)
    }

    #[test]
    fn a_header_fits_its_maximum_length() {
        let header = ChunkHeader::new(u32::MAX, u64::MAX, u32::MAX - 32);
        assert_eq!(header.as_bytes().len(), MAX_HEADER);
    }

    #[test]
    fn other_encodings_of_a_chunk_are_decoded() {
        let data = vec![7; 100];
        let tail = [&[26, 100][..], &data].concat();
        // Data first; an unknown field; a repeated field, whose last value counts.
        let forms = [
            [&tail[..], &[8, 3, 16, 5]].concat(),
            [&[8, 3, 16, 5, 32, 1][..], &tail].concat(),
            [&[8, 1, 8, 3, 16, 5][..], &tail].concat(),
        ];
        for form in forms {
            let mut stream = vec![0];
            stream.extend((form.len() as u32).to_be_bytes());
            stream.extend(&form);
            for disconnect in 0..stream.len() {
                let part = ChunkSlice {
                    span: 3,
                    offset: 5,
                    data: data.clone().into(),
                };
                assert_eq!(decoded(&stream, &[disconnect]), Ok(vec![part]));
            }
        }
    }

    #[test]
    fn invalid_chunks_are_refused() {
        let stream = encoded(&[message(1, 2, vec![3; 40])]);
        assert_eq!(
            decoded(&stream[..stream.len() - 1], &[]),
            Err(ChunkError::Truncated)
        );
        assert_eq!(decoded(&stream[..3], &[]), Err(ChunkError::Truncated));
        let mut compressed = stream.clone();
        compressed[0] = 1;
        assert_eq!(decoded(&compressed, &[]), Err(ChunkError::Compressed));
        let mut long = stream;
        long[1] = 1;
        assert_eq!(decoded(&long, &[]), Err(ChunkError::TooLong));
        assert_eq!(decoded(&[0, 0, 0, 0, 1, 0xff], &[]), Err(ChunkError::NotAChunk));
        let empty = decoded(&encoded(&[message(1, 2, vec![])]), &[]).unwrap();
        assert!(empty[0].data.is_empty());
    }

    proptest! {
        /// A generic gRPC receiver decodes header and data; the decoder reads a generic sender's
        /// stream with any cuts.
        #[test]
        fn the_codec_matches_generated_code(
            span in prop_oneof![Just(0), any::<u32>()],
            offset in prop_oneof![Just(0), 0..u64::MAX / 2],
            data in proptest::collection::vec(any::<u8>(), 1..300),
            more in proptest::collection::vec((1u32..5, 0u64..1 << 40, proptest::collection::vec(any::<u8>(), 0..60)), 0..5),
            cuts in proptest::collection::vec(0usize..80, 0..12),
        ) {
            let first = message(span, offset, data.clone());
            let ours = [ChunkHeader::new(span, offset, data.len() as u32).as_bytes(), &data].concat();
            prop_assert_eq!(&ours, &encoded(std::slice::from_ref(&first)));

            let mut messages = vec![first];
            // Distinct span numbers, so that no two chunks are adjacent.
            messages.extend((0..).zip(more).map(|(k, (span, offset, data))| message(span + 10 * k, offset, data)));
            let parts = decoded(&encoded(&messages), &cuts).unwrap();
            let expected: Vec<ChunkSlice> = messages
                .into_iter()
                .map(|message| ChunkSlice { span: message.span, offset: message.offset, data: message.data })
                .collect();
            prop_assert_eq!(parts, expected);
        }

        /// Arbitrary bytes cause no panic and are not buffered without bound.
        #[test]
        fn arbitrary_input_does_no_harm(
            stream in proptest::collection::vec(any::<u8>(), 0..200),
            cuts in proptest::collection::vec(0usize..20, 0..20),
        ) {
            let _ = decoded(&stream, &cuts);
        }
    }
}
