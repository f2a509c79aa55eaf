//! The index of a directory: hashes of names, and where the entries with that hash are.

use super::Xfs;
use super::block::{Block, Magic};
use super::dir::INDEX_OFFSET;
use super::entry::{Entries, hashes};
use super::inode::{Inode, Which};
use crate::fs::bytes::be32;
use crate::{Error, Ino, Result};
use std::collections::HashSet;

/// The kernel's own limit is 5.
const MAX_LEVEL: u16 = 8;
/// Addresses count units of 8 bytes.
const ADDRESS_UNIT: u64 = 8;

/// The hash of a name.
fn hash(name: &[u8], fold: bool) -> u32 {
    name.iter()
        .fold(0u32, |hash, &byte| hash.rotate_left(7) ^ u32::from(if fold { lower(byte) } else { byte }))
}

/// Lower case as file systems made without case know it: ASCII and Latin-1.
fn lower(byte: u8) -> u8 {
    if matches!(byte, b'A'..=b'Z' | 0xC0..=0xD6 | 0xD8..=0xDE) { byte + 0x20 } else { byte }
}

/// Whether two names are one in a file system without case.
pub(super) fn same_but_for_case(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(&a, &b)| lower(a) == lower(b))
}

/// Pairs of 32 bits, sorted by the first.
#[derive(Clone, Copy)]
struct Pairs<'a>(&'a [u8]);

impl<'a> Pairs<'a> {
    /// The pairs of a node or leaf.
    fn of(block: &'a Block) -> Option<Self> {
        block.bytes()[block.header()..].get(..block.count() * 8).map(Self)
    }

    fn len(&self) -> usize {
        self.0.len() / 8
    }

    fn get(&self, i: usize) -> (u32, u32) {
        (be32(self.0, i * 8), be32(self.0, i * 8 + 4))
    }

    /// Index of the first pair that is not below `hash`.
    fn first_from(&self, hash: u32) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.get(middle).0 < hash { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The addresses of `hash`.
    fn addresses(self, hash: u32) -> impl Iterator<Item = u32> + 'a {
        (self.first_from(hash)..self.len())
            .map(move |i| self.get(i))
            .take_while(move |p| p.0 == hash)
            .map(|p| p.1)
    }
}

/// A search under way: an exact match ends it, one that differs in case is kept in mind.
struct Search<'a> {
    dir: &'a Inode,
    name: &'a [u8],
    folded: Option<Ino>,
}

impl Xfs {
    /// Finds `name` by its hash.
    pub(super) fn find_by_hash(&self, dir: &Inode, name: &[u8]) -> Result<Option<Ino>> {
        let hash = hash(name, self.sb.case_insensitive);
        let mut search = Search { dir, name, folded: None };
        if let Ok(block) = self.meta_block(dir, Which::Data, 0)?
            && block.magic == Magic::DirBlock
        {
            let pairs = Pairs(hashes(&block).map_err(|what| bad(dir, what))?);
            let found = self.try_addresses(&mut search, pairs, hash)?;
            return Ok(found.or(search.folded));
        }
        let Some(mut leaf) = self.leaf_of(dir, hash)? else { return Ok(None) };
        let mut seen = HashSet::new();
        loop {
            let pairs = Pairs::of(&leaf).ok_or_else(|| bad(dir, "a leaf of its index is too full"))?;
            if let Some(found) = self.try_addresses(&mut search, pairs, hash)? {
                return Ok(Some(found));
            }
            // Names of one hash may go on in the next leaf.
            let last = pairs.len().checked_sub(1).map(|i| pairs.get(i).0);
            if last.is_none_or(|last| last != hash) || leaf.forward() == 0 {
                return Ok(search.folded);
            }
            if !seen.insert(leaf.forward()) {
                return Err(bad(dir, "the leaves of its index go in circles"));
            }
            leaf = self.index_block(dir, u64::from(leaf.forward()))?;
        }
    }

