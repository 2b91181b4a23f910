//! A unit's bytes as they came in: a few runs where they lie, instead of one that all were copied into.
//!
//! Invariant: memory held is within a small factor of the bytes: what came in crumbs is copied together, as each would hold on to all
//! that came with it.

use std::{borrow::Cow, ops::Range};

use bytes::{Bytes, BytesMut};

/// The shortest run that is kept where it lies, in bytes. What it lies in may be several times as large.
const MIN_SHARED_CHUNK: usize = 32 * 1024;

/// Shortest run that crumbs are copied into, in bytes. Where more of them come each run has twice the room of the one before: a crumb
/// between two long runs takes little, and a bundle of small files lies in a few, of which nearly each file is a slice.
const MIN_COPIED_CHUNK: usize = 4 * 1024;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct ChunkList {
    /// Each with where it ends in the whole.
    chunks: Vec<(usize, Bytes)>,
    /// Crumbs at the end.
    small_chunks: BytesMut,
    len: usize,
}

impl ChunkList {
    /// Bytes in it.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Adds bytes at the end; `left`: how many are still to come, these among them.
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
        // Where less came than there was room for, the room is given back.
        let run = match tail.len() < tail.capacity() / 2 {
            true => Bytes::copy_from_slice(&tail),
            false => tail.freeze(),
        };
        self.chunks.push((self.len, run));
    }

    /// The runs that these bytes lie in, in order.
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

    /// These bytes in one run: without a copy where they lie in one.
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

    /// All of it in one run: without a copy where it is one.
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
        fn it_is_what_was_pushed(
            lens in proptest::collection::vec(prop_oneof![0usize..50, MIN_SHARED_CHUNK - 1..MIN_SHARED_CHUNK + 2], 0..8),
            from in 0usize..200_000, len in 0usize..200_000,
        ) {
            let mut rope = ChunkList::default();
            let mut flat = Vec::new();
            for (k, len) in lens.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + k) as u8).collect();
                rope.push(bytes.clone().into(), len * (1 + k % 3));
                flat.extend(bytes);
            }
            prop_assert_eq!(rope.len(), flat.len());
            let (from, to) = (from.min(flat.len()), (from + len).min(flat.len()));
            prop_assert_eq!(rope.slices(from..to).collect::<Vec<_>>().concat(), &flat[from..to]);
            prop_assert!(rope.slices(from..to).all(|run| !run.is_empty()));
            prop_assert_eq!(&*rope.contiguous(from..to), &flat[from..to]);
            prop_assert_eq!(&rope.into_bytes()[..], &flat[..]);
        }
    }

    #[test]
    fn crumbs_are_copied_together() {
        let mut chunk_list = ChunkList::default();
        let len = 4 << 20;
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        for (at, small_chunk) in (0..).step_by(1000).zip(bytes.chunks(1000)) {
            chunk_list.push(Bytes::copy_from_slice(small_chunk), len - at);
        }
        assert_eq!(chunk_list.slices(0..len).count(), 11, "few runs");
        assert_eq!(*chunk_list.contiguous(0..len), bytes);
        // One between two long runs takes no more than itself.
        let mut chunk_list = ChunkList::default();
        for len in [MIN_SHARED_CHUNK, 100, MIN_SHARED_CHUNK, 100] {
            chunk_list.push(vec![1; len].into(), 4 << 20);
        }
        assert!(chunk_list.small_chunks.capacity() <= MIN_COPIED_CHUNK);
        assert_eq!(chunk_list.slices(0..chunk_list.len()).count(), 4);
    }
}
