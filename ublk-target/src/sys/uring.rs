//! Commands to a device through io_uring, each with a deadline.

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Bytes of a command in a ring's large entry.
pub(crate) const COMMAND: usize = 80;

/// A ring that carries one command at a time.
#[derive(Default)]
pub(crate) struct CommandRing(Option<IoUring<squeue::Entry128>>);

impl CommandRing {
    /// Sends a command about `buffer`, which the device reads and writes; `prepare` makes the command of its address.
    /// Answers what the device answered, its errors as errors.
    ///
    /// ETIMEDOUT: no answer within `limit`. The command may still be carried out. Its memory is given up for that,
    /// and so is the ring, which asks the kernel to stop waiting.
    pub(crate) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        op: u32,
        prepare: impl FnOnce(u64) -> [u8; COMMAND],
        buffer: &mut [u8],
        limit: Duration,
    ) -> io::Result<u32> {
        let ring = match &mut self.0 {
            Some(ring) => ring,
            none => none.insert(IoUring::builder().build(2)?),
        };
        let mut memory: Box<[u8]> = buffer.into();
        let command = prepare(memory.as_mut_ptr() as u64);
        let entry = opcode::UringCmd80::new(Fd(fd.as_raw_fd()), op).cmd(command).build();
        // SAFETY: the memory that the command names is freed only when its answer is there, and leaked without one;
        // the descriptor is looked up while it is borrowed, in the submission below.
        if unsafe { ring.submission().push(&entry) }.is_err() {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        match wait(ring, limit) {
            Ok(result) => {
                buffer.copy_from_slice(&memory);
                u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
            }
            Err(e) => {
                Box::leak(memory);
                self.0 = None;
                Err(e)
            }
        }
    }
}

/// Submits what is queued and waits for its one answer.
fn wait(ring: &mut IoUring<squeue::Entry128>, limit: Duration) -> io::Result<i32> {
    let start = Instant::now();
    loop {
        let left = Timespec::from(limit.saturating_sub(start.elapsed()));
        let outcome = ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&left));
        if let Some(answer) = ring.completion().next() {
            return Ok(answer.result());
        }
        match outcome {
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
            Err(e) if e.raw_os_error() != Some(libc::ETIME) => return Err(e),
            _ if start.elapsed() >= limit => return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// None where the kernel forbids rings (`kernel.io_uring_disabled`, seccomp).
    fn ring() -> Option<CommandRing> {
        IoUring::<squeue::Entry128>::builder().build(2).ok().map(|ring| CommandRing(Some(ring)))
    }

    #[test]
    fn a_device_without_commands_says_so_and_the_ring_is_used_again() {
        let Some(mut ring) = ring() else { return };
        let null = std::fs::File::open("/dev/zero").unwrap();
        for _ in 0..3 {
            let mut buffer = *b"kept";
            let error = ring
                .send(null.as_fd(), 1, |_| [0; COMMAND], &mut buffer, Duration::from_secs(60))
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
            assert_eq!(&buffer, b"kept");
        }
    }
}
