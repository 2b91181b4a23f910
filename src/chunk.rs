//! `DownloadResponse` on the wire, without a copy of the bytes it carries.
//!
//! A generated codec copies each chunk into its message and out of it again. Here a sender writes a [`Header`] in front of bytes that
//! lie in a buffer already, and a receiver's [`Decoder`] gives out the bytes where they came in. On the wire it is what any gRPC
//! program sends and takes: a prefix of 5 bytes (gRPC over HTTP/2, "Length-Prefixed-Message"), then the message as protobuf
//! encodes it.
//!
//! Invariants: what [`Header`] writes, `prost` reads as the same message; whatever [`Decoder`] takes in, it holds at most
//! [`MAX_CHUNK`] bytes, and nothing of a message in the form that [`Header`] gives it.

use bytes::{Buf as _, Bytes, BytesMut};
use prost::{
    Message as _,
    encoding::{WireType, decode_varint, encode_key, encode_varint},
};

use crate::proto::v1;

/// Most bytes that a chunk carries, as the contract has it.
pub const MAX_CHUNK: usize = 1024 * 1024;

/// Most bytes of a header.
pub const MAX_HEADER: usize = PREFIX + 1 + 5 + 1 + 10 + 1 + 5;

/// gRPC's prefix: whether the message is compressed, and its length as four bytes, most significant first.
const PREFIX: usize = 5;

const SPAN: u32 = 1;
const OFFSET: u32 = 2;
const DATA: u32 = 3;

/// Everything of a message but its bytes, which follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    len: usize,
}

impl Header {
    /// Of `data_len` bytes, at least one, from `offset` of the file that the request's span numbered `span` is of.
    pub fn new(span: u32, offset: u64, data_len: u32) -> Self {
        let mut bytes = [0; MAX_HEADER];
        let mut rest = &mut bytes[PREFIX..];
        for (field, value) in [(SPAN, u64::from(span)), (OFFSET, offset)] {
            // Zero is what is not there.
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

    /// What goes in front of the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Bytes of a span, or some of a longer chunk's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which span of the request, counted from 0.
    pub span: u32,
    /// Offset in the file.
    pub offset: u64,
    /// The bytes; none only where the sender sent a chunk without any.
    pub data: Bytes,
}

/// What came is no stream of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A compressed message, which nobody asked for.
    #[error("it sent a compressed chunk")]
    Compressed,
    /// A message of more than [`MAX_CHUNK`] bytes and what goes around them.
    #[error("it sent a chunk that is too long")]
    TooLong,
    /// No protobuf, or other fields in it.
    #[error("it sent what is no chunk")]
    NoChunk,
    /// The stream ended inside a message.
    #[error("it ended in the middle of a chunk")]
    Cut,
}

/// Takes a stream's bytes as they come, cut anywhere, and gives the chunks' bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    /// What is not understood yet: the beginning of a message, or one in a form of its own.
    pending: BytesMut,
    /// What came last and was not looked at yet.
    fresh: Bytes,
    /// The chunk whose bytes are coming.
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    span: u32,
    offset: u64,
    left: usize,
}

impl Decoder {
    /// Takes what came; only once [`Decoder::next_part`] gave `None`.
    pub fn push(&mut self, bytes: Bytes) {
        debug_assert!(self.fresh.is_empty(), "what came before was not looked at");
        self.fresh = bytes;
    }

