//! Where a pool lives: one address space of bytes that can be read, written and synced.

pub mod buffer;
pub mod file;
pub mod heap;
pub mod port;
pub mod ring;
pub mod sim;
pub mod stock;
pub(crate) mod together;
pub mod uring;

pub use buffer::AlignedBuf;
pub use port::{Blocking, DurableError, Io, Registered, Sink, Source};
use std::io;
use std::os::fd::BorrowedFd;
pub use together::TOGETHER;

/// A pool's address space: a file in a directory or a whole block device. Offsets and lengths are multiples
/// of 4096; buffers may lie anywhere, aligned ones are transferred without a copy.
pub trait BlockDev: Send + Sync {
    /// Fills `buf` from byte `offset`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `buf` at byte `offset`. Durable only after [`BlockDev::sync`].
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;
    /// Like `write_at`, durable when it returns (FUA).
    fn write_durable(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write_at(offset, buf)?;
        self.sync()
    }
    /// Everything written before is durable when it returns. After an error nothing is known.
    fn sync(&self) -> io::Result<()>;
    /// Makes the host hold the space of this range, so that writes into it cannot meet ENOSPC.
    fn back(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Gives the space of this range back to the host; it reads as zeros then, or as before after a power cut. Only
    /// ranges that nobody reads or writes.
    ///
    /// # Errors
    /// `Unsupported` where there is nobody to give it to.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The one open description that carries the pool's I/O and its lock, for a queue's ring to register; None: there
    /// is no file. It is never duplicated, inherited or handed to anybody (H1).
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Bytes that the host could still give to [`BlockDev::back`]; None: all are there.
    fn host_free(&self) -> Option<u64>;
}
