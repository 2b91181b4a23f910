//! A unit's bytes as they came in: a few runs where they lie, instead of one that all were copied into.
//!
//! Invariant: memory held is within a small factor of the bytes: what came in crumbs is copied together, as each would hold on to all
//! that came with it.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// The shortest run that is kept where it lies, in bytes. What it lies in may be several times as large.
const MIN_KEPT: usize = 32 * 1024;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rope {
    runs: Vec<Bytes>,
    /// Crumbs at the end.
    tail: BytesMut,
    len: usize,
}

impl Rope {
    /// Bytes in it.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Adds bytes at the end, of `left` more to come with them.
    pub(crate) fn push(&mut self, bytes: Bytes, left: usize) {
        self.len += bytes.len();
        if bytes.len() < MIN_KEPT {
            if self.tail.is_empty() {
                self.tail.reserve(left.min(MIN_KEPT));
            }
            self.tail.extend_from_slice(&bytes);
            return;
        }
        if !self.tail.is_empty() {
            self.runs.push(self.tail.split().freeze());
        }
        self.runs.push(bytes);
    }

    /// The runs that these bytes lie in, in order.
    pub(crate) fn slices(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]> {
        let runs = self.runs.iter().map(|run| &run[..]).chain([&self.tail[..]]);
        let mut at = 0;
        runs.filter_map(move |run| {
            let start = range.start.saturating_sub(at).min(run.len());
            let end = range.end.saturating_sub(at).min(run.len());
            at += run.len();
            (start < end).then(|| &run[start..end])
        })
    }

    /// All of it in one run: without a copy where it is one.
    pub(crate) fn into_bytes(mut self) -> Bytes {
        match (self.runs.len(), self.tail.is_empty()) {
            (1, true) => self.runs.remove(0),
            (0, _) => self.tail.freeze(),
            _ => self.slices(0..self.len).collect::<Vec<_>>().concat().into(),
        }
    }
}

impl From<Vec<u8>> for Rope {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            len: bytes.len(),
            runs: vec![bytes.into()],
            tail: BytesMut::new(),
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
            lens in proptest::collection::vec(prop_oneof![0usize..50, MIN_KEPT - 1..MIN_KEPT + 2], 0..8),
            from in 0usize..200_000, len in 0usize..200_000,
        ) {
            let mut rope = Rope::default();
            let mut flat = Vec::new();
            for (k, len) in lens.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + k) as u8).collect();
                rope.push(bytes.clone().into(), len);
                flat.extend(bytes);
            }
            prop_assert_eq!(rope.len(), flat.len());
            let (from, to) = (from.min(flat.len()), (from + len).min(flat.len()));
            prop_assert_eq!(rope.slices(from..to).collect::<Vec<_>>().concat(), &flat[from..to]);
            prop_assert!(rope.slices(from..to).all(|run| !run.is_empty()));
            prop_assert_eq!(&rope.into_bytes()[..], &flat[..]);
        }
    }

    #[test]
    fn crumbs_are_copied_together() {
        let mut rope = Rope::default();
        (0..10_000).for_each(|_| rope.push(Bytes::from_static(&[1; 3]), 3));
        assert_eq!(rope.slices(0..30_000).count(), 1);
    }
}
