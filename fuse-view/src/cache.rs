//! A cache of blocks with one byte budget for all sources of a process.
//!
//! What is cached is named by the identities of its blocks where its source knows them, so that what snapshots of one
//! volume share is read once and held once; otherwise by the source and the place in it.
//!
//! Invariants: what is cached never changes (its source does not); no lock is held over I/O (readers of one missing
//! chunk wait for the first of them, readers of other chunks do not); reads of a chunk or more go straight to the
//! source, so that the content of files does not push metadata out.

mod policy;

use crate::{BlockRead, Piece, Result};
use policy::Policy;
use quick_cache::{Weighter, sync::Cache};
use std::{
    hash::{BuildHasher, RandomState},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Bytes of a chunk, the usual unit of caching. Aligned to its own size.
pub const CHUNK_BYTES: u64 = 64 * 1024;
/// Bytes of a small unit, cached where reading chunks was seen not to pay. Also the unit of identities.
const BLOCK_BYTES: u64 = 4096;
/// Chunks read at once when misses follow each other.
const READ_AHEAD_CHUNKS: u64 = 4;
/// What one name of a chunk costs, and how much of the budget names may take: a part in so many.
const NAME_BYTES: u64 = 96;
const NAMES_PART: u64 = 16;

/// Names what is cached. Equal names of different content are as likely as equal random numbers of 128 bits.
type Key = u128;

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Arc<[u8]>> for ByBytes {
    fn weight(&self, _key: &Key, chunk: &Arc<[u8]>) -> u64 {
        chunk.len() as u64
    }
}

struct Shared {
    chunks: Cache<Key, Arc<[u8]>, ByBytes>,
    /// `(source, unit) → key`, where finding the key out took look-ups of identities.
    names: Cache<(u64, Unit), Key>,
    /// Unpredictable, so that no image can be made to collide.
    hashers: [RandomState; 2],
    next_source: AtomicU64,
}

/// The memory that any number of [`CachedBlocks`] share. Clones share the budget.
#[derive(Clone)]
pub struct CacheBudget(Arc<Shared>);

impl CacheBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let names = bytes / NAMES_PART;
        let bytes = bytes - names;
        let count = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX).max(16);
        Self(Arc::new(Shared {
            chunks: Cache::with_weighter(count(bytes / CHUNK_BYTES), bytes, ByBytes),
            names: Cache::new(count(names / NAME_BYTES)),
            hashers: [RandomState::new(), RandomState::new()],
            next_source: AtomicU64::new(0),
        }))
    }

    /// Bytes cached now.
    pub fn used_bytes(&self) -> u64 {
        self.0.chunks.weight()
    }

    /// Whether new chunks drive out old ones.
    fn is_full(&self) -> bool {
        self.0.chunks.weight() > self.0.chunks.capacity() / 4 * 3
    }

    fn key(&self, name: &impl std::hash::Hash) -> Key {
        let [high, low] = &self.0.hashers;
        Key::from(high.hash_one(name)) << 64 | Key::from(low.hash_one(name))
    }
}

/// A unit of caching of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Unit {
    Chunk(u64),
    Block(u64),
}

impl Unit {
    /// The key of a unit whose content has no name of its own.
    fn name_in(self, source: u64) -> Key {
        let (kind, number) = match self {
            Self::Chunk(number) => (0, number),
            Self::Block(number) => (1, number),
        };
        Key::from(source) << 64 | Key::from(number) << 1 | kind
    }

    fn range(self) -> Range<u64> {
        match self {
            Self::Chunk(index) => index * CHUNK_BYTES..(index + 1) * CHUNK_BYTES,
            Self::Block(index) => index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES,
        }
    }
}

/// A source whose small reads are cached.
pub struct CachedBlocks {
    inner: Arc<dyn BlockRead>,
    budget: CacheBudget,
    source: u64,
    /// The chunk after the last one read, where a reader that goes forward misses next.
    expected_miss: AtomicU64,
    policy: Policy,
}

impl CachedBlocks {
    /// Caches `inner` within `budget`.
    pub fn new(inner: Arc<dyn BlockRead>, budget: &CacheBudget) -> Self {
        let source = budget.0.next_source.fetch_add(1, Ordering::Relaxed);
        let expected_miss = AtomicU64::new(u64::MAX);
        Self { inner, budget: budget.clone(), source, expected_miss, policy: Policy::default() }
    }

