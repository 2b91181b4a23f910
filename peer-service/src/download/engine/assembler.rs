//! Assembles the units of one peer from the chunks of one or more `Download` calls. Unexpected data
//! ends the call.
//!
//! Invariant: the assembler holds at most the requested units, each bounded by its length in the
//! plan. Data beyond the last request is refused before it is stored.

use std::collections::VecDeque;

use potluck_core::{FileId, Problem, collection::plan::Plan, grpc::download_codec::ChunkSlice};

use crate::{
    content::FileRange,
    download::{engine::chunk_list::ChunkList, peers::rpc::download_stream::DownloadStream},
};

/// Tracks which byte of which span must come next, and assembles the units.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct UnitAssembler {
    /// The requested spans, in order.
    spans: Vec<RequestedSpan>,
    /// Lengths of the units, in bytes.
    units: Vec<usize>,
    /// Index of the next span, and the number of its bytes already received.
    position: (usize, u64),
    /// The bytes received of the next unit.
    current_unit: ChunkList,
    /// Index of the first span of the last call.
    request_start: usize,
    /// Bytes of the last call that have not arrived.
    outstanding_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct RequestedSpan {
    unit: usize,
    file: FileId,
    offset: u64,
    len: u64,
}

/// The peer sent data that was not requested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnexpectedData {
    /// More bytes than requested.
    #[error("it sent more data than was requested")]
    TooMuch,
    /// Bytes other than the next ones.
    #[error("it sent bytes out of order")]
    OutOfOrder,
    /// A chunk without bytes; a peer could send such chunks forever.
    #[error("it sent an empty chunk")]
    Empty,
}

