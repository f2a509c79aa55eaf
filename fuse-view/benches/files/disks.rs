//! The images, and what mounts them.

use crate::bench::{run, text};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Everything that the system remembers of files is forgotten.
pub fn forget() -> Result<(), String> {
    run("sync", &[])?;
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(|e| format!("dropping caches needs root: {e}"))
}

/// A mount by the kernel or by a program; gone when dropped.
pub struct Mount(pub PathBuf);

impl Mount {
    pub fn kernel(image: &Path, at: &Path, options: &str) -> Result<Self, String> {
        fs::create_dir_all(at).map_err(|e| e.to_string())?;
        run("mount", &["-o", &format!("loop,{options}"), &text(image), &text(at)])?;
        Ok(Self(at.to_path_buf()))
    }

    /// Read only, of a device that the kernel may write: it replays its log no other way.
    pub fn replayed(image: &Path, at: &Path) -> Result<Self, String> {
        fs::create_dir_all(at).map_err(|e| e.to_string())?;
        let device = run("losetup", &["--find", "--show", &text(image)])?.trim().to_owned();
        let mounted = run("mount", &["-o", "ro", &device, &text(at)]);
        // Of a mounted device it is done when that is unmounted.
        run("losetup", &["--detach", &device])?;
        mounted.map(|_| Self(at.to_path_buf()))
    }

    /// fuse2fs; None: it is not installed.
    pub fn fuse2fs(image: &Path, at: &Path) -> Option<Self> {
        fs::create_dir_all(at).ok()?;
        run("fuse2fs", &["-o", "ro,norecovery", &text(image), &text(at)]).ok()?;
        Some(Self(at.to_path_buf()))
    }

