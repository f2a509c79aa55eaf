//! A source that remembers what was read of it.
//!
//! A file is looked up in a snapshot through a [`Memo`]; the blocks which that took are what the answer depends on.
//! The next snapshot's memo starts with those that it shares, so that looking up again reads what changed only.
//!
//! Invariants: every byte that a reader got came from a block in `touched` or a range in `bypassed`; a block here
//! holds what the snapshot holds.

use crate::{BlockRead, Result};
use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Reads above this are content, and not kept.
const MAX_KEPT_BYTES: usize = 64 * 1024;

#[derive(Clone, Default)]
struct State {
    blocks: HashMap<u64, Arc<[u8]>>,
    touched: BTreeSet<u64>,
    bypassed: Vec<Range<u64>>,
}

/// See the module.
pub struct Memo {
    inner: Arc<dyn BlockRead>,
    state: Mutex<State>,
    content: AtomicBool,
}

impl Memo {
    /// Remembers nothing yet of `inner`.
    pub fn new(inner: Arc<dyn BlockRead>) -> Self {
        Self { inner, state: Mutex::default(), content: AtomicBool::new(false) }
    }

    /// The memo of a later snapshot, `inner`, which holds the same but for `changed`: offsets and bytes of blocks.
    pub fn advance(&self, inner: Arc<dyn BlockRead>, changed: Vec<(u64, Vec<u8>)>) -> Self {
        let mut blocks = {
            let state = self.state.lock();
            // What the last look-up did not need is not compared any more, and may have changed.
            let kept = state.touched.iter().filter_map(|at| Some((*at, state.blocks.get(at)?.clone())));
            kept.collect::<HashMap<_, _>>()
        };
        for (at, bytes) in changed {
            blocks.insert(at, bytes.into());
        }
        let state = State { blocks, ..State::default() };
        Self { inner, state: Mutex::new(state), content: AtomicBool::new(false) }
    }

    /// While set, blocks that are not here yet are read without being kept: they are content.
    pub fn content(&self, on: bool) {
        self.content.store(on, Ordering::Relaxed);
    }

    /// The blocks that were needed, as ranges.
    pub fn touched(&self) -> Vec<Range<u64>> {
        joined(self.state.lock().touched.iter().map(|&at| at..at + BLOCK))
    }

    /// The ranges that were read without being kept.
    pub fn bypassed(&self) -> Vec<Range<u64>> {
        let mut all = self.state.lock().bypassed.clone();
        all.sort_by_key(|range| range.start);
        joined(all.into_iter())
    }

    fn block(&self, at: u64) -> Result<Arc<[u8]>> {
        {
            let mut state = self.state.lock();
            if let Some(block) = state.blocks.get(&at).cloned() {
                state.touched.insert(at);
                return Ok(block);
            }
        }
        let len = BLOCK.min(self.inner.len() - at);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.inner.read_at(at, &mut bytes)?;
        let block: Arc<[u8]> = bytes.into();
        self.keep(at, &block);
        Ok(block)
    }

    fn keep(&self, at: u64, block: &Arc<[u8]>) {
        let mut state = self.state.lock();
        state.touched.insert(at);
        state.blocks.insert(at, block.clone());
    }

    /// Reads the blocks of a range that are not here in one go.
    fn fill(&self, blocks: Range<u64>) -> Result<()> {
        let missing = {
            let state = self.state.lock();
            let mut missing =
                (blocks.start..blocks.end).filter(|block| !state.blocks.contains_key(&(block * BLOCK)));
            missing.next().map(|first| first..missing.next_back().unwrap_or(first) + 1)
        };
        let Some(missing) = missing.filter(|missing| missing.end - missing.start > 1) else { return Ok(()) };
        let (from, to) = (missing.start * BLOCK, (missing.end * BLOCK).min(self.inner.len()));
        let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(0)];
        self.inner.read_at(from, &mut bytes)?;
        for (block, piece) in missing.zip(bytes.chunks(4096)) {
            self.keep(block * BLOCK, &piece.into());
        }
        Ok(())
    }
}

/// Ascending ranges with those that touch joined.
pub(crate) fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges.filter(|range| range.start < range.end) {
        match all.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

impl BlockRead for Memo {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        if end > self.inner.len() {
            return self.inner.read_at(offset, buf);
        }
        let blocks = offset / BLOCK..end.div_ceil(BLOCK);
        let content = self.content.load(Ordering::Relaxed);
        let known = |state: &State| blocks.clone().all(|block| state.blocks.contains_key(&(block * BLOCK)));
        if buf.len() > MAX_KEPT_BYTES || (content && !known(&self.state.lock())) {
            self.state.lock().bypassed.push(offset..end);
            return self.inner.read_at(offset, buf);
        }
        self.fill(blocks)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let block = self.block(at / BLOCK * BLOCK)?;
            let from = usize::try_from(at % BLOCK).unwrap_or(0);
            let count = block.len().saturating_sub(from).min(buf.len() - done);
            buf[done..done + count].copy_from_slice(&block[from..from + count]);
            done += count;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn has_identities(&self) -> bool {
        self.inner.has_identities()
    }

    fn identity(&self, offset: u64) -> Option<(u64, u64)> {
        self.inner.identity(offset)
    }
}