impl UnitAssembler {
    /// Assembles these units, in this order.
    pub(crate) fn new(plan: &Plan, units: &[u32]) -> Self {
        let spans = units
            .iter()
            .enumerate()
            .flat_map(|(index, &unit)| {
                plan.spans(unit).map(move |span| RequestedSpan {
                    unit: index,
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

    /// The ranges to request with the next call: the missing data, limited to `max` bytes but at
    /// least one byte.
    pub(crate) fn next_ranges(&mut self, max: u64) -> Vec<FileRange> {
        let (first, done) = self.position;
        let mut left = max.max(1);
        let mut ranges = Vec::new();
        for (index, span) in self.spans[first..].iter().enumerate() {
            let skip = if index == 0 { done } else { 0 };
            let start = span.offset + skip;
            let len = (span.len - skip).min(left);
            ranges.push(FileRange {
                id: span.file,
                range: start..start + len,
            });
            left -= len;
            if left == 0 {
                break;
            }
        }
        (self.request_start, self.outstanding_bytes) =
            (first, ranges.iter().map(FileRange::len).sum());
        ranges
    }

    /// Bytes of the last call that have not arrived.
    pub(crate) const fn outstanding_bytes(&self) -> u64 {
        self.outstanding_bytes
    }

    /// Whether a part of the next unit has arrived.
    pub(crate) const fn has_partial_unit(&self) -> bool {
        self.current_unit.len() > 0
    }

    /// The next unit, by its position in the call; `None` if all units are complete.
    pub(crate) fn current(&self) -> Option<usize> {
        self.spans.get(self.position.0).map(|span| span.unit)
    }

    /// Takes a chunk. Returns the unit that it completes, by its position in the call, with its
    /// bytes.
    ///
    /// # Errors
    /// If the chunk is empty, out of order or too long.
    pub(crate) fn push(
        &mut self,
        chunk: ChunkSlice,
    ) -> Result<Option<(usize, ChunkList)>, UnexpectedData> {
        let len = chunk.data.len() as u64;
        if len == 0 {
            return Err(UnexpectedData::Empty);
        }
        let (index, done) = self.position;
        let span = *self.spans.get(index).ok_or(UnexpectedData::TooMuch)?;
        if self.request_start + chunk.span as usize != index || chunk.offset != span.offset + done {
            return Err(UnexpectedData::OutOfOrder);
        }
        let left = span.len - done;
        if len > left.min(self.outstanding_bytes) {
            return Err(UnexpectedData::TooMuch);
        }
        self.outstanding_bytes -= len;
        // At most one unit; the plan bounds a unit to the largest piece size.
        let left_of_unit = self.units[span.unit].saturating_sub(self.current_unit.len());
        self.current_unit.push(chunk.data, left_of_unit);
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

/// Chunks that may be buffered regardless of size, and the average bytes required for each further
/// chunk. The overhead per chunk would otherwise dominate memory if a peer sends single bytes.
const FREE_CHUNKS: u64 = 256;
const MIN_AVERAGE_CHUNK: u64 = 1024;

/// A running call that reads ahead of the assembler, up to the requested bytes. Otherwise data
/// would stay in the sender's buffers, and the sender would take this peer for a stalled reader.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    stream: DownloadStream,
    /// Bytes not yet read.
    remaining: u64,
    buffer: ReceiveBuffer,
    /// Why the stream ended. What arrived before is taken first.
    end: Option<StreamError>,
}

/// Chunks that were read and not yet taken.
#[derive(Debug, Default)]
struct ReceiveBuffer {
    chunks: VecDeque<ChunkSlice>,
    bytes: u64,
}

impl ReceiveBuffer {
    fn has_room(&self) -> bool {
        self.chunks.len() as u64 <= FREE_CHUNKS + self.bytes / MIN_AVERAGE_CHUNK
    }

    fn push(&mut self, chunk: ChunkSlice) {
        self.bytes += chunk.data.len() as u64;
        self.chunks.push_back(chunk);
    }

    fn pop(&mut self) -> Option<ChunkSlice> {
        let chunk = self.chunks.pop_front()?;
        self.bytes -= chunk.data.len() as u64;
        Some(chunk)
    }
}

/// The reason why the stream cannot be read further.
#[derive(Debug)]
pub(crate) enum StreamError {
    /// The peer sent data that was not requested.
    Unexpected(UnexpectedData),
    /// The stream ended before all requested data arrived.
    Truncated,
    /// The call failed.
    Failed(Problem),
}

impl ReadAhead {
    /// Reads the response to a call for `remaining` bytes.
    pub(crate) fn new(stream: DownloadStream, remaining: u64) -> Self {
        Self {
            stream,
            remaining,
            buffer: ReceiveBuffer::default(),
            end: None,
        }
    }

    /// Whether data is missing and the buffer has room for it.
    pub(crate) fn can_read(&self) -> bool {
        self.remaining > 0 && self.buffer.has_room() && self.end.is_none()
    }

    /// Reads one chunk into the buffer. If the stream ends or fails instead, [`Self::pop`] says so
    /// once the buffer is empty. Cancel-safe.
    pub(crate) async fn read(&mut self) {
        let read = match self.stream.next().await {
            Ok(Some(chunk)) => self.buffer_chunk(chunk),
            Ok(None) => Err(StreamError::Truncated),
            Err(problem) => Err(StreamError::Failed(problem)),
        };
        self.end = read.err();
    }

    fn buffer_chunk(&mut self, chunk: ChunkSlice) -> Result<(), StreamError> {
        let len = chunk.data.len() as u64;
        if len == 0 {
            return Err(StreamError::Unexpected(UnexpectedData::Empty));
        }
        self.remaining = self
            .remaining
            .checked_sub(len)
            .ok_or(StreamError::Unexpected(UnexpectedData::TooMuch))?;
        self.buffer.push(chunk);
        Ok(())
    }

    /// Takes the next buffered chunk, if there is one.
    ///
    /// # Errors
    /// After the last chunk, if the stream ended early, failed, or carried unexpected data.
    pub(crate) fn pop(&mut self) -> Result<Option<ChunkSlice>, StreamError> {
        match self.buffer.pop() {
            None => self.end.take().map_or(Ok(None), Err),
            chunk => Ok(chunk),
        }
    }

    /// Waits for the end of the stream; true if the peer sends more data. The caller limits the
    /// wait.
    pub(crate) async fn has_trailing_data(&mut self) -> bool {
        matches!(self.stream.next().await, Ok(Some(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 128 * 1024;

    fn assembler(units: &[u32]) -> UnitAssembler {
        UnitAssembler::new(&Plan::of_file(FileId([1; 32]), 3 * PIECE).unwrap(), units)
    }

    fn chunk(span: u32, offset: u64, len: u64) -> ChunkSlice {
        let data = vec![9; len as usize].into();
        ChunkSlice { span, offset, data }
    }

    #[test]
    fn small_chunks_are_not_buffered_without_bound() {
        let mut buffer = ReceiveBuffer::default();
        while buffer.has_room() {
            buffer.push(chunk(0, 0, 1));
        }
        assert!((FREE_CHUNKS..2 * FREE_CHUNKS).contains(&buffer.bytes));
        assert!(buffer.pop().is_some() && buffer.has_room());
        for _ in 0..10_000 {
            buffer.push(chunk(0, 0, 16 * MIN_AVERAGE_CHUNK));
            assert!(buffer.has_room(), "large chunks always have room");
        }
        while buffer.pop().is_some() {}
        assert_eq!(buffer.bytes, 0);
    }

    #[test]
    fn units_are_returned_as_they_become_complete() {
        let mut assembler = assembler(&[2, 0]);
        assert_eq!(assembler.next_ranges(u64::MAX).len(), 2);
        assert!(assembler.push(chunk(0, 2 * PIECE, 100)).unwrap().is_none());
        let rest = chunk(0, 2 * PIECE + 100, PIECE - 100);
        let (index, data) = assembler.push(rest).unwrap().unwrap();
        assert_eq!((index, data.len() as u64), (0, PIECE));
        assert_eq!(assembler.current(), Some(1));
        assert_eq!(assembler.push(chunk(1, 0, PIECE)).unwrap().unwrap().0, 1);
        assert_eq!(assembler.current(), None);
        assert_eq!(
            assembler.push(chunk(2, 0, 1)).unwrap_err(),
            UnexpectedData::TooMuch
        );
    }

    #[test]
    fn data_that_was_not_requested_is_refused() {
        let refused = |chunk| {
            let mut assembler = assembler(&[0]);
            assembler.next_ranges(u64::MAX);
            assembler.push(chunk).unwrap_err()
        };
        assert_eq!(refused(chunk(0, 0, PIECE + 1)), UnexpectedData::TooMuch);
        assert_eq!(refused(chunk(0, 1, 1)), UnexpectedData::OutOfOrder);
        assert_eq!(refused(chunk(1, 0, 1)), UnexpectedData::OutOfOrder);
        assert_eq!(refused(chunk(0, 0, 0)), UnexpectedData::Empty);
    }

    #[test]
    fn units_arrive_over_several_calls() {
        let mut assembler = assembler(&[2, 0]);
        let (mut ranges, mut calls) = (Vec::new(), 0);
        while assembler.current().is_some() {
            assert_eq!(assembler.has_partial_unit(), calls > 0, "call {calls}");
            let requested = assembler.next_ranges(PIECE / 4 + 1);
            assert!(requested.iter().map(FileRange::len).sum::<u64>() <= PIECE / 4 + 1);
            for (index, requested) in requested.iter().enumerate() {
                let (index, start, len) = (index as u32, requested.range.start, requested.len());
                let more = assembler.clone().push(chunk(index, start, len + 1));
                // Even data that the next call would request is refused.
                assert_eq!(more.unwrap_err(), UnexpectedData::TooMuch);
                drop(assembler.push(chunk(index, start, len)).unwrap());
            }
            assert_eq!(assembler.outstanding_bytes(), 0);
            ranges.extend(requested);
            calls += 1;
        }
        assert_eq!(calls, 8);
        assert_eq!(ranges.iter().map(FileRange::len).sum::<u64>(), 2 * PIECE);
        assert_eq!(ranges[0].range.start, 2 * PIECE);
    }
}
