//! Looking blocks up. A lookup takes one path from the root; it never walks a chain of snapshots.

use super::NodeCache;
use super::cache::Node;
use crate::format::node::{Child, FANOUT, LEAF_ENTRIES, LeafEntry, Root, span, unpack_leaf};
use crate::io::Io;
use crate::io::port::ready;
use crate::types::{Epoch, mem};
use crate::{Error, Result};

/// A stretch of logical blocks with one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Blocks.
    pub len: u64,
    /// The first block's place and birth, the others follow it with the same birth; None: a hole.
    pub data: Option<LeafEntry>,
}

/// A node's entry turned into an error when it is impossible.
fn sound<T>(r: std::result::Result<T, &'static str>) -> Result<T> {
    r.map_err(|what| Error::damaged(format!("map: {what}")))
}

/// The 512 entries of a leaf.
pub fn leaf_entries(node: &Node, birth: Epoch) -> Result<Vec<Option<LeafEntry>>> {
    (0..mem(LEAF_ENTRIES)).map(|i| leaf_entry(node, birth, i)).collect()
}

fn leaf_entry(node: &Node, birth: Epoch, i: usize) -> Result<Option<LeafEntry>> {
    let word = u64::from_le_bytes(node[8 * i..8 * i + 8].try_into().expect("8 bytes"));
    sound(unpack_leaf(word, birth))
}

/// Child `i` of an upper node.
pub fn upper_entry(node: &Node, i: u64) -> Result<Child> {
    let at = mem(i) * 16;
    sound(Child::unpack(node[at..at + 16].try_into().expect("16 bytes")))
}

/// All children of an upper node.
pub fn upper_entries(node: &Node) -> Result<Vec<Child>> {
    (0..FANOUT).map(|i| upper_entry(node, i)).collect()
}

/// The entries of a child in the place of a leaf.
pub fn leaf_view(cache: &NodeCache, child: Child) -> Result<Vec<Option<LeafEntry>>> {
    match child {
        Child::Hole => Ok(vec![None; mem(LEAF_ENTRIES)]),
        Child::Run { p, birth } => {
            Ok((0..LEAF_ENTRIES).map(|i| Some(LeafEntry { p: p.plus(i), birth: Some(birth) })).collect())
        }
        Child::Node { p, birth, crc } => leaf_entries(&*cache.load_now(p, crc)?, birth),
    }
}

/// The subtree that covers `span(level)` blocks from `base`; None when the tree is not that tall there.
pub fn subtree(cache: &NodeCache, root: Root, level: u8, base: u64) -> Result<Option<Child>> {
    if base >= span(root.height) {
        return Ok(Some(Child::Hole));
    }
    if level > root.height {
        return Ok(None);
    }
    let mut child = root.child;
    for below in (level..root.height).rev() {
        let Child::Node { p, crc, .. } = child else { return Ok(Some(Child::Hole)) };
        child = upper_entry(&*cache.load_now(p, crc)?, base / span(below) % FANOUT)?;
    }
    Ok(Some(child))
}

/// Where block `l` and at most `max − 1` blocks after it lie.
pub async fn resolve(io: &impl Io, cache: &NodeCache, root: Root, l: u64, max: u64) -> Result<Extent> {
    if l >= span(root.height) {
        return Ok(Extent { len: max, data: None });
    }
    let mut child = root.child;
    let mut level = root.height;
    loop {
        let size = span(level);
        let rest = (size - l % size).min(max);
        match child {
            Child::Hole => return Ok(Extent { len: rest, data: None }),
            Child::Run { p, birth } => {
                let data = Some(LeafEntry { p: p.plus(l % LEAF_ENTRIES), birth: Some(birth) });
                return Ok(Extent { len: rest, data });
            }
            Child::Node { p, birth, crc } => {
                let node = cache.load(io, p, crc).await?;
                if level == 0 {
                    return leaf_extent(&node, birth, l % LEAF_ENTRIES, rest);
                }
                level -= 1;
                child = upper_entry(&node, l / span(level) % FANOUT)?;
            }
        }
    }
}

/// Like [`resolve`], where the thread may wait for the device.
pub fn resolve_now(cache: &NodeCache, root: Root, l: u64, max: u64) -> Result<Extent> {
    ready(resolve(&cache.blocking(), cache, root, l, max))
}

fn leaf_extent(node: &Node, birth: Epoch, at: u64, max: u64) -> Result<Extent> {
    let first = leaf_entry(node, birth, mem(at))?;
    let mut len = 1;
    while len < max {
        let next = leaf_entry(node, birth, mem(at + len))?;
        let goes_on = match (first, next) {
            (None, None) => true,
            (Some(a), Some(b)) => a.p.plus(len) == b.p && a.birth == b.birth,
            _ => false,
        };
        if !goes_on {
            break;
        }
        len += 1;
    }
    Ok(Extent { len, data: first })
}
