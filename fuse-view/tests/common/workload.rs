//! A seeded workload that changes a small tree in every way, with many fsyncs.

use super::support::Chance;
use super::sys;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// How a workload differs from the usual one.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Largest write in bytes.
    pub write: u64,
    /// Names in each of the directories.
    pub names: u64,
    /// Of ten operations, how many are followed by an fsync of the file or of its directory.
    pub fsyncs: u64,
    /// Files are held open while they have no name.
    pub orphans: bool,
    /// Only what a fast commit of ext4 can record; the rest makes it commit everything.
    pub simple: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { write: 30_000, names: 25, fsyncs: 5, orphans: true, simple: false }
    }
}

/// The tree under work; held open files stay open as long as this lives.
pub struct Workload {
    root: PathBuf,
    chance: Chance,
    options: Options,
    held: Vec<File>,
    /// Says where an error came from.
    step: u64,
}

impl Workload {
    pub fn new(root: &Path, seed: u64, options: Options) -> Self {
        Self { root: root.to_owned(), chance: Chance(seed), options, held: Vec::new(), step: 0 }
    }

    /// Does `count` operations.
    pub fn run(&mut self, count: u64) {
        for _ in 0..count {
            self.step += 1;
            if let Err(e) = self.operation() {
                // A full disk, a name that is a directory, one that is not there: part of the game.
                let fine = [
                    libc::ENOSPC,
                    libc::ENOENT,
                    libc::EEXIST,
                    libc::ENOTEMPTY,
                    libc::EISDIR,
                    libc::ENOTDIR,
                    libc::EINVAL,
                    libc::EOPNOTSUPP,
                    libc::E2BIG,
                    libc::ENODATA,
                    libc::EMLINK,
                    libc::EFBIG,
                    libc::ELOOP,
                    libc::EPERM,
                    libc::EXDEV,
                    libc::ERANGE,
                ];
                assert!(fine.contains(&e.raw_os_error().unwrap_or(0)), "step {}: {e}", self.step);
            }
        }
    }

    fn dir(&mut self) -> PathBuf {
        match self.chance.below(6) {
            0 => self.root.clone(),
            1 => self.root.join("d1/deep"),
            n => self.root.join(format!("d{n}")),
        }
    }

    fn file(&mut self) -> PathBuf {
        let dir = self.dir();
        let n = self.chance.below(self.options.names);
        // Some names are long, so that directories need several blocks.
        dir.join(if n.is_multiple_of(3) { format!("{n}-{}", "long".repeat(20)) } else { format!("f{n}") })
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        match self.chance.below(10) {
            n if n >= self.options.fsyncs => Ok(()),
            0 => sync_of(path.parent().unwrap_or(path)),
            1 => File::open(path)?.sync_data(),
            _ => sync_of(path),
        }
    }

    fn operation(&mut self) -> io::Result<()> {
        let path = self.file();
        let operation = match self.chance.below(24) {
            16 | 17 | 21 | 23 if self.options.simple => 6,
            operation => operation,
        };
        match operation {
            0..=5 => self.create_or_append(&path)?,
            6 => {
                let len = usize::try_from(self.chance.below(self.options.write)).unwrap();
                let bytes = self.chance.bytes(len);
                let at = self.chance.below(self.options.write * 4);
                OpenOptions::new().write(true).open(&path)?.write_all_at(&bytes, at)?;
            }
            7 => {
                let len = self.chance.below(self.options.write * 2);
                OpenOptions::new().write(true).open(&path)?.set_len(len)?;
            }
            8..=9 => {
                let to = self.file();
                fs::rename(&path, &to)?;
                return self.sync(&to);
            }
            10 => {
                let to = self.file();
                fs::hard_link(&path, &to)?;
                return self.sync(&to);
            }
            11..=13 => return self.unlink(&path),
            14 => {
                let dir = path.with_extension("dir");
                fs::create_dir_all(&dir)?;
                fs::write(dir.join("inside"), b"inside")?;
                return self.sync(&dir);
            }
            15 => {
                let dir = path.with_extension("dir");
                fs::remove_dir_all(&dir)?;
                return self.sync(&dir);
            }
            16 => {
                symlink(
                    "t".repeat(usize::try_from(self.chance.below(100) + 1).unwrap()),
                    path.with_extension("sym"),
                )?;
                return self.sync(path.parent().unwrap_or(&path));
            }
            17 => self.xattr(&path)?,
            18 => {
                let mode = u32::try_from(self.chance.below(0o10000)).unwrap() | 0o400;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
            19 => self.allocate(&path)?,
            20 => {
                let (major, minor) = (u32::try_from(self.chance.below(400)).unwrap(), 7);
                sys::mknod(&path.with_extension("dev"), libc::S_IFCHR | 0o600, major, minor)?;
            }
            21 => {
                let dir = path.with_extension("dir");
                let to = self.file().with_extension("dir");
                fs::rename(dir, to)?;
            }
            22 => {
                let at = i64::try_from(self.chance.below(1 << 33)).unwrap() - (1 << 31);
                sys::set_mtime(&path, at, 5)?;
            }
            _ => return self.many_names(),
        }
        self.sync(&path)
    }

    fn create_or_append(&mut self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        let len = usize::try_from(self.chance.below(self.options.write)).unwrap();
        let mut bytes = self.chance.bytes(len);
        // Blocks that begin as those of a journal do.
        if self.chance.below(3) == 0 {
            for block in bytes.chunks_mut(1024).filter(|block| block.len() >= 4) {
                block[..4].copy_from_slice(&[0xC0, 0x3B, 0x39, 0x98]);
            }
        }
        OpenOptions::new().create(true).append(true).open(path)?.write_all(&bytes)
    }

    fn unlink(&mut self, path: &Path) -> io::Result<()> {
        if self.options.orphans && self.chance.below(4) == 0 {
            if self.held.len() > 5 {
                self.held.remove(0);
            }
            self.held.push(OpenOptions::new().read(true).write(true).open(path)?);
        }
        fs::remove_file(path)?;
        match self.chance.below(3) {
            0 => sync_of(path.parent().unwrap_or(path)),
            1 => self.held.last().map_or(Ok(()), File::sync_all),
            _ => Ok(()),
        }
    }

    fn xattr(&mut self, path: &Path) -> io::Result<()> {
        let name = format!("user.n{}", self.chance.below(4));
        let len = usize::try_from(self.chance.below(600)).unwrap();
        let value = self.chance.bytes(len);
        sys::set_xattr(path, &name, &value)
    }

    fn allocate(&mut self, path: &Path) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        let at = i64::try_from(self.chance.below(self.options.write * 2)).unwrap();
        let len = i64::try_from(self.chance.below(self.options.write) + 1).unwrap();
        let mode = match self.chance.below(4) {
            0 => 0,
            1 => libc::FALLOC_FL_KEEP_SIZE,
            2 => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            _ => libc::FALLOC_FL_ZERO_RANGE,
        };
        sys::fallocate(&file, mode, at, len)
    }

    /// A directory that fills several blocks and goes away again, so that its blocks are used for something else.
    fn many_names(&mut self) -> io::Result<()> {
        let dir = self.root.join("many");
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        } else {
            fs::create_dir(&dir)?;
            for i in 0..self.chance.below(120) {
                File::create(dir.join(format!("{i}-{}", "name".repeat(15))))?;
            }
        }
        sync_of(&self.root)
    }
}

fn sync_of(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
