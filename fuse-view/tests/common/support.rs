//! Images, mounts that go away by themselves, and a seeded source of chance.

use fuse_view::cache::{CacheBudget, CachedBlocks};
use fuse_view::{BlockRead, Error, Result};
use std::fs::File;
use std::os::unix::{ffi::OsStrExt, fs::FileExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A small generator with a visible seed (SplitMix64).
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}

/// Runs a program; its output is the error.
pub fn run(program: &str, args: &[&str]) -> std::result::Result<String, String> {
    let out = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(text) } else { Err(format!("{program} {}: {text}", args.join(" "))) }
}

/// A directory that goes away with all that is in it; whatever keeps it fails the test.
pub struct WorkDir(Option<tempfile::TempDir>);

impl WorkDir {
    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("it is there until the end").path()
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let removed = self.0.take().map_or(Ok(()), tempfile::TempDir::close);
        assert!(removed.is_ok() || std::thread::panicking(), "left behind: {removed:?}");
    }
}

/// Such a directory; in memory where there is room, as images are written once and read once.
pub fn workdir() -> WorkDir {
    let free = run("df", &["--output=avail", "-B1M", "/dev/shm"]).ok();
    let mib = free.and_then(|text| text.lines().nth(1)?.trim().parse::<u64>().ok()).unwrap_or(0);
    WorkDir(Some(if mib >= 2048 { tempfile::tempdir_in("/dev/shm") } else { tempfile::tempdir() }.unwrap()))
}

/// Makes an image of `mib` MiB with mke2fs and these options; None, with a word about it, where mke2fs is missing.
pub fn mke2fs(dir: &Path, mib: u64, options: &str) -> Option<PathBuf> {
    let image = dir.join("image");
    File::create(&image).unwrap().set_len(mib << 20).unwrap();
    let mut args = vec!["-q", "-F"];
    args.extend(options.split_whitespace());
    args.push(image.to_str().unwrap());
    match run("mke2fs", &args) {
        Ok(_) => Some(image),
        Err(e) if e.contains("No such file") && e.starts_with("mke2fs:") => {
            super::skip::skip("mke2fs is missing (package e2fsprogs)");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// A mount of an image over a loop device; both go away when it is dropped.
pub struct Mount(pub PathBuf);

impl Mount {
    pub fn new(image: &Path, at: &Path, options: &str) -> std::result::Result<Self, String> {
        // Nothing here survives a power cut: flushes would only wait for the disk.
        Self::with(image, at, &format!("barrier=0,{options}"))
    }

    /// With these options and none of ours.
    pub fn with(image: &Path, at: &Path, options: &str) -> std::result::Result<Self, String> {
        std::fs::create_dir_all(at).unwrap();
        wait_until_released(image)?;
        let options = format!("loop,{options}");
        run("mount", &["-o", &options, image.to_str().unwrap(), at.to_str().unwrap()])?;
        Ok(Self(at.to_path_buf()))
    }
}

/// Waits until no loop device has the image any more. That of an earlier mount goes with its last opener, and every mount(8)
/// opens all of them for a moment; until then mount(8) takes it again for the same file, with what it remembers of a content
/// that has been overwritten: a superblock that needs no recovery, so that the kernel shows the tree without its log.
fn wait_until_released(image: &Path) -> std::result::Result<(), String> {
    let image = image.canonicalize().map_err(|e| format!("{}: {e}", image.display()))?;
    for _ in 0..5000 {
        let devices = std::fs::read_dir("/sys/block").map_err(|e| format!("/sys/block: {e}"))?;
        let mut files =
            devices.flatten().filter_map(|d| std::fs::read(d.path().join("loop/backing_file")).ok());
        if !files.any(|file| file.trim_ascii_end() == image.as_os_str().as_bytes()) {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Err(format!("{}: a loop device has it and does not let it go", image.display()))
}

impl Drop for Mount {
    fn drop(&mut self) {
        if run("umount", &[self.0.to_str().unwrap()]).is_err() {
            let _ = run("umount", &["-l", self.0.to_str().unwrap()]);
        }
    }
}

/// An image that counts what is read of it.
pub struct CountingImage {
    file: File,
    pub reads: AtomicU64,
    pub bytes: AtomicU64,
}

impl CountingImage {
    pub fn open(path: &Path) -> Self {
        Self { file: File::open(path).unwrap(), reads: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// This image behind a cache of its own, as the product reads it.
    pub fn cached(self: &Arc<Self>) -> Arc<dyn BlockRead> {
        Arc::new(CachedBlocks::new(self.clone(), &CacheBudget::new(32 << 20)))
    }

    /// Reads and bytes since the last call.
    pub fn take(&self) -> (u64, u64) {
        (self.reads.swap(0, Ordering::Relaxed), self.bytes.swap(0, Ordering::Relaxed))
    }
}

impl BlockRead for CountingImage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.file
            .read_exact_at(buf, offset)
            .map_err(|source| Error::Io { what: format!("read at {offset}"), source })
    }

    fn len(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }
}

/// An image in memory; reading past its end is an error, as in every source.
pub struct MemoryImage(pub Vec<u8>);

impl BlockRead for MemoryImage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)?.get(..buf.len()));
        buf.copy_from_slice(
            from.ok_or_else(|| Error::Corrupt(format!("{} bytes at {offset}: past the end", buf.len())))?,
        );
        Ok(())
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}
