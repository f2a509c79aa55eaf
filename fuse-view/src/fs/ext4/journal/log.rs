//! The blocks of the journal, found through its inode.

use super::super::Ext4;
use super::super::inode::Inode;
use super::super::mapping::Until;
use super::superblock::JournalSuper;
use crate::fs::run::Place;
use crate::{Error, Piece, Result};
use std::cell::RefCell;

/// Bytes read at once: the log is read in order, and past the cache.
const WINDOW_BYTES: u64 = 512 << 10;

/// A run of blocks of the journal that follow each other on the image.
#[derive(Clone, Copy, Default)]
struct Known {
    log: u32,
    len: u32,
    image: u64,
}

/// The bytes of the last run that was read.
#[derive(Default)]
struct Window {
    known: Known,
    bytes: Vec<u8>,
    first: u32,
}

pub(super) struct Log<'a> {
    pub fs: &'a Ext4,
    pub sb: JournalSuper,
    inode: Inode,
    window: RefCell<Window>,
}

impl<'a> Log<'a> {
    pub fn new(fs: &'a Ext4, inode: Inode, sb: JournalSuper) -> Self {
        Self { fs, sb, inode, window: RefCell::default() }
    }

    /// Byte on the image where block `log` of the journal is.
    pub fn offset(&self, log: u32) -> Result<u64> {
        let known = self.run(&mut self.window.borrow_mut().known, log)?;
        Ok((known.image + u64::from(log - known.log)) << self.fs.sb.block_bits)
    }

    fn run(&self, known: &mut Known, log: u32) -> Result<Known> {
        if log < known.log || log - known.log >= known.len {
            let run = self.fs.map(&self.inode, u64::from(log), Until::Contiguous)?;
            let Place::Data(image) = run.place else {
                return Err(Error::Corrupt(format!("block {log} of the journal is a hole")));
            };
            *known = Known { log, len: u32::try_from(run.len).unwrap_or(u32::MAX), image };
        }
        Ok(*known)
    }

    /// Passes block `log` to `use_it`.
    pub fn with_block<T>(&self, log: u32, use_it: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let size = self.sb.block_size;
        let window = &mut *self.window.borrow_mut();
        let held = log.wrapping_sub(window.first) as usize;
        if window.bytes.is_empty() || held >= window.bytes.len() / size {
            let known = self.run(&mut window.known, log)?;
            let skip = log - known.log;
            let blocks = u64::from(known.len - skip).min((WINDOW_BYTES / size as u64).max(1));
            let mut bytes = std::mem::take(&mut window.bytes);
            bytes.resize(usize::try_from(blocks).unwrap_or(1) * size, 0);
            let at = (known.image + u64::from(skip)) << self.fs.sb.block_bits;
            if self.fs.dev.read_at(at, &mut bytes).is_err() {
                // What lies ahead may be past the end of a cut image; the block itself decides.
                bytes.truncate(size);
                self.fs.dev.read_at(at, &mut bytes)?;
            }
            (window.bytes, window.first) = (bytes, log);
        }
        let from = (log - window.first) as usize * size;
        Ok(use_it(&window.bytes[from..from + size]))
    }

    /// A copy of block `log`.
    pub fn block(&self, log: u32) -> Result<Piece> {
        self.with_block(log, |bytes| Piece::from(bytes.to_vec()))
    }
}
