//! What is on disk, byte for byte: pure structs and their checks, no I/O. `docs/format.md` describes the
//! same bytes, and a test compares the two.

pub mod checkpoint;
pub mod log;
pub mod node;
pub mod record;
pub mod segment;
pub mod superblock;

use crate::{Error, Result};

/// CRC32C of `bytes`, continuing from `seed` (0 at the start).
pub fn crc(seed: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(seed, bytes)
}

/// Reads little-endian fields one after another; running short is an error, never a panic.
pub struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// A reader over `bytes`; `what` names them in errors.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }
    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        if n > self.bytes.len() {
            return Err(Error::damaged(format!("{} is cut short", self.what)));
        }
        let (head, rest) = self.bytes.split_at(n);
        self.bytes = rest;
        Ok(head)
    }
    /// Next byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }
    /// Next 16-bit number.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.take(2)?.try_into().expect("two bytes")))
    }
    /// Next 32-bit number.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }
    /// Next 64-bit number.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }
    /// Next string: 16-bit length and UTF-8.
    pub fn string(&mut self) -> Result<String> {
        let n = usize::from(self.u16()?);
        let what = self.what;
        String::from_utf8(self.take(n)?.to_vec())
            .map_err(|_| Error::damaged(format!("{what} holds a string that is not UTF-8")))
    }
    /// What is left.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }
}

/// Appends little-endian fields.
#[derive(Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// One byte.
    pub fn u8(&mut self, v: u8) {
        self.0.push(v);
    }
    /// 16 bits.
    pub fn u16(&mut self, v: u16) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    /// 32 bits.
    pub fn u32(&mut self, v: u32) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    /// 64 bits.
    pub fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    /// A string of at most 65,535 bytes.
    pub fn string(&mut self, s: &str) {
        self.u16(u16::try_from(s.len()).expect("names and labels are checked to be short"));
        self.0.extend_from_slice(s.as_bytes());
    }
}
