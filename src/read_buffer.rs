//! A buffer for reading files, aligned for fast copies from the page cache.

use std::ops::{Deref, DerefMut};

/// Page size in bytes.
const PAGE: usize = 4096;

/// Offset in a page at which the buffer starts: half a page away from the page-aligned source.
/// AMD's Zen 3 copies at a quarter of its speed if the target starts 1 to 31 bytes further into
/// its page than the source (docs/performance.md), and the allocator's large blocks start 16 bytes
/// into theirs.
const PAGE_OFFSET: usize = PAGE / 2;

/// Minimum size in bytes of an aligned buffer; for smaller ones an extra page would cost too much.
const MIN_ALIGNED: usize = 16 * 1024;

/// A zeroed buffer that the kernel fills quickly with whole pages of a file.
#[derive(Debug, Default)]
pub struct ReadBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl ReadBuffer {
    /// A buffer of `len` zero bytes.
    pub fn new(len: usize) -> Self {
        if len < MIN_ALIGNED {
            let memory = vec![0; len];
            return Self {
                memory,
                start: 0,
                len,
            };
        }
        let memory = vec![0; len + PAGE];
        let into_page = memory.as_ptr().addr() % PAGE;
        Self {
            start: (PAGE_OFFSET + PAGE - into_page) % PAGE,
            memory,
            len,
        }
    }
}

impl Deref for ReadBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for ReadBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for ReadBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_its_length_and_starts_in_the_middle_of_a_page() {
        for len in [0, 1, 4096, MIN_ALIGNED - 1, MIN_ALIGNED, 100_000, 1 << 20] {
            let mut buffer = ReadBuffer::new(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|byte| *byte == 0));
            if len >= MIN_ALIGNED {
                assert_eq!(buffer.as_ptr().addr() % PAGE, PAGE_OFFSET);
            }
            buffer.fill(7);
            let moved = Box::new(buffer);
            assert!(moved.iter().all(|byte| *byte == 7));
            assert_eq!(moved.len(), len);
        }
        assert!(ReadBuffer::default().is_empty());
    }
}
