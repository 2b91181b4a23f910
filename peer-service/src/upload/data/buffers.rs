//! A pool of buffers for chunks: reusing memory is cheaper than mapping it for each chunk.
//!
//! Invariant: the pool keeps at most [`MAX_IDLE`] idle buffers.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use potluck_core::{
    Problem,
    grpc::download_codec::{ChunkHeader, MAX_HEADER},
    read_buffer::ReadBuffer,
};

/// Maximum idle buffers: 2 MiB in total.
const MAX_IDLE: usize = 8;

/// Minimum size of a pooled buffer, in bytes; the allocator handles smaller ones well.
const MIN_POOLED: usize = 64 * 1024;

/// The idle buffers. Cheap to clone; all clones share the same pool.
#[derive(Clone, Default)]
pub(crate) struct BufferPool {
    idle: Arc<Mutex<Vec<ReadBuffer>>>,
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool").finish_non_exhaustive()
    }
}

impl BufferPool {
    fn idle(&self) -> MutexGuard<'_, Vec<ReadBuffer>> {
        self.idle.lock()
    }

    /// A buffer for `messages` messages with `data` bytes of data in total.
    pub(crate) fn take(&self, messages: usize, data: usize) -> MessageBuffer {
        let space = messages * MAX_HEADER + data;
        let mut idle = self.idle();
        // Reuse only a buffer of similar size, so that memory use stays close to the requested
        // size.
        let fits = idle
            .iter()
            .position(|buffer| (space..=2 * space).contains(&buffer.len()));
        let reused = fits.map(|at| idle.swap_remove(at));
        drop(idle);
        MessageBuffer {
            bytes: reused.unwrap_or_else(|| ReadBuffer::new(space)),
            filled: 0,
            pool: self.clone(),
        }
    }
}

/// A buffer of encoded messages, in sending order.
#[derive(Debug)]
pub(crate) struct MessageBuffer {
    bytes: ReadBuffer,
    filled: usize,
    pool: BufferPool,
}

impl MessageBuffer {
    /// Appends a message; `read` fills in its data.
    ///
    /// # Errors
    /// The error of `read`; then nothing is appended.
    pub(crate) fn push_message(
        &mut self,
        header: &ChunkHeader,
        data: usize,
        read: impl FnOnce(&mut [u8]) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let header = header.as_bytes();
        let space = &mut self.bytes[self.filled..self.filled + header.len() + data];
        let (front, bytes) = space.split_at_mut(header.len());
        read(bytes)?;
        front.copy_from_slice(header);
        self.filled += header.len() + data;
        Ok(())
    }

    /// The messages as [`Bytes`]. The buffer returns to the pool when they are dropped.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for MessageBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for MessageBuffer {
    fn drop(&mut self) {
        if self.bytes.len() < MIN_POOLED {
            return;
        }
        let mut idle = self.pool.idle();
        if idle.len() < MAX_IDLE {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_reused_empty_once_its_messages_are_dropped() {
        let buffers = BufferPool::default();
        let data = 128 * 1024;
        let mut buffer = buffers.take(1, data);
        let header = ChunkHeader::new(1, 2, data as u32);
        buffer
            .push_message(&header, data, |bytes| {
                bytes.fill(7);
                Ok(())
            })
            .unwrap();
        let sent = buffer.freeze();
        assert_eq!(sent.len(), header.as_bytes().len() + data);
        assert!(sent.ends_with(&[7; 1000]));
        let address = sent.as_ptr();
        let half = sent.slice(1..);
        drop(sent);
        assert!(buffers.idle().is_empty(), "still in use");
        drop(half);
        let again = buffers.take(1, data - 100).freeze();
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
    }

    #[test]
    fn the_pool_keeps_few_buffers_and_reuses_only_those_of_similar_size() {
        let buffers = BufferPool::default();
        let many: Vec<_> = (0..2 * MAX_IDLE).map(|_| buffers.take(1, 1 << 20)).collect();
        drop(many);
        drop(buffers.take(1, 100));
        assert_eq!(buffers.idle().len(), MAX_IDLE);
        assert_eq!(buffers.take(1, 1 << 17).bytes.len(), MAX_HEADER + (1 << 17));
    }
}
