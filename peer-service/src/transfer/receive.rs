//! One `Download` call: what a peer sends is put together into units, and anything that was not asked for ends it.
//!
//! Invariant: at most the units of the call are held in memory, each by the length that the plan gives it; what a peer sends
//! beyond that is refused before it is stored.

use potluck_core::{FileId, chunk::Part, plan::Plan, proto::v1};

use super::rope::Rope;

/// Where a chunk belongs, and what comes next.
#[derive(Debug)]
pub(crate) struct Assembly {
    /// What was asked for, in order: unit's place in the call, file, offset, length.
    spans: Vec<Asked>,
    /// Lengths of the units, in bytes.
    units: Vec<usize>,
    /// Span and byte in it that come next.
    at: (usize, u64),
    /// What is there of the unit that comes next.
    unit: Rope,
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
                    file: span.id,
                    offset: span.offset,
                    len: span.len,
                })
            })
            .collect();
        Self {
            spans,
            units: units.iter().map(|&unit| plan.unit_len(unit) as usize).collect(),
            at: (0, 0),
            unit: Rope::default(),
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

    /// Takes what came. Gives the unit that it completes, by its place in the call, with its bytes.
    pub(crate) fn take(&mut self, part: Part) -> Result<Option<(usize, Rope)>, Unasked> {
        let len = part.data.len() as u64;
        if len == 0 {
            return Err(Unasked::Empty);
        }
        let (index, done) = self.at;
        let asked = *self.spans.get(index).ok_or(Unasked::TooMuch)?;
        if part.span as usize != index || part.offset != asked.offset + done {
            return Err(Unasked::OutOfOrder);
        }
        let left = asked.len - done;
        if len > left {
            return Err(Unasked::TooMuch);
        }
        // At most a unit: the plan bounds it to the largest piece.
        let left_of_unit = self.units[asked.unit].saturating_sub(self.unit.len());
        self.unit.push(part.data, left_of_unit);
        if len < left {
            self.at.1 += len;
            return Ok(None);
        }
        self.at = (index + 1, 0);
        match self.current() {
            Some(unit) if unit == asked.unit => Ok(None),
            _ => Ok(Some((asked.unit, std::mem::take(&mut self.unit)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 128 * 1024;

    fn assembly(units: &[u32]) -> Assembly {
        Assembly::new(&Plan::of_file(FileId([1; 32]), 3 * PIECE).unwrap(), units)
    }

    fn chunk(span: u32, offset: u64, len: u64) -> Part {
        let data = vec![9; len as usize].into();
        Part { span, offset, data }
    }

    #[test]
    fn units_come_out_as_they_fill() {
        let mut assembly = assembly(&[2, 0]);
        assert_eq!(assembly.request().len(), 2);
        assert!(assembly.take(chunk(0, 2 * PIECE, 100)).unwrap().is_none());
        let rest = chunk(0, 2 * PIECE + 100, PIECE - 100);
        let (place, data) = assembly.take(rest).unwrap().unwrap();
        assert_eq!((place, data.len() as u64), (0, PIECE));
        assert_eq!(assembly.current(), Some(1));
        assert_eq!(assembly.take(chunk(1, 0, PIECE)).unwrap().unwrap().0, 1);
        assert_eq!(assembly.current(), None);
        assert_eq!(assembly.take(chunk(2, 0, 1)).unwrap_err(), Unasked::TooMuch);
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        let refused = |part| assembly(&[0]).take(part).unwrap_err();
        assert_eq!(refused(chunk(0, 0, PIECE + 1)), Unasked::TooMuch);
        assert_eq!(refused(chunk(0, 1, 1)), Unasked::OutOfOrder);
        assert_eq!(refused(chunk(1, 0, 1)), Unasked::OutOfOrder);
        assert_eq!(refused(chunk(0, 0, 0)), Unasked::Empty);
    }
}
