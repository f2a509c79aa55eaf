//! What the kernel takes on this process's account to serve a ring, taken before memory is short: where memory has a limit,
//! the kernel would rather kill somebody than do without (H3). It keeps what it was once given as long as the ring lives.
#![allow(unsafe_code)] // requests and buffers by their addresses

use super::{AlignedBuf, uring};
use crate::mutation::Mutation;
use io_uring::{IoUring, Submitter, opcode, squeue, types};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Takes what requests of this thread's new ring need: the one thread (`iou-wrk`) that is handed those that would block,
/// as syncs do, and memory for as many as are submitted at once.
///
/// More than the one thread is forbidden, for each is made when it is missed. One is enough: what the disk has a place
/// for does not wait for it.
///
/// # Errors
/// When the kernel refuses the ring.
pub fn requests(ring: &mut IoUring) -> io::Result<()> {
    if Mutation::ManyWorkers.on() {
        return Ok(());
    }
    // The first number is of work on files and disks. Before 5.15 there is no such limit.
    let _ = ring.submitter().register_iowq_max_workers(&mut [1, 1]);
    let handed_over = opcode::Nop::new().build().flags(squeue::Flags::ASYNC);
    // SAFETY: the request uses no memory.
    unsafe { answered(ring, &[handed_over]) }?;

    let zeros = File::open("/dev/zero")?;
    let mut byte = 0u8;
    // Each waits for the one before it, so all are there together.
    let read = opcode::Read::new(types::Fd(zeros.as_raw_fd()), &raw mut byte, 1).build();
    let mut chain = vec![read.flags(squeue::Flags::IO_LINK); ring.params().sq_entries() as usize];
    if let Some(last) = chain.last_mut() {
        *last = opcode::Nop::new().build();
    }
    // SAFETY: the byte and the descriptor live until all are answered.
    unsafe { answered(ring, &chain) }
}

/// Submits requests, no more than the ring takes at once, and waits for all answers.
///
/// # Safety
/// What the requests refer to stays valid meanwhile.
unsafe fn answered(ring: &mut IoUring, requests: &[squeue::Entry]) -> io::Result<()> {
    // SAFETY: as the caller promises.
    unsafe { ring.submission().push_multiple(requests) }.map_err(io::Error::other)?;
    let mut answers = 0;
    while answers < requests.len() {
        match ring.submit_and_wait(1) {
            Err(e) if !uring::passes(&e) => {
                // Nobody can tell any more when the kernel is done with the requests' memory.
                std::process::abort();
            }
            _ => answers += ring.completion().count(),
        }
    }
    Ok(())
}

/// Takes what the first `places` of the ring's table of buffers need, which are empty before and after that.
///
/// # Errors
/// When the kernel refuses, as below Linux 5.13 and above the limit of locked memory (RLIMIT_MEMLOCK).
pub fn buffers(submitter: &Submitter<'_>, places: u16) -> io::Result<()> {
    let mut page = AlignedBuf::reused(4096);
    let full = libc::iovec { iov_base: page.as_mut_ptr().cast(), iov_len: page.len() };
    let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    for entry in [full, empty] {
        // SAFETY: the page lives until the second round takes it out of the table, and no request names it.
        unsafe { submitter.register_buffers_update(0, &vec![entry; usize::from(places)], None) }?;
    }
    Ok(())
}
