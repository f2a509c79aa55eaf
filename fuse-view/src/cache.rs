//! A cache of blocks with one byte budget for all sources of a process.
//!
//! Invariants: a cached chunk never changes (its source does not); no lock is held over I/O (readers of one
//! missing chunk wait for the first of them, readers of other chunks do not); reads of a chunk or more go
//! straight to the source, so that the content of files does not push metadata out.

use crate::{BlockRead, Result};
use quick_cache::{Weighter, sync::Cache};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Bytes of a chunk, the unit of caching. Aligned to its own size.
pub const CHUNK_BYTES: u64 = 64 * 1024;
/// Chunks read at once when misses follow each other.
const READ_AHEAD_CHUNKS: u64 = 4;

/// `(source, index of the chunk)`
type Key = (u64, u64);

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Arc<[u8]>> for ByBytes {
    fn weight(&self, _key: &Key, chunk: &Arc<[u8]>) -> u64 {
        chunk.len() as u64
    }
}

/// The memory that any number of [`CachedBlocks`] share. Clones share the budget.
#[derive(Clone)]
pub struct CacheBudget {
    chunks: Arc<Cache<Key, Arc<[u8]>, ByBytes>>,
    next_source: Arc<AtomicU64>,
}

impl CacheBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let items = usize::try_from(bytes / CHUNK_BYTES).unwrap_or(usize::MAX).max(16);
        Self {
            chunks: Arc::new(Cache::with_weighter(items, bytes, ByBytes)),
            next_source: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Bytes cached now.
    pub fn used_bytes(&self) -> u64 {
        self.chunks.weight()
    }
}

/// A source whose small reads are cached.
pub struct CachedBlocks {
    inner: Arc<dyn BlockRead>,
    budget: CacheBudget,
    source: u64,
    /// The chunk after the last one read, where a reader that goes forward misses next.
    expected_miss: AtomicU64,
}

impl CachedBlocks {
    /// Caches `inner` within `budget`.
    pub fn new(inner: Arc<dyn BlockRead>, budget: &CacheBudget) -> Self {
        let source = budget.next_source.fetch_add(1, Ordering::Relaxed);
        Self { inner, budget: budget.clone(), source, expected_miss: AtomicU64::new(u64::MAX) }
    }

    fn chunk(&self, index: u64) -> Result<Arc<[u8]>> {
        self.budget.chunks.get_or_insert_with(&(self.source, index), || self.load(index))
    }

    /// Reads chunk `index`, and the following ones too when the misses come in order.
    fn load(&self, index: u64) -> Result<Arc<[u8]>> {
        let in_order = self.expected_miss.load(Ordering::Relaxed) == index;
        let count = if in_order { READ_AHEAD_CHUNKS } else { 1 };
        self.expected_miss.store(index + count, Ordering::Relaxed);
        let start = index * CHUNK_BYTES;
        let len = (count * CHUNK_BYTES).min(self.inner.len() - start);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        if let Err(error) = self.inner.read_at(start, &mut bytes) {
            if count == 1 {
                return Err(error);
            }
            // What lies ahead may be unreadable; nobody asked for it yet.
            self.expected_miss.store(u64::MAX, Ordering::Relaxed);
            return self.load(index);
        }
        #[allow(clippy::cast_possible_truncation)] // 64 KiB
        let mut chunks = bytes.chunks(CHUNK_BYTES as usize);
        let first = chunks.next().unwrap_or_default().into();
        for (ahead, chunk) in (index + 1..).zip(chunks) {
            self.budget.chunks.insert((self.source, ahead), chunk.into());
        }
        Ok(first)
    }
}

