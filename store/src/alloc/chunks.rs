//! Chunks: a few consecutive blocks kept for the next small writes to one leaf, so that what is near in a volume is
//! near in the pool (H36). They are kept loosely: whoever needs the last blocks dissolves them all.

use crate::types::{Phys, VolumeId, mem};
use std::collections::HashMap;

/// Blocks of a leaf's first chunk, and of the largest: each is twice the one before.
const SMALLEST: u64 = 8;
/// See [`SMALLEST`]. Writes of as many blocks need no chunk.
pub const LARGEST: u64 = 64;
/// Most chunks at a time.
const CHUNKS: usize = 4096;
/// Leaves remembered, of which one write was seen. Random writes over more leaves than these get no chunks: they
/// would leave most of each unused.
const SEEN: usize = 4096;

struct Chunk {
    next: Phys,
    left: u64,
    size: u64,
}

/// The chunks of a pool.
pub struct Chunks {
    all: HashMap<(VolumeId, u64), Chunk>,
    seen: Vec<Option<(VolumeId, u64)>>,
}

impl Default for Chunks {
    fn default() -> Self {
        Self { all: HashMap::new(), seen: vec![None; SEEN] }
    }
}

impl Chunks {
    /// At most `n` blocks of the leaf's chunk.
    pub fn take(&mut self, volume: VolumeId, leaf: u64, n: u64) -> Option<(Phys, u64)> {
        let c = self.all.get_mut(&(volume, leaf)).filter(|c| c.left > 0)?;
        let (p, len) = (c.next, n.min(c.left));
        (c.next, c.left) = (p.plus(len), c.left - len);
        Some((p, len))
    }

    /// Blocks to get for a leaf that has no chunk, or has used it up; 1: none are to be kept.
    pub fn next_size(&mut self, volume: VolumeId, leaf: u64) -> u64 {
        if let Some(c) = self.all.get(&(volume, leaf)) {
            return (2 * c.size).min(LARGEST);
        }
        let place = &mut self.seen[mem((leaf ^ volume.0 << 7) % SEEN as u64)];
        if place.replace((volume, leaf)) == Some((volume, leaf)) { SMALLEST } else { 1 }
    }

    /// Keeps blocks for a leaf. Returns what is not kept any more.
    pub fn keep(
        &mut self,
        volume: VolumeId,
        leaf: u64,
        (next, left): (Phys, u64),
        size: u64,
    ) -> Vec<(Phys, u64)> {
        let freed = if self.all.len() < CHUNKS { Vec::new() } else { self.dissolve() };
        self.all.insert((volume, leaf), Chunk { next, left, size });
        freed
    }

    /// Gives everything back.
    pub fn dissolve(&mut self) -> Vec<(Phys, u64)> {
        self.all.drain().filter(|(_, c)| c.left > 0).map(|(_, c)| (c.next, c.left)).collect()
    }
}
