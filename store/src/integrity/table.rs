//! The table of checksums on disk, and which of its entries are valid.

use crate::alloc::SegmentMap;
use crate::format::crc;
use crate::io::{AlignedBuf, BlockDev, Io, Sink};
use crate::types::{BLOCK, Phys, SEGMENT_BLOCKS, mem};
use crate::{Error, Result};
use parking_lot::RwLock;
use quick_cache::sync::Cache;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Entries in a block of the table.
const ENTRIES: u64 = BLOCK as u64 / 4;
/// Blocks of the table kept in memory: 16 MiB of them serve 16 GiB of data.
const CACHED: usize = 4096;

type Page = [u8; BLOCK];

/// Which blocks have a valid entry.
pub struct Sealed {
    bits: RwLock<SegmentMap>,
    /// There may be some.
    any: AtomicBool,
}

impl Sealed {
    /// The state of a checkpoint.
    pub fn new(bits: SegmentMap) -> Self {
        let any = AtomicBool::new((0..bits.segments()).any(|s| bits.free_in(s) < SEGMENT_BLOCKS));
        Self { bits: RwLock::new(bits), any }
    }

    /// Whether `p` has one.
    pub fn has(&self, p: Phys) -> bool {
        self.bits.read().is_set(p)
    }

    /// Whether one of `n` blocks from `p` has one.
    pub fn any(&self, p: Phys, n: u64) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let bits = self.bits.read();
        let segments = p.segment()..=p.plus(n - 1).segment();
        let holds = |s: u64| bits.free_in(s) < SEGMENT_BLOCKS;
        segments.into_iter().any(holds) && (0..n).any(|i| bits.is_set(p.plus(i)))
    }

    /// Bits of a segment.
    pub fn words(&self, segment: u64) -> [u64; 4] {
        self.bits.read().words(segment)
    }

    /// Blocks that have one.
    pub fn count(&self) -> u64 {
        let bits = self.bits.read();
        (0..bits.segments()).map(|s| SEGMENT_BLOCKS - bits.free_in(s)).sum()
    }

    /// The entry of `p` is written.
    pub fn set(&self, p: Phys) {
        let mut bits = self.bits.write();
        self.any.store(true, Ordering::Release);
        if !bits.is_set(p) {
            bits.change(p, 1, true).expect("a clear bit is set");
        }
    }

    /// The blocks are dropped.
    pub fn clear(&self, p: Phys, n: u64) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut bits = self.bits.write();
        for at in (0..n).map(|i| p.plus(i)) {
            if bits.is_set(at) {
                bits.change(at, 1, false).expect("a set bit is cleared");
            }
        }
    }
}

/// The table.
pub struct ChecksumTable {
    dev: Arc<dyn BlockDev>,
    start: u64,
    pages: Cache<u64, Arc<Page>>,
}

/// The block of the table that has the entry of `p`.
pub fn table_block(p: Phys) -> u64 {
    p.0 / ENTRIES
}

fn entry(page: &Page, p: Phys) -> u32 {
    let at = mem(p.0 % ENTRIES) * 4;
    u32::from_le_bytes(page[at..at + 4].try_into().expect("4 bytes"))
}

impl ChecksumTable {
    /// The table whose first block is `start`.
    pub fn new(dev: Arc<dyn BlockDev>, start: u64) -> Self {
        Self { dev, start, pages: Cache::new(CACHED) }
    }

    fn place(&self, index: u64) -> Phys {
        Phys(self.start + index)
    }

    /// Whether `block` is what was in `p` when its entry was written.
    pub async fn matches(&self, io: &impl Io, p: Phys, block: &[u8]) -> Result<bool> {
        let (index, sum) = (table_block(p), crc(0, block));
        if let Some(page) = self.pages.get(&index)
            && entry(&page, p) == sum
        {
            return Ok(true);
        }
        // Not cached; or cached by a reader who was overtaken by the sealer.
        let mut buf = AlignedBuf::reused(BLOCK);
        let read = io.read(self.place(index).offset(), Sink::Memory(&mut buf)).await;
        read.map_err(|e| Error::io(format!("read checksums in block {}", self.place(index).0), e))?;
        let page: Page = buf[..].try_into().expect("one block");
        let good = entry(&page, p) == sum;
        self.pages.insert(index, Arc::new(page));
        Ok(good)
    }

    /// Writes entries; the blocks of the table that they are in. One caller at a time.
    pub fn put(&self, sums: &[(Phys, u32)]) -> Result<u64> {
        let mut by_page: BTreeMap<u64, Vec<(Phys, u32)>> = BTreeMap::new();
        for (p, sum) in sums {
            by_page.entry(table_block(*p)).or_default().push((*p, *sum));
        }
        let blocks = by_page.len() as u64;
        for (index, sums) in by_page {
            let at = self.place(index);
            let mut buf = AlignedBuf::reused(BLOCK);
            self.dev.read_at(at.offset(), &mut buf).map_err(|e| Error::io("read checksums", e))?;
            for (p, sum) in sums {
                let place = mem(p.0 % ENTRIES) * 4;
                buf[place..place + 4].copy_from_slice(&sum.to_le_bytes());
            }
            self.dev.write_at(at.offset(), &buf).map_err(|e| Error::io("write checksums", e))?;
            self.pages.insert(index, Arc::new(buf[..].try_into().expect("one block")));
        }
        Ok(blocks)
    }
}