    /// The name of `unit`: that of its content where all its blocks have identities.
    fn key(&self, unit: Unit) -> Key {
        let shared = &self.budget.0;
        if let Some(key) = shared.names.get(&(self.source, unit)) {
            return key;
        }
        let range = unit.range();
        let end = range.end.min(self.inner.len());
        // A short unit at the end of a source is another unit than a long one of the same blocks.
        let key = match self.inner.identities(range.start..end) {
            Some(identities) => self.budget.key(&(identities, end.saturating_sub(range.start))),
            None => unit.name_in(self.source),
        };
        // Also where it has none: finding that out may cost as much.
        shared.names.insert((self.source, unit), key);
        key
    }

    /// The cached unit that holds byte `at`, read if need be, and where it starts.
    fn unit(&self, at: u64) -> Result<(Arc<[u8]>, u64)> {
        let chunk = at / CHUNK_BYTES;
        let key = self.key(Unit::Chunk(chunk));
        let chunks = &self.budget.0.chunks;
        if let Some(bytes) = chunks.get(&key) {
            self.policy.note(false, false);
            return Ok((bytes, chunk * CHUNK_BYTES));
        }
        if self.policy.wants_chunks() {
            self.policy.note(true, self.budget.is_full());
            let bytes = chunks.get_or_insert_with(&key, || self.load(chunk))?;
            return Ok((bytes, chunk * CHUNK_BYTES));
        }
        self.policy.note(true, true);
        let unit = Unit::Block(at / BLOCK_BYTES);
        let bytes = chunks.get_or_insert_with(&self.key(unit), || {
            let range = unit.range();
            self.read(range.start, range.end)
        })?;
        Ok((bytes, unit.range().start))
    }

    fn read(&self, start: u64, end: u64) -> Result<Arc<[u8]>> {
        let mut bytes = vec![0; index(end.min(self.inner.len()).saturating_sub(start))];
        self.inner.read_at(start, &mut bytes)?;
        Ok(bytes.into())
    }

    /// Reads chunk `index`, and the following ones too when the misses come in order.
    fn load(&self, index: u64) -> Result<Arc<[u8]>> {
        let in_order = self.expected_miss.load(Ordering::Relaxed) == index;
        let count = if in_order { READ_AHEAD_CHUNKS } else { 1 };
        self.expected_miss.store(index + count, Ordering::Relaxed);
        let start = index * CHUNK_BYTES;
        let bytes = match self.read(start, start + count * CHUNK_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if count == 1 => return Err(error),
            Err(_) => {
                // What lies ahead may be unreadable; nobody asked for it yet.
                self.expected_miss.store(u64::MAX, Ordering::Relaxed);
                return self.load(index);
            }
        };
        if count == 1 {
            return Ok(bytes);
        }
        #[allow(clippy::cast_possible_truncation)] // 64 KiB
        let mut chunks = bytes.chunks(CHUNK_BYTES as usize);
        let first = chunks.next().unwrap_or_default().into();
        for (ahead, chunk) in (index + 1..).zip(chunks) {
            self.budget.0.chunks.insert(self.key(Unit::Chunk(ahead)), chunk.into());
        }
        Ok(first)
    }

    /// Whether a read goes past the cache.
    fn bypasses(&self, offset: u64, len: usize) -> bool {
        len as u64 >= CHUNK_BYTES || offset.saturating_add(len as u64) > self.inner.len()
    }
}

impl BlockRead for CachedBlocks {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.bypasses(offset, buf.len()) {
            return self.inner.read_at(offset, buf);
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (unit, start) = self.unit(at)?;
            // Units end where the source does, which `bypasses` respects.
            let from = index(at - start);
            let count = (unit.len() - from).min(buf.len() - done);
            buf[done..done + count].copy_from_slice(&unit[from..from + count]);
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

    fn identities(&self, range: Range<u64>) -> Option<Vec<(u64, u64)>> {
        self.inner.identities(range)
    }

    fn piece(&self, offset: u64, len: usize) -> Result<Piece> {
        if len > 0 && !self.bypasses(offset, len) {
            let (unit, start) = self.unit(offset)?;
            let from = index(offset - start);
            if let Some(piece) = Piece::of(unit, from..from + len) {
                return Ok(piece);
            }
        }
        let mut bytes = vec![0; len];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes.into())
    }
}

/// A distance within memory.
fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
