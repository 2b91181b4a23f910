//! Units of one peer, over one `Download` call or several: what it sends is put together, and anything that was not asked for ends
//! it.
//!
//! Invariant: at most these units are held in memory, each by the length that the plan gives it; what a peer sends beyond what it
//! was asked for last is refused before it is stored.

use std::collections::VecDeque;

use potluck_core::{FileId, Problem, chunk::ChunkSlice, plan::Plan, proto::v1};

use super::{chunks::Chunks, rope::Rope};

/// Where a chunk belongs, and what comes next.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Assembly {
    /// What was asked for, in order: unit's place in the call, file, offset, length.
    spans: Vec<Asked>,
    /// Lengths of the units, in bytes.
    units: Vec<usize>,
    /// Span and byte in it that come next.
    at: (usize, u64),
    /// What is there of the unit that comes next.
    unit: Rope,
    /// The span that the last call began with.
    asked_from: usize,
    /// Bytes that it has not brought yet.
    owed: u64,
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
            asked_from: 0,
            owed: 0,
        }
    }

    /// The spans of the next call: what is still to come, at most so many bytes of it and at least one.
    pub(crate) fn ask(&mut self, most: u64) -> Vec<v1::Span> {
        let (first, done) = self.at;
        let mut room = most.max(1);
        let mut spans = Vec::new();
        for (place, asked) in self.spans[first..].iter().enumerate() {
            let skip = if place == 0 { done } else { 0 };
            let length = (asked.len - skip).min(room);
            spans.push(v1::Span {
                file_id: asked.file.to_bytes(),
                offset: asked.offset + skip,
                length,
            });
            room -= length;
            if room == 0 {
                break;
            }
        }
        (self.asked_from, self.owed) = (first, spans.iter().map(|span| span.length).sum());
        spans
    }

    /// Bytes that the last call has not brought yet.
    pub(crate) const fn owed(&self) -> u64 {
        self.owed
    }

    /// Whether some of the unit that comes next is there.
    pub(crate) const fn has_begun(&self) -> bool {
        self.unit.len() > 0
    }

    /// The unit, by its place in the call, that comes next; `None` once all is there.
    pub(crate) fn current(&self) -> Option<usize> {
        self.spans.get(self.at.0).map(|asked| asked.unit)
    }

    /// Takes what came. Gives the unit that it completes, by its place in the call, with its bytes.
    pub(crate) fn take(&mut self, part: ChunkSlice) -> Result<Option<(usize, Rope)>, Unasked> {
        let len = part.data.len() as u64;
        if len == 0 {
            return Err(Unasked::Empty);
        }
        let (index, done) = self.at;
        let asked = *self.spans.get(index).ok_or(Unasked::TooMuch)?;
        if self.asked_from + part.span as usize != index || part.offset != asked.offset + done {
            return Err(Unasked::OutOfOrder);
        }
        let left = asked.len - done;
        if len > left.min(self.owed) {
            return Err(Unasked::TooMuch);
        }
        self.owed -= len;
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

/// Parts that may be held whatever their size, and bytes that there must be for each beyond them: each takes room besides its bytes, which
/// of a peer that sends a byte at a time would be most of the memory.
const FREE_PARTS: u64 = 256;
const LEAST_PART: u64 = 1024;

/// A call under way. It is read ahead of what is taken from it, as far as was asked for: what waits at this end is not left lying at
/// the other, which would take it for read by nobody.
#[derive(Debug)]
pub(crate) struct Incoming {
    stream: Chunks,
    /// Bytes still to be read.
    to_come: u64,
    held: Held,
}

/// What was read and not yet taken.
#[derive(Debug, Default)]
struct Held {
    parts: VecDeque<ChunkSlice>,
    bytes: u64,
}

impl Held {
    fn has_room(&self) -> bool {
        self.parts.len() as u64 <= FREE_PARTS + self.bytes / LEAST_PART
    }

    fn push(&mut self, part: ChunkSlice) {
        self.bytes += part.data.len() as u64;
        self.parts.push_back(part);
    }

    fn pop(&mut self) -> Option<ChunkSlice> {
        let part = self.parts.pop_front()?;
        self.bytes -= part.data.len() as u64;
        Some(part)
    }
}

/// Why nothing more can be read.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The peer sent what was not asked for.
    Unasked(Unasked),
    /// The stream ended before all was there.
    Short,
    /// It failed.
    Failed(Problem),
}

