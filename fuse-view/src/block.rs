//! Where a file system is read from: a disk image, a block device, a snapshot.

use crate::Result;

/// Concurrent positional reads of something that does not change.
pub trait BlockRead: Send + Sync {
    /// Fills `buf` from byte `offset`. Any alignment. Reading past the end is [`crate::Error::Corrupt`]
    /// (a reader was led there by the image).
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether there is nothing to read.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Identity of the 4 KiB block at `offset`: equal identities hold equal bytes, for ever. None: not known.
    fn identity(&self, _offset: u64) -> Option<(u64, u64)> {
        None
    }
}
