//! Asks everything of an image, which may be damaged: no panic, no endless work.

use super::support::MemoryImage;
use fuse_view::{BlockRead, Error, FileKind, FsView, Result, fs::open};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of memory image read in one walk may not exceed this many times the image.
const MOST_READ: u64 = 400;

struct Bounded {
    image: MemoryImage,
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

/// Asks everything of everything that can be reached; the number of answers and of errors.
pub fn exercise(bytes: Vec<u8>) -> (usize, usize) {
    let dev = Arc::new(Bounded { image: MemoryImage(bytes), read: AtomicU64::new(0) });
    let Ok(fs) = open(dev) else { return (0, 1) };
    let (mut good, mut bad) = (0, 0);
    let mut count = |ok: bool| if ok { good += 1 } else { bad += 1 };
    let mut seen = HashSet::from([fs.root()]);
    let mut todo = vec![fs.root()];
    while let Some(ino) = todo.pop() {
        count(fs.xattrs(ino).is_ok());
        let Ok(attr) = fs.attr(ino) else {
            count(false);
            continue;
        };
        match attr.kind {
            FileKind::Dir => list(&*fs, ino, &mut count, |ino| {
                if seen.len() < 5000 && seen.insert(ino) {
                    todo.push(ino);
                }
            }),
            FileKind::Symlink => count(fs.readlink(ino).is_ok()),
            FileKind::File => read(&*fs, ino, attr.size, &mut count),
            _ => count(true),
        }
    }
    (good, bad)
}

fn list(fs: &dyn FsView, dir: u64, count: &mut impl FnMut(bool), mut visit: impl FnMut(u64)) {
    let mut cookie = 0;
    loop {
        match fs.readdir(dir, cookie, 100) {
            Ok(entries) => {
                let Some(last) = entries.last() else { return count(true) };
                assert!(last.cookie & !(1 << 62) > cookie & !(1 << 62), "a listing that does not advance");
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

fn read(fs: &dyn FsView, ino: u64, size: u64, count: &mut impl FnMut(bool)) {
    let mut at = 0;
    let mut buf = vec![0; 1 << 16];
    for _ in 0..50 {
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
