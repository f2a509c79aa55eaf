//! The pool's I/O of a queue's thread, on the queue's own ring: one system call takes the thread's commands to the driver
//! and its requests to the pool, and brings the answers of both.
//!
//! That ring also holds the device's file. So START_USER_RECOVERY, which waits for that file, waits for the last of a dead
//! server's requests to the pool too.
#![allow(unsafe_code)] // the promise of Ring

use crate::sys::fd;
use io_uring::squeue;
use libublk::io::UblkQueue;
use libublk::sys;
use libublk::uring_async::{UblkUringOpFuture, ublk_wake_task};
use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use store::io::Registered;
use store::io::ring::Ring;

/// Numbers of the files that are registered with the ring: the device's own, the pool's, and /dev/zero.
pub(super) const DEVICE: usize = 0;
pub(super) const POOL: u32 = 1;
pub(super) const ZEROS: u32 = 2;

/// The I/O of one thread. Its registered buffers are the requests of its queue, by their tags.
pub(super) struct QueueIo<'a> {
    queue: &'a UblkQueue<'a>,
    /// Counts copies between memory and a request's pages.
    copies: &'a AtomicU64,
}

impl<'a> QueueIo<'a> {
    /// On the ring of `queue`, with which the pool's file is registered.
    pub(super) fn new(queue: &'a UblkQueue<'a>, copies: &'a AtomicU64) -> Self {
        Self { queue, copies }
    }

    fn count(&self) {
        self.copies.fetch_add(1, Ordering::Relaxed);
    }

    /// The character device.
    fn device(&self) -> BorrowedFd<'_> {
        // SAFETY: the device that the queue borrows keeps it open.
        unsafe { BorrowedFd::borrow_raw(self.queue.dev.tgt.fds[DEVICE]) }
    }

    /// Where the data of the tag's request begin in the character device.
    fn place(&self, tag: u16) -> u64 {
        let queue = u64::from(self.queue.get_qid()) << sys::UBLK_QID_OFF;
        u64::from(sys::UBLKSRV_IO_BUF_OFFSET) + (queue | u64::from(tag) << sys::UBLK_TAG_OFF)
    }

    /// Copies to the pages of the tag's request, a read.
    pub(super) fn copy_to(&self, tag: u16, bytes: &[u8]) -> io::Result<()> {
        self.count();
        fd::write_all_at(self.device(), bytes, self.place(tag))
    }

    /// Copies the data of the tag's request, a write.
    pub(super) fn copy_from(&self, tag: u16, bytes: &mut [u8]) -> io::Result<()> {
        self.count();
        fd::read_exact_at(self.device(), bytes, self.place(tag))
    }
}

// SAFETY: a request that is dropped waits for its answer in its `drop`.
unsafe impl Ring for QueueIo<'_> {
    const POOL: u32 = POOL;
    const ZEROS: Option<u32> = Some(ZEROS);

    unsafe fn request(&self, entry: squeue::Entry) -> impl Future<Output = io::Result<usize>> {
        Request { queue: self.queue, answer: Some(self.queue.ublk_submit_sqe(entry)) }
    }

    fn copy_into(&self, into: Registered, bytes: &[u8]) -> io::Result<()> {
        self.count();
        fd::write_all_at(self.device(), bytes, self.place(into.index) + into.from)
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
