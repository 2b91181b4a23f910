//! What chunks are read into and sent from: the same memory again and again, as mapping it anew costs more than reading.
//!
//! Invariant: at most [`MAX_IDLE`] buffers are kept beyond those on their way.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use potluck_core::{
    Problem,
    grpc::download_codec::{ChunkHeader, MAX_HEADER},
    read_buffer::ReadBuffer,
};

/// Buffers kept for the next chunk: 2 MiB.
const MAX_IDLE: usize = 8;

/// The smallest that are kept, in bytes: the allocator has no trouble with smaller ones.
const MIN_KEPT: usize = 64 * 1024;

/// Buffers that are not in use. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(crate) struct BufferPool {
    idle: Arc<Mutex<Vec<ReadBuffer>>>,
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers").finish_non_exhaustive()
    }
}

impl BufferPool {
    fn idle(&self) -> MutexGuard<'_, Vec<ReadBuffer>> {
        self.idle.lock()
    }

    /// A buffer with room for so many messages with so many bytes of data in all.
    pub(crate) fn take(&self, messages: usize, data: usize) -> MessageBuffer {
        let space = messages * MAX_HEADER + data;
        let mut idle = self.idle();
        // One of about that size, so that what is held stays what was asked for.
        let fits = idle
            .iter()
            .position(|buffer| (space..=2 * space).contains(&buffer.len()));
        let kept = fits.map(|at| idle.swap_remove(at));
        drop(idle);
        MessageBuffer {
            bytes: kept.unwrap_or_else(|| ReadBuffer::new(space)),
            filled: 0,
            pool: self.clone(),
        }
    }
}

/// Messages, one after the other as they go out.
#[derive(Debug)]
pub(crate) struct MessageBuffer {
    bytes: ReadBuffer,
    filled: usize,
    pool: BufferPool,
}

impl MessageBuffer {
    /// Adds a message whose bytes `read` fills in.
    ///
    /// # Errors
    /// What `read` says; then nothing was added.
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

    /// What was added, to be sent; once that is dropped, the buffer is used again.
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
        if self.bytes.len() < MIN_KEPT {
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
    fn a_buffer_is_used_again_with_nothing_left_in_it() {
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
        let place = sent.as_ptr();
        let half = sent.slice(1..);
        drop(sent);
        assert!(buffers.idle().is_empty(), "still in use");
        drop(half);
        let again = buffers.take(1, data - 100).freeze();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
    }

    #[test]
    fn no_more_are_kept_than_it_says_and_none_that_are_much_too_large() {
        let buffers = BufferPool::default();
        let many: Vec<_> = (0..2 * MAX_IDLE).map(|_| buffers.take(1, 1 << 20)).collect();
        drop(many);
        drop(buffers.take(1, 100));
        assert_eq!(buffers.idle().len(), MAX_IDLE);
        assert_eq!(buffers.take(1, 1 << 17).bytes.len(), MAX_HEADER + (1 << 17));
    }
}
