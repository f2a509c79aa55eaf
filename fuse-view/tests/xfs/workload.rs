//! A seeded workload that leaves no part of the format alone, and syncs now and then.

use crate::common::support::Chance;
use crate::common::sys;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

const DIRS: u64 = 6;
const NAMES: u64 = 40;

/// The workload on one mount.
pub struct Workload {
    root: PathBuf,
    chance: Chance,
    /// Kept open after they were unlinked.
    open: Vec<File>,
}

/// Operations race with none, but what they name may be gone or of another kind, or the disk full.
fn may_fail<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e) => {
            let code = e.raw_os_error().unwrap_or(0);
            let fine = [
                libc::ENOENT,
                libc::EEXIST,
                libc::ENOTDIR,
                libc::EISDIR,
                libc::ENOTEMPTY,
                libc::EINVAL,
                libc::ENOSPC,
                libc::EPERM,
                libc::ENXIO,
                libc::ENODATA,
                libc::EOPNOTSUPP,
                libc::ELOOP,
                libc::E2BIG,
                libc::EMLINK,
                libc::EBUSY,
                libc::EXDEV,
                libc::ENAMETOOLONG,
            ];
            assert!(fine.contains(&code), "{e}");
            None
        }
    }
}

/// Makes one file or directory durable.
fn sync(path: &Path) {
    if path.symlink_metadata().is_ok_and(|meta| meta.is_file() || meta.is_dir())
        && let Some(file) = may_fail(File::open(path))
    {
        may_fail(file.sync_all());
    }
}

impl Workload {
    pub fn new(root: &Path, seed: u64) -> Self {
        for i in 0..DIRS {
            fs::create_dir_all(root.join(format!("d{i}"))).unwrap();
        }
        Self { root: root.to_path_buf(), chance: Chance(seed), open: Vec::new() }
    }

    fn dir(&mut self) -> PathBuf {
        self.root.join(format!("d{}", self.chance.below(DIRS)))
    }

    fn name(&mut self) -> PathBuf {
        let n = self.chance.below(NAMES);
        let long = if n.is_multiple_of(3) { "-with-a-name-that-is-rather-long-for-a-file" } else { "" };
        self.dir().join(format!("n{n}{long}"))
    }

    fn len(&mut self, most: u64) -> usize {
        let most = if self.chance.below(4) == 0 { most } else { most / 16 + 1 };
        usize::try_from(self.chance.below(most)).unwrap()
    }

