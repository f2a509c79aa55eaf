//! Memory for changed bytes, with a file for what exceeds the budget.
//!
//! Invariants: all slabs in memory count against one budget; a slab of the file belongs to one arena at a time and
//! returns to the free list when that is dropped; no lock is held over I/O.

use crate::{Error, Result};
use parking_lot::Mutex;
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Bytes of a slab, the unit of allocation.
const SLAB_BYTES: u64 = 64 << 10;
/// What all overlays of a process may hold in memory unless it is told otherwise.
const SHARED_BYTES: u64 = 64 << 20;

static SHARED: OnceLock<Scratch> = OnceLock::new();

/// Where overlays keep bytes: so many in memory, more in an unlinked file. Clones are the same scratch.
#[derive(Clone)]
pub struct Scratch(Arc<Inner>);

struct Inner {
    budget_bytes: u64,
    used_bytes: AtomicU64,
    /// Where the file is made when it is first needed.
    dir: PathBuf,
    file: OnceLock<File>,
    slabs: Mutex<Slabs>,
}

/// Slabs of the file.
#[derive(Default)]
struct Slabs {
    free: Vec<u64>,
    count: u64,
}

impl Scratch {
    /// At most `budget_bytes` in memory; the file is made in the directory for temporary files when it is needed.
    pub fn new(budget_bytes: u64) -> Self {
        Self::of(budget_bytes, OnceLock::new())
    }

    /// As [`Scratch::new`], with a file that is open already: for a process that may create none. It must be empty and
    /// used by nobody else.
    pub fn with_file(budget_bytes: u64, file: File) -> Self {
        Self::of(budget_bytes, OnceLock::from(file))
    }

    /// An unlinked file in `dir`, as [`Scratch::with_file`] wants it.
    pub fn new_file(dir: &Path) -> Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
        options.open(dir).map_err(|source| Error::Io {
            what: format!(
                "make a scratch file in {} for a log too large for memory (TMPDIR names another directory)",
                dir.display()
            ),
            source,
        })
    }

    /// The one of this process, with 64 MiB in memory.
    pub fn shared() -> &'static Self {
        SHARED.get_or_init(|| Self::new(SHARED_BYTES))
    }

    /// Makes `file` that of [`Scratch::shared`], as [`Scratch::with_file`]: before anything is read.
    pub fn share(file: File) {
        let _ = SHARED.set(Self::with_file(SHARED_BYTES, file));
    }

    /// Bytes that overlays hold in memory now.
    pub fn used_bytes(&self) -> u64 {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    fn of(budget_bytes: u64, file: OnceLock<File>) -> Self {
        Self(Arc::new(Inner {
            budget_bytes,
            used_bytes: AtomicU64::new(0),
            dir: std::env::temp_dir(),
            file,
            slabs: Mutex::default(),
        }))
    }
}

impl Inner {
    fn slab(&self) -> Result<Slab> {
        let used = self.used_bytes.fetch_add(SLAB_BYTES, Ordering::Relaxed);
        if used + SLAB_BYTES <= self.budget_bytes {
            return Ok(Slab::Memory(Vec::new()));
        }
        self.used_bytes.fetch_sub(SLAB_BYTES, Ordering::Relaxed);
        self.file()?;
        let mut slabs = self.slabs.lock();
        let number = slabs.free.pop().unwrap_or_else(|| {
            slabs.count += 1;
            slabs.count - 1
        });
        Ok(Slab::File(number * SLAB_BYTES))
    }

    fn free(&self, slab: &Slab) {
        match slab {
            Slab::Memory(_) => {
                self.used_bytes.fetch_sub(SLAB_BYTES, Ordering::Relaxed);
            }
            Slab::File(at) => self.slabs.lock().free.push(at / SLAB_BYTES),
        }
    }

    fn file(&self) -> Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = Scratch::new_file(&self.dir)?;
        Ok(self.file.get_or_init(|| file))
    }
}

/// A piece of an arena.
enum Slab {
    /// As long as what was written to it.
    Memory(Vec<u8>),
    /// At this offset of the file.
    File(u64),
}

/// Bytes by position, each written when it was appended, of one overlay.
pub(crate) struct Arena {
    scratch: Arc<Inner>,
    slabs: Vec<Slab>,
    len: u64,
}

impl Arena {
    pub fn new(scratch: &Scratch) -> Self {
        Self { scratch: scratch.0.clone(), slabs: Vec::new(), len: 0 }
    }

    /// Adds `bytes` at the end; their position.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let at = self.len;
        while self.slabs.len() as u64 * SLAB_BYTES < at + bytes.len() as u64 {
            self.slabs.push(self.scratch.slab()?);
        }
        self.len += bytes.len() as u64;
        self.write(at, bytes)?;
        Ok(at)
    }

    /// Replaces bytes that were appended before.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        for (slab, within, part) in pieces(at, bytes.len()) {
            let bytes = &bytes[part];
            match &mut self.slabs[slab] {
                Slab::Memory(held) => {
                    let end = within + bytes.len();
                    if held.len() < end {
                        held.resize(end, 0);
                    }
                    held[within..end].copy_from_slice(bytes);
                }
                Slab::File(start) => self
                    .scratch
                    .file()?
                    .write_all_at(bytes, *start + within as u64)
                    .map_err(|source| Error::Io { what: "write the scratch file".into(), source })?,
            }
        }
        Ok(())
    }

    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        for (slab, within, part) in pieces(at, buf.len()) {
            let buf = &mut buf[part];
            match &self.slabs[slab] {
                Slab::Memory(held) => buf.copy_from_slice(&held[within..within + buf.len()]),
                Slab::File(start) => self
                    .scratch
                    .file()?
                    .read_exact_at(buf, start + within as u64)
                    .map_err(|source| Error::Io { what: "read the scratch file".into(), source })?,
            }
        }
        Ok(())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for slab in &self.slabs {
            self.scratch.free(slab);
        }
    }
}

/// Cuts `len` bytes at position `at` at the ends of slabs: `(slab, offset in it, part of the bytes)`.
fn pieces(at: u64, len: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let slab_bytes = usize::try_from(SLAB_BYTES).unwrap_or(usize::MAX);
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < len).then(|| {
            let pos = at + done as u64;
            let slab = usize::try_from(pos / SLAB_BYTES).unwrap_or(usize::MAX);
            let within = usize::try_from(pos % SLAB_BYTES).unwrap_or(usize::MAX);
            let part = done..len.min(done + slab_bytes - within);
            done = part.end;
            (slab, within, part)
        })
    })
}
