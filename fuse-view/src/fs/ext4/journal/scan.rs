//! Finding the end of the log, and what the transactions before it hold.

use super::log::Log;
use super::records::{Commit, Kind, Tag, crc32_be, kind_of, revoked, tags, tail_holds};
use super::superblock::Checksums;
use crate::Result;

/// A block to be replayed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logged {
    /// Where it belongs.
    pub block: u64,
    /// Its block in the journal.
    pub log: u32,
    pub escaped: bool,
    /// Its checksum is wrong.
    pub bad: bool,
}

/// A transaction whose commit block is there.
#[derive(Debug)]
pub(super) struct Transaction {
    pub id: u32,
    pub blocks: Vec<Logged>,
    pub revokes: Vec<u64>,
}

impl Transaction {
    fn new(id: u32) -> Self {
        Self { id, blocks: Vec::new(), revokes: Vec::new() }
    }
}

/// What the log holds.
#[derive(Debug)]
pub(super) struct Scanned {
    /// To be replayed, in order.
    pub transactions: Vec<Transaction>,
    /// The transaction that did not complete: fast commits belong to it.
    pub end: u32,
    /// Why the kernel would refuse.
    pub trouble: Option<String>,
}

/// Whether `a` is not before `b`: ids wrap around.
pub(super) fn is_at_or_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() >= 0
}

struct Scanner<'a, 'b> {
    log: &'a Log<'b>,
    /// Next block of the log.
    at: u32,
    /// Blocks walked; no log is longer than its area.
    walked: u32,
    id: u32,
    current: Transaction,
    complete: Vec<Transaction>,
    /// The first transaction not to be replayed, once that is known.
    end: Option<u32>,
    /// When the last good commit was written.
    last_seconds: u64,
    /// A descriptor or revoke of the current transaction had a wrong checksum.
    suspect: bool,
    /// CRC of the current transaction, for version 1.
    sum: u32,
    trouble: Option<String>,
}

/// Walks the log from its start to its end.
pub(super) fn scan(log: &Log<'_>) -> Result<Scanned> {
    let id = log.sb.sequence;
    let mut scanner = Scanner {
        log,
        at: log.sb.start,
        walked: 0,
        id,
        current: Transaction::new(id),
        complete: Vec::new(),
        end: None,
        last_seconds: 0,
        suspect: false,
        sum: !0,
        trouble: None,
    };
    while scanner.step()? {}
    let end = scanner.end.unwrap_or(scanner.id);
    let mut transactions = scanner.complete;
    transactions.retain(|transaction| !is_at_or_after(transaction.id, end));
    Ok(Scanned { transactions, end, trouble: scanner.trouble })
}

impl Scanner<'_, '_> {
    /// Takes one block of the log; false at its end.
    fn step(&mut self) -> Result<bool> {
        let log = self.log;
        let area = log.sb.last - log.sb.first;
        let Some(at) = self.advance(1) else { return Ok(false) };
        let block = log.block(at)?;
        match kind_of(&block, self.id) {
            None => Ok(false),
            Some(Kind::Descriptor) => {
                self.suspect |= !tail_holds(&log.sb, &block);
                let tags = tags(&log.sb, &block);
                if self.walked + u32::try_from(tags.len()).unwrap_or(u32::MAX) > area {
                    return Ok(false);
                }
                self.sum_of_transaction(&block);
                for tag in tags {
                    self.data(tag)?;
                }
                Ok(true)
            }
            Some(Kind::Revoke) => {
                self.suspect |= !tail_holds(&log.sb, &block);
                match revoked(&log.sb, &block) {
                    Some(blocks) => self.current.revokes.extend(blocks),
                    None if self.suspect => {}
                    None => {
                        self.fail(format!("a revoke block of transaction {} claims too much", self.id));
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Some(Kind::Commit) => Ok(self.commit(&Commit(&block))),
        }
    }

    /// Passes `count` blocks; the first of them, or None where the log would be longer than its area.
    fn advance(&mut self, count: u32) -> Option<u32> {
        let area = self.log.sb.last - self.log.sb.first;
        let at = self.at;
        self.walked = self.walked.checked_add(count).filter(|&walked| walked <= area)?;
        self.at = self.log.sb.advance(at, count);
        Some(at)
    }

    fn sum_of_transaction(&mut self, block: &[u8]) {
        if self.log.sb.checksums == Checksums::V1 && self.end.is_none() {
            self.sum = crc32_be(self.sum, block);
        }
    }

    /// The block that `tag` announces.
    fn data(&mut self, tag: Tag) -> Result<()> {
        let Some(at) = self.advance(1) else { return Ok(()) };
        let log = self.log;
        let mut bad = false;
        match log.sb.checksums {
            Checksums::None => {}
            Checksums::V1 => log.with_block(at, |data| self.sum_of_transaction(data))?,
            Checksums::V2 | Checksums::V3 => {
                bad = !log.with_block(at, |data| tag.sum_holds(&log.sb, self.id, data))?;
            }
        }
        self.current.blocks.push(Logged { block: tag.block, log: at, escaped: tag.escaped, bad });
        Ok(())
    }

    /// Takes a commit block; false: the log ends here.
    fn commit(&mut self, commit: &Commit<'_>) -> bool {
        let stale = commit.seconds() < self.last_seconds;
        if self.suspect {
            // Remains of an earlier life of the journal are older than what came before them here.
            if !stale {
                self.fail(format!("a block of transaction {} has a wrong checksum", self.id));
            }
            return false;
        }
        let v1 = self.log.sb.checksums == Checksums::V1;
        if v1 && let Some(end) = self.end {
            self.fail(format!("transaction {end} has a wrong checksum, and others follow it"));
            return false;
        }
        if !commit.sum_holds(&self.log.sb, self.sum) {
            if stale {
                return false;
            }
            self.end = Some(self.id);
            if !self.log.sb.async_commit {
                self.fail(format!("the commit block of transaction {} has a wrong checksum", self.id));
                return false;
            }
        }
        self.sum = !0;
        self.last_seconds = commit.seconds();
        self.id = self.id.wrapping_add(1);
        self.complete.push(std::mem::replace(&mut self.current, Transaction::new(self.id)));
        true
    }

    fn fail(&mut self, why: String) {
        self.end.get_or_insert(self.id);
        self.trouble = Some(why);
    }
}
