//! Accepts the `:authority` that gRPC-core clients (Python, C++, Ruby) send over a Unix socket.
//!
//! They send the socket's path, percent-encoded: `run%2Fcontrol.sock`. RFC 3986 allows `%` in a
//! host, but the `http` crate does not, and `h2` resets such a request as malformed. So this module
//! replaces `%` by `_` in that header as the bytes pass. Potluck does not use the authority of a
//! Unix socket. The length does not change, so HPACK's compression state stays valid.
//!
//! Non-goals: Huffman-coded names and values, which gRPC-core does not send.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tonic::transport::server::{Connected, UdsConnectInfo};

/// Length of HTTP/2's connection preface (RFC 9113, section 3.4), in bytes.
pub(super) const PREFACE: usize = 24;

/// Length of a frame's header (RFC 9113, section 4.1).
const FRAME_HEADER: usize = 9;

/// Frame type `HEADERS` (RFC 9113, section 6.2).
const HEADERS: u8 = 1;

/// Frame type `CONTINUATION` (RFC 9113, section 6.10).
const CONTINUATION: u8 = 9;

/// Flag `PADDED` of `HEADERS`: the payload starts with the length of the padding.
const PADDED: u8 = 0x08;

/// Flag `PRIORITY` of `HEADERS`: five bytes come before the header block.
const PRIORITY: u8 = 0x20;

/// Index of `:authority` in HPACK's static table (RFC 7541, appendix A).
const AUTHORITY_INDEX: u64 = 1;

/// The name of the pseudo-header (RFC 9113, section 8.3.1).
const AUTHORITY: &[u8] = b":authority";

/// A connection over a Unix socket, whose requests have an authority that `http` accepts.
#[derive(Debug)]
pub struct SocketStream {
    stream: UnixStream,
    rewriter: AuthorityRewriter,
}

impl SocketStream {
    /// Wraps a connection that was just accepted.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            rewriter: AuthorityRewriter::default(),
        }
    }
}

impl Connected for SocketStream {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for SocketStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.rewriter.rewrite(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SocketStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Follows the frames of one connection byte by byte, in constant memory. Input that is not HTTP/2
/// passes unchanged or with `_` for `%`; `h2` rejects it either way.
#[derive(Debug)]
struct AuthorityRewriter {
    frame: FrameState,
    block: BlockState,
}

/// The position of the next byte in the sequence of frames.
#[derive(Debug)]
enum FrameState {
    /// In the connection preface, of which this many bytes remain.
    Preface(usize),
    /// In a frame's header, of which `read` bytes have arrived.
    Header {
        header: [u8; FRAME_HEADER],
        read: usize,
    },
    /// At the length of a frame's padding, with the remaining bytes of the payload.
    PadLength { left: usize, priority: usize },
    /// In a payload: `skip` bytes, then `block` bytes of a header block, then `padding` bytes.
    Payload {
        skip: usize,
        block: usize,
        padding: usize,
    },
}

impl FrameState {
    const START: Self = Self::Header {
        header: [0; FRAME_HEADER],
        read: 0,
    };
}

/// The position of the next byte in a header block (RFC 7541, section 6).
#[derive(Debug, Clone, Copy)]
enum BlockState {
    /// At the first byte of a field.
    Field,
    /// In an integer of several bytes.
    Integer { value: u64, shift: u32, of: IntegerOf },
    /// At the length of a field's name or value.
    Length { string: StringOf },
    /// In a name or a value, of which `left` bytes remain.
    Text {
        left: u64,
        huffman: bool,
        string: StringOf,
    },
}

/// The meaning of an integer.
#[derive(Debug, Clone, Copy)]
enum IntegerOf {
    /// An indexed field or a new table size: nothing follows.
    Whole,
    /// The index of a literal's name: a value follows.
    NameIndex,
    /// The length of a string.
    Length { huffman: bool, string: StringOf },
}

/// The kind of a string in a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StringOf {
    /// A literal name, with the number of bytes that match `:authority` so far; `None` after a
    /// mismatch.
    Name(Option<usize>),
    /// A value that does not change.
    Value,
    /// The value of `:authority`.
    Authority,
}

impl Default for AuthorityRewriter {
    fn default() -> Self {
        Self {
            frame: FrameState::Preface(PREFACE),
            block: BlockState::Field,
        }
    }
}

impl AuthorityRewriter {
    /// Rewrites the next bytes of the connection in place.
    fn rewrite(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let used = match &mut self.frame {
                FrameState::Preface(left) => {
                    let used = (*left).min(bytes.len());
                    *left -= used;
                    if *left == 0 {
                        self.frame = FrameState::START;
                    }
                    used
                }
                FrameState::Header { header, read } => {
                    header[*read] = bytes[0];
                    *read += 1;
                    if *read == FRAME_HEADER {
                        self.frame = start_payload(*header);
                    }
                    1
                }
                FrameState::PadLength { left, priority } => {
                    let padding = usize::from(bytes[0]).min(*left - 1);
                    let skip = (*priority).min(*left - 1 - padding);
                    let block = *left - 1 - padding - skip;
                    self.frame = payload(skip, block, padding);
                    1
                }
                FrameState::Payload { skip, block, padding } => {
                    let used;
                    if *skip > 0 {
                        used = (*skip).min(bytes.len());
                        *skip -= used;
                    } else if *block > 0 {
                        used = (*block).min(bytes.len());
                        *block -= used;
                        for byte in &mut bytes[..used] {
                            self.block = self.block.step(byte);
                        }
                    } else {
                        used = (*padding).min(bytes.len());
                        *padding -= used;
                    }
                    self.frame = payload(*skip, *block, *padding);
                    used
                }
            };
            bytes = &mut bytes[used..];
        }
    }
}

