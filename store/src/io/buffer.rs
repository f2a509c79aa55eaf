//! Page-aligned buffers, as direct I/O wants them.
#![allow(unsafe_code)] // aligned allocation, the page type's bytes

use crate::types::BLOCK;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; BLOCK]);

/// A buffer whose address and capacity are multiples of 4096.
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
}

/// Buffers kept for reuse by a thread; larger and further ones are given back to the allocator.
const POOLED: usize = 8;

thread_local! {
    static POOL: RefCell<Vec<Vec<Page>>> = const { RefCell::new(Vec::new()) };
}

impl AlignedBuf {
    /// A buffer of `len` bytes with arbitrary content from an earlier use, or zeros. Reuses this thread's
    /// buffers, so that the data path does not allocate in the steady state.
    pub fn reused(len: usize) -> Self {
        let mut pages = POOL.with_borrow_mut(Vec::pop).unwrap_or_default();
        pages.resize(len.div_ceil(BLOCK), Page([0; BLOCK]));
        Self { pages, len }
    }

    /// A buffer of `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::reused(len);
        buf.fill(0);
        buf
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        if pages.capacity() <= 256 {
            // A thread that is ending has no pool any more.
            let _ = POOL.try_with(|pool| {
                let mut pool = pool.borrow_mut();
                if pool.len() < POOLED {
                    pool.push(pages);
                }
            });
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `pages` holds at least `len` initialised bytes, contiguous, and u8 has no alignment.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.len) }
    }
}

/// Whether direct I/O can use this memory as it is.
pub fn is_aligned(buf: &[u8]) -> bool {
    buf.as_ptr().addr().is_multiple_of(512)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of any length, also after longer and shorter ones whose memory it gets.
    #[test]
    fn a_buffer_holds_what_was_put_into_it() {
        for (len, byte) in [(1, 1), (4096, 2), (12_289, 3), (512, 4), (0, 5), (8192, 6)] {
            let mut buf = AlignedBuf::reused(len);
            assert!(is_aligned(&buf) && buf.as_ptr().addr().is_multiple_of(BLOCK));
            assert_eq!(buf.len(), len);
            buf.fill(byte);
            assert!(buf.iter().all(|b| *b == byte));
        }
        assert!(AlignedBuf::zeroed(12_289).iter().all(|b| *b == 0), "what was left in it is gone");
    }
}
