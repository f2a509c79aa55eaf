//! The ring: records that are acknowledged but not yet on disk, in memory that outlives the process.
//!
//! Invariants: it is a tmpfs file, mapped shared, pre-faulted and locked, never the page cache of a disk (H2,
//! H3). A record's place follows from its LSN, so there is no head or lock word to be torn by a kill: a
//! record counts by its LSN, length and checksum (H5). It is bound to pool, boot and generation (H4).
#![allow(unsafe_code)] // mmap, and copies into memory shared with the next process

use crate::format::crc;
use crate::types::{Lsn, mem};
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

const HEADER: usize = 4096;
const MAGIC: [u8; 8] = *b"COWRING\0";
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// What a ring belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Pool.
    pub pool_id: [u8; 16],
    /// Boot of the host.
    pub boot_id: [u8; 16],
    /// Generation of the owner.
    pub generation: u64,
}

enum Memory {
    Mapped { base: NonNull<u8>, len: usize, _file: File },
    Heap(std::sync::Arc<SharedBytes>),
}

/// Memory that stands in for a tmpfs file: it outlives the pool that uses it.
pub struct SharedBytes(std::cell::UnsafeCell<Vec<u8>>);

// SAFETY: access goes through `Ring`, whose only writer holds the log's append lock; a reader runs only
// before the first append or under that lock.
unsafe impl Sync for SharedBytes {}
// SAFETY: plain bytes.
unsafe impl Send for SharedBytes {}

impl SharedBytes {
    /// Room for a ring of `bytes`.
    pub fn new(bytes: u64) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self(std::cell::UnsafeCell::new(vec![0; HEADER + mem(bytes)])))
    }

    /// A copy, as a second life of a ring would start from. Nobody may append meanwhile.
    #[must_use]
    pub fn duplicate(&self) -> std::sync::Arc<Self> {
        // SAFETY: the caller makes sure that no ring is written.
        let bytes = unsafe { (*self.0.get()).clone() };
        std::sync::Arc::new(Self(std::cell::UnsafeCell::new(bytes)))
    }
}

/// The ring.
pub struct Ring {
    memory: Memory,
    bytes: u64,
}