    /// The first leaf that may hold `hash`; None: all names have lower ones.
    fn leaf_of(&self, dir: &Inode, hash: u32) -> Result<Option<Block>> {
        let mut block = self.index_block(dir, INDEX_OFFSET >> self.sb.block_bits)?;
        let mut above = MAX_LEVEL + 1;
        while block.magic == Magic::Node {
            if block.level() == 0 || block.level() >= above {
                return Err(bad(dir, "a node of its index is at the wrong level"));
            }
            above = block.level();
            let pairs = Pairs::of(&block).ok_or_else(|| bad(dir, "a node of its index is too full"))?;
            let at = pairs.first_from(hash);
            if at == pairs.len() {
                return Ok(None);
            }
            block = self.index_block(dir, u64::from(pairs.get(at).1))?;
        }
        Ok(Some(block))
    }

    fn index_block(&self, dir: &Inode, at: u64) -> Result<Block> {
        let block = self
            .meta_block(dir, Which::Data, at)?
            .map_err(|_| bad(dir, "a hole where a block of its index should be"))?;
        match block.magic {
            Magic::Node | Magic::DirLeaf | Magic::DirLeaf1 => Ok(block),
            _ => Err(bad(dir, "a block of its index is something else")),
        }
    }

    fn try_addresses(&self, search: &mut Search<'_>, pairs: Pairs<'_>, hash: u32) -> Result<Option<Ino>> {
        for address in pairs.addresses(hash) {
            // 0: the name is gone.
            if address == 0 {
                continue;
            }
            if let Some(found) = self.entry_at(search, u64::from(address) * ADDRESS_UNIT)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The inode of the entry at byte `at` of the directory, if it has the name that is sought.
    fn entry_at(&self, search: &mut Search<'_>, at: u64) -> Result<Option<Ino>> {
        let dir = search.dir;
        let unit = 1u64 << self.sb.dir_block_bits;
        let within = super::fit(usize::MAX, at % unit);
        let block = self
            .meta_block(dir, Which::Data, (at - at % unit) >> self.sb.block_bits)?
            .map_err(|_| bad(dir, "its index leads into a hole"))?;
        if within < block.header() {
            return Err(bad(dir, "its index leads into a header"));
        }
        let entry = Entries::new(&block, within, self.sb.ftype)
            .and_then(|mut entries| entries.next().unwrap_or(Err("its index leads behind the entries")))
            .map_err(|what| bad(dir, what))?;
        if entry.at != within {
            return Err(bad(dir, "its index leads to unused space"));
        }
        if entry.name == search.name {
            return Ok(Some(entry.ino));
        }
        if self.sb.case_insensitive && same_but_for_case(entry.name, search.name) {
            search.folded.get_or_insert(entry.ino);
        }
        Ok(None)
    }
}

fn bad(dir: &Inode, what: &str) -> Error {
    Error::Corrupt(format!("xfs directory {}: {what}", dir.ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_searched() {
        let pairs: Vec<u8> = [(3u32, 30u32), (5, 50), (5, 51), (9, 90)]
            .iter()
            .flat_map(|(h, a)| [h.to_be_bytes(), a.to_be_bytes()].concat())
            .collect();
        let pairs = Pairs(&pairs);
        let all = |hash| pairs.addresses(hash).collect::<Vec<_>>();
        assert_eq!(
            (all(3), all(4), all(5), all(9), all(10)),
            (vec![30], vec![], vec![50, 51], vec![90], vec![])
        );
        assert!(Pairs(&[]).addresses(0).next().is_none());
    }

    #[test]
    fn case() {
        assert!(same_but_for_case(b"R\xC4der", b"r\xE4DER"));
        assert!(!same_but_for_case(b"\xD7", b"\xF7"), "a sign of multiplication has no case");
        assert_eq!(hash(b"ReadMe", true), hash(b"readme", false));
        assert_eq!(hash(b".", false), 0x2E);
        assert_eq!(hash(b"..", false), 0x172E);
    }
}
