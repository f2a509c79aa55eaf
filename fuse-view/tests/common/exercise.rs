//! Asks everything of an image, which may be damaged: no panic, no endless work.

use super::support::MemoryImage;
use fuse_view::{BlockRead, Error, FileKind, FsView, Result, fs::open};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of memory image read in one walk may not exceed this many times the image.
const MOST_READ: u64 = 400;

struct Bounded {
    image: Arc<dyn BlockRead>,
    read: AtomicU64,
}

impl BlockRead for Bounded {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        assert!(read < MOST_READ * self.image.len(), "more is read than any walk needs");
        self.image.read_at(offset, buf)
    }

    fn len(&self) -> u64 {
        self.image.len()
    }
}

/// Most bytes that one walk may read of a damaged image.
const MOST_READ_OF_DAMAGED: u64 = 4 << 30;
/// Unit of damage that is laid over an image.
const SECTOR: usize = 512;

/// An image with some sectors changed; it fails if far more is read than any walk needs.
pub struct Damaged {
    whole: Arc<Vec<u8>>,
    changed: HashMap<usize, Vec<u8>>,
    read: AtomicU64,
    /// Bytes that are there; less than the whole is an image cut short.
    pub len: usize,
}

impl Damaged {
    pub fn new(whole: &Arc<Vec<u8>>) -> Self {
        Self { whole: whole.clone(), changed: HashMap::new(), read: AtomicU64::new(0), len: whole.len() }
    }

    /// `len` bytes as they are now.
    pub fn get(&self, at: usize, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.copy(at, &mut out);
        out
    }

    fn copy(&self, at: usize, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() {
            let from = at + done;
            let sector = from / SECTOR * SECTOR;
            let len = (sector + SECTOR - from).min(buf.len() - done);
            match self.changed.get(&sector) {
                Some(changed) => {
                    buf[done..done + len].copy_from_slice(&changed[from - sector..from - sector + len]);
                }
                None => buf[done..done + len].copy_from_slice(&self.whole[from..from + len]),
            }
            done += len;
        }
    }

    /// Replaces the bytes from `at` on.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        let start = at / SECTOR * SECTOR;
        let end = (at + bytes.len()).next_multiple_of(SECTOR).min(self.whole.len());
        let mut sectors = self.get(start, end - start);
        sectors[at - start..at - start + bytes.len()].copy_from_slice(bytes);
        for (i, sector) in sectors.chunks(SECTOR).enumerate() {
            self.changed.insert(start + i * SECTOR, sector.to_vec());
        }
    }
}

impl BlockRead for Damaged {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        assert!(read < MOST_READ_OF_DAMAGED, "more is read than any walk needs");
        let start = usize::try_from(offset).ok();
        let start = start.filter(|at| at.checked_add(buf.len()).is_some_and(|end| end <= self.len));
        let Some(start) = start else {
            return Err(Error::Corrupt(format!("{} bytes at {offset}: past the end", buf.len())));
        };
        self.copy(start, buf);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.len as u64
    }
}

/// Asks everything of everything that can be reached; the number of answers and of errors.
pub fn exercise(bytes: Vec<u8>) -> (usize, usize) {
    exercise_source(bounded(Arc::new(MemoryImage(bytes))))
}

/// `image`, which fails when far more is read than any walk needs.
pub fn bounded(image: Arc<dyn BlockRead>) -> Arc<dyn BlockRead> {
    Arc::new(Bounded { image, read: AtomicU64::new(0) })
}

/// How much is asked of one image.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Inodes that are looked at.
    pub inodes: usize,
    /// Ranges of data that are read of each file.
    pub pieces: usize,
    /// Bytes that are read of each.
    pub bytes: usize,
}

impl Limits {
    /// Everything in an image of a test.
    pub const USUAL: Self = Self { inodes: 5000, pieces: 50, bytes: 1 << 16 };
    /// For many small images.
    pub const FEW: Self = Self { inodes: 200, pieces: 4, bytes: 1 << 13 };
}

