//! One `Download` call: what a peer sends is put together into units, and anything that was not asked for ends it.
//!
//! Invariant: at most the units of the call are held in memory, each by the length that the plan gives it; what a peer sends
//! beyond that is refused before it is stored.

use bytes::Bytes;
use potluck_core::{FileId, plan::Plan, proto::v1};

/// Where a chunk belongs, and what comes next.
#[derive(Debug)]
pub(crate) struct Assembly {
    /// What was asked for, in order: unit's place in the call, file, offset, length.
    spans: Vec<Asked>,
    /// Span and byte in it that come next.
    at: (usize, u64),
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    unit: usize,
    file: FileId,
    offset: u64,
    len: u64,
}

/// The peer sent what was not asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unasked {
    /// More than was asked for.
    #[error("it sent more than was asked for")]
    TooMuch,
    /// Not what comes next.
    #[error("it sent bytes out of order")]
    OutOfOrder,
    /// A chunk without bytes: a peer could send those for ever.
    #[error("it sent an empty chunk")]
    Empty,
}

impl Assembly {
    /// Of these units, in this order.
    pub(crate) fn new(plan: &Plan, units: &[u32]) -> Self {
        let spans = units
            .iter()
            .enumerate()
            .flat_map(|(place, &unit)| {
                plan.spans(unit).map(move |span| Asked {
                    unit: place,
                    file: plan.files()[span.file].id,
                    offset: span.offset,
                    len: span.len,
                })
            })
            .collect();
        Self {
            spans,
            at: (0, 0),
            buffer: Vec::new(),
        }
    }

    /// The spans as the request has them.
    pub(crate) fn request(&self) -> Vec<v1::Span> {
        let span = |asked: &Asked| v1::Span {
            file_id: asked.file.to_bytes(),
            offset: asked.offset,
            length: asked.len,
        };
        self.spans.iter().map(span).collect()
    }

    /// The unit, by its place in the call, that comes next; `None` once all is there.
    pub(crate) fn current(&self) -> Option<usize> {
        self.spans.get(self.at.0).map(|asked| asked.unit)
    }

    /// Takes a chunk. Gives the unit that it completes, by its place in the call, with its bytes.
    pub(crate) fn take(
        &mut self,
        span: u32,
        offset: u64,
        data: &Bytes,
    ) -> Result<Option<(usize, Bytes)>, Unasked> {
        if data.is_empty() {
            return Err(Unasked::Empty);
        }
        let (index, done) = self.at;
        let asked = *self.spans.get(index).ok_or(Unasked::TooMuch)?;
        if span as usize != index || offset != asked.offset + done {
            return Err(Unasked::OutOfOrder);
        }
        let left = asked.len - done;
        if data.len() as u64 > left {
            return Err(Unasked::TooMuch);
        }
        let alone = |next: Option<&Asked>| next.is_none_or(|next| next.unit != asked.unit);
        if self.buffer.is_empty()
            && data.len() as u64 == asked.len
            && alone(self.spans.get(index + 1))
            && alone(index.checked_sub(1).and_then(|before| self.spans.get(before)))
        {
            // A unit in one chunk: as it is.
            self.at = (index + 1, 0);
            return Ok(Some((asked.unit, data.clone())));
        }
        if self.buffer.is_empty() {
            let rest = self.spans[index..]
                .iter()
                .take_while(|next| next.unit == asked.unit);
            // At most a unit: the plan bounds it to the largest piece.
            self.buffer
                .reserve_exact(rest.map(|next| next.len).sum::<u64>() as usize);
        }
        self.buffer.extend_from_slice(data);
        if (data.len() as u64) < left {
            self.at.1 += data.len() as u64;
            return Ok(None);
        }
        self.at = (index + 1, 0);
        match self.current() {
            Some(unit) if unit == asked.unit => Ok(None),
            _ => Ok(Some((asked.unit, std::mem::take(&mut self.buffer).into()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 128 * 1024;

    fn assembly(units: &[u32]) -> Assembly {
        Assembly::new(&Plan::file(FileId([1; 32]), 3 * PIECE).unwrap(), units)
    }

    fn chunk(len: u64) -> Bytes {
        vec![9; len as usize].into()
    }

    #[test]
    fn units_come_out_as_they_fill() {
        let mut assembly = assembly(&[2, 0]);
        assert_eq!(assembly.request().len(), 2);
        assert_eq!(assembly.take(0, 2 * PIECE, &chunk(100)).unwrap(), None);
        let (place, data) = assembly
            .take(0, 2 * PIECE + 100, &chunk(PIECE - 100))
            .unwrap()
            .unwrap();
        assert_eq!((place, data.len() as u64), (0, PIECE));
        assert_eq!(assembly.current(), Some(1));
        assert_eq!(assembly.take(1, 0, &chunk(PIECE)).unwrap().unwrap().0, 1);
        assert_eq!(assembly.current(), None);
        assert_eq!(assembly.take(2, 0, &chunk(1)), Err(Unasked::TooMuch));
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        assert_eq!(
            assembly(&[0]).take(0, 0, &chunk(PIECE + 1)),
            Err(Unasked::TooMuch)
        );
        assert_eq!(assembly(&[0]).take(0, 1, &chunk(1)), Err(Unasked::OutOfOrder));
        assert_eq!(assembly(&[0]).take(1, 0, &chunk(1)), Err(Unasked::OutOfOrder));
        assert_eq!(assembly(&[0]).take(0, 0, &chunk(0)), Err(Unasked::Empty));
    }
}
