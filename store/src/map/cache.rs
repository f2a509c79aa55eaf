//! Nodes in memory, within a budget of bytes, whatever the size of the volumes.
//!
//! Invariant: a node is never written where it lies, so a cached one stays right until its block is freed;
//! then it is removed before the block can be used again.

use crate::format::crc;
use crate::io::port::ready;
use crate::io::{AlignedBuf, BlockDev, Blocking, Io, Sink};
use crate::mutation::Mutation;
use crate::types::{BLOCK, Phys};
use crate::{Error, Result};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::sync::Arc;

/// The 4096 bytes of a node.
pub type Node = Box<[u8; BLOCK]>;

#[derive(Clone)]
struct ByBytes;

impl Weighter<u64, Arc<Node>> for ByBytes {
    fn weight(&self, _: &u64, _: &Arc<Node>) -> u64 {
        // The node, its allocation and the cache's own entry.
        BLOCK as u64 + 128
    }
}

/// Reads nodes through a cache.
pub struct NodeCache {
    dev: Arc<dyn BlockDev>,
    cache: Cache<u64, Arc<Node>, ByBytes>,
}

impl NodeCache {
    /// A cache of at most `bytes`.
    pub fn new(dev: Arc<dyn BlockDev>, bytes: u64) -> Self {
        let nodes = usize::try_from(bytes / BLOCK as u64).unwrap_or(usize::MAX).max(16);
        Self { dev, cache: Cache::with_weighter(nodes, bytes.max(16 * 4300), ByBytes) }
    }

    /// The node at `p`, verified against the checksum that its parent holds; read by `io` when it is not cached.
    pub async fn load(&self, io: &impl Io, p: Phys, sum: u32) -> Result<Arc<Node>> {
        if let Some(node) = self.cache.get(&p.0) {
            return Ok(node);
        }
        let mut buf = AlignedBuf::reused(BLOCK);
        let read = io.read(p.offset(), Sink::Memory(&mut buf)).await;
        read.map_err(|e| Error::io(format!("read map node {}", p.0), e))?;
        if crc(0, &buf) != sum && !Mutation::UncheckedNode.on() {
            return Err(Error::damaged(format!("map node {} fails its checksum", p.0))
                .hint("`cowslip check` lists the damage"));
        }
        let node: Arc<Node> = Arc::new(Box::new(buf[..].try_into().expect("one block")));
        self.cache.insert(p.0, node.clone());
        Ok(node)
    }

    /// Like [`NodeCache::load`], where the thread may wait for the device.
    pub fn load_now(&self, p: Phys, sum: u32) -> Result<Arc<Node>> {
        ready(self.load(&self.blocking(), p, sum))
    }

    /// Puts a node that was just written.
    pub fn insert(&self, p: Phys, node: Arc<Node>) {
        self.cache.insert(p.0, node);
    }

    /// The device, for a thread that may wait.
    pub fn blocking(&self) -> Blocking<'_> {
        Blocking(&*self.dev)
    }

    /// Forgets blocks that are about to be freed.
    pub fn forget(&self, p: Phys) {
        self.cache.remove(&p.0);
    }
}
