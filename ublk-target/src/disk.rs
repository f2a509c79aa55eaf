//! What a transport serves: something that reads, writes and flushes.

/// A disk. Offsets and lengths are bytes, within `len()`. Errors are errnos (positive).
pub trait Disk: Send + Sync + 'static {
    /// Length in bytes; may grow.
    fn len(&self) -> u64;
    /// Whether it has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buf`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), i32>;
    /// Acknowledged when it survives the death of this process.
    fn write(&self, offset: u64, buf: &[u8], fua: bool) -> Result<(), i32>;
    /// Everything acknowledged before survives power loss after this.
    fn flush(&self) -> Result<(), i32>;
    /// The range reads as zeros afterwards; its space is given back.
    fn discard(&self, offset: u64, len: u64) -> Result<(), i32>;
    /// The range reads as zeros afterwards.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), i32>;
    /// The volume that this is, for servers that drive its data path on rings of their own. None: it has no such path.
    fn volume(&self) -> Option<&store::Volume> {
        None
    }
}

impl Disk for store::Volume {
    fn len(&self) -> u64 {
        self.size_bytes()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), i32> {
        self.read_at(offset, buf).map_err(|e| e.errno())
    }
    fn write(&self, offset: u64, buf: &[u8], fua: bool) -> Result<(), i32> {
        self.write_at(offset, buf, fua).map_err(|e| e.errno())
    }
    fn flush(&self) -> Result<(), i32> {
        Self::flush(self).map_err(|e| e.errno())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), i32> {
        Self::discard(self, offset, len).map_err(|e| e.errno())
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), i32> {
        Self::write_zeroes(self, offset, len).map_err(|e| e.errno())
    }
    fn volume(&self) -> Option<&store::Volume> {
        Some(self)
    }
}