/// The state after a frame's header.
fn start_payload(header: [u8; FRAME_HEADER]) -> FrameState {
    let [a, b, c, kind, flags, ..] = header;
    let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    match kind {
        HEADERS => {
            let priority = if flags & PRIORITY == 0 { 0 } else { 5 };
            match flags & PADDED != 0 && length > 0 {
                true => FrameState::PadLength {
                    left: length,
                    priority,
                },
                false => payload(priority.min(length), length - priority.min(length), 0),
            }
        }
        CONTINUATION => payload(0, length, 0),
        _ => payload(length, 0, 0),
    }
}

/// In a payload, or at the next frame if the payload is complete.
fn payload(skip: usize, block: usize, padding: usize) -> FrameState {
    match skip + block + padding {
        0 => FrameState::START,
        _ => FrameState::Payload { skip, block, padding },
    }
}

impl BlockState {
    /// The state after one byte. Replaces the byte if it is a `%` in the authority.
    fn step(self, byte: &mut u8) -> Self {
        match self {
            Self::Field => match *byte {
                first @ 0x80.. => Self::integer(first, 7, IntegerOf::Whole),
                first @ 0x40.. => Self::integer(first, 6, IntegerOf::NameIndex),
                first @ 0x20.. => Self::integer(first, 5, IntegerOf::Whole),
                first => Self::integer(first, 4, IntegerOf::NameIndex),
            },
            Self::Integer { value, shift, of } => {
                let part = u64::from(*byte & 0x7f);
                let value = value.saturating_add(part.checked_shl(shift).unwrap_or(u64::MAX));
                match *byte & 0x80 == 0 {
                    true => Self::after_integer(value, of),
                    false => Self::Integer {
                        value,
                        shift: shift.saturating_add(7),
                        of,
                    },
                }
            }
            Self::Length { string } => {
                let huffman = *byte & 0x80 != 0;
                Self::integer(*byte, 7, IntegerOf::Length { huffman, string })
            }
            Self::Text {
                left,
                huffman,
                string,
            } => {
                let string = match string {
                    StringOf::Authority if !huffman && *byte == b'%' => {
                        *byte = b'_';
                        string
                    }
                    StringOf::Name(Some(same)) => {
                        let is_same = !huffman && AUTHORITY.get(same) == Some(byte);
                        StringOf::Name(is_same.then_some(same + 1))
                    }
                    _ => string,
                };
                Self::text(left - 1, huffman, string)
            }
        }
    }

