//! Metadata in memory: pieces of the image, bounded by bytes.
//!
//! Invariants: what is here was read from the image and passed the check of its kind; the bytes of all pieces plus
//! their bookkeeping stay within [`BUDGET_BYTES`]; no lock is held over I/O. Eviction is second chance.

use crate::{BlockRead, Result};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Bytes that one open file system may keep.
pub(super) const BUDGET_BYTES: usize = 32 << 20;
/// Bytes read at once where what follows is likely wanted next.
pub(super) const READAHEAD_BYTES: usize = 64 << 10;
/// What a piece costs besides its bytes.
const OVERHEAD_BYTES: usize = 160;

/// What a piece is, so that a block checked as one thing is never taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Group descriptors, indirect blocks, xattr blocks.
    Block,
    /// Several blocks of an inode table.
    InodeRun,
    /// One block of an inode table.
    InodeBlock,
    /// Several blocks of a directory.
    DirRun,
    /// One block of a directory.
    DirBlock,
    /// A node of an extent tree, verified.
    ExtentNode,
}

/// A piece, shared with whoever still reads it.
pub(super) type Piece = Arc<Box<[u8]>>;

type Key = (Kind, u64);

struct Slot {
    piece: Piece,
    used: bool,
}

#[derive(Default)]
struct State {
    slots: HashMap<Key, Slot>,
    clock: VecDeque<Key>,
    bytes: usize,
}

/// The pieces of one image.
pub(super) struct Cache {
    dev: Arc<dyn BlockRead>,
    state: Mutex<State>,
}

impl Cache {
    pub fn new(dev: Arc<dyn BlockRead>) -> Self {
        Self { dev, state: Mutex::default() }
    }

    /// What is kept of `kind` at byte `at`, if it is at least `len` bytes.
    pub fn peek(&self, kind: Kind, at: u64, len: usize) -> Option<Piece> {
        let mut state = self.state.lock();
        let slot = state.slots.get_mut(&(kind, at)).filter(|slot| slot.piece.len() >= len)?;
        slot.used = true;
        Some(slot.piece.clone())
    }

    /// At least `len` bytes at byte `at`: kept ones, or read, passed to `check` and kept.
    pub fn get(
        &self,
        kind: Kind,
        at: u64,
        len: usize,
        check: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<Piece> {
        if let Some(piece) = self.peek(kind, at, len) {
            return Ok(piece);
        }
        let mut bytes = vec![0; len].into_boxed_slice();
        self.dev.read_at(at, &mut bytes)?;
        check(&bytes)?;
        let piece = Arc::new(bytes);
        self.state.lock().keep((kind, at), piece.clone());
        Ok(piece)
    }

    /// Whether new pieces drive out old ones.
    pub fn is_full(&self) -> bool {
        self.state.lock().bytes > BUDGET_BYTES / 4 * 3
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.state.lock().bytes
    }
}

impl State {
    fn keep(&mut self, key: Key, piece: Piece) {
        self.bytes += piece.len() + OVERHEAD_BYTES;
        match self.slots.insert(key, Slot { piece, used: false }) {
            Some(old) => self.bytes -= old.piece.len() + OVERHEAD_BYTES,
            None => self.clock.push_back(key),
        }
        while self.bytes > BUDGET_BYTES {
            let Some(oldest) = self.clock.pop_front() else { break };
            match self.slots.get_mut(&oldest) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    self.clock.push_back(oldest);
                }
                Some(slot) => {
                    self.bytes -= slot.piece.len() + OVERHEAD_BYTES;
                    self.slots.remove(&oldest);
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl BlockRead for Counting {
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            buf.fill(u8::try_from(offset >> 16 & 0xFF).unwrap());
            Ok(())
        }
        fn len(&self) -> u64 {
            1 << 40
        }
    }

    #[test]
    fn bounded_and_keeps_what_is_used() {
        let dev = Arc::new(Counting::default());
        let cache = Cache::new(dev.clone());
        for i in 0..2000u64 {
            let piece = cache.get(Kind::Block, i << 16, READAHEAD_BYTES, |_| Ok(())).unwrap();
            assert_eq!(u64::from(piece[0]), i & 0xFF);
            cache.get(Kind::Block, 0, READAHEAD_BYTES, |_| Ok(())).unwrap();
            assert!(cache.bytes() <= BUDGET_BYTES);
        }
        assert_eq!(dev.0.load(Ordering::Relaxed), 2000, "the piece used all the time was read once");
        assert!(cache.is_full());
    }

    #[test]
    fn what_fails_its_check_is_not_kept() {
        let cache = Cache::new(Arc::new(Counting::default()));
        cache.get(Kind::Block, 0, 512, |_| Err(Error::Corrupt("no".into()))).unwrap_err();
        assert!(cache.peek(Kind::Block, 0, 1).is_none());
        cache.get(Kind::Block, 0, 512, |_| Ok(())).unwrap();
        assert!(cache.peek(Kind::Block, 0, 512).is_some());
        assert!(cache.peek(Kind::Block, 0, 513).is_none(), "too short a piece is not an answer");
        assert!(cache.peek(Kind::InodeRun, 0, 1).is_none());
    }
}
