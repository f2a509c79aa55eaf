use super::*;
use crate::Error;

/// Bytes that count their reads; a range can be unreadable.
struct Counted {
    bytes: Vec<u8>,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    bad: Range<u64>,
}

impl BlockRead for Counted {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
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

/// Blocks of content by number; equal numbers are equal content, as in snapshots of one volume.
struct Snapshot {
    blocks: Vec<u64>,
    reads: AtomicU64,
}

impl BlockRead for Snapshot {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        for (at, byte) in (offset..).zip(buf) {
            *byte = u8::try_from((self.blocks[index(at / 4096)] + at % 4096) % 251).unwrap();
        }
        Ok(())
    }
    fn len(&self) -> u64 {
        self.blocks.len() as u64 * 4096
    }
    fn identity(&self, offset: u64) -> Option<(u64, u64)> {
        Some((self.blocks[index(offset / 4096)], 1))
    }
}

#[test]
fn snapshots_share_what_they_share() {
    let budget = CacheBudget::new(8 << 20);
    let source = |changed: Option<usize>| {
        let mut blocks: Vec<u64> = (0..160).collect();
        changed.into_iter().for_each(|at| blocks[at] = 1000);
        Arc::new(Snapshot { blocks, reads: AtomicU64::new(0) })
    };
    let all = |source: &Arc<Snapshot>| {
        let cached = CachedBlocks::new(source.clone(), &budget);
        for _ in 0..2 {
            for block in 0..160 {
                let (mut got, mut want) = ([0; 64], [0; 64]);
                cached.read_at(block * 4096, &mut got).unwrap();
                source.read_at(block * 4096, &mut want).unwrap();
                assert_eq!(got, want);
                assert_eq!(cached.piece(block * 4096, 64).unwrap()[..], want);
            }
        }
        source.reads.load(Ordering::Relaxed) - 320
    };
    let first = all(&source(None));
    assert!(first <= 10);
    let held = budget.used_bytes();
    assert_eq!(held, 160 * 4096);
    assert_eq!(all(&source(None)), 0, "the same blocks are not read again");
    assert_eq!(budget.used_bytes(), held);
    assert_eq!(all(&source(Some(77))), 1, "only the changed chunk is read");
    assert_eq!(budget.used_bytes(), held + CHUNK_BYTES);
}

#[test]
fn at_random_over_more_than_the_budget_single_blocks_are_read() {
    let source = counted(16 << 20, 0..0);
    let cached = CachedBlocks::new(source.clone(), &CacheBudget::new(1 << 20));
    let (mut at, mut read) = (1u64, 0);
    for _ in 0..20_000 {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
        let offset = (at >> 20) % ((16 << 20) - 256);
        let mut buf = [0; 256];
        cached.read_at(offset, &mut buf).unwrap();
        assert_eq!(buf, source.bytes[index(offset)..index(offset) + 256]);
        read = source.read_bytes.load(Ordering::Relaxed);
    }
    assert!(read < 20_000 * 16_384, "{read} bytes read for 20,000 small pieces");
}

#[test]
fn pieces_are_views_or_copies() {
    let source = counted(300_000, 0..0);
    let cached = CachedBlocks::new(source.clone(), &CacheBudget::new(1 << 20));
    for (offset, len) in [(0, 4096), (65_530, 10), (131_072, 65_536), (299_999, 1), (5, 0), (1, 100_000)] {
        let piece = cached.piece(offset, len).unwrap();
        assert_eq!(piece[..], source.bytes[index(offset)..index(offset) + len], "{offset}");
    }
    assert!(cached.piece(299_999, 2).is_err());
    assert!(cached.piece(u64::MAX, 2).is_err());
}

fn counted(len: usize, bad: Range<u64>) -> Arc<Counted> {
    let bytes = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
    Arc::new(Counted { bytes, reads: AtomicU64::new(0), read_bytes: AtomicU64::new(0), bad })
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