// SAFETY: the mapping belongs to this value alone within the process; see `SharedBytes` for access.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    /// Opens or makes the ring of a pool in `dir`, which must be on a tmpfs.
    pub fn open(dir: &Path, pool_id: &[u8; 16], bytes: u64) -> Result<Self> {
        let place = dir.display();
        std::fs::create_dir_all(dir).map_err(|e| Error::io(format!("make ring directory {place}"), e))?;
        let name: String = pool_id.iter().map(|b| format!("{b:02x}")).collect();
        let path = dir.join(name);
        let what = |e| Error::io(format!("open ring {}", path.display()), e);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(what)?;
        let fs = crate::io::file::statfs(&file).map_err(what)?;
        if fs.f_type != TMPFS_MAGIC {
            let _ = std::fs::remove_file(&path);
            return Err(Error::unsupported(format!("the ring directory {place} is not on a tmpfs"))
                .hint("set ring_dir to a directory below /run or /dev/shm"));
        }
        let len = HEADER + mem(bytes);
        if file.metadata().map_err(what)?.len() != len as u64 {
            file.set_len(0).and_then(|()| file.set_len(len as u64)).map_err(what)?;
        }
        Ok(Self { memory: map(file, len).map_err(what)?, bytes })
    }

    /// A ring in memory of the process.
    pub fn heap(shared: std::sync::Arc<SharedBytes>) -> Self {
        // SAFETY: nobody else uses the vector while a ring is being made over it.
        let len = unsafe { (*shared.0.get()).len() };
        Self { memory: Memory::Heap(shared), bytes: (len - HEADER) as u64 }
    }

    /// Bytes of the stream that it holds.
    pub fn capacity(&self) -> u64 {
        self.bytes
    }

    fn base(&self) -> *mut u8 {
        match &self.memory {
            Memory::Mapped { base, .. } => base.as_ptr(),
            // SAFETY: the vector is never resized, so the pointer stays good as long as the Arc.
            Memory::Heap(shared) => unsafe { (*shared.0.get()).as_mut_ptr() },
        }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= HEADER + mem(self.bytes), "inside the ring");
        // SAFETY: the range was just checked to lie in the mapping; the caller is the only writer.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base().add(at), bytes.len()) };
    }

    fn read(&self, at: usize, out: &mut [u8]) {
        assert!(at + out.len() <= HEADER + mem(self.bytes), "inside the ring");
        // SAFETY: the range was just checked to lie in the mapping.
        unsafe { std::ptr::copy_nonoverlapping(self.base().add(at), out.as_mut_ptr(), out.len()) };
    }

    /// Whom it belongs to; None when it was never bound.
    pub fn binding(&self) -> Option<Binding> {
        let mut head = [0; 52];
        self.read(0, &mut head);
        let sum = u32::from_le_bytes(head[48..].try_into().expect("4 bytes"));
        (head[..8] == MAGIC && crc(0, &head[..48]) == sum).then(|| Binding {
            pool_id: head[8..24].try_into().expect("16 bytes"),
            boot_id: head[24..40].try_into().expect("16 bytes"),
            generation: u64::from_le_bytes(head[40..48].try_into().expect("8 bytes")),
        })
    }

    /// Binds it to an owner.
    pub fn bind(&self, b: &Binding) {
        let mut head = [0; 52];
        head[..8].copy_from_slice(&MAGIC);
        head[8..24].copy_from_slice(&b.pool_id);
        head[24..40].copy_from_slice(&b.boot_id);
        head[40..48].copy_from_slice(&b.generation.to_le_bytes());
        let sum = crc(0, &head[..48]);
        head[48..].copy_from_slice(&sum.to_le_bytes());
        self.write(0, &head);
        fence(Ordering::Release);
    }

    /// Forgets everything in it.
    pub fn clear(&self) {
        let zeros = vec![0; mem(self.bytes)];
        self.write(HEADER, &zeros);
        fence(Ordering::Release);
    }

    fn pieces(&self, lsn: Lsn, len: usize) -> (usize, usize) {
        let at = mem(lsn.0 % self.bytes);
        (HEADER + at, len.min(mem(self.bytes) - at))
    }

    /// Puts bytes of the stream at their place; the caller holds the append lock. What is written becomes
    /// valid only as a whole, by its checksum.
    pub fn put(&self, lsn: Lsn, bytes: &[u8]) {
        let (at, first) = self.pieces(lsn, bytes.len());
        self.write(at, &bytes[..first]);
        self.write(HEADER, &bytes[first..]);
        fence(Ordering::Release);
    }

    /// Copies bytes of the stream out.
    pub fn get(&self, lsn: Lsn, out: &mut [u8]) {
        fence(Ordering::Acquire);
        let (at, first) = self.pieces(lsn, out.len());
        let (head, tail) = out.split_at_mut(first);
        self.read(at, head);
        self.read(HEADER, tail);
    }
}

fn map(file: File, len: usize) -> io::Result<Memory> {
    // SAFETY: maps a file of at least `len` bytes; the result is checked.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            file.as_raw_fd(),
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: locks the range just mapped. Without the privilege the pages stay resident by use.
    if unsafe { libc::mlock(base, len) } != 0 {
        tracing::warn!(error = %io::Error::last_os_error(), "cannot lock the ring in memory");
    }
    let base = NonNull::new(base.cast()).expect("mmap does not return null");
    Ok(Memory::Mapped { base, len, _file: file })
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let Memory::Mapped { base, len, .. } = &self.memory {
            // SAFETY: the range was mapped by `map` and is not used any more.
            unsafe { libc::munmap(base.as_ptr().cast(), *len) };
        }
    }
}
