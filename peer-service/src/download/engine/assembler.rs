//! Units of one peer, over one `Download` call or several: what it sends is put together, and anything that was not asked for ends
//! it.
//!
//! Invariant: at most these units are held in memory, each by the length that the plan gives it; what a peer sends beyond what it
//! was asked for last is refused before it is stored.

use std::collections::VecDeque;

use potluck_core::{FileId, Problem, collection::plan::Plan, grpc::download_codec::ChunkSlice, proto::v1};

use crate::download::engine::{chunk_list::ChunkList, download_stream::DownloadStream};

/// Where a chunk belongs, and what comes next.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct UnitAssembler {
    /// What was asked for, in order: unit's place in the call, file, offset, length.
    spans: Vec<RequestedSpan>,
    /// Lengths of the units, in bytes.
    units: Vec<usize>,
    /// Span and byte in it that come next.
    position: (usize, u64),
    /// What is there of the unit that comes next.
    current_unit: ChunkList,
    /// The span that the last call began with.
    request_start: usize,
    /// Bytes that it has not brought yet.
    outstanding_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct RequestedSpan {
    unit: usize,
    file: FileId,
    offset: u64,
    len: u64,
}

/// The peer sent what was not asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnexpectedData {
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

impl UnitAssembler {
    /// Of these units, in this order.
    pub(crate) fn new(plan: &Plan, units: &[u32]) -> Self {
        let spans = units
            .iter()
            .enumerate()
            .flat_map(|(place, &unit)| {
                plan.spans(unit).map(move |span| RequestedSpan {
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
            position: (0, 0),
            current_unit: ChunkList::default(),
            request_start: 0,
            outstanding_bytes: 0,
        }
    }

    /// The spans of the next call: what is still to come, at most so many bytes of it and at least one.
    pub(crate) fn next_spans(&mut self, max: u64) -> Vec<v1::Span> {
        let (first, done) = self.position;
        let mut space = max.max(1);
        let mut spans = Vec::new();
        for (place, requested) in self.spans[first..].iter().enumerate() {
            let skip = if place == 0 { done } else { 0 };
            let length = (requested.len - skip).min(space);
            spans.push(v1::Span {
                file_id: requested.file.to_bytes(),
                offset: requested.offset + skip,
                length,
            });
            space -= length;
            if space == 0 {
                break;
            }
        }
        (self.request_start, self.outstanding_bytes) = (first, spans.iter().map(|span| span.length).sum());
        spans
    }

    /// Bytes that the last call has not brought yet.
    pub(crate) const fn outstanding_bytes(&self) -> u64 {
        self.outstanding_bytes
    }

    /// Whether some of the unit that comes next is there.
    pub(crate) const fn has_partial_unit(&self) -> bool {
        self.current_unit.len() > 0
    }

    /// The unit, by its place in the call, that comes next; `None` once all is there.
    pub(crate) fn current(&self) -> Option<usize> {
        self.spans.get(self.position.0).map(|span| span.unit)
    }

    /// Takes what came. Gives the unit that it completes, by its place in the call, with its bytes.
    pub(crate) fn push(&mut self, part: ChunkSlice) -> Result<Option<(usize, ChunkList)>, UnexpectedData> {
        let len = part.data.len() as u64;
        if len == 0 {
            return Err(UnexpectedData::Empty);
        }
        let (index, done) = self.position;
        let span = *self.spans.get(index).ok_or(UnexpectedData::TooMuch)?;
        if self.request_start + part.span as usize != index || part.offset != span.offset + done {
            return Err(UnexpectedData::OutOfOrder);
        }
        let left = span.len - done;
        if len > left.min(self.outstanding_bytes) {
            return Err(UnexpectedData::TooMuch);
        }
        self.outstanding_bytes -= len;
        // At most a unit: the plan bounds it to the largest piece.
        let left_of_unit = self.units[span.unit].saturating_sub(self.current_unit.len());
        self.current_unit.push(part.data, left_of_unit);
        if len < left {
            self.position.1 += len;
            return Ok(None);
        }
        self.position = (index + 1, 0);
        match self.current() {
            Some(unit) if unit == span.unit => Ok(None),
            _ => Ok(Some((span.unit, std::mem::take(&mut self.current_unit)))),
        }
    }
}

/// Parts that may be held whatever their size, and bytes that there must be for each beyond them: each takes room besides its bytes, which
/// of a peer that sends a byte at a time would be most of the memory.
const FREE_SLICES: u64 = 256;
const MIN_SLICE: u64 = 1024;

/// A call under way. It is read ahead of what is taken from it, as far as was asked for: what waits at this end is not left lying at
/// the other, which would take it for read by nobody.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    stream: DownloadStream,
    /// Bytes still to be read.
    remaining: u64,
    buffer: ReceiveBuffer,
}

/// What was read and not yet taken.
#[derive(Debug, Default)]
struct ReceiveBuffer {
    slices: VecDeque<ChunkSlice>,
    bytes: u64,
}

impl ReceiveBuffer {
    fn has_room(&self) -> bool {
        self.slices.len() as u64 <= FREE_SLICES + self.bytes / MIN_SLICE
    }

    fn push(&mut self, part: ChunkSlice) {
        self.bytes += part.data.len() as u64;
        self.slices.push_back(part);
    }

    fn pop(&mut self) -> Option<ChunkSlice> {
        let part = self.slices.pop_front()?;
        self.bytes -= part.data.len() as u64;
        Some(part)
    }
}

/// Why nothing more can be read.
#[derive(Debug)]
pub(crate) enum StreamError {
    /// The peer sent what was not asked for.
    Unexpected(UnexpectedData),
    /// The stream ended before all was there.
    Truncated,
    /// It failed.
    Failed(Problem),
}

impl ReadAhead {
    /// The answer to a call for so many bytes.
    pub(crate) fn new(stream: DownloadStream, to_come: u64) -> Self {
        Self {
            stream,
            remaining: to_come,
            buffer: ReceiveBuffer::default(),
        }
    }

    /// Whether something is still to be read, and there is room for it.
    pub(crate) fn can_read(&self) -> bool {
        self.remaining > 0 && self.buffer.has_room()
    }

    /// Reads some more. Cancel-safe.
    ///
    /// # Errors
    /// Where nothing more can be read.
    pub(crate) async fn read(&mut self) -> Result<(), StreamError> {
        let part = match self.stream.next().await {
            Ok(Some(part)) => part,
            Ok(None) => return Err(StreamError::Truncated),
            Err(problem) => return Err(StreamError::Failed(problem)),
        };
        let len = part.data.len() as u64;
        if len == 0 {
            return Err(StreamError::Unexpected(UnexpectedData::Empty));
        }
        self.remaining = self
            .remaining
            .checked_sub(len)
            .ok_or(StreamError::Unexpected(UnexpectedData::TooMuch))?;
        self.buffer.push(part);
        Ok(())
    }

    /// The next that was read.
    pub(crate) fn pop(&mut self) -> Option<ChunkSlice> {
        self.buffer.pop()
    }

    /// Whether the peer ends the stream where it should, or says something after all. To be waited for only so long.
    pub(crate) async fn has_trailing_data(&mut self) -> bool {
        matches!(self.stream.next().await, Ok(Some(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 128 * 1024;

    fn assembly(units: &[u32]) -> UnitAssembler {
        UnitAssembler::new(&Plan::of_file(FileId([1; 32]), 3 * PIECE).unwrap(), units)
    }

    fn chunk(span: u32, offset: u64, len: u64) -> ChunkSlice {
        let data = vec![9; len as usize].into();
        ChunkSlice { span, offset, data }
    }

    #[test]
    fn crumbs_are_not_held_without_end() {
        let mut buffer = ReceiveBuffer::default();
        while buffer.has_room() {
            buffer.push(chunk(0, 0, 1));
        }
        assert!((FREE_SLICES..2 * FREE_SLICES).contains(&buffer.bytes));
        assert!(buffer.pop().is_some() && buffer.has_room());
        for _ in 0..10_000 {
            buffer.push(chunk(0, 0, 16 * MIN_SLICE));
            assert!(buffer.has_room(), "what is no crumb always has room");
        }
        while buffer.pop().is_some() {}
        assert_eq!(buffer.bytes, 0);
    }

    #[test]
    fn units_come_out_as_they_fill() {
        let mut assembly = assembly(&[2, 0]);
        assert_eq!(assembly.next_spans(u64::MAX).len(), 2);
        assert!(assembly.push(chunk(0, 2 * PIECE, 100)).unwrap().is_none());
        let rest = chunk(0, 2 * PIECE + 100, PIECE - 100);
        let (place, data) = assembly.push(rest).unwrap().unwrap();
        assert_eq!((place, data.len() as u64), (0, PIECE));
        assert_eq!(assembly.current(), Some(1));
        assert_eq!(assembly.push(chunk(1, 0, PIECE)).unwrap().unwrap().0, 1);
        assert_eq!(assembly.current(), None);
        assert_eq!(
            assembly.push(chunk(2, 0, 1)).unwrap_err(),
            UnexpectedData::TooMuch
        );
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        let refused = |part| {
            let mut assembly = assembly(&[0]);
            assembly.next_spans(u64::MAX);
            assembly.push(part).unwrap_err()
        };
        assert_eq!(refused(chunk(0, 0, PIECE + 1)), UnexpectedData::TooMuch);
        assert_eq!(refused(chunk(0, 1, 1)), UnexpectedData::OutOfOrder);
        assert_eq!(refused(chunk(1, 0, 1)), UnexpectedData::OutOfOrder);
        assert_eq!(refused(chunk(0, 0, 0)), UnexpectedData::Empty);
    }

    #[test]
    fn units_come_over_several_calls() {
        let mut assembly = assembly(&[2, 0]);
        let (mut spans, mut calls) = (Vec::new(), 0);
        while assembly.current().is_some() {
            assert_eq!(assembly.has_partial_unit(), calls > 0, "call {calls}");
            let requested = assembly.next_spans(PIECE / 4 + 1);
            assert!(requested.iter().map(|span| span.length).sum::<u64>() <= PIECE / 4 + 1);
            for (place, span) in requested.iter().enumerate() {
                let place = place as u32;
                let more = assembly.clone().push(chunk(place, span.offset, span.length + 1));
                // Not even what would be asked for next.
                assert_eq!(more.unwrap_err(), UnexpectedData::TooMuch);
                drop(assembly.push(chunk(place, span.offset, span.length)).unwrap());
            }
            assert_eq!(assembly.outstanding_bytes(), 0);
            spans.extend(requested);
            calls += 1;
        }
        assert_eq!(calls, 8);
        assert_eq!(spans.iter().map(|span| span.length).sum::<u64>(), 2 * PIECE);
        assert_eq!(spans[0].offset, 2 * PIECE);
    }
}
