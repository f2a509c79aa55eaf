//! A disk that is a plain file with direct I/O, as a pool has it: the descriptor that carries the writes holds the
//! lock, so a new server waits for the last write of the one before.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use ublk_target::Disk;

/// The disk.
pub struct FileDisk {
    file: File,
    len: AtomicU64,
    /// Every flush, discard and zeroing is written here, a line each.
    events: Option<Mutex<File>>,
    /// Flushes fail while it is set.
    pub fail_flush: AtomicBool,
}

impl FileDisk {
    /// Opens `path`, waiting for the lock.
    pub fn open(path: &Path, events: Option<PathBuf>) -> std::io::Result<Self> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
        super::system::lock(file.as_raw_fd())?;
        let len = AtomicU64::new(file.metadata()?.len());
        let events = events.map(|path| File::options().create(true).append(true).open(path)).transpose()?;
        Ok(Self { file, len, events: events.map(Mutex::new), fail_flush: AtomicBool::new(false) })
    }

    /// Grows the file and the disk.
    pub fn grow(&self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)?;
        self.len.store(len, Ordering::SeqCst);
        Ok(())
    }

    fn event(&self, line: &str) {
        if let Some(events) = &self.events {
            let _ = events.lock().unwrap().write_all(format!("{line}\n").as_bytes());
        }
    }

    fn fallocate(&self, mode: i32, offset: u64, len: u64) -> Result<(), i32> {
        let (offset, len) = (i64::try_from(offset).unwrap(), i64::try_from(len).unwrap());
        super::system::fallocate(self.file.as_raw_fd(), mode | libc::FALLOC_FL_KEEP_SIZE, offset, len)
    }
}

fn errno(e: &std::io::Error) -> i32 {
    e.raw_os_error().unwrap_or(libc::EIO)
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.len.load(Ordering::SeqCst)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), i32> {
        self.file.read_exact_at(buf, offset).map_err(|e| errno(&e))
    }

    fn write(&self, offset: u64, buf: &[u8], fua: bool) -> Result<(), i32> {
        self.event("write");
        self.file.write_all_at(buf, offset).map_err(|e| errno(&e))?;
        if fua { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), i32> {
        self.event("flush");
        if self.fail_flush.load(Ordering::SeqCst) {
            return Err(libc::EINVAL); // not EIO: the transport makes that of every failure
        }
        self.file.sync_data().map_err(|e| errno(&e))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), i32> {
        self.event(&format!("discard {offset} {len}"));
        self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), i32> {
        self.event(&format!("zero {offset} {len}"));
        self.fallocate(libc::FALLOC_FL_ZERO_RANGE, offset, len)
    }
}
