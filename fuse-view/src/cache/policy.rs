//! Chunks or single blocks: much is read at once, unless that was seen to be thrown away unused.
//!
//! A listing of a huge directory meets inodes in the order of name hashes. Once the cache is full, reading a chunk for
//! each of them would move sixteen times the table and more.

use parking_lot::Mutex;

/// Accesses that are judged together.
const WINDOW: u32 = 1024;

/// What one source's accesses were like. The lock is held for a few additions.
#[derive(Default)]
pub(super) struct Policy(Mutex<Window>);

#[derive(Default)]
struct Window {
    accesses: u32,
    misses: u32,
    /// Accesses left for which single blocks are read.
    single: u32,
    /// How often in a row chunks did not pay.
    failures: u32,
}

impl Policy {
    /// Whether a miss should read a chunk.
    pub fn wants_chunks(&self) -> bool {
        self.0.lock().single == 0
    }

    /// Takes note of an access: whether its chunk was missing, and whether the cache was full.
    pub fn note(&self, miss: bool, full: bool) {
        let mut w = self.0.lock();
        if w.single > 0 {
            w.single -= 1;
            return;
        }
        w.accesses += 1;
        w.misses += u32::from(miss);
        if w.accesses < WINDOW {
            return;
        }
        if full && w.misses > w.accesses / 8 {
            w.failures = (w.failures + 1).min(8);
            w.single = (WINDOW * 8) << w.failures;
        } else {
            w.failures = 0;
        }
        (w.accesses, w.misses) = (0, 0);
    }
}
