//! A seeded workload of names and contents that collide much, fsync much and commit seldom.

use crate::common::support::{Chance, run};
use crate::common::sys;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

/// Directories that operations choose from; they come and go. `sub` is a subvolume.
const DIRS: [&str; 8] = ["", "a", "b", "a/c", "a/c/d", "e", "sub", "sub/x"];
/// Names in each directory.
const NAMES: u64 = 14;

/// One workload on a mounted file system.
pub struct Workload {
    root: PathBuf,
    pub chance: Chance,
    /// Files that were unlinked while open.
    open: Vec<File>,
}

impl Workload {
    /// Makes what every workload begins with, committed.
    pub fn new(root: &Path, seed: u64) -> Self {
        run("btrfs", &["subvolume", "create", root.join("sub").to_str().unwrap()]).unwrap();
        let mut work = Self { root: root.to_path_buf(), chance: Chance(seed), open: Vec::new() };
        for dir in DIRS.iter().filter(|dir| **dir != "sub") {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for _ in 0..60 {
            let _ = work.step();
        }
        run("sync", &["-f", root.to_str().unwrap()]).unwrap();
        work
    }

    fn dir(&mut self) -> PathBuf {
        let dir = DIRS[usize::try_from(self.chance.below(DIRS.len() as u64)).unwrap()];
        self.root.join(dir)
    }

    fn name(&mut self) -> OsString {
        let n = self.chance.below(NAMES);
        // Some long, so that items are split differently.
        if n.is_multiple_of(5) { format!("{n}-{}", "n".repeat(150)) } else { format!("n{n}") }.into()
    }

    fn path(&mut self) -> PathBuf {
        self.dir().join(self.name())
    }

    /// A path that is there, mostly.
    fn existing(&mut self) -> PathBuf {
        for _ in 0..4 {
            let path = self.path();
            if fs::symlink_metadata(&path).is_ok() {
                return path;
            }
        }
        self.path()
    }

    fn data(&mut self) -> Vec<u8> {
        let len = match self.chance.below(6) {
            0 => self.chance.below(100),
            1 | 2 => self.chance.below(5000),
            3 | 4 => self.chance.below(40_000),
            _ => self.chance.below(300_000),
        };
        let len = usize::try_from(len).unwrap();
        if self.chance.below(2) == 0 {
            return self.chance.bytes(len);
        }
        let word = self.chance.next();
        (0u64..).flat_map(|i| format!("{:x} ", word >> (i % 5)).into_bytes()).take(len).collect()
    }

    /// One operation. What fails, as the names may not fit, is no matter. True: something was synced.
    pub fn step(&mut self) -> bool {
        match self.chance.below(100) {
            0..30 => self.sync().is_some(),
            n => {
                let _ = match n {
                    30..48 => self.write(),
                    48..58 => self.shape(),
                    58..88 => self.rename(),
                    _ => self.attributes(),
                };
                false
            }
        }
    }

    fn sync(&mut self) -> Option<()> {
        let path = if self.chance.below(4) == 0 { self.dir() } else { self.existing() };
        let kind = fs::symlink_metadata(&path).ok()?.file_type();
        if !kind.is_file() && !kind.is_dir() {
            return None;
        }
        let file = File::open(&path).ok()?;
        if self.chance.below(4) == 0 { file.sync_data() } else { file.sync_all() }.ok()
    }

    fn write(&mut self) -> Option<()> {
        let path = if self.chance.below(3) == 0 { self.path() } else { self.existing() };
        let mut options = OpenOptions::new();
        options.write(true).create(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(&path).ok()?;
        let len = file.metadata().ok()?.len();
        let data = self.data();
        let at = match self.chance.below(4) {
            0 => 0,
            1 => len,
            _ => self.chance.below(len + 20_000),
        };
        file.write_all_at(&data, at).ok()?;
        if self.chance.below(5) == 0 {
            file.sync_all().ok()?;
        }
        Some(())
    }

    /// Lengths and holes.
    fn shape(&mut self) -> Option<()> {
        let path = self.existing();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .ok()?;
        let len = file.metadata().ok()?.len();
        let at = self.chance.below(len + 10_000);
        let count = 1 + self.chance.below(60_000);
        let (start, size) = (i64::try_from(at).unwrap(), i64::try_from(count).unwrap());
        match self.chance.below(6) {
            0 => file.set_len(at).ok(),
            1 => sys::fallocate(&file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, start, size)
                .ok(),
            2 => sys::fallocate(&file, libc::FALLOC_FL_KEEP_SIZE, start, size).ok(),
            3 => sys::fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, start, size).ok(),
            4 => sys::fallocate(&file, 0, start, size).ok(),
            _ => {
                let other = self.path();
                let other = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                    .open(other)
                    .ok()?;
                sys::clone_file(&file, &other).ok()
            }
        }
    }

    fn rename(&mut self) -> Option<()> {
        match self.chance.below(16) {
            0..3 => fs::rename(self.existing(), self.path()).ok(),
            3 => fs::rename(self.existing(), self.existing()).ok(),
            4 => sys::exchange(&self.existing(), &self.existing()).ok(),
            5..8 => fs::hard_link(self.existing(), self.path()).ok(),
            8..11 => fs::remove_file(self.existing()).ok(),
            11 => {
                let path = self.existing();
                let file = File::options()
                    .read(true)
                    .write(true)
                    .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                    .open(&path)
                    .ok()?;
                fs::remove_file(&path).ok()?;
                if self.chance.below(2) == 0 {
                    file.sync_all().ok()?;
                }
                if self.open.len() < 5 {
                    self.open.push(file);
                }
                Some(())
            }
            12 => self.directories(),
            13 => {
                fs::remove_file(self.existing()).ok()?;
                let path = self.path();
                // What is there may be a FIFO, whose writer would wait for ever.
                let mut new = OpenOptions::new();
                new.write(true).create_new(true).open(path).ok()?.write_all_at(b"new", 0).ok()
            }
            14 => {
                let dir = self.dir();
                let file = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(dir).ok()?;
                file.write_all_at(&self.data(), 0).ok()?;
                sys::link_open(&file, &self.path()).ok()
            }
            _ => match self.chance.below(4) {
                0 => symlink("target", self.path()).ok(),
                1 => sys::mknod(&self.path(), libc::S_IFIFO | 0o600, 0, 0).ok(),
                2 => sys::mknod(&self.path(), libc::S_IFCHR | 0o600, 7, 300).ok(),
                _ => symlink("x".repeat(300), self.path()).ok(),
            },
        }
    }

    fn directories(&mut self) -> Option<()> {
        let dir = self.dir();
        if dir == self.root || dir.ends_with("sub") {
            return None;
        }
        match self.chance.below(5) {
            0 => fs::remove_dir_all(dir).ok(),
            1 => fs::rename(dir, self.path()).ok(),
            2 => fs::rename(self.existing(), dir).ok(),
            3 => fs::create_dir(self.path()).ok(),
            _ => fs::create_dir_all(dir).ok(),
        }
    }

    fn attributes(&mut self) -> Option<()> {
        let path = self.existing();
        let name = format!("user.n{}", self.chance.below(4));
        match self.chance.below(6) {
            0 | 1 => {
                let len = usize::try_from(self.chance.below(900)).unwrap();
                sys::set_xattr(&path, &name, &self.chance.bytes(len)).ok()
            }
            2 => sys::remove_xattr(&path, &name).ok(),
            3 => {
                if fs::symlink_metadata(&path).ok()?.file_type().is_symlink() {
                    return None;
                }
                let mode = u32::try_from(self.chance.below(0o1000)).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).ok()
            }
            4 => {
                if fs::symlink_metadata(&path).ok()?.file_type().is_symlink() {
                    return None;
                }
                chown(&path, Some(u32::try_from(self.chance.below(5)).unwrap()), None).ok()
            }
            _ => sys::set_mtime(&path, i64::try_from(self.chance.below(1 << 32)).unwrap(), 5).ok(),
        }
    }

    /// Directories that are gone are made again, so that the tree does not die out; now and then all is committed.
    pub fn mend(&mut self) {
        for dir in DIRS.iter().filter(|dir| **dir != "sub") {
            let _ = fs::create_dir_all(self.root.join(dir));
        }
        match self.chance.below(6) {
            0 => drop(run("sync", &["-f", self.root.to_str().unwrap()])),
            1 => self.open.clear(),
            _ => {}
        }
    }
}
