//! The framing of `Download`.

use bytes::Bytes;
use potluck_core::{
    grpc::download_codec::{ChunkDecoder, ChunkError, ChunkHeader, MAX_CHUNK, MAX_HEADER},
    proto::v1,
};
use prost::Message as _;

/// One received byte: its span, its offset and its value. An empty chunk has no value.
type Received = (u32, u64, Option<u8>);

/// The decoder gives the same bytes and the same error as prost on the same messages, however the
/// stream is cut into buffers.
///
/// The input is the length of the buffers (1 byte), and the stream.
pub fn chunks(input: &[u8]) -> bool {
    let Some((&buffer, stream)) = input.split_first() else {
        return false;
    };
    let (expected, end) = reference(stream);
    let (received, ended) = decode(stream, usize::from(buffer) + 1);
    match end {
        // The decoder returns data before the message is complete.
        Err(ChunkError::Truncated) => {
            assert_eq!(ended, end);
            assert!(received.starts_with(&expected), "{received:?} for {expected:?}");
        }
        _ => assert_eq!((received, ended), (expected, end)),
    }
    check_header(stream);
    end.is_ok() && !stream.is_empty()
}

/// Decodes whole messages with prost.
fn reference(mut stream: &[u8]) -> (Vec<Received>, Result<(), ChunkError>) {
    let mut received = Vec::new();
    while !stream.is_empty() {
        let Some((&[compressed, len @ ..], rest)) = stream.split_first_chunk::<5>() else {
            return (received, Err(ChunkError::Truncated));
        };
        let len = u32::from_be_bytes(len) as usize;
        if compressed != 0 {
            return (received, Err(ChunkError::Compressed));
        }
        if len > MAX_CHUNK + MAX_HEADER {
            return (received, Err(ChunkError::TooLong));
        }
        let Some((message, rest)) = rest.split_at_checked(len) else {
            return (received, Err(ChunkError::Truncated));
        };
        let Ok(message) = v1::DownloadResponse::decode(message) else {
            return (received, Err(ChunkError::NotAChunk));
        };
        add(&mut received, message.span, message.offset, &message.data);
        stream = rest;
    }
    (received, Ok(()))
}

fn decode(stream: &[u8], buffer: usize) -> (Vec<Received>, Result<(), ChunkError>) {
    let mut decoder = ChunkDecoder::default();
    let mut received = Vec::new();
    for bytes in stream.chunks(buffer) {
        decoder.push(Bytes::copy_from_slice(bytes));
        loop {
            match decoder.next_slice() {
                Ok(Some(slice)) => add(&mut received, slice.span, slice.offset, &slice.data),
                Ok(None) => break,
                Err(error) => return (received, Err(error)),
            }
        }
    }
    (received, decoder.finish())
}

fn add(received: &mut Vec<Received>, span: u32, offset: u64, data: &[u8]) {
    if data.is_empty() {
        received.push((span, offset, None));
    }
    let bytes = (0..).zip(data);
    received.extend(bytes.map(|(at, byte)| (span, offset.saturating_add(at), Some(*byte))));
}

/// A header and its data are what prost writes.
fn check_header(bytes: &[u8]) {
    let Some((&[a, b, c, d, e, f, g, h, span], data)) = bytes.split_first_chunk::<9>() else {
        return;
    };
    if data.is_empty() {
        return;
    }
    // Numbers of all lengths.
    let offset = u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> (span % 64);
    let span = u32::from(span) << (a % 25);
    let message = v1::DownloadResponse {
        span,
        offset,
        data: Bytes::copy_from_slice(data),
    };
    let header = ChunkHeader::new(span, offset, data.len() as u32);
    let (prefix, rest) = header.as_bytes().split_at(5);
    assert_eq!(prefix[1..], (message.encoded_len() as u32).to_be_bytes());
    assert_eq!([rest, data].concat(), message.encode_to_vec());
}

/// Streams of several messages.
pub fn seeds() -> Vec<Vec<u8>> {
    let message = |span, offset, len: usize| {
        let data = (0..len).map(|n| n as u8).collect::<Vec<_>>();
        [ChunkHeader::new(span, offset, len as u32).as_bytes(), &data].concat()
    };
    let other_form = |body: &[u8]| [&[0, 0, 0, 0, body.len() as u8], body].concat();
    vec![
        [vec![255], message(0, 0, 100)].concat(),
        [
            vec![6],
            message(3, 1 << 40, 200),
            message(4, 0, 1),
            message(4, 1, 9),
        ]
        .concat(),
        // The data first; an unknown field; a repeated field; no data; numbers that are too long.
        [
            vec![16],
            other_form(&[26, 3, 1, 2, 3, 8, 1, 16, 7]),
            other_form(&[8, 1, 32, 9, 26, 1, 5]),
            other_form(&[8, 1, 8, 2, 26, 1, 5]),
            other_form(&[8, 1]),
            other_form(&[]),
            other_form(&[0x88, 0, 0x81, 0, 26, 1, 5]),
            other_form(&[8, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 26, 1, 5]),
        ]
        .concat(),
        // A message that is longer than the stream.
        vec![1, 0, 0, 0, 1, 0, 26, 0xf0, 1, 1, 2, 3],
        vec![1, 0, 0, 0x20, 0, 0, 26, 1, 1],
    ]
}

/// Keys and prefixes.
pub const WORDS: &[&[u8]] = &[
    &[0, 0, 0, 0],
    &[8],
    &[16],
    &[26],
    &[26, 1],
    &[0x80],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
    &[11],
    &[12],
    &[13],
    &[1],
];
