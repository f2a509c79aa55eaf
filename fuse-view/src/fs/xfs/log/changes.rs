//! What committed transactions change, laid over the image.
//!
//! A block is changed by every transaction of the log, or not at all before the one that is newer than what the image
//! has: that is decided once for each buffer, at its first touch, by the LSN in it. Items are applied in the order of
//! the kernel, which is not theirs in the log.

use super::super::superblock::Superblock;
use super::intent::Pending;
use super::ring::bad;
use super::transaction::{Item, Transaction};
use super::{buffer, chunk, inode};
use crate::Result;
use crate::fs::bytes::{be64, le16, le32, le64};
use crate::overlay::OverlayBuilder;
use std::collections::{HashMap, HashSet};

/// Types of items.
mod kind {
    pub const INODE: u16 = 0x123B;
    pub const BUFFER: u16 = 0x123C;
    pub const INODE_CREATE: u16 = 0x123F;
    /// Dquots, the end of quota: there is no quota in a view.
    pub const QUOTA: [u16; 2] = [0x123D, 0x123E];
    /// Intents and their ends, in pairs.
    pub const INTENTS: std::ops::RangeInclusive<u16> = 0x1236..=0x124F;
}

/// Where a buffer lies: its first 512-byte unit, and how many.
pub(super) type Place = (u64, u32);

/// How much the log may change: every byte of it stands for at most so many of the image, besides a constant.
const MOST_PER_BYTE: u64 = 32;
const MOST_BESIDES: u64 = 64 << 20;

/// The state of a replay.
pub(super) struct Changes {
    /// As it is at this point of the log: a file system that grew has it there.
    pub sb: Superblock,
    pub over: OverlayBuilder,
    pub pending: Pending,
    /// Buffers that were given up, how often: what was logged of them before is void.
    cancelled: HashMap<Place, u32>,
    /// First units of the buffers that are older than the log.
    behind: HashSet<u64>,
    bytes_left: u64,
}

impl Changes {
    pub fn new(sb: Superblock, over: OverlayBuilder) -> Self {
        let log_bytes = u64::from(sb.log_blocks) << sb.block_bits;
        Self {
            sb,
            over,
            pending: Pending::default(),
            cancelled: HashMap::new(),
            behind: HashSet::new(),
            bytes_left: log_bytes * MOST_PER_BYTE + MOST_BESIDES,
        }
    }

    /// First pass: which buffers are given up.
    pub fn note_cancelled(&mut self, transaction: &Transaction) {
        for item in transaction.items.iter().filter(|item| item.kind() == kind::BUFFER) {
            if buffer::is_cancel(item) {
                *self.cancelled.entry(buffer::place(item)).or_default() += 1;
            }
        }
    }

    /// Second pass: applies a transaction.
    pub fn apply(&mut self, transaction: &Transaction) -> Result<()> {
        let is_buffer = |item: &&Item| item.kind() == kind::BUFFER;
        let of_inodes = |item: &&Item| buffer::is_of_inodes(item);
        let cancels = |item: &&Item| buffer::is_cancel(item);
        let all = &transaction.items;
        for item in all {
            match item.kind() {
                kind::BUFFER if !buffer::is_cancel(item) && !buffer::is_of_inodes(item) => {
                    self.buffer(item, transaction.lsn)?;
                }
                // New chunks come before the inodes that fill them.
                kind::INODE_CREATE => chunk::apply(self, item)?,
                _ => {}
            }
        }
        for item in all {
            match item.kind() {
                kind::BUFFER | kind::INODE_CREATE => {}
                kind::INODE => inode::apply(self, item, transaction.lsn)?,
                kind if kind::QUOTA.contains(&kind) => {}
                kind if kind::INTENTS.contains(&kind) => self.pending.note(kind, item)?,
                kind => return Err(bad(&format!("an item of unknown type 0x{kind:x}"))),
            }
        }
        // Buffers of inodes say only who is unlinked but open, which no name shows: they count as cancelled or nothing.
        for item in all.iter().filter(is_buffer).filter(of_inodes).rev() {
            if !buffer::is_cancel(item) {
                buffer::check(item)?;
            }
        }
        for item in all.iter().filter(is_buffer).filter(cancels).rev() {
            self.uncancel(buffer::place(item));
        }
        Ok(())
    }

    /// Whether a buffer will be given up later in the log.
    pub fn is_cancelled(&self, place: Place) -> bool {
        self.cancelled.contains_key(&place)
    }

    fn uncancel(&mut self, place: Place) {
        if let Some(count) = self.cancelled.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.cancelled.remove(&place);
            }
        }
    }

    fn buffer(&mut self, item: &Item, lsn: u64) -> Result<()> {
        let place = buffer::place(item);
        if buffer::is_of_quota(item) || self.is_cancelled(place) {
            return Ok(());
        }
        buffer::check(item)?;
        if !self.behind.contains(&place.0) {
            if self.is_newer(place, lsn)? {
                return Ok(());
            }
            self.behind.insert(place.0);
        }
        buffer::apply(self, item)?;
        if place.0 == 0 {
            self.sb = Superblock::read_by(&|at, buf| self.over.read_at(at, buf), &|_| true)?;
        }
        Ok(())
    }

    /// Whether what is on disk has this transaction already.
    fn is_newer(&self, place: Place, lsn: u64) -> Result<bool> {
        if !self.sb.v5() {
            return Ok(false);
        }
        let mut start = [0; 512];
        self.over.read_at(place.0 * 512, &mut start)?;
        let Some(at) = buffer::lsn_at(&start, &self.sb) else { return Ok(false) };
        Ok(is_at_least(be64(&start, at), lsn))
    }

    /// Lays bytes over the image.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.bytes_left = self
            .bytes_left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| bad("it changes more than a log of its size can"))?;
        self.over.write(at, bytes)
    }
}

/// Whether the LSN of an object is a valid one that is not before `lsn`.
pub(super) fn is_at_least(object: u64, lsn: u64) -> bool {
    object != 0 && object != u64::MAX && object >= lsn
}

/// The place that an item of a buffer or inode names: `daddr` and length in units.
pub(super) fn place_at(format: &[u8], unit: usize, length: u32) -> Place {
    (le64(format, unit), length)
}

/// Number of regions an item says it has; it must have them.
pub(super) fn complete(item: &Item, least: usize) -> Result<()> {
    let said = usize::from(le16(item.format(), 2));
    if said < least || item.regions.len() < said {
        return Err(bad("an item without all of its regions"));
    }
    Ok(())
}

/// A count of 32 bits as one of memory.
pub(super) fn count_at(format: &[u8], at: usize) -> usize {
    usize::try_from(le32(format, at)).unwrap_or(usize::MAX)
}
