//! Transactions put together from the operations of records.
//!
//! Transactions interleave, and go on from record to record; what has no commit by the head never happened.

use super::ring::{Record, bad};
use crate::Result;
use crate::fs::bytes::{be32, le16, le32, u8_at};
use std::collections::HashMap;

const OPERATION: usize = 12;
const CLIENTS: [u8; 2] = [0x69, 0xAA];
/// Header of a transaction, its first region.
const HEADER: usize = 16;
const HEADER_MAGIC: u32 = 0x5452_414E;
const MAX_REGIONS: u16 = 257;
/// Bytes of transactions that have no commit yet; the kernel's own checkpoints stay below 64 MiB.
const MAX_OPEN_BYTES: usize = 256 << 20;
/// What a region or a transaction costs besides its bytes.
const OVERHEAD_BYTES: usize = 64;

/// Flags of an operation.
mod flag {
    pub const START: u8 = 1;
    pub const COMMIT: u8 = 2;
    pub const CONTINUED: u8 = 4;
    pub const CONTINUES: u8 = 8;
    pub const END: u8 = 0x10;
    pub const UNMOUNT: u8 = 0x20;
}

/// One item: its description, and what was logged of it.
#[derive(Debug, Default)]
pub(super) struct Item {
    pub regions: Vec<Vec<u8>>,
    /// Number of regions that it says it has.
    total: usize,
}

impl Item {
    /// The first region, which says what it is.
    pub fn format(&self) -> &[u8] {
        self.regions.first().map_or(&[], Vec::as_slice)
    }

    /// Type of the item.
    pub fn kind(&self) -> u16 {
        le16(self.format(), 0)
    }
}

/// A transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    /// Place of the record with its start.
    pub lsn: u64,
    pub items: Vec<Item>,
    /// Bytes of its header that are still to come.
    header_left: usize,
    header: Vec<u8>,
    bytes: usize,
}

impl Transaction {
    fn new(lsn: u64) -> Self {
        Self { lsn, items: Vec::new(), header_left: HEADER, header: Vec::new(), bytes: 2 * OVERHEAD_BYTES }
    }

    /// A new region; the first of all is the header.
    fn add(&mut self, region: &[u8]) -> Result<()> {
        self.bytes += region.len() + OVERHEAD_BYTES;
        if self.header_left == HEADER {
            if region.len() > HEADER || le32(region, 0) != HEADER_MAGIC {
                return Err(bad("a transaction without its header"));
            }
            self.header.extend(region);
            self.header_left -= region.len();
            return Ok(());
        }
        // A header cut off by the end of a record goes on as a continuation; what is new here is an item.
        self.header_left = 0;
        match self.items.last_mut().filter(|item| item.regions.len() < item.total) {
            Some(item) => item.regions.push(region.to_vec()),
            None => {
                let total = le16(region, 2);
                if total == 0 || total > MAX_REGIONS {
                    return Err(bad("an item with an impossible number of regions"));
                }
                self.items.push(Item { regions: vec![region.to_vec()], total: usize::from(total) });
            }
        }
        Ok(())
    }

    /// More of the last region.
    fn append(&mut self, more: &[u8]) -> Result<()> {
        self.bytes += more.len();
        if self.items.is_empty() {
            if more.len() > self.header_left {
                return Err(bad("a transaction whose header is too long"));
            }
            self.header.extend(more);
            self.header_left -= more.len();
            return Ok(());
        }
        match self.items.last_mut().and_then(|item| item.regions.last_mut()) {
            Some(region) => region.extend(more),
            None => return Err(bad("a region that continues nothing")),
        }
        Ok(())
    }
}

/// Transactions that have no commit yet.
#[derive(Default)]
pub(super) struct Assembler {
    open: HashMap<u32, Transaction>,
    /// What they take in memory.
    held: usize,
}

impl Assembler {
    /// Takes the operations of a record; `commit` gets each transaction that they complete.
    pub fn feed(&mut self, record: &Record, commit: &mut dyn FnMut(Transaction) -> Result<()>) -> Result<()> {
        let mut rest = record.data.as_slice();
        for _ in 0..record.header.ops {
            let Some((head, after)) = rest.split_at_checked(OPERATION) else {
                return Err(bad("an operation that leaves its record"));
            };
            let len = usize::try_from(be32(head, 4)).unwrap_or(usize::MAX);
            let Some((region, after)) = after.split_at_checked(len) else {
                return Err(bad("a region that leaves its record"));
            };
            if !CLIENTS.contains(&u8_at(head, 8)) {
                return Err(bad("an operation of an unknown client"));
            }
            self.operation(be32(head, 0), u8_at(head, 9), region, record.header.lsn, commit)?;
            rest = after;
        }
        Ok(())
    }

