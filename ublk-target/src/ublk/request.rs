//! One request of a block device, and a disk's answer to it.

use super::abi::SECTOR;
use crate::Disk;
use store::io::{Io, Registered, Sink, Source};
use store::{BLOCK_BYTES, VolumeIo};

/// Where a request's data are.
pub(super) enum Payload<'a> {
    /// In the first bytes of this memory.
    Memory(&'a mut [u8]),
    /// In the request's own pages, which are this buffer of the ring.
    Buffer(u16),
}

impl Payload<'_> {
    /// Largest request that it holds.
    fn room(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Buffer(_) => u64::MAX,
        }
    }

    fn sink(&mut self, len: u64) -> Sink<'_> {
        match self {
            Self::Memory(bytes) => Sink::Memory(&mut bytes[..index(len)]),
            Self::Buffer(number) => Sink::Registered(Registered { index: *number, from: 0, len }),
        }
    }

    fn source(&self, len: u64) -> Source<'_> {
        match self {
            Self::Memory(bytes) => Source::Memory(&bytes[..index(len)]),
            Self::Buffer(number) => Source::Registered(Registered { index: *number, from: 0, len }),
        }
    }
}

/// Lengths in memory were compared with the memory's own.
fn index(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// `UBLK_IO_OP_*`.
    pub op: u32,
    /// Durable when it is answered (a write).
    pub fua: bool,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

pub(super) mod op {
    pub const READ: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const FLUSH: u32 = 2;
    pub const DISCARD: u32 = 3;
    pub const WRITE_ZEROES: u32 = 5;
}

const OP_MASK: u32 = 0xff;
const FUA: u32 = 1 << 13;

impl Request {
    /// Of the fields of struct ublksrv_io_desc.
    pub(super) fn new(op_flags: u32, sectors: u32, start_sector: u64) -> Self {
        Self {
            op: op_flags & OP_MASK,
            fua: op_flags & FUA != 0,
            offset: start_sector.saturating_mul(SECTOR),
            len: u64::from(sectors) * SECTOR,
        }
    }

    /// Whether it lies within `size` bytes. The block layer sees to it; a shrunk disk would show here.
    fn is_within(&self, size: u64) -> bool {
        self.offset.checked_add(self.len).is_some_and(|end| end <= size)
    }

    /// Whether it begins and ends between blocks: the store then need not look into it.
    pub(super) fn is_whole(&self) -> bool {
        self.offset.is_multiple_of(BLOCK_BYTES) && self.len.is_multiple_of(BLOCK_BYTES)
    }

    /// Carries it out with the first bytes of `buffer`; blocks. The result as ublk takes it: bytes, 0, or a negative
    /// errno.
    pub(super) fn answer(&self, disk: &dyn Disk, buffer: &mut [u8]) -> i32 {
        if let Err(result) = self.check(disk.len(), buffer.len() as u64) {
            return result;
        }
        let buffer = &mut buffer[..index(self.payload())];
        self.result(match self.op {
            op::READ => disk.read(self.offset, buffer),
            op::WRITE => disk.write(self.offset, buffer, self.fua),
            op::FLUSH => disk.flush(),
            op::DISCARD => disk.discard(self.offset, self.len),
            _ => disk.write_zeroes(self.offset, self.len),
        })
    }

    /// [`Request::answer`] by a volume's data path on this thread's ring.
    pub(super) async fn answer_on<I: Io>(
        &self,
        size: u64,
        volume: &VolumeIo<'_, I>,
        mut payload: Payload<'_>,
    ) -> i32 {
        if let Err(result) = self.check(size, payload.room()) {
            return result;
        }
        let outcome = match self.op {
            op::READ => volume.read(self.offset, payload.sink(self.len)).await,
            op::WRITE => volume.write(self.offset, payload.source(self.len), self.fua).await,
            op::FLUSH => volume.flush().await,
            op::DISCARD => volume.discard(self.offset, self.len).await,
            _ => volume.write_zeroes(self.offset, self.len).await,
        };
        self.result(outcome.map_err(|e| e.errno()))
    }

    /// Refuses what cannot be carried out, with the result to answer.
    fn check(&self, size: u64, room: u64) -> Result<(), i32> {
        match self.op {
            op::FLUSH => Ok(()),
            op::READ | op::WRITE if self.len > room => Err(-libc::EIO),
            op::READ | op::WRITE | op::DISCARD | op::WRITE_ZEROES if self.is_within(size) => Ok(()),
            op::READ | op::WRITE | op::DISCARD | op::WRITE_ZEROES => Err(-libc::EIO),
            _ => Err(-libc::EOPNOTSUPP),
        }
    }

    /// Bytes of data that it has.
    pub(super) fn payload(&self) -> u64 {
        if matches!(self.op, op::READ | op::WRITE) { self.len } else { 0 }
    }

    fn result(&self, outcome: Result<(), i32>) -> i32 {
        match outcome {
            Ok(()) => i32::try_from(self.payload()).unwrap_or(-libc::EIO),
            // A file system must not take a failed flush for a full disk.
            Err(_) if self.op == op::FLUSH => -libc::EIO,
            Err(errno) => -shown(errno),
        }
    }
}

/// The errno that is passed on: those that mean something to a block device, and EIO for all others.
fn shown(errno: i32) -> i32 {
    match errno {
        libc::ENOSPC | libc::ENODATA | libc::EILSEQ | libc::ETIMEDOUT => errno,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Remembers what it was asked for, and answers as told.
    struct Told {
        calls: Mutex<Vec<String>>,
        answer: Result<(), i32>,
    }

    impl Told {
        fn say(&self, call: String) -> Result<(), i32> {
            self.calls.lock().push(call);
            self.answer
        }
    }

    impl Disk for Told {
        fn len(&self) -> u64 {
            1 << 20
        }
        fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), i32> {
            self.say(format!("read {offset} {}", buf.len()))
        }
        fn write(&self, offset: u64, buf: &[u8], fua: bool) -> Result<(), i32> {
            self.say(format!("write {offset} {} {fua}", buf.len()))
        }
        fn flush(&self) -> Result<(), i32> {
            self.say("flush".into())
        }
        fn discard(&self, offset: u64, len: u64) -> Result<(), i32> {
            self.say(format!("discard {offset} {len}"))
        }
        fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), i32> {
            self.say(format!("zero {offset} {len}"))
        }
    }

    fn ask(request: Request, answer: Result<(), i32>) -> (i32, Vec<String>) {
        let disk = Told { calls: Mutex::default(), answer };
        let result = request.answer(&disk, &mut [0; 8192]);
        (result, disk.calls.into_inner())
    }

    #[test]
    fn requests_reach_the_disk_as_they_were_meant() {
        for (op_flags, call, result) in [
            (op::READ, "read 4096 8192", 8192),
            (op::WRITE, "write 4096 8192 false", 8192),
            (op::WRITE | FUA, "write 4096 8192 true", 8192),
            (op::FLUSH, "flush", 0),
            (op::DISCARD, "discard 4096 8192", 0),
            (op::WRITE_ZEROES | 1 << 15, "zero 4096 8192", 0),
        ] {
            assert_eq!(ask(Request::new(op_flags, 16, 8), Ok(())), (result, vec![call.to_owned()]));
        }
    }

    #[test]
    fn errors_keep_their_meaning_for_a_block_device() {
        for (errno, shown) in [(libc::ENOSPC, libc::ENOSPC), (libc::EBADF, libc::EIO)] {
            assert_eq!(ask(Request::new(op::WRITE, 8, 0), Err(errno)).0, -shown);
        }
        assert_eq!(ask(Request::new(op::FLUSH, 0, 0), Err(libc::ENOSPC)).0, -libc::EIO);
    }

    #[test]
    fn nothing_outside_the_disk_or_the_buffer_is_tried() {
        for (request, result) in [
            (Request::new(op::READ, 8, 2048), -libc::EIO),
            (Request::new(op::DISCARD, u32::MAX, 0), -libc::EIO),
            (Request::new(op::READ, 8, u64::MAX), -libc::EIO),
            (Request::new(op::WRITE, 17, 0), -libc::EIO), // more than the buffer holds
            (Request::new(200, 8, 0), -libc::EOPNOTSUPP),
        ] {
            assert_eq!(ask(request, Ok(())), (result, vec![]), "{request:?}");
        }
    }
}