/// The same of any source.
pub fn exercise_source(dev: Arc<dyn BlockRead>) -> (usize, usize) {
    exercise_within(dev, Limits::USUAL)
}

/// The same within limits: the entry for fuzzers.
pub fn exercise_within(dev: Arc<dyn BlockRead>, limits: Limits) -> (usize, usize) {
    let Ok(fs) = open(dev) else { return (0, 1) };
    let _ = (fs.label(), fs.replay(), fs.statfs(), fs.format());
    let (mut good, mut bad) = (0, 0);
    let mut count = |ok: bool| if ok { good += 1 } else { bad += 1 };
    if let Ok(Some(ranges)) = fs.bookkeeping() {
        assert!(ranges.is_sorted_by_key(|range| range.start), "not ascending: {ranges:?}");
    }
    let mut seen = HashSet::from([fs.root()]);
    let mut todo = vec![fs.root()];
    while let Some(ino) = todo.pop() {
        count(fs.xattrs(ino).is_ok());
        let Ok(attr) = fs.attr(ino) else {
            count(false);
            continue;
        };
        let _ = fs.inode_at(ino);
        match attr.kind {
            FileKind::Dir => list(&*fs, ino, &mut count, |ino| {
                if seen.len() < limits.inodes && seen.insert(ino) {
                    todo.push(ino);
                }
            }),
            FileKind::Symlink => count(fs.readlink(ino).is_ok()),
            FileKind::File => read(&*fs, ino, attr.size, limits, &mut count),
            _ => count(true),
        }
        if matches!(attr.kind, FileKind::File | FileKind::Dir) {
            extents(&*fs, ino, limits, &mut count);
        }
    }
    (good, bad)
}

/// Where content lies: ranges that follow each other.
fn extents(fs: &dyn FsView, ino: u64, limits: Limits, count: &mut impl FnMut(bool)) {
    let mut at = 0u64;
    for _ in 0..limits.pieces {
        match fs.extent(ino, at) {
            Ok(Some(extent)) => {
                assert!(extent.bytes() > 0, "an extent of nothing");
                let Some(next) = at.checked_add(extent.bytes()) else { break };
                at = next;
            }
            Ok(None) => return,
            Err(_) => return count(false),
        }
    }
}

fn list(fs: &dyn FsView, dir: u64, count: &mut impl FnMut(bool), mut visit: impl FnMut(u64)) {
    let mut cookie = 0;
    let mut calls = 0;
    loop {
        match fs.readdir(dir, cookie, 100) {
            Ok(entries) => {
                let Some(last) = entries.last() else { return count(true) };
                assert!(last.cookie != cookie, "a listing that does not advance");
                calls += 1;
                assert!(calls < 100_000, "a listing without end");
                cookie = last.cookie;
                for entry in entries {
                    assert!(!entry.name.is_empty() && !entry.name.iter().any(|&b| b == b'/' || b == 0));
                    assert!(entry.name != b"." && entry.name != b"..");
                    visit(entry.ino);
                }
            }
            Err(_) => {
                count(false);
                break;
            }
        }
    }
    count(matches!(fs.lookup(dir, b"len4096"), Ok(_) | Err(Error::NotFound(_))));
}

fn read(fs: &dyn FsView, ino: u64, size: u64, limits: Limits, count: &mut impl FnMut(bool)) {
    let mut at = 0;
    let mut buf = vec![0; limits.bytes];
    for _ in 0..limits.pieces {
        match fs.next_data(ino, at) {
            Ok(Some(range)) => {
                assert!(range.start >= at && range.end > range.start && range.end <= size);
                count(fs.read_at(ino, range.start, &mut buf).is_ok());
                at = range.end;
            }
            Ok(None) => break,
            Err(_) => {
                count(false);
                break;
            }
        }
    }
    count(fs.read_at(ino, size.saturating_sub(10), &mut buf).is_ok());
    let _ = fs.next_data(ino, u64::MAX);
    let _ = fs.read_at(ino, u64::MAX, &mut buf);
}