    /// The next bytes of a chunk; `None`: more has to come.
    ///
    /// # Errors
    /// Where this cannot be what it should be; nothing more can be read then.
    pub fn next_part(&mut self) -> Result<Option<Part>, Malformed> {
        loop {
            if self.fresh.is_empty() {
                return Ok(None);
            }
            if let Some(current) = &mut self.current {
                let data = self.fresh.split_to(current.left.min(self.fresh.len()));
                let part = Part {
                    span: current.span,
                    offset: current.offset,
                    data,
                };
                current.offset = current.offset.saturating_add(part.data.len() as u64);
                current.left -= part.data.len();
                if current.left == 0 {
                    self.current = None;
                }
                return Ok(Some(part));
            }
            // A header is so short that copying it costs nothing.
            let missing = match message_len(&self.pending)? {
                Some(len) if self.pending.len() >= MAX_HEADER => PREFIX + len - self.pending.len(),
                _ => MAX_HEADER - self.pending.len(),
            };
            let before = self.pending.len();
            let taken = missing.min(self.fresh.len());
            self.pending.extend_from_slice(&self.fresh[..taken]);
            let Some(len) = message_len(&self.pending)? else {
                self.fresh.advance(taken);
                return Ok(None);
            };
            let end = self.pending.len().min(PREFIX + len);
            match Start::read(&self.pending[PREFIX..end], len) {
                Start::Header { current, len: header } => {
                    // Only the header is this message's: what was taken beyond it is looked at again.
                    self.fresh.advance(PREFIX + header - before);
                    self.pending.clear();
                    self.current = Some(current);
                }
                Start::Unknown if self.pending.len() >= PREFIX + len => {
                    self.fresh.advance(PREFIX + len - before);
                    let message = self.pending.split_to(PREFIX + len).freeze().slice(PREFIX..);
                    self.pending.clear();
                    return whole(message).map(Some);
                }
                Start::Unknown => self.fresh.advance(taken),
            }
        }
    }

    /// Looks whether the stream may end here.
    ///
    /// # Errors
    /// [`Malformed::Cut`].
    pub fn end(&self) -> Result<(), Malformed> {
        match self.pending.is_empty() && self.current.is_none() {
            true => Ok(()),
            false => Err(Malformed::Cut),
        }
    }
}

/// The message's length, once its prefix is there.
fn message_len(pending: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some((prefix, _)) = pending.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let [compressed, len @ ..] = *prefix;
    if compressed != 0 {
        return Err(Malformed::Compressed);
    }
    match u32::from_be_bytes(len) as usize {
        len if len > MAX_CHUNK + MAX_HEADER => Err(Malformed::TooLong),
        len => Ok(Some(len)),
    }
}

/// How a message begins.
enum Start {
    /// As [`Header`] writes it; after so many bytes, nothing but the chunk's bytes comes.
    Header { current: Current, len: usize },
    /// Not all of it is there yet, or it is put in other words.
    Unknown,
}