impl Incoming {
    /// The answer to a call for so many bytes.
    pub(crate) fn new(stream: Chunks, to_come: u64) -> Self {
        Self {
            stream,
            to_come,
            held: Held::default(),
        }
    }

    /// Whether something is still to be read, and there is room for it.
    pub(crate) fn is_due(&self) -> bool {
        self.to_come > 0 && self.held.has_room()
    }

    /// Reads some more. Cancel-safe.
    ///
    /// # Errors
    /// Where nothing more can be read.
    pub(crate) async fn read(&mut self) -> Result<(), Broken> {
        let part = match self.stream.next().await {
            Ok(Some(part)) => part,
            Ok(None) => return Err(Broken::Short),
            Err(problem) => return Err(Broken::Failed(problem)),
        };
        let len = part.data.len() as u64;
        if len == 0 {
            return Err(Broken::Unasked(Unasked::Empty));
        }
        self.to_come = self
            .to_come
            .checked_sub(len)
            .ok_or(Broken::Unasked(Unasked::TooMuch))?;
        self.held.push(part);
        Ok(())
    }

    /// The next that was read.
    pub(crate) fn take(&mut self) -> Option<ChunkSlice> {
        self.held.pop()
    }

    /// Whether the peer ends the stream where it should, or says something after all. To be waited for only so long.
    pub(crate) async fn goes_on(&mut self) -> bool {
        matches!(self.stream.next().await, Ok(Some(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 128 * 1024;

    fn assembly(units: &[u32]) -> Assembly {
        Assembly::new(&Plan::of_file(FileId([1; 32]), 3 * PIECE).unwrap(), units)
    }

    fn chunk(span: u32, offset: u64, len: u64) -> ChunkSlice {
        let data = vec![9; len as usize].into();
        ChunkSlice { span, offset, data }
    }

    #[test]
    fn crumbs_are_not_held_without_end() {
        let mut held = Held::default();
        while held.has_room() {
            held.push(chunk(0, 0, 1));
        }
        assert!((FREE_PARTS..2 * FREE_PARTS).contains(&held.bytes));
        assert!(held.pop().is_some() && held.has_room());
        for _ in 0..10_000 {
            held.push(chunk(0, 0, 16 * LEAST_PART));
            assert!(held.has_room(), "what is no crumb always has room");
        }
        while held.pop().is_some() {}
        assert_eq!(held.bytes, 0);
    }

    #[test]
    fn units_come_out_as_they_fill() {
        let mut assembly = assembly(&[2, 0]);
        assert_eq!(assembly.ask(u64::MAX).len(), 2);
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
        let refused = |part| {
            let mut assembly = assembly(&[0]);
            assembly.ask(u64::MAX);
            assembly.take(part).unwrap_err()
        };
        assert_eq!(refused(chunk(0, 0, PIECE + 1)), Unasked::TooMuch);
        assert_eq!(refused(chunk(0, 1, 1)), Unasked::OutOfOrder);
        assert_eq!(refused(chunk(1, 0, 1)), Unasked::OutOfOrder);
        assert_eq!(refused(chunk(0, 0, 0)), Unasked::Empty);
    }

    #[test]
    fn units_come_over_several_calls() {
        let mut assembly = assembly(&[2, 0]);
        let (mut spans, mut calls) = (Vec::new(), 0);
        while assembly.current().is_some() {
            assert_eq!(assembly.has_begun(), calls > 0, "call {calls}");
            let asked = assembly.ask(PIECE / 4 + 1);
            assert!(asked.iter().map(|span| span.length).sum::<u64>() <= PIECE / 4 + 1);
            for (place, span) in asked.iter().enumerate() {
                let place = place as u32;
                let more = assembly.clone().take(chunk(place, span.offset, span.length + 1));
                // Not even what would be asked for next.
                assert_eq!(more.unwrap_err(), Unasked::TooMuch);
                drop(assembly.take(chunk(place, span.offset, span.length)).unwrap());
            }
            assert_eq!(assembly.owed(), 0);
            spans.extend(asked);
            calls += 1;
        }
        assert_eq!(calls, 8);
        assert_eq!(spans.iter().map(|span| span.length).sum::<u64>(), 2 * PIECE);
        assert_eq!(spans[0].offset, 2 * PIECE);
    }
}
