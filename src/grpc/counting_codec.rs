//! A codec that limits the lists of a message before it decodes the message.
//!
//! An empty item takes two bytes on the wire and more than a hundred in memory, so that a message
//! of valid size could expand to hundreds of MiB. A check for each message type counts the list
//! items in the encoded bytes and rejects lists that are too long.
//!
//! Non-goal: validation of the items.

use std::{fmt, marker::PhantomData};

use bytes::Buf as _;
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::Problem;

/// The encoded items of the repeated field with number `list`. Stops at the first malformed byte,
/// as decoding does.
pub fn list_items(message: &[u8], list: u32) -> impl Iterator<Item = &[u8]> {
    let mut rest = message;
    std::iter::from_fn(move || {
        loop {
            let (field, wire) = decode_key(&mut rest).ok()?;
            if field == list && wire == WireType::LengthDelimited {
                let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
                let (item, after) = rest.split_at_checked(length)?;
                rest = after;
                return Some(item);
            }
            skip_field(wire, field, &mut rest, DecodeContext::default()).ok()?;
        }
    })
}

/// A function that checks the lengths of all lists in an encoded message.
pub type CheckCounts = fn(&[u8]) -> Result<(), Problem>;

/// A protobuf codec that encodes `E`, and checks and decodes `D`.
pub struct CountingCodec<E, D> {
    check: CheckCounts,
    messages: PhantomData<fn() -> (E, D)>,
}

impl<E, D> CountingCodec<E, D> {
    /// A codec that decodes only messages that pass `check`.
    pub const fn new(check: CheckCounts) -> Self {
        Self {
            check,
            messages: PhantomData,
        }
    }
}

impl<E, D> fmt::Debug for CountingCodec<E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CountingCodec")
    }
}

impl<E: Message + 'static, D: Message + Default + 'static> Codec for CountingCodec<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::new(self.check)
    }

    fn decoder(&mut self) -> Self {
        Self::new(self.check)
    }
}

impl<E: Message, D> Encoder for CountingCodec<E, D> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, message: E, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message
            .encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl<E, D: Message + Default> Decoder for CountingCodec<E, D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let message = buffer.copy_to_bytes(buffer.remaining());
        (self.check)(&message)?;
        D::decode(message)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}
