//! Snapshots in memory that share blocks, made of an image that the kernel changes between them.

use fuse_view::{
    BlockRead, Error, Result,
    history::{Change, Changes, History},
    tree::SnapshotEntry,
};
use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

pub const BLOCK: usize = 4096;

/// Blocks; two snapshots share those that are the same allocation.
pub type Blocks = Vec<Arc<[u8]>>;

/// The blocks of `bytes`, those that `before` has at the same place shared with it.
pub fn blocks(bytes: &[u8], before: Option<&Blocks>) -> Blocks {
    let pieces = bytes.chunks(BLOCK).enumerate();
    let shared = |at: usize, piece: &[u8]| before?.get(at).filter(|old| old[..] == *piece).cloned();
    pieces.map(|(at, piece)| shared(at, piece).unwrap_or_else(|| piece.into())).collect()
}

/// A snapshot as a source.
pub struct Source {
    pub blocks: Blocks,
    pub bytes_read: Arc<AtomicU64>,
}

impl BlockRead for Source {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.bytes_read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        if offset + buf.len() as u64 > self.len() {
            return Err(Error::Corrupt("past the end".into()));
        }
        let mut done = 0;
        while done < buf.len() {
            let at = usize::try_from(offset).unwrap() + done;
            let block = &self.blocks[at / BLOCK];
            let count = (block.len() - at % BLOCK).min(buf.len() - done);
            buf[done..done + count].copy_from_slice(&block[at % BLOCK..at % BLOCK + count]);
            done += count;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.blocks.iter().map(|block| block.len() as u64).sum()
    }
}

/// The snapshots of a volume.
#[derive(Default)]
pub struct Volume {
    pub snapshots: Vec<Blocks>,
    pub bytes_read: Arc<AtomicU64>,
    pub opened: AtomicU64,
}

impl Volume {
    pub fn push(&mut self, bytes: &[u8]) {
        let blocks = blocks(bytes, self.snapshots.last());
        self.snapshots.push(blocks);
    }

    pub fn source(&self, index: usize) -> Arc<dyn BlockRead> {
        Arc::new(Source { blocks: self.snapshots[index].clone(), bytes_read: self.bytes_read.clone() })
    }

    /// Where two of them do not share a block.
    pub fn differences(&self, a: usize, b: usize) -> Vec<Range<u64>> {
        let pairs = self.snapshots[a].iter().zip(&self.snapshots[b]).enumerate();
        let differ = pairs.filter(|(_, (a, b))| !Arc::ptr_eq(a, b));
        let block = BLOCK as u64;
        differ.map(|(at, _)| at as u64 * block..(at as u64 + 1) * block).collect()
    }
}

/// Ids count from 1; at most this many snapshots an answer, so that going on is tried, too.
const ANSWER: usize = 5;

impl History for Volume {
    fn snapshots(&self) -> Result<Vec<SnapshotEntry>> {
        let entry = |id: u64| SnapshotEntry { name: format!("s{id}"), id, created_at: 0 };
        Ok((1..=self.snapshots.len() as u64).map(entry).collect())
    }

    fn open(&self, snapshot: &SnapshotEntry) -> Result<Arc<dyn BlockRead>> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(self.source(usize::try_from(snapshot.id).unwrap() - 1))
    }

    fn changes(&self, from: u64, read: &[Range<u64>], watch: &[Range<u64>]) -> Result<Changes> {
        let mut answer = Changes { through: from, ..Changes::default() };
        let from = usize::try_from(from).unwrap();
        let met = |ranges: &[Range<u64>], block: &Range<u64>| {
            ranges.iter().any(|range| range.start < block.end && block.start < range.end)
        };
        for id in from + 1..=self.snapshots.len() {
            if answer.changes.len() == ANSWER {
                return Ok(answer);
            }
            let differing = self.differences(id - 2, id - 1);
            let blocks = differing.iter().filter(|block| met(read, block));
            let bytes = |at: u64| self.snapshots[id - 1][usize::try_from(at).unwrap() / BLOCK].to_vec();
            let change = Change {
                id: id as u64,
                watched: differing.iter().any(|block| met(watch, block)),
                blocks: blocks.map(|block| (block.start, bytes(block.start))).collect(),
            };
            answer.through = id as u64;
            if change.watched || !change.blocks.is_empty() {
                answer.changes.push(change);
            }
        }
        answer.end = true;
        Ok(answer)
    }
}

/// SplitMix64.
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// Runs a program of the system; what it says is the error.
pub fn tool(program: &str, args: &[&str]) -> std::result::Result<(), String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let out = Command::new(program).args(args).env("PATH", path).output();
    let out = out.map_err(|e| format!("{program}: {e}"))?;
    if out.status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {}", String::from_utf8_lossy(&out.stderr)))
    }
}

/// An image that is mounted to be changed.
pub struct Disk {
    dir: tempfile::TempDir,
    taken: Taken,
}

/// When images are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    Unmounted,
    Frozen,
    /// After a sync: what is new is in the log.
    Busy,
}

impl Disk {
    /// Made by mke2fs. None, with the reason said: this machine cannot.
    pub fn new(mib: u64, options: &[&str]) -> Option<Self> {
        Self::of(mib, &[&["mke2fs", "-q", "-F"], options].concat())
    }

    /// Made by the program that `words` begin with; `words` may have `frozen` before it: then images are taken while it
    /// is mounted and frozen, as snapshots are; or `busy`: while it is mounted, as snapshots are that do not freeze.
    pub fn of(mib: u64, words: &[&str]) -> Option<Self> {
        let taken = match words[0] {
            "frozen" => Taken::Frozen,
            "busy" => Taken::Busy,
            _ => Taken::Unmounted,
        };
        let words = &words[usize::from(taken != Taken::Unmounted)..];
        let (program, options) = words.split_first().expect("a program");
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let made = tool(program, &[options, &[image.to_str().unwrap()]].concat());
        let disk = Self { dir, taken };
        if let Err(why) = made.and_then(|()| disk.mount()) {
            crate::skip::skip(&format!("needs root, loop devices and {program}: {why}"));
            return None;
        }
        disk.unmount();
        Some(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mount(&self) -> std::result::Result<(), String> {
        let (image, at) = (self.path("image"), self.path("mnt"));
        let options = "loop,noatime";
        tool("mount", &["-o", options, image.to_str().unwrap(), at.to_str().unwrap()])
    }

    fn unmount(&self) {
        // Whoever looks at all mounts of the machine may hold it for a moment.
        let started = std::time::Instant::now();
        while let Err(why) = tool("umount", &[self.path("mnt").to_str().unwrap()]) {
            assert!(started.elapsed().as_secs() < 60, "{why}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Mounts, changes, unmounts; the image after it.
    pub fn change(&self, change: impl FnOnce(&Path)) -> Vec<u8> {
        self.mount().unwrap();
        let at = self.path("mnt");
        change(&at);
        let (at, image) = (at.to_str().unwrap(), || fs::read(self.path("image")).unwrap());
        match self.taken {
            Taken::Unmounted => {
                self.unmount();
                image()
            }
            Taken::Frozen => {
                tool("fsfreeze", &["-f", at]).unwrap();
                let bytes = image();
                tool("fsfreeze", &["-u", at]).unwrap();
                self.unmount();
                bytes
            }
            Taken::Busy => {
                tool("sync", &["-f", at]).unwrap();
                let bytes = image();
                self.unmount();
                bytes
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Only where a test failed in between is it still mounted.
        let _ = tool("umount", &["-l", self.path("mnt").to_str().unwrap()]);
    }
}
