//! The pool's I/O as requests of an io_uring, whoever drives the ring.
#![allow(unsafe_code)] // the kernel reads and writes memory by its address

use super::port::{Registered, no_registered_buffers};
use super::{AlignedBuf, DurableError, Io, Sink, Source, buffer};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{opcode, squeue};
use std::future::Future;
use std::io;

/// One thread's ring, with which the pool's file is registered. Whatever is one has the pool's [`Io`].
///
/// # Safety
/// The future of a request that is dropped before it is ready leaves its `drop` only when the kernel has answered: until
/// then the kernel uses the request's memory.
pub unsafe trait Ring {
    /// Number of the pool's file among the registered ones.
    const POOL: u32;
    /// Number of a file that reads as zeros. None: nothing is read into registered buffers.
    const ZEROS: Option<u32> = None;

    /// Puts a request on its way: what the kernel answers.
    ///
    /// # Safety
    /// What the request refers to stays valid while the future lives, which is not forgotten (`mem::forget`).
    unsafe fn request(&self, entry: squeue::Entry) -> impl Future<Output = io::Result<usize>>;

    /// Copies into a registered buffer.
    ///
    /// # Errors
    /// Where the ring has none.
    fn copy_into(&self, into: Registered, bytes: &[u8]) -> io::Result<()> {
        let _ = (into, bytes);
        Err(no_registered_buffers())
    }
}

/// Memory of a request: a place in this process, or in a registered buffer.
#[derive(Clone, Copy)]
enum Place {
    Memory(*mut u8),
    Registered(Registered),
}

impl Place {
    /// Reads `len` bytes at `offset` of a file to byte `at` of this place.
    fn read(self, file: u32, offset: u64, at: usize, len: u32) -> squeue::Entry {
        match self {
            Self::Memory(start) => {
                opcode::Read::new(Fixed(file), start.wrapping_add(at), len).offset(offset).build()
            }
            Self::Registered(r) => {
                opcode::ReadFixed::new(Fixed(file), r.address(at), len, r.index).offset(offset).build()
            }
        }
    }

    /// Writes likewise.
    fn write(self, file: u32, offset: u64, at: usize, len: u32, flags: i32) -> squeue::Entry {
        match self {
            Self::Memory(start) => {
                let request = opcode::Write::new(Fixed(file), start.wrapping_add(at), len);
                request.offset(offset).rw_flags(flags).build()
            }
            Self::Registered(r) => {
                let request = opcode::WriteFixed::new(Fixed(file), r.address(at), len, r.index);
                request.offset(offset).rw_flags(flags).build()
            }
        }
    }
}

impl Registered {
    /// Of byte `at`, as requests name it: the kernel's own buffers begin at 0.
    fn address(self, at: usize) -> *mut u8 {
        std::ptr::without_provenance_mut(crate::types::mem(self.from) + at)
    }
}

/// Reads or writes all of `len` bytes; `part` makes the request for `rest` bytes from byte `done` on.
///
/// # Safety
/// As [`Ring::request`], for every request that `part` makes.
async unsafe fn transfer<R: Ring>(
    ring: &R,
    len: u64,
    part: impl Fn(usize, u32) -> squeue::Entry,
) -> io::Result<()> {
    let (mut done, len) = (0, crate::types::mem(len));
    while done < len {
        let rest = u32::try_from(len - done).map_err(io::Error::other)?;
        // SAFETY: as the caller promises.
        match unsafe { ring.request(part(done, rest)) }.await {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the pool has ended early")),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn write_with<R: Ring>(ring: &R, offset: u64, from: Source<'_>, flags: i32) -> io::Result<()> {
    let bounce;
    let place = match from {
        Source::Registered(r) => Place::Registered(r),
        Source::Memory(bytes) if buffer::is_aligned(bytes) => Place::Memory(bytes.as_ptr().cast_mut()),
        Source::Memory(bytes) => {
            let mut copy = AlignedBuf::reused(bytes.len());
            copy.copy_from_slice(bytes);
            bounce = copy;
            Place::Memory(bounce.as_ptr().cast_mut())
        }
    };
    let part = |done: usize, rest| place.write(R::POOL, offset + done as u64, done, rest, flags);
    // SAFETY: the bytes are borrowed, or owned by this future, until the last request has ended, and are only read.
    unsafe { transfer(ring, from.len(), part) }.await
}

impl<R: Ring> Io for R {
    async fn read(&self, offset: u64, into: Sink<'_>) -> io::Result<()> {
        let len = into.len();
        let place = match into {
            Sink::Registered(r) => Place::Registered(r),
            Sink::Memory(bytes) if buffer::is_aligned(bytes) => Place::Memory(bytes.as_mut_ptr()),
            Sink::Memory(bytes) => {
                let mut bounce = AlignedBuf::reused(bytes.len());
                Box::pin(self.read(offset, Sink::Memory(&mut bounce))).await?;
                bytes.copy_from_slice(&bounce);
                return Ok(());
            }
        };
        let part = |done: usize, rest| place.read(R::POOL, offset + done as u64, done, rest);
        // SAFETY: `into` is borrowed exclusively until the last request has ended, and `done` is inside it.
        unsafe { transfer(self, len, part) }.await
    }

    async fn write(&self, offset: u64, from: Source<'_>) -> io::Result<()> {
        write_with(self, offset, from, 0).await
    }

    async fn write_durable(&self, offset: u64, from: Source<'_>) -> Result<(), DurableError> {
        let Err(e) = write_with(self, offset, from, libc::RWF_DSYNC).await else { return Ok(()) };
        // Only the data's own failure shows again without the sync.
        match write_with(self, offset, from, 0).await {
            Err(_) => Err(DurableError::Data(e)),
            Ok(()) => Err(DurableError::Sync(e)),
        }
    }

    async fn sync(&self) -> io::Result<()> {
        let entry = opcode::Fsync::new(Fixed(R::POOL)).flags(FsyncFlags::DATASYNC).build();
        // SAFETY: the request uses no memory.
        unsafe { self.request(entry) }.await.map(|_| ())
    }

    async fn zero(&self, into: Sink<'_>) -> io::Result<()> {
        match (into, R::ZEROS) {
            (Sink::Memory(bytes), _) => bytes.fill(0),
            (Sink::Registered(r), Some(zeros)) => {
                let part = |done: usize, rest| Place::Registered(r).read(zeros, 0, done, rest);
                // SAFETY: a registered buffer is the kernel's.
                unsafe { transfer(self, r.len, part) }.await?;
            }
            (Sink::Registered(_), None) => return Err(no_registered_buffers()),
        }
        Ok(())
    }

    async fn fill(&self, into: Registered, bytes: &[u8]) -> io::Result<()> {
        self.copy_into(into, bytes)
    }
}