    fn operation(
        &mut self,
        tid: u32,
        flags: u8,
        region: &[u8],
        lsn: u64,
        commit: &mut dyn FnMut(Transaction) -> Result<()>,
    ) -> Result<()> {
        let Some(open) = self.open.get_mut(&tid) else {
            // What began before the tail is on disk.
            if flags & flag::START != 0 {
                if !region.is_empty() {
                    return Err(bad("a start with content"));
                }
                let new = Transaction::new(lsn);
                self.held += new.bytes;
                self.open.insert(tid, new);
            }
            return Ok(());
        };
        let before = open.bytes;
        let flags = flags & !flag::END;
        let flags = if flags & flag::CONTINUES != 0 { flags & !flag::CONTINUED } else { flags };
        match flags {
            flag::COMMIT | flag::UNMOUNT => {
                self.held -= before;
                return match self.open.remove(&tid).filter(|_| flags == flag::COMMIT) {
                    Some(done) => commit(done),
                    None => Ok(()),
                };
            }
            0 | flag::CONTINUED if region.is_empty() => {}
            0 | flag::CONTINUED => open.add(region)?,
            flag::CONTINUES => open.append(region)?,
            _ => return Err(bad("an operation with impossible flags")),
        }
        self.held += open.bytes - before;
        if self.held > MAX_OPEN_BYTES {
            return Err(bad("more than 256 MiB of changes without a commit"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::Header;
    use super::*;

    fn operation(tid: u32, flags: u8, region: &[u8]) -> Vec<u8> {
        let mut out = tid.to_be_bytes().to_vec();
        out.extend(u32::try_from(region.len()).unwrap().to_be_bytes());
        out.extend([0x69, flags, 0, 0]);
        out.extend(region);
        out
    }

    /// What commits of these operations, with one record for each slice; by the first region of each item.
    fn committed(records: &[&[Vec<u8>]]) -> Result<Vec<(u64, Vec<Vec<u8>>)>> {
        let (mut found, mut open) = (Vec::new(), Assembler::default());
        for (lsn, operations) in (1..).zip(records) {
            let header = Header::of_operations(lsn, u32::try_from(operations.len()).unwrap());
            open.feed(&Record { header, data: operations.concat() }, &mut |done| {
                found.push((done.lsn, done.items.iter().map(|i| i.regions.concat()).collect()));
                Ok(())
            })?;
        }
        assert!(!open.open.is_empty() || open.held == 0, "all that was held is given back");
        Ok(found)
    }

    fn start(tid: u32) -> [Vec<u8>; 2] {
        let header = [HEADER_MAGIC.to_le_bytes(), [0; 4], tid.to_le_bytes(), [1, 0, 0, 0]].concat();
        [operation(tid, flag::START, &[]), operation(tid, 0, &header)]
    }

    #[test]
    fn transactions_interleave_and_go_on_in_the_next_record() {
        let [a1, a2] = start(1);
        let [b1, b2] = start(2);
        let one = operation(1, 0, &[9, 9, 1, 0, 5]);
        let head = operation(2, flag::CONTINUED, &[8, 8, 2, 0]);
        let tail = operation(2, flag::CONTINUES | flag::END, &[7]);
        let second = operation(2, 0, &[6]);
        let commit = |tid| operation(tid, flag::COMMIT, &[]);
        let found = committed(&[
            &[a1.clone(), b1, a2.clone(), b2, one.clone(), head],
            &[tail, commit(1), second, commit(2), operation(3, 0, &[1, 2, 3])],
        ]);
        let (a, b) = (vec![vec![9, 9, 1, 0, 5]], vec![vec![8, 8, 2, 0, 7, 6]]);
        assert_eq!(found.unwrap(), [(1, a), (1, b)]);
        assert_eq!(committed(&[&[a1.clone(), a2.clone(), one]]).unwrap(), [], "without a commit");
        assert!(committed(&[&[a1.clone(), a2, operation(1, 0, &[9, 9, 0, 0])]]).is_err(), "no regions");
        assert!(committed(&[&[a1, operation(1, 0, &[1; 16])]]).is_err(), "no header");
    }
}