    /// The state after the first byte of an integer with a prefix of `prefix` bits (RFC 7541, section
    /// 5.1).
    fn integer(first: u8, prefix: u32, of: IntegerOf) -> Self {
        let max = (1 << prefix) - 1;
        let value = first & max;
        match value == max {
            true => Self::Integer {
                value: u64::from(value),
                shift: 0,
                of,
            },
            false => Self::after_integer(u64::from(value), of),
        }
    }

    fn after_integer(value: u64, of: IntegerOf) -> Self {
        match of {
            IntegerOf::Whole => Self::Field,
            IntegerOf::NameIndex => Self::Length {
                string: match value {
                    0 => StringOf::Name(Some(0)),
                    AUTHORITY_INDEX => StringOf::Authority,
                    _ => StringOf::Value,
                },
            },
            IntegerOf::Length { huffman, string } => Self::text(value, huffman, string),
        }
    }

    /// In a string, or after it if the string is complete.
    fn text(left: u64, huffman: bool, string: StringOf) -> Self {
        match (left, string) {
            (0, StringOf::Name(same)) => Self::Length {
                string: match same == Some(AUTHORITY.len()) {
                    true => StringOf::Authority,
                    false => StringOf::Value,
                },
            },
            (0, StringOf::Value | StringOf::Authority) => Self::Field,
            _ => Self::Text {
                left,
                huffman,
                string,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    fn literal(first: u8, name: Option<&str>, value: &str) -> Vec<u8> {
        let mut field = vec![first];
        for text in name.into_iter().chain([value]) {
            field.push(u8::try_from(text.len()).unwrap());
            field.extend(text.as_bytes());
        }
        field
    }

    /// A connection whose header blocks have this authority, and `%` elsewhere.
    fn connection(authority: &str) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x3f, 0xe1, 0x1f];
        block.extend(literal(0x44, None, "/a%2Fb"));
        block.extend(literal(0x41, None, authority));
        block.extend(literal(0x40, Some("x-%25"), "100%"));
        block.extend(literal(0x40, Some(":authority"), authority));
        block.extend(literal(0x00, Some(":authority-%"), "1%"));
        block.extend(literal(0x10, Some(":authorit"), "2%"));
        block.extend([0x0f, 0x02, 4]);
        block.extend(b"5%%%");
        let mut padded = vec![3, 0, 0, 0, 0, 16];
        padded.extend(&block);
        padded.extend(b"%%%");
        let (first, second) = block.split_at(20);
        let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        all.extend(frame(4, 0, b"%%%%%%"));
        all.extend(frame(HEADERS, 4, &block));
        all.extend(frame(0, 1, b"%data A%"));
        all.extend(frame(HEADERS, 4 | PADDED | PRIORITY, &padded));
        all.extend(frame(HEADERS, 0, first));
        all.extend(frame(CONTINUATION, 4, second));
        all
    }

    proptest! {
        #[test]
        fn only_the_authority_changes_however_the_bytes_arrive(
            cuts in prop::collection::vec(1_usize..40, 1..300),
        ) {
            let mut bytes = connection("run%2Fp%2Fcontrol.sock");
            let expected = connection("run_2Fp_2Fcontrol.sock");
            let mut rewriter = AuthorityRewriter::default();
            let mut rest = &mut bytes[..];
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at_mut((*cut).min(rest.len()));
                rewriter.rewrite(now);
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&expected));
        }

        #[test]
        fn any_input_keeps_its_length_and_only_percent_signs_change(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let mut rewritten = bytes.clone();
            AuthorityRewriter::default().rewrite(&mut rewritten);
            for (before, after) in bytes.iter().zip(&rewritten) {
                prop_assert!(before == after || (*before == b'%' && *after == b'_'));
            }
        }
    }
}
