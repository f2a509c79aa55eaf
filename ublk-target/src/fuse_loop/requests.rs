//! Memory that the requests of a connection are read into: a file in memory with a slot for each server thread, which is a
//! page for headers and the data after it.
//!
//! Kernels before 6.9 do not send a dead server's requests again. There the holder keeps this file, and the next server
//! finds in each slot what was read into it last. Whether that is still to be answered only the kernel knows, and it
//! can be asked (see `Server`).

use crate::sys::buffer::{LockedBuffer, PAGE};
use crate::sys::fd;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The file.
pub(super) struct Requests {
    file: OwnedFd,
    payload: usize,
    slots: usize,
    found: bool,
}

/// What one thread reads requests into, and writes replies from.
pub(super) struct Slot {
    pub head: LockedBuffer,
    pub data: LockedBuffer,
}

impl Requests {
    /// Of so many threads, for requests with so many bytes of data at most.
    pub(super) fn new(max_payload: u32, slots: usize) -> io::Result<Self> {
        let payload = usize::try_from(max_payload).map_err(io::Error::other)?.next_multiple_of(PAGE);
        let len = u64::try_from((PAGE + payload) * slots).map_err(io::Error::other)?;
        Ok(Self { file: fd::memory_file("cowslip-requests", len)?, payload, slots, found: false })
    }

    /// Of a dead server, which may have been another version: the file's length tells how many threads it had.
    pub(super) fn found(file: OwnedFd, max_payload: u32) -> io::Result<Self> {
        let payload = usize::try_from(max_payload).map_err(io::Error::other)?.next_multiple_of(PAGE);
        let len = usize::try_from(fd::len(file.as_fd())?).map_err(io::Error::other)?;
        if len == 0 || !len.is_multiple_of(PAGE + payload) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("requests kept in {len} bytes")));
        }
        Ok(Self { file, payload, slots: len / (PAGE + payload), found: true })
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Whether requests of a dead server may be in it.
    pub(super) fn may_hold_some(&self) -> bool {
        self.found
    }

    /// For the holder.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Maps a slot and locks it in memory.
    pub(super) fn slot(&self, index: usize) -> io::Result<Slot> {
        assert!(index < self.slots, "a slot of the file");
        let at = (PAGE + self.payload) * index;
        Ok(Slot {
            head: LockedBuffer::shared(self.file.as_fd(), at, PAGE)?,
            data: LockedBuffer::shared(self.file.as_fd(), at + PAGE, self.payload)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_server_finds_what_was_in_each_slot() {
        let requests = Requests::new(8192, 3).unwrap();
        for index in 0..3 {
            let mut slot = requests.slot(index).unwrap();
            slot.head[0] = 1 + u8::try_from(index).unwrap();
            slot.data[8191] = 11 + u8::try_from(index).unwrap();
        }
        let kept = requests.file().try_clone_to_owned().unwrap();
        drop(requests);
        let found = Requests::found(kept, 8192).unwrap();
        assert_eq!(found.slots(), 3);
        for index in 0..3 {
            let slot = found.slot(index).unwrap();
            assert_eq!((usize::from(slot.head[0]), usize::from(slot.data[8191])), (1 + index, 11 + index));
        }
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let requests = Requests::new(8192, 3).unwrap();
        assert!(Requests::found(requests.file().try_clone_to_owned().unwrap(), 1 << 20).is_err());
    }
}
