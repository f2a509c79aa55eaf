//! The pool's I/O of a queue's thread, on the queue's own ring: one system call takes the thread's commands to the driver
//! and its requests to the pool, and brings the answers of both.
//!
//! That ring also holds the device's file. So START_USER_RECOVERY, which waits for that file, waits for the last of a dead
//! server's requests to the pool too.

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{opcode, squeue};
use libublk::io::UblkQueue;
use libublk::uring_async::{UblkUringOpFuture, ublk_wake_task};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use store::io::{AlignedBuf, DurableError, Io, Sink, Source};

/// Number of the pool's file among those registered with the ring; the device's is 0.
pub(super) const POOL: u32 = 1;

/// The I/O of one thread.
pub(super) struct QueueIo<'a> {
    queue: &'a UblkQueue<'a>,
}

impl<'a> QueueIo<'a> {
    /// On the ring of `queue`, with which the pool's file is registered.
    pub(super) fn new(queue: &'a UblkQueue<'a>) -> Self {
        Self { queue }
    }

    /// The memory that `entry` names must be borrowed by whoever awaits this.
    fn request(&self, entry: squeue::Entry) -> Request<'_> {
        Request { queue: self.queue, answer: Some(self.queue.ublk_submit_sqe(entry)) }
    }

    /// Reads or writes all of `len` bytes; `part` makes the request for what is left after so many.
    async fn transfer(&self, len: usize, part: impl Fn(usize, u32) -> squeue::Entry) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let rest = u32::try_from(len - done).map_err(io::Error::other)?;
            match self.request(part(done, rest)).await {
                Ok(0) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the pool has ended early"));
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    async fn write_with(&self, offset: u64, from: Source<'_>, flags: i32) -> io::Result<()> {
        let Source::Memory(bytes) = from else { return Err(store::io::port::no_registered_buffers()) };
        let copy;
        let bytes = if is_aligned(bytes) {
            bytes
        } else {
            let mut aligned = AlignedBuf::reused(bytes.len());
            aligned.copy_from_slice(bytes);
            copy = aligned;
            &copy[..]
        };
        let part = |done: usize, len| {
            let request = opcode::Write::new(Fixed(POOL), bytes[done..].as_ptr(), len);
            request.offset(offset + done as u64).rw_flags(flags).build()
        };
        self.transfer(bytes.len(), part).await
    }
}

/// Whether direct I/O can use this memory as it is.
fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(512)
}

impl Io for QueueIo<'_> {
    async fn read(&self, offset: u64, into: Sink<'_>) -> io::Result<()> {
        let Sink::Memory(bytes) = into else { return Err(store::io::port::no_registered_buffers()) };
        if !is_aligned(bytes) {
            let mut aligned = AlignedBuf::reused(bytes.len());
            Box::pin(self.read(offset, Sink::Memory(&mut aligned))).await?;
            bytes.copy_from_slice(&aligned);
            return Ok(());
        }
        let (start, len) = (bytes.as_mut_ptr(), bytes.len());
        let part = |done: usize, rest| {
            let request = opcode::Read::new(Fixed(POOL), start.wrapping_add(done), rest);
            request.offset(offset + done as u64).build()
        };
        self.transfer(len, part).await
    }

    async fn write(&self, offset: u64, from: Source<'_>) -> io::Result<()> {
        self.write_with(offset, from, 0).await
    }

    async fn write_durable(&self, offset: u64, from: Source<'_>) -> Result<(), DurableError> {
        let Err(e) = self.write_with(offset, from, libc::RWF_DSYNC).await else { return Ok(()) };
        // Only the data's own failure shows again without the sync.
        match self.write_with(offset, from, 0).await {
            Err(_) => Err(DurableError::Data(e)),
            Ok(()) => Err(DurableError::Sync(e)),
        }
    }

    async fn sync(&self) -> io::Result<()> {
        let request = opcode::Fsync::new(Fixed(POOL)).flags(FsyncFlags::DATASYNC).build();
        self.request(request).await.map(drop)
    }
}

/// A request on its way. One that is dropped first waits for its answer: until then the kernel uses its memory.
struct Request<'a> {
    queue: &'a UblkQueue<'a>,
    answer: Option<UblkUringOpFuture>,
}

impl Future for Request<'_> {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(answer) = &mut self.answer else { return Poll::Pending };
        let Poll::Ready(result) = Pin::new(answer).poll(cx) else { return Poll::Pending };
        self.answer = None;
        Poll::Ready(usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)))
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        while let Some(answer) = &mut self.answer {
            if Pin::new(answer).poll(&mut cx).is_ready() {
                return;
            }
            if self.queue.flush_and_wake_io_tasks(|data, cqe, _| ublk_wake_task(data, cqe), 1).is_err() {
                // The memory is about to be given away, and nobody can tell when the kernel is done with it.
                std::process::abort();
            }
        }
    }
}
