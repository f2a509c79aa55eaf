//! The images that changes start from, and a changed one.

use super::{edits::Edit, sums::Sums};
use fuse_view::{BlockRead, Error, Result};
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const BLOCK: usize = 4096;
/// Most bytes that all that is asked of one image may read: some hundred times what is in any of them.
const MOST_READ: u64 = 2 << 30;

/// Something that is changed as a whole, and has at most one checksum of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Structure {
    pub at: u64,
    pub len: usize,
}

/// An image that is whole, of which only the blocks that are not zero are kept.
pub struct Image {
    blocks: HashMap<u64, Box<[u8; BLOCK]>>,
    len: u64,
    pub structures: Vec<Structure>,
    pub sums: Sums,
}

impl Image {
    /// From a file compressed by zstd.
    pub fn unpack(file: &[u8]) -> Self {
        let mut from = zstd::Decoder::new(file).expect("an image compressed by zstd");
        let (mut blocks, mut len) = (HashMap::new(), 0);
        loop {
            let mut block = Box::new([0; BLOCK]);
            let got = fill(&mut from, &mut block[..]);
            if block.iter().any(|&byte| byte != 0) {
                blocks.insert(len / BLOCK as u64, block);
            }
            len += got as u64;
            if got < BLOCK {
                break;
            }
        }
        let mut image = Self { blocks, len, structures: Vec::new(), sums: Sums::None };
        super::sums::find(&mut image);
        assert!(!image.structures.is_empty(), "nothing to change");
        image
    }

    /// From bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::unpack(&zstd::encode_all(bytes, 1).expect("it fits into memory"))
    }

    /// `len` bytes; zeros past the end.
    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (block, within, part) in pieces(at, len) {
            if let Some(block) = self.blocks.get(&block) {
                let end = within + part.len();
                bytes[part].copy_from_slice(&block[within..end]);
            }
        }
        bytes
    }

    /// The starts of all units of `len` bytes, a divisor or multiple of 4096, that are not zero.
    pub fn units(&self, len: usize) -> Vec<u64> {
        let mut found: Vec<u64> = self
            .blocks
            .keys()
            .flat_map(|block| {
                let start = block * BLOCK as u64 / len as u64 * len as u64;
                (start..(block + 1) * BLOCK as u64).step_by(len)
            })
            .filter(|at| at + len as u64 <= self.len && self.get(*at, len).iter().any(|&byte| byte != 0))
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn fill(from: &mut impl Read, buf: &mut [u8]) -> usize {
    let mut done = 0;
    while done < buf.len() {
        match from.read(&mut buf[done..]).expect("an image compressed by zstd") {
            0 => break,
            got => done += got,
        }
    }
    done
}

/// Cuts `len` bytes from `at` on at the ends of blocks: `(block, offset in it, part of the bytes)`.
fn pieces(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let from = at + done as u64;
        let within = (from % BLOCK as u64) as usize;
        let part = done..len.min(done + BLOCK - within);
        done = part.end;
        (!part.is_empty()).then_some((from / BLOCK as u64, within, part))
    })
}

/// An image after some edits; it panics when far more is read than any walk needs.
pub struct Edited {
    image: Arc<Image>,
    changed: HashMap<u64, Box<[u8; BLOCK]>>,
    len: u64,
    read: AtomicU64,
}

impl Edited {
    pub fn new(image: &Arc<Image>, edits: &[Edit]) -> Self {
        let mut edited =
            Self { image: image.clone(), changed: HashMap::new(), len: image.len, read: AtomicU64::new(0) };
        for edit in edits {
            edit.apply(&mut edited);
        }
        edited
    }

    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Cuts the image short.
    pub fn truncate(&mut self, len: u64) {
        self.len = self.len.min(len);
    }

    /// A structure as it is now.
    pub fn get(&self, structure: Structure) -> Vec<u8> {
        let mut bytes = vec![0; structure.len];
        self.copy(structure.at, &mut bytes);
        bytes
    }

    pub fn put(&mut self, structure: Structure, bytes: &[u8]) {
        for (number, within, part) in pieces(structure.at, bytes.len()) {
            let block = self
                .changed
                .entry(number)
                .or_insert_with(|| self.image.blocks.get(&number).cloned().unwrap_or(Box::new([0; BLOCK])));
            block[within..within + part.len()].copy_from_slice(&bytes[part]);
        }
    }

    fn copy(&self, at: u64, buf: &mut [u8]) {
        for (number, within, part) in pieces(at, buf.len()) {
            let range = within..within + part.len();
            match self.changed.get(&number).or_else(|| self.image.blocks.get(&number)) {
                Some(block) => buf[part].copy_from_slice(&block[range]),
                None => buf[part].fill(0),
            }
        }
    }
}

impl BlockRead for Edited {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        assert!(read < MOST_READ, "more is read than any walk needs");
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(Error::Corrupt(format!("{} bytes at {offset}: past the end", buf.len())));
        }
        self.copy(offset, buf);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.len
    }
}