    fn file(&mut self) -> Option<File> {
        let path = self.name();
        if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
            return None;
        }
        may_fail(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path))
    }

    fn write(&mut self) -> Option<()> {
        let file = self.file()?;
        for _ in 0..=self.chance.below(4) {
            let at = self.chance.below(200_000);
            let len = self.len(40_000);
            let bytes = self.chance.bytes(len);
            may_fail(file.write_all_at(&bytes, at))?;
        }
        self.maybe_sync(&file);
        Some(())
    }

    fn maybe_sync(&mut self, file: &File) {
        if self.chance.below(3) != 0 {
            may_fail(file.sync_all());
        }
    }

    fn reshape(&mut self) -> Option<()> {
        let file = self.file()?;
        let at = i64::try_from(self.chance.below(150_000)).unwrap();
        let len = i64::try_from(self.chance.below(60_000) + 1).unwrap();
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        match self.chance.below(7) {
            0 => may_fail(file.set_len(self.chance.below(250_000)))?,
            1 => may_fail(file.set_len(0))?,
            2 => may_fail(sys::fallocate(&file, 0, at, len))?,
            3 => may_fail(sys::fallocate(&file, keep, at, len))?,
            4 => may_fail(sys::fallocate(&file, keep | libc::FALLOC_FL_PUNCH_HOLE, at, len))?,
            5 => may_fail(sys::fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, at, len))?,
            _ => {
                let block = 4096 * i64::try_from(1 + self.chance.below(4)).unwrap();
                may_fail(sys::fallocate(&file, libc::FALLOC_FL_INSERT_RANGE, block, block))?;
            }
        }
        self.maybe_sync(&file);
        Some(())
    }

    fn share(&mut self) -> Option<()> {
        let (from, to) = (self.file()?, self.file()?);
        if self.chance.below(2) == 0 {
            may_fail(sys::clone_file(&from, &to))?;
        } else {
            let (a, b) = (self.chance.below(8) * 65536, self.chance.below(8) * 65536);
            may_fail(sys::clone_range(&from, a, 65536, &to, b))?;
        }
        self.maybe_sync(&to);
        Some(())
    }

    fn names(&mut self) -> Option<()> {
        let (a, b) = (self.name(), self.name());
        match self.chance.below(9) {
            0 | 1 => may_fail(fs::rename(&a, &b))?,
            2 => may_fail(fs::hard_link(&a, &b))?,
            3 => may_fail(fs::remove_file(&a))?,
            4 => {
                if !a.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
                    return None;
                }
                self.open.push(may_fail(File::open(&a))?);
                may_fail(fs::remove_file(&a))?;
                if self.open.len() > 10 {
                    self.open.drain(..5);
                }
            }
            5 => {
                let len = 1 + self.len(1000);
                may_fail(symlink("t".repeat(len), &a))?;
            }
            6 => may_fail(fs::create_dir(&a))?,
            7 => may_fail(fs::remove_dir(&a))?,
            _ => may_fail(sys::mknod(&a, libc::S_IFCHR | 0o600, 7, 9))?,
        }
        if self.chance.below(2) == 0 {
            sync(a.parent()?);
        }
        Some(())
    }

    fn attributes(&mut self) -> Option<()> {
        let path = self.name();
        let name = format!(
            "{}.x{}",
            ["user", "trusted"][usize::try_from(self.chance.below(2)).unwrap()],
            self.chance.below(12)
        );
        match self.chance.below(6) {
            0..=2 => {
                let len = self.len(9000);
                let value = self.chance.bytes(len);
                may_fail(sys::set_xattr(&path, &name, &value))?;
            }
            3 => may_fail(sys::remove_xattr(&path, &name))?,
            4 => {
                let mode = u32::try_from(self.chance.below(0o10000)).unwrap();
                may_fail(fs::set_permissions(&path, fs::Permissions::from_mode(mode)))?;
                may_fail(chown(&path, Some(u32::try_from(self.chance.below(70_000)).unwrap()), None))?;
            }
            _ => {
                let seconds = i64::try_from(self.chance.below(4_000_000_000)).unwrap() - 1_000_000_000;
                may_fail(sys::set_mtime(&path, seconds, 123_456_789))?;
            }
        }
        if self.chance.below(2) == 0 {
            sync(&path);
        }
        Some(())
    }

    /// A directory that grows through all its formats, and shrinks again.
    fn crowd(&mut self) -> Option<()> {
        let dir = self.root.join(format!("crowd{}", self.chance.below(2)));
        may_fail(fs::create_dir(&dir));
        let from = self.chance.below(400);
        for i in from..from + 150 {
            let path = dir
                .join(format!("member-{i:06}-of-the-crowd-{}", "x".repeat(usize::try_from(i % 90).unwrap())));
            if self.chance.below(2) == 0 {
                may_fail(File::create(&path))?;
            } else {
                may_fail(fs::remove_file(&path));
            }
        }
        sync(&dir);
        if self.chance.below(6) == 0 {
            may_fail(fs::remove_dir_all(&dir))?;
        }
        sync(&self.root);
        Some(())
    }

    /// Much of the log in little time.
    pub fn fill_log(&mut self) {
        self.crowd();
    }

    /// One operation.
    pub fn step(&mut self) {
        match self.chance.below(100) {
            0..30 => self.write(),
            30..42 => self.reshape(),
            42..48 => self.share(),
            48..75 => self.names(),
            75..97 => self.attributes(),
            _ => self.crowd(),
        };
    }
}
