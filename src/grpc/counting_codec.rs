//! A codec that limits the lists of a message before it decodes the message.
//!
//! An empty item takes two bytes on the wire and more than a hundred in memory, so that a message
//! of valid size could expand to hundreds of MiB. The codec counts list items in the encoded bytes
//! and rejects lists that are too long.
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

use crate::{Problem, Reason, index_client::MAX_BATCH, proto::v1};

/// Maximum files in a page and maximum providers of a file, as the contract defines them.
const MAX_PAGE: usize = 1_000;

/// Maximum names per file in a response: several times the contract's limit.
const MAX_NAMES: usize = 64;

/// Minimum encoded size of a provider in bytes: a 32-byte id with its key and length.
const MIN_PROVIDER: usize = 34;

/// A message whose lists are checked before decoding.
pub trait PrecheckedMessage: Message + Default + 'static {
    /// Checks the lengths of all lists in the encoded message.
    ///
    /// # Errors
    /// [`Reason::NotPotluck`] if a list is too long or an item is invalid.
    fn count(message: &[u8]) -> Result<(), Problem>;
}

/// The encoded items of the list field with number `list`. Stops at the first malformed byte, as
/// decoding does.
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
pub type Count = fn(&[u8]) -> Result<(), Problem>;

/// A protobuf codec that encodes `E`, and checks and decodes `D`.
pub struct CountingCodec<E, D> {
    count: Count,
    messages: PhantomData<fn() -> (E, D)>,
}

impl<E, D> CountingCodec<E, D> {
    /// A codec that decodes only messages that pass `count`.
    pub const fn new(count: Count) -> Self {
        Self {
            count,
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
        Self::new(self.count)
    }

    fn decoder(&mut self) -> Self {
        Self::new(self.count)
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
        (self.count)(&message)?;
        D::decode(message)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

/// The problem for a list that is longer than the contract allows.
fn too_many(what: &str) -> Problem {
    Problem::new(
        Reason::NotPotluck,
        format!("the index sent more {what} than an answer may have"),
    )
}

/// Checks that the list field has at most `max` items.
fn at_most(max: usize, message: &[u8], list: u32, what: &str) -> Result<(), Problem> {
    match list_items(message, list).nth(max) {
        None => Ok(()),
        Some(_) => Err(too_many(what)),
    }
}

/// Checks the number of providers and the minimum size of each. An empty provider takes fifty
/// times its encoded size in memory.
fn check_providers(message: &[u8], list: u32) -> Result<(), Problem> {
    at_most(MAX_PAGE, message, list, "providers")?;
    match list_items(message, list).all(|provider| provider.len() >= MIN_PROVIDER) {
        true => Ok(()),
        false => Err(Problem::new(
            Reason::NotPotluck,
            "the index sent a provider that has no peer id",
        )),
    }
}

impl PrecheckedMessage for v1::QueryResponse {
    fn count(message: &[u8]) -> Result<(), Problem> {
        at_most(MAX_PAGE, message, 1, "files")?;
        for file in list_items(message, 1) {
            at_most(MAX_NAMES, file, 2, "names of a file")?;
            check_providers(file, 4)?;
        }
        Ok(())
    }
}

impl PrecheckedMessage for v1::SearchResponse {
    fn count(message: &[u8]) -> Result<(), Problem> {
        at_most(MAX_PAGE, message, 1, "files")?;
        list_items(message, 1).try_for_each(|file| at_most(MAX_NAMES, file, 2, "names of a file"))
    }
}

impl PrecheckedMessage for v1::WatchProvidersResponse {
    fn count(message: &[u8]) -> Result<(), Problem> {
        list_items(message, 1).try_for_each(|snapshot| check_providers(snapshot, 1))
    }
}

impl PrecheckedMessage for v1::RegisterResponse {
    fn count(message: &[u8]) -> Result<(), Problem> {
        at_most(MAX_BATCH, message, 6, "file ids")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider() -> v1::Provider {
        v1::Provider {
            peer_id: vec![1; 32].into(),
            ..Default::default()
        }
    }

    /// A message with `times` copies of `item` in field `list`.
    fn repeated(list: u8, item: &[u8], times: usize) -> Vec<u8> {
        let field = [&[list << 3 | 2, item.len() as u8], item].concat();
        field.repeat(times)
    }

    #[test]
    fn what_the_contract_allows_is_taken() {
        let names = vec!["x".repeat(255); 16];
        let query = v1::QueryResponse {
            files: vec![
                v1::QueryResult {
                    names: names.clone(),
                    providers: vec![provider(); MAX_PAGE],
                    ..Default::default()
                };
                MAX_PAGE
            ],
            ..Default::default()
        };
        assert_eq!(v1::QueryResponse::count(&query.encode_to_vec()), Ok(()));
        let search = v1::SearchResponse {
            files: vec![
                v1::SearchResult {
                    names,
                    ..Default::default()
                };
                MAX_PAGE
            ],
            ..Default::default()
        };
        assert_eq!(v1::SearchResponse::count(&search.encode_to_vec()), Ok(()));
        use v1::watch_providers_response::Event;
        let snapshot = v1::ProviderSnapshot {
            providers: vec![provider(); MAX_PAGE],
            ..Default::default()
        };
        for event in [
            Event::Snapshot(snapshot),
            Event::Joined(provider()),
            Event::Left(vec![1; 32].into()),
        ] {
            let watch = v1::WatchProvidersResponse { event: Some(event) };
            assert_eq!(v1::WatchProvidersResponse::count(&watch.encode_to_vec()), Ok(()));
        }
        let register = v1::RegisterResponse {
            file_ids: vec![vec![1; 32].into(); MAX_BATCH],
            ..Default::default()
        };
        assert_eq!(v1::RegisterResponse::count(&register.encode_to_vec()), Ok(()));
    }

    #[test]
    fn longer_lists_and_empty_providers_are_refused() {
        let reason = |counted: Result<(), Problem>| counted.unwrap_err().reason;
        let many = repeated(1, &[], MAX_PAGE + 1);
        assert_eq!(reason(v1::QueryResponse::count(&many)), Reason::NotPotluck);
        assert_eq!(reason(v1::SearchResponse::count(&many)), Reason::NotPotluck);
        let names = repeated(1, &repeated(2, &[], MAX_NAMES + 1)[..], 1);
        // The length needs a varint of two bytes here.
        let names = [&[0x0a, 0x82, 0x01], &names[2..]].concat();
        assert_eq!(reason(v1::QueryResponse::count(&names)), Reason::NotPotluck);
        assert_eq!(reason(v1::SearchResponse::count(&names)), Reason::NotPotluck);
        let empty = repeated(1, &repeated(4, &[], 1), 1);
        assert_eq!(reason(v1::QueryResponse::count(&empty)), Reason::NotPotluck);
        let empty = repeated(1, &repeated(1, &[], 1), 1);
        assert_eq!(
            reason(v1::WatchProvidersResponse::count(&empty)),
            Reason::NotPotluck
        );
        let ids = repeated(6, &[], MAX_BATCH + 1);
        assert_eq!(reason(v1::RegisterResponse::count(&ids)), Reason::NotPotluck);
    }
}
