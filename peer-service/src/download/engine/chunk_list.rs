//! The bytes of a unit as a list of received chunks, which avoids copying them into one buffer.
//!
//! Invariant: memory stays within a small factor of the bytes. Small chunks are copied together,
//! because each would otherwise keep its whole receive buffer alive.

use std::{borrow::Cow, ops::Range};

use bytes::{Bytes, BytesMut};

/// Minimum length of a chunk that is shared and not copied, in bytes. Its receive buffer may be
/// several times as large.
const MIN_SHARED_CHUNK: usize = 32 * 1024;

/// Capacity of the first buffer for small chunks, in bytes. Each following buffer has twice the
/// capacity: a single small chunk between two large ones takes little memory, and a bundle of small
/// files needs few buffers, so nearly every file is one slice.
const MIN_COPIED_CHUNK: usize = 4 * 1024;

/// The bytes of a unit in chunks; copies only small chunks.
#[derive(Debug, Clone, Default)]
pub(crate) struct ChunkList {
    /// Each chunk with its end offset in the unit.
    chunks: Vec<(usize, Bytes)>,
    /// The small chunks at the end, copied together.
    small_chunks: BytesMut,
    len: usize,
}

impl ChunkList {
    /// Total bytes.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Appends bytes; `left` is the number of bytes still to come, including these.
    pub(crate) fn push(&mut self, bytes: Bytes, left: usize) {
        let is_small = bytes.len() < MIN_SHARED_CHUNK;
        let space = match is_small && !self.small_chunks.is_empty() {
            true => 2 * self.small_chunks.capacity(),
            false => MIN_COPIED_CHUNK,
        };
        if !is_small || self.small_chunks.len() + bytes.len() > self.small_chunks.capacity() {
            self.seal_small_chunks();
        }
        self.len += bytes.len();
        if is_small {
            if self.small_chunks.is_empty() {
                self.small_chunks = BytesMut::with_capacity(space.min(left).max(bytes.len()));
            }
            self.small_chunks.extend_from_slice(&bytes);
        } else {
            self.chunks.push((self.len, bytes));
        }
    }

    fn seal_small_chunks(&mut self) {
        let tail = std::mem::take(&mut self.small_chunks);
        if tail.is_empty() {
            return;
        }
        // Shrinks a buffer that is less than half full.
        let run = match tail.len() < tail.capacity() / 2 {
            true => Bytes::copy_from_slice(&tail),
            false => tail.freeze(),
        };
        self.chunks.push((self.len, run));
    }

    /// The slices that cover this range, in order.
    pub(crate) fn slices(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]> {
        let first = self.chunks.partition_point(|(end, _)| *end <= range.start);
        let mut at = first.checked_sub(1).map_or(0, |before| self.chunks[before].0);
        let runs = self.chunks[first..].iter().map(|(_, run)| &run[..]);
        let runs = runs.chain([&self.small_chunks[..]]).map_while(move |run| {
            if at >= range.end {
                return None;
            }
            let start = range.start.saturating_sub(at).min(run.len());
            let end = range.end.saturating_sub(at).min(run.len());
            at += run.len();
            Some(&run[start.min(end)..end])
        });
        runs.filter(|run| !run.is_empty())
    }

    /// The range as one slice; copies only if it spans several chunks.
    pub(crate) fn contiguous(&self, range: Range<usize>) -> Cow<'_, [u8]> {
        let len = range.len();
        let mut runs = self.slices(range);
        match runs.next() {
            None => Cow::Borrowed(&[]),
            Some(first) if first.len() == len => Cow::Borrowed(first),
            Some(first) => {
                let mut whole = Vec::with_capacity(len);
                whole.extend_from_slice(first);
                runs.for_each(|run| whole.extend_from_slice(run));
                Cow::Owned(whole)
            }
        }
    }

    /// All bytes as one buffer; copies only if there are several chunks.
    pub(crate) fn into_bytes(mut self) -> Bytes {
        match (self.chunks.len(), self.small_chunks.is_empty()) {
            (1, true) => self.chunks.remove(0).1,
            (0, _) => self.small_chunks.freeze(),
            _ => self.slices(0..self.len).collect::<Vec<_>>().concat().into(),
        }
    }
}

impl From<Bytes> for ChunkList {
    fn from(bytes: Bytes) -> Self {
        Self {
            len: bytes.len(),
            chunks: vec![(bytes.len(), bytes)],
            small_chunks: BytesMut::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_contains_what_was_pushed(
            lens in proptest::collection::vec(prop_oneof![0usize..50, MIN_SHARED_CHUNK - 1..MIN_SHARED_CHUNK + 2], 0..8),
            from in 0usize..200_000, len in 0usize..200_000,
        ) {
            let mut list = ChunkList::default();
            let mut flat = Vec::new();
            for (k, len) in lens.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + k) as u8).collect();
                list.push(bytes.clone().into(), len * (1 + k % 3));
                flat.extend(bytes);
            }
            prop_assert_eq!(list.len(), flat.len());
            let (from, to) = (from.min(flat.len()), (from + len).min(flat.len()));
            prop_assert_eq!(list.slices(from..to).collect::<Vec<_>>().concat(), &flat[from..to]);
            prop_assert!(list.slices(from..to).all(|run| !run.is_empty()));
            prop_assert_eq!(&*list.contiguous(from..to), &flat[from..to]);
            prop_assert_eq!(&list.into_bytes()[..], &flat[..]);
        }
    }

    #[test]
    fn small_chunks_are_copied_together() {
        let mut list = ChunkList::default();
        let len = 4 << 20;
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        for (at, small_chunk) in (0..).step_by(1000).zip(bytes.chunks(1000)) {
            list.push(Bytes::copy_from_slice(small_chunk), len - at);
        }
        assert_eq!(list.slices(0..len).count(), 11, "few chunks");
        assert_eq!(*list.contiguous(0..len), bytes);
        // A small chunk between two large ones takes little more memory than its bytes.
        let mut list = ChunkList::default();
        for len in [MIN_SHARED_CHUNK, 100, MIN_SHARED_CHUNK, 100] {
            list.push(vec![1; len].into(), 4 << 20);
        }
        assert!(list.small_chunks.capacity() <= MIN_COPIED_CHUNK);
        assert_eq!(list.slices(0..list.len()).count(), 4);
    }
}