    /// Another program that takes an image and a directory, and may stay in the foreground; None: it is not installed, or
    /// has not mounted it within ten seconds.
    pub fn by(program: &str, image: &Path, at: &Path) -> Option<Self> {
        fs::create_dir_all(at).ok()?;
        let before = fs::metadata(at).ok()?.dev();
        Command::new(program).arg(image).arg(at).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        for _ in 0..1000 {
            if fs::metadata(at).is_ok_and(|now| now.dev() != before) {
                return Some(Self(at.to_path_buf()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if run("umount", &[&text(&self.0)]).is_err() {
            let _ = run("umount", &["-l", &text(&self.0)]);
        }
    }
}

/// The images of a directory.
pub struct Disks {
    dir: PathBuf,
}

/// Files of the large image: so many directories of so many.
pub const DIRS: usize = 1000;
const PER_DIR: usize = 1000;
pub const MILLION: usize = DIRS * PER_DIR;
/// Files in one directory, and bytes of the large file beside them.
pub const CROWD: usize = 100_000;
pub const LARGE_BYTES: usize = 512 << 20;

impl Disks {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn prepare(&self) -> Result<(), String> {
        let (million, after) = self.million()?;
        for image in [
            self.crowd()?,
            self.crowd_on("xfs")?,
            self.crowd_on("btrfs")?,
            million,
            after,
            self.dirty()?,
            self.small()?,
        ] {
            println!("{}", image.display());
        }
        Ok(())
    }

    /// An image that is made once: formatted, filled while mounted, then given its name.
    fn made(
        &self,
        name: &str,
        bytes: u64,
        mkfs: &[&str],
        fill: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<PathBuf, String> {
        let mkfs = [&["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0"], mkfs].concat();
        self.made_by(name, bytes, &mkfs, "noatime,barrier=0", fill)
    }

    /// The same with a command of any format, and options of the mount that it is filled through.
    fn made_by(
        &self,
        name: &str,
        bytes: u64,
        mkfs: &[&str],
        options: &str,
        fill: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<PathBuf, String> {
        let (done, new) = (self.path(name), self.path(&format!("{name}.new")));
        if done.exists() {
            return Ok(done);
        }
        eprintln!("making {name}");
        File::create(&new).and_then(|file| file.set_len(bytes)).map_err(|e| e.to_string())?;
        run(mkfs[0], &[&mkfs[1..], &[&text(&new)]].concat())?;
        let mount = Mount::kernel(&new, &self.path("making"), options)?;
        fill(&mount.0).map_err(|e| format!("{name}: {e}"))?;
        drop(mount);
        fs::rename(&new, &done).map_err(|e| e.to_string())?;
        Ok(done)
    }

    /// Many names in one directory, and a large file.
    pub fn crowd(&self) -> Result<PathBuf, String> {
        self.made("crowd", 1 << 30, &["-N", "120000"], |top| {
            names(top)?;
            let mut large = File::create(top.join("large"))?;
            let piece: Vec<u8> =
                (0..1 << 20).map(|i: u32| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
            (0..LARGE_BYTES >> 20).try_for_each(|_| large.write_all(&piece))
        })
    }

    /// The same names on XFS or btrfs.
    pub fn crowd_on(&self, format: &str) -> Result<PathBuf, String> {
        let mkfs = format!("mkfs.{format}");
        self.made_by(&format!("crowd-{format}"), 1 << 30, &[&mkfs, "-q"], "noatime", names)
    }

    /// A million small files, and the same image after a hundred changes.
    pub fn million(&self) -> Result<(PathBuf, PathBuf), String> {
        let options = ["-N", "1100000", "-O", "inline_data"];
        let before = self.made("million", 2 << 30, &options, |top| {
            for dir in 0..DIRS {
                let at = top.join(format!("directory-{dir}"));
                fs::create_dir(&at)?;
                for file in 0..PER_DIR {
                    fs::write(at.join(format!("file-{file}.txt")), format!("{dir} {file}"))?;
                }
            }
            Ok(())
        })?;
        let after = self.path("million-after");
        if !after.exists() {
            let new = self.path("million-after.new");
            run("cp", &["--sparse=always", &text(&before), &text(&new)])?;
            let mount = Mount::kernel(&new, &self.path("making"), "noatime,barrier=0")?;
            let change = || -> std::io::Result<()> {
                for i in 0..100 {
                    let path = mount.0.join(format!("directory-{}/file-{}.txt", i * 9, i * 7));
                    match i % 4 {
                        0 => fs::write(path, "changed")?,
                        1 => fs::remove_file(path)?,
                        2 => fs::rename(&path, path.with_extension("renamed"))?,
                        _ => fs::write(path.with_extension("new"), "new")?,
                    }
                }
                Ok(())
            };
            change().map_err(|e| format!("million-after: {e}"))?;
            drop(mount);
            fs::rename(new, &after).map_err(|e| e.to_string())?;
        }
        Ok((before, after))
    }

    /// A journal of 128 MiB, as full as it gets, as a snapshot of the busy file system has it.
    pub fn dirty(&self) -> Result<PathBuf, String> {
        let done = self.path("dirty");
        if done.exists() {
            return Ok(done);
        }
        eprintln!("making dirty");
        let (new, copy) = (self.path("dirty.new"), self.path("dirty.copy"));
        File::create(&new).and_then(|file| file.set_len(2 << 30)).map_err(|e| e.to_string())?;
        run(
            "mke2fs",
            &["-q", "-F", "-t", "ext4", "-J", "size=128", "-E", "lazy_itable_init=0", &text(&new)],
        )?;
        // Content goes through the journal, too: so it is full of what has to be replayed.
        let mount = Mount::kernel(&new, &self.path("making"), "noatime,data=journal,commit=600")?;
        let fill = || -> std::io::Result<()> {
            fs::write(mount.0.join("first"), "the first byte")?;
            let file =
                OpenOptions::new().create(true).write(true).truncate(true).open(mount.0.join("busy"))?;
            // The journal is cleaned up at its last quarter or so: what counts is how much is left to replay.
            for i in 0..90u64 {
                file.write_all_at(&vec![b'x'; 1 << 20], (i % 200) << 20)?;
                file.sync_all()?;
            }
            Ok(())
        };
        fill().map_err(|e| format!("dirty: {e}"))?;
        run("cp", &["--sparse=always", &text(&new), &text(&copy)])?;
        drop(mount);
        fs::remove_file(new).and_then(|()| fs::rename(copy, &done)).map_err(|e| e.to_string())?;
        Ok(done)
    }

    /// What versions of a file are looked for in.
    pub fn small(&self) -> Result<PathBuf, String> {
        self.made("small", 64 << 20, &[], |top| {
            fs::create_dir_all(top.join("home/ann"))?;
            fs::write(top.join("home/ann/thesis"), vec![0; 1 << 20])
        })
    }

    /// `small` after each of some changes of the file.
    pub fn versions(&self, count: u8) -> Result<Vec<Vec<u8>>, String> {
        let copy = self.path("small.new");
        fs::copy(self.small()?, &copy).map_err(|e| e.to_string())?;
        let mut all = vec![fs::read(&copy).map_err(|e| e.to_string())?];
        for i in 1..count {
            let mount = Mount::kernel(&copy, &self.path("making"), "noatime,barrier=0")?;
            fs::write(mount.0.join("home/ann/thesis"), vec![i; 1 << 20]).map_err(|e| e.to_string())?;
            drop(mount);
            all.push(fs::read(&copy).map_err(|e| e.to_string())?);
        }
        fs::remove_file(copy).map_err(|e| e.to_string())?;
        Ok(all)
    }
}

/// Many files in one directory.
fn names(top: &Path) -> std::io::Result<()> {
    fs::create_dir(top.join("crowd"))?;
    (0..CROWD).try_for_each(|i| File::create(top.join(format!("crowd/a-file-with-some-name-{i}"))).map(drop))
}