impl Start {
    fn read(mut bytes: &[u8], message: usize) -> Self {
        let all = bytes.len();
        let (mut span, mut offset, mut after) = (0, 0, 0);
        while let Ok(key) = decode_varint(&mut bytes) {
            let Ok(value) = decode_varint(&mut bytes) else {
                break;
            };
            match (key, u32::try_from(value)) {
                // Fields in order, each once.
                (8, Ok(value)) if after < SPAN => (span, after) = (value, SPAN),
                (16, _) if after < OFFSET => (offset, after) = (value, OFFSET),
                (26, _) => {
                    let len = all - bytes.len();
                    let left = message.saturating_sub(len);
                    return match left > 0 && value == left as u64 {
                        true => Self::Header {
                            current: Current { span, offset, left },
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

/// A message in another form than [`Header`]'s: fields in another order, or more than there are.
fn whole(message: Bytes) -> Result<Part, Malformed> {
    let response = v1::DownloadResponse::decode(message).map_err(|_| Malformed::NoChunk)?;
    Ok(Part {
        span: response.span,
        offset: response.offset,
        data: response.data,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As any gRPC program sends it.
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

    /// All parts, those that follow each other put together again.
    fn decoded(stream: &[u8], cuts: &[usize]) -> Result<Vec<Part>, Malformed> {
        let mut decoder = Decoder::default();
        let mut parts: Vec<Part> = Vec::new();
        let mut rest = stream;
        for at in cuts.iter().copied().chain([usize::MAX]) {
            let (piece, after) = rest.split_at(at.min(rest.len()));
            rest = after;
            decoder.push(Bytes::copy_from_slice(piece));
            while let Some(part) = decoder.next_part()? {
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
        decoder.end()?;
        Ok(parts)
    }

    #[test]
    fn a_header_is_at_most_as_long_as_it_says() {
        let header = Header::new(u32::MAX, u64::MAX, u32::MAX - 32);
        assert_eq!(header.as_bytes().len(), MAX_HEADER);
    }

    #[test]
    fn other_forms_of_the_same_message_are_read_too() {
        let data = vec![7; 100];
        let tail = [&[26, 100][..], &data].concat();
        // The bytes first; an unknown field; a field twice, where the last one counts.
        let forms = [
            [&tail[..], &[8, 3, 16, 5]].concat(),
            [&[8, 3, 16, 5, 32, 1][..], &tail].concat(),
            [&[8, 1, 8, 3, 16, 5][..], &tail].concat(),
        ];
        for form in forms {
            let mut stream = vec![0];
            stream.extend((form.len() as u32).to_be_bytes());
            stream.extend(&form);
            for cut in 0..stream.len() {
                let part = Part {
                    span: 3,
                    offset: 5,
                    data: data.clone().into(),
                };
                assert_eq!(decoded(&stream, &[cut]), Ok(vec![part]));
            }
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let stream = encoded(&[message(1, 2, vec![3; 40])]);
        assert_eq!(decoded(&stream[..stream.len() - 1], &[]), Err(Malformed::Cut));
        assert_eq!(decoded(&stream[..3], &[]), Err(Malformed::Cut));
        let mut compressed = stream.clone();
        compressed[0] = 1;
        assert_eq!(decoded(&compressed, &[]), Err(Malformed::Compressed));
        let mut long = stream;
        long[1] = 1;
        assert_eq!(decoded(&long, &[]), Err(Malformed::TooLong));
        assert_eq!(decoded(&[0, 0, 0, 0, 1, 0xff], &[]), Err(Malformed::NoChunk));
        let empty = decoded(&encoded(&[message(1, 2, vec![])]), &[]).unwrap();
        assert!(empty[0].data.is_empty());
    }

    proptest! {
        /// What the header and the bytes are together, any gRPC program reads; what it sends, the decoder reads, however it is cut.
        #[test]
        fn it_is_what_grpc_sends(
            span in prop_oneof![Just(0), any::<u32>()],
            offset in prop_oneof![Just(0), 0..u64::MAX / 2],
            data in proptest::collection::vec(any::<u8>(), 1..300),
            more in proptest::collection::vec((1u32..5, 0u64..1 << 40, proptest::collection::vec(any::<u8>(), 0..60)), 0..5),
            cuts in proptest::collection::vec(0usize..80, 0..12),
        ) {
            let first = message(span, offset, data.clone());
            let ours = [Header::new(span, offset, data.len() as u32).as_bytes(), &data].concat();
            prop_assert_eq!(&ours, &encoded(std::slice::from_ref(&first)));

            let mut messages = vec![first];
            // Apart, so that no two run into each other.
            messages.extend((0..).zip(more).map(|(k, (span, offset, data))| message(span + 10 * k, offset, data)));
            let parts = decoded(&encoded(&messages), &cuts).unwrap();
            let expected: Vec<Part> = messages
                .into_iter()
                .map(|message| Part { span: message.span, offset: message.offset, data: message.data })
                .collect();
            prop_assert_eq!(parts, expected);
        }

        /// Strangers' bytes: no panic, and little is held.
        #[test]
        fn anything_may_come(stream in proptest::collection::vec(any::<u8>(), 0..200), cuts in proptest::collection::vec(0usize..20, 0..20)) {
            let _ = decoded(&stream, &cuts);
        }
    }
}