impl BlockRead for CachedBlocks {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        if buf.len() as u64 >= CHUNK_BYTES || end > self.inner.len() {
            return self.inner.read_at(offset, buf);
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let chunk = self.chunk(at / CHUNK_BYTES)?;
            // Below CHUNK_BYTES, and chunks end where the source does, which `end` respects.
            #[allow(clippy::cast_possible_truncation)]
            let from = (at % CHUNK_BYTES) as usize;
            let count = (chunk.len() - from).min(buf.len() - done);
            buf[done..done + count].copy_from_slice(&chunk[from..from + count]);
            done += count;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn identity(&self, offset: u64) -> Option<(u64, u64)> {
        self.inner.identity(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// Bytes that count their reads; a range can be unreadable.
    struct Counted {
        bytes: Vec<u8>,
        reads: AtomicU64,
        bad: std::ops::Range<u64>,
    }

    impl BlockRead for Counted {
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            let end = offset.saturating_add(buf.len() as u64);
            if offset < self.bad.end && end > self.bad.start {
                return Err(Error::Corrupt("bad range".into()));
            }
            let start = usize::try_from(offset).unwrap();
            let from = self.bytes.get(start..start.saturating_add(buf.len()));
            buf.copy_from_slice(from.ok_or_else(|| Error::Corrupt("past the end".into()))?);
            Ok(())
        }
        fn len(&self) -> u64 {
            self.bytes.len() as u64
        }
    }

    fn counted(len: usize, bad: std::ops::Range<u64>) -> Arc<Counted> {
        let bytes = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
        Arc::new(Counted { bytes, reads: AtomicU64::new(0), bad })
    }

    #[test]
    fn small_reads_are_cached_and_exact() {
        let source = counted(1_000_003, 0..0);
        let cached = CachedBlocks::new(source.clone(), &CacheBudget::new(8 << 20));
        for _ in 0..2 {
            for offset in (0..999_900).step_by(9_973) {
                let mut buf = [0; 100];
                cached.read_at(offset, &mut buf).unwrap();
                let start = usize::try_from(offset).unwrap();
                assert_eq!(buf, source.bytes[start..start + 100], "at {offset}");
            }
        }
        assert!(source.reads.load(Ordering::Relaxed) <= 16, "16 chunks, read ahead in fewer reads");
        let mut last = [0; 3];
        cached.read_at(1_000_000, &mut last).unwrap();
        assert_eq!(last, source.bytes[1_000_000..]);
        assert!(cached.read_at(1_000_001, &mut last).is_err());
        assert!(cached.read_at(u64::MAX, &mut last).is_err());
    }

    #[test]
    fn large_reads_bypass_the_cache_and_the_budget_holds() {
        let source = counted(8 << 20, 0..0);
        let budget = CacheBudget::new(1 << 20);
        let cached = CachedBlocks::new(source.clone(), &budget);
        let mut large = vec![0; 200_000];
        cached.read_at(5, &mut large).unwrap();
        assert_eq!(large, source.bytes[5..200_005]);
        assert_eq!(budget.used_bytes(), 0);
        let mut buf = [0; 8];
        for offset in (0..8 << 20).step_by(4096) {
            cached.read_at(offset, &mut buf).unwrap();
            assert!(budget.used_bytes() <= 1 << 20);
        }
    }

    #[test]
    fn an_unreadable_range_ahead_does_not_hide_what_is_before_it() {
        let source = counted(1 << 20, 200_000..200_001);
        let cached = CachedBlocks::new(source, &CacheBudget::new(1 << 20));
        let mut buf = [0; 16];
        for offset in (0..190_000).step_by(1000) {
            cached.read_at(offset, &mut buf).unwrap();
        }
        assert!(cached.read_at(199_990, &mut buf).is_err());
    }

    #[test]
    fn readers_in_parallel_see_the_same_bytes() {
        let source = counted(4 << 20, 0..0);
        let cached = CachedBlocks::new(source.clone(), &CacheBudget::new(512 << 10));
        std::thread::scope(|scope| {
            for seed in 0..4_u64 {
                let (cached, source) = (&cached, &source);
                scope.spawn(move || {
                    let mut at = seed;
                    for _ in 0..500 {
                        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1442695) % (4_000_000);
                        let mut buf = [0; 333];
                        cached.read_at(at, &mut buf).unwrap();
                        let start = usize::try_from(at).unwrap();
                        assert_eq!(buf, source.bytes[start..start + 333]);
                    }
                });
            }
        });
    }
}
