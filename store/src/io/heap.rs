//! The memory allocator, where its defaults do not fit a server of devices.
#![allow(unsafe_code)] // glibc's mallopt(3) and malloc_trim(3)

use std::hint::black_box;

/// Memory that is there before it is needed: what the mappings of gigabytes take that are written in order.
const RESERVE: usize = 4 << 20;
/// Pieces it is taken in: small enough to be of the heap, large enough to go back to its end at once.
const PIECE: usize = 64 << 10;

/// Keeps 4 MiB of memory in hand, for all threads together. A thread that serves a device and touches a page for the
/// first time waits for memory, and that may become free only when its own requests are done (H3).
///
/// To be called before the first other thread is started, and before memory is locked. Where the C library is not
/// glibc it does nothing.
pub fn keep_reserve() {
    #[cfg(target_env = "gnu")]
    {
        let reserve = libc::c_int::try_from(RESERVE).expect("a small number");
        // SAFETY: numbers only.
        unsafe {
            // One heap, whose end is the reserve of all, and which keeps it when it shrinks.
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_TOP_PAD, reserve);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * reserve);
        }
        let pieces: Vec<Vec<u8>> = (0..RESERVE / PIECE).map(|_| vec![1; PIECE]).collect();
        drop(black_box(pieces));
    }
}

/// Gives memory that was freed here and there back to the system, but for the reserve, as far as the allocator does
/// not do so by itself: glibc's does at the end of its heaps only.
pub fn release_freed() {
    // SAFETY: a number; it locks what it works on.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(RESERVE);
    }
}
