//! A file system under work that can be cut at any moment, and surgery on the blocks of a cut.

use crate::common::support::{CountingImage, MemoryImage, Mount, WorkDir, run, workdir};
use crate::common::{sys, tree};
use crate::cuts::{Outcome, compare, cut};
use crate::image::{can_mount, mkfs};
use fuse_view::{FsView, Ino, fs::open};
use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An image that is mounted, and goes away with all that belongs to it.
pub struct Rig {
    mount: Option<Mount>,
    image: PathBuf,
    /// Comparisons, and those of them in which there was a log.
    compared: Cell<(u32, u32)>,
    pub dir: WorkDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Some fsyncs commit instead, as the kernel likes; a test whose fsyncs all do so tests nothing.
        let (all, replayed) = self.compared.get();
        assert!(std::thread::panicking() || all == 0 || replayed > 0, "no comparison had a log");
    }
}

impl Rig {
    pub fn new(options: &str) -> Option<Self> {
        Self::mounted(options, "rw,commit=300")
    }

    pub fn mounted(options: &str, mounted: &str) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let dir = workdir();
        // Two copies of all need more room.
        let mib = if options.contains("-d dup") { 256 } else { 128 };
        let image = mkfs(dir.path(), mib, options)?;
        let mount = Mount::with(&image, &dir.path().join("mnt"), mounted).unwrap();
        Some(Self { mount: Some(mount), image, compared: Cell::default(), dir })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.as_ref().unwrap().0.join(name)
    }

    /// Commits: what comes after is in the log, if it is fsynced.
    pub fn commit(&self) {
        run("sync", &["-f", self.path("").to_str().unwrap()]).unwrap();
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Writes into a file that is there.
    pub fn write_at(&self, name: &str, at: u64, content: &[u8]) {
        self.open(name).write_all_at(content, at).unwrap();
    }

    pub fn open(&self, name: &str) -> File {
        OpenOptions::new().read(true).write(true).open(self.path(name)).unwrap()
    }

    pub fn fallocate(&self, name: &str, mode: i32, at: i64, len: i64) {
        sys::fallocate(&self.open(name), mode, at, len).unwrap();
    }

    pub fn fsync(&self, name: &str) {
        File::open(self.path(name)).unwrap().sync_all().unwrap();
    }

    pub fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    pub fn link(&self, from: &str, to: &str) {
        fs::hard_link(self.path(from), self.path(to)).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    pub fn mkdir(&self, name: &str) {
        fs::create_dir(self.path(name)).unwrap();
    }

    /// A copy as a power cut would leave it.
    pub fn cut(&self) -> Cut {
        let copy = self.dir.path().join("cut");
        cut(&self.image, &copy);
        let bytes = fs::read(&copy).unwrap();
        Cut { bytes, copy, at: self.dir.path().join("replayed") }
    }

    /// Cuts, and compares all with the kernel's mount; the reader on such a cut.
    pub fn same(&self) -> Arc<dyn FsView> {
        let copy = self.dir.path().join("cut");
        cut(&self.image, &copy);
        let outcome = compare(&copy, &self.dir.path().join("replayed")).unwrap();
        let (all, replayed) = self.compared.get();
        self.compared.set((all + 1, replayed + u32::from(outcome == Outcome::Replayed)));
        // The kernel's mount changed the copy.
        cut(&self.image, &copy);
        open(Arc::new(CountingImage::open(&copy))).unwrap()
    }

    pub fn unmount(&mut self) -> &Path {
        self.mount = None;
        &self.image
    }
}

/// A cut in memory, to be changed.
pub struct Cut {
    pub bytes: Vec<u8>,
    copy: PathBuf,
    at: PathBuf,
}

pub const NODE: usize = 16384;
pub const FIRST_COPY: usize = 64 << 10;

impl Cut {
    pub fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    /// The reader on this cut.
    pub fn view(&self) -> Arc<dyn FsView> {
        open(Arc::new(MemoryImage(self.bytes.clone()))).unwrap()
    }

    /// What the kernel makes of it, and that the reader makes the same.
    pub fn outcome(&self) -> Result<Outcome, String> {
        self.store();
        compare(&self.copy, &self.at)
    }

    fn store(&self) {
        // Only what is not zero: the image is mostly holes.
        let _ = fs::remove_file(&self.copy);
        let file = File::create_new(&self.copy).unwrap();
        file.set_len(self.bytes.len() as u64).unwrap();
        for (i, chunk) in self.bytes.chunks(1 << 16).enumerate() {
            if chunk.iter().any(|&b| b != 0) {
                file.write_all_at(chunk, (i as u64) << 16).unwrap();
            }
        }
    }

    /// The reader, after a comparison in which the kernel replayed the log.
    pub fn same(&self) -> Arc<dyn FsView> {
        assert_eq!(self.outcome(), Ok(Outcome::Replayed));
        self.view()
    }

    /// Checks that the reader shows what the kernel shows without the log, and why.
    pub fn committed_only(&self, why: &str) {
        self.store();
        let view = open(Arc::new(CountingImage::open(&self.copy))).unwrap();
        let replay = view.replay();
        assert!(replay.starts_with("partial: ") && replay.contains(why), "{replay}");
        let ours = tree::of_view(&*view);
        let mount = Mount::with(&self.copy, &self.at, "ro,rescue=nologreplay").unwrap();
        let found = tree::differences(&ours, &tree::of_mount(&mount.0), |_, _| tree::Mask::default());
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    /// Where the blocks of the log trees lie, in all copies, by their owner and generation.
    pub fn log_blocks(&self) -> Vec<usize> {
        let generation = self.u64_at(FIRST_COPY + 0x48) + 1;
        let owner = (-6i64).cast_unsigned();
        (0..self.bytes.len() / NODE)
            .map(|i| i * NODE)
            .filter(|&at| {
                self.bytes[at + 32..at + 48] == self.bytes[FIRST_COPY + 0x20..FIRST_COPY + 0x30]
                    && self.u64_at(at + 80) == generation
                    && self.u64_at(at + 88) == owner
            })
            .collect()
    }

    /// Gives the block at `at` the checksum of what it holds now.
    pub fn fix(&mut self, at: usize, len: usize) {
        let sum = crc32c::crc32c(&self.bytes[at + 32..at + len]);
        self.bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
    }

    /// Items of the leaf at `at`: key and place.
    pub fn items(&self, at: usize) -> Vec<((u64, u8, u64), std::ops::Range<usize>)> {
        let u32_at = |at: usize| {
            usize::try_from(u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())).unwrap()
        };
        if self.bytes[at + 100] != 0 {
            return Vec::new();
        }
        (0..u32_at(at + 96))
            .map(|i| at + 101 + i * 25)
            .map(|item| {
                let start = at + 101 + u32_at(item + 17);
                let key = (self.u64_at(item), self.bytes[item + 8], self.u64_at(item + 9));
                (key, start..start + u32_at(item + 21))
            })
            .collect()
    }
}

/// Follows names from the root.
pub fn find(view: &dyn FsView, path: &str) -> Option<Ino> {
    path.split('/').try_fold(view.root(), |dir, name| view.lookup(dir, name.as_bytes()).ok())
}

/// All of a file.
pub fn content(view: &dyn FsView, path: &str) -> Vec<u8> {
    let ino = find(view, path).unwrap();
    let mut buf = vec![0; usize::try_from(view.attr(ino).unwrap().size).unwrap()];
    assert_eq!(view.read_at(ino, 0, &mut buf).unwrap(), buf.len());
    buf
}

/// Two names of the form `{prefix}{number}` with one hash.
pub fn colliding(prefix: &str) -> (String, String) {
    let mut seen = std::collections::HashMap::new();
    (0u32..)
        .find_map(|n| {
            let name = format!("{prefix}{n}");
            let hash = crc32c::crc32c_append(1, name.as_bytes());
            seen.insert(hash, name.clone()).map(|other| (other, name))
        })
        .unwrap()
}
