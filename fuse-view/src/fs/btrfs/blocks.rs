//! Reading by logical address: tree blocks, checked and cached, from whichever copy is whole.
//!
//! Invariants: a cached block passed its checksum and its structure; what its parent said of it (level, generation,
//! first key) is checked at each use, so that no tree can share blocks in a way that makes walking it endless.

use super::checksum::Checksum;
use super::chunk::ChunkMap;
use super::key::Key;
use super::node::Node;
use super::superblock::Superblock;
use crate::fs::bytes::le64;
use crate::{BlockRead, Error, Result};
use quick_cache::{Weighter, sync::Cache};
use std::sync::Arc;

/// Bytes of tree blocks that one open file system may keep.
const BUDGET_BYTES: u64 = 32 << 20;

#[derive(Clone)]
struct ByBytes;

impl Weighter<u64, Arc<Node>> for ByBytes {
    fn weight(&self, _address: &u64, node: &Arc<Node>) -> u64 {
        node.weight()
    }
}

/// Where a tree begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TreeRoot {
    pub address: u64,
    pub level: u8,
    pub generation: u64,
}

/// The blocks of one file system.
pub(super) struct Blocks {
    dev: Arc<dyn BlockRead>,
    chunks: ChunkMap,
    node_bytes: usize,
    pub sector_bytes: u64,
    pub checksum: Checksum,
    uuid: [u8; 16],
    cache: Cache<u64, Arc<Node>, ByBytes>,
}

impl Blocks {
    pub fn new(dev: Arc<dyn BlockRead>, sb: &Superblock, chunks: ChunkMap) -> Self {
        let nodes = usize::try_from(BUDGET_BYTES).unwrap_or(usize::MAX) / (sb.node_bytes as usize);
        Self {
            dev,
            chunks,
            node_bytes: sb.node_bytes as usize,
            sector_bytes: u64::from(sb.sector_bytes),
            checksum: sb.checksum,
            uuid: sb.metadata_uuid,
            cache: Cache::with_weighter(nodes, BUDGET_BYTES, ByBytes),
        }
    }

    pub fn chunks(&self) -> &ChunkMap {
        &self.chunks
    }

    /// Bytes of a tree block.
    pub fn node_bytes(&self) -> u64 {
        self.node_bytes as u64
    }

    /// How many copies there are of what is at `address`.
    pub fn copies(&self, address: u64) -> Result<usize> {
        Ok(self.chunks.chunk(address)?.copies())
    }

    /// Fills `buf` from one copy of what is at `address`.
    pub fn read_copy(&self, address: u64, copy: usize, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let place = self.chunks.place(address.saturating_add(done as u64), copy)?;
            let len = usize::try_from(place.len).unwrap_or(usize::MAX).min(buf.len() - done);
            self.dev.read_at(place.offset, &mut buf[done..done + len])?;
            done += len;
        }
        Ok(())
    }

    /// The root block of a tree.
    pub fn root(&self, tree: &TreeRoot) -> Result<Arc<Node>> {
        self.node(tree.address, tree.level, tree.generation, None)
    }

    /// The tree block at `address`, which must be what its parent says.
    pub fn node(&self, address: u64, level: u8, generation: u64, first: Option<Key>) -> Result<Arc<Node>> {
        let node = match self.cache.get(&address) {
            Some(node) => node,
            None => self.load(address, level, generation)?,
        };
        let as_expected = node.level() == level
            && node.generation() == generation
            && first.is_none_or(|key| node.count() > 0 && node.key(0) == key);
        if as_expected {
            return Ok(node);
        }
        Err(Error::Corrupt(format!(
            "btrfs tree block {address}: it is not the one that its parent points to"
        )))
    }

    /// Reads a tree block from the first copy that is whole.
    fn load(&self, address: u64, level: u8, generation: u64) -> Result<Arc<Node>> {
        let mut first_error = None;
        for copy in 0..self.copies(address)? {
            match self.load_copy(address, copy) {
                // A copy that missed its last write has a checksum that is right.
                Ok(node) if node.generation() == generation && node.level() == level => {
                    let node = Arc::new(node);
                    self.cache.insert(address, node.clone());
                    return Ok(node);
                }
                Ok(_) => {
                    let why = format!(
                        "btrfs tree block {address}: another generation or level than its parent says"
                    );
                    first_error.get_or_insert(Error::Corrupt(why));
                }
                Err(e) => {
                    first_error.get_or_insert(e);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| Error::Corrupt(format!("btrfs tree block {address}: no copy"))))
    }

    fn load_copy(&self, address: u64, copy: usize) -> Result<Node> {
        let mut bytes = vec![0; self.node_bytes].into_boxed_slice();
        self.read_copy(address, copy, &mut bytes)?;
        let bad = |what: &str| Error::Corrupt(format!("btrfs tree block {address}: {what}"));
        if !self.checksum.matches(&bytes[32..], &bytes) {
            return Err(bad("its checksum is wrong"));
        }
        if le64(&bytes, 48) != address || bytes.get(32..48) != Some(&self.uuid) {
            return Err(bad("it belongs elsewhere"));
        }
        Node::parse(bytes).map_err(bad)
    }
}
