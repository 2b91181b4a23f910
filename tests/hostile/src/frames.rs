//! HTTP/2 frames (RFC 9113) and header blocks (RFC 7541) by hand, for bytes that a library would
//! not send.

/// The bytes with which a client starts.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length of the header of a frame, in bytes.
pub(crate) const HEADER: usize = 9;

/// Largest payload that every server accepts, in bytes.
pub(crate) const MAX_PAYLOAD: usize = 16 * 1024;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes()[1..]);
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The preface and empty settings.
pub(crate) fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// Adds the length of a string that is not compressed (RFC 7541, section 5.2).
fn put_length(block: &mut Vec<u8>, mut length: usize) {
    const PREFIX: usize = 0x7f;
    if length < PREFIX {
        block.push(length as u8);
        return;
    }
    block.push(PREFIX as u8);
    length -= PREFIX;
    while length >= 0x80 {
        block.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    block.push(length as u8);
}

fn put_text(block: &mut Vec<u8>, text: &[u8]) {
    put_length(block, text.len());
    block.extend_from_slice(text);
}

/// Adds a header field that no table remembers.
pub(crate) fn put_header(block: &mut Vec<u8>, name: &str, value: &[u8]) {
    block.push(0);
    put_text(block, name.as_bytes());
    put_text(block, value);
}

/// Adds a header field that the server's dynamic table remembers (RFC 7541, section 6.2.1).
pub(crate) fn put_indexed_header(block: &mut Vec<u8>, name: &str, value: &[u8]) {
    block.push(0x40);
    put_text(block, name.as_bytes());
    put_text(block, value);
}

/// The header block of a gRPC call.
pub(crate) fn call_headers(path: &str) -> Vec<u8> {
    // `:method: POST` and `:scheme: http`, from the static table.
    let mut block = vec![0x83, 0x86];
    put_header(&mut block, ":path", path.as_bytes());
    put_header(&mut block, ":authority", b"hostile");
    put_header(&mut block, "content-type", b"application/grpc");
    put_header(&mut block, "te", b"trailers");
    block
}

/// A gRPC message with its header.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], &length[..], message].concat()
}
