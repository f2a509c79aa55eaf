//! A disk that keeps what is not zeros, so that a volume of zeros of any size fits: what is left is the store's metadata.
//! It counts what is written.

use crate::rig::BLOCK;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use store::io::BlockDev;

/// Where the blocks are that are not zeros.
pub trait Blocks: Send {
    /// Copies a block; false: it is zeros.
    fn get(&self, block: u64, out: &mut [u8]) -> io::Result<bool>;
    /// Keeps a block; None: it is zeros.
    fn put(&mut self, block: u64, bytes: Option<&[u8]>) -> io::Result<()>;
}

/// The disk.
pub struct Sparse<B> {
    len: u64,
    blocks: Mutex<B>,
    written: AtomicU64,
}

impl<B: Blocks> Sparse<B> {
    pub fn new(len: u64, blocks: B) -> Self {
        Self { len, blocks: Mutex::new(blocks), written: AtomicU64::new(0) }
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl<B: Blocks> BlockDev for Sparse<B> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let blocks = self.blocks.lock();
        for (block, out) in (offset / BLOCK..).zip(buf.chunks_mut(4096)) {
            if !blocks.get(block, out)? {
                out.fill(0);
            }
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.written.fetch_add(buf.len() as u64, Ordering::Relaxed);
        let mut blocks = self.blocks.lock();
        for (block, part) in (offset / BLOCK..).zip(buf.chunks(4096)) {
            blocks.put(block, part.iter().any(|b| *b != 0).then_some(part))?;
        }
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn back(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn host_free(&self) -> Option<u64> {
        None
    }
}

/// In memory.
pub type InMemory = HashMap<u64, Box<[u8]>>;

impl Blocks for InMemory {
    fn get(&self, block: u64, out: &mut [u8]) -> io::Result<bool> {
        let found = HashMap::get(self, &block);
        if let Some(bytes) = found {
            out.copy_from_slice(bytes);
        }
        Ok(found.is_some())
    }
    fn put(&mut self, block: u64, bytes: Option<&[u8]>) -> io::Result<()> {
        match bytes {
            Some(bytes) => drop(self.insert(block, bytes.into())),
            None => drop(self.remove(&block)),
        }
        Ok(())
    }
}

/// In a file.
pub struct InFile {
    file: File,
    /// A bit for each block that is in the file.
    held: Vec<u64>,
}

fn place(block: u64) -> (usize, u64) {
    (usize::try_from(block / 64).expect("64-bit host"), 1 << (block % 64))
}

impl InFile {
    /// For a disk of `len` bytes. All its memory is touched at once.
    pub fn new(file: File, len: u64) -> Self {
        let mut held = vec![1; place(len / BLOCK).0];
        held.fill(0);
        Self { file, held }
    }
}

impl Blocks for InFile {
    fn get(&self, block: u64, out: &mut [u8]) -> io::Result<bool> {
        let (word, bit) = place(block);
        let held = self.held[word] & bit != 0;
        if held {
            self.file.read_exact_at(out, block * BLOCK)?;
        }
        Ok(held)
    }
    fn put(&mut self, block: u64, bytes: Option<&[u8]>) -> io::Result<()> {
        let (word, bit) = place(block);
        match bytes {
            Some(bytes) => {
                self.held[word] |= bit;
                self.file.write_all_at(bytes, block * BLOCK)?;
            }
            None => self.held[word] &= !bit,
        }
        Ok(())
    }
}
