//! Where a file system is read from: a disk image, a block device, a snapshot.

use crate::Result;
use std::{
    ops::{Deref, Range},
    sync::Arc,
};

/// Bytes of a block that has an identity.
const IDENTITY_STEP: usize = 4096;

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
    /// Whether blocks may have identities: asking for them may cost a message each time.
    fn has_identities(&self) -> bool {
        true
    }
    /// Identity of the 4 KiB block at `offset`: equal identities hold equal bytes, for ever. None: not known.
    fn identity(&self, _offset: u64) -> Option<(u64, u64)> {
        None
    }
    /// The identities of the blocks that hold the bytes `range`; None: one of them is not known.
    fn identities(&self, range: Range<u64>) -> Option<Vec<(u64, u64)>> {
        range.step_by(IDENTITY_STEP).map(|at| self.identity(at)).collect()
    }
    /// `len` bytes from byte `offset`: a view of the source's cache where it has one, else a copy.
    ///
    /// # Errors
    /// Those of [`BlockRead::read_at`].
    fn piece(&self, offset: u64, len: usize) -> Result<Piece> {
        let mut bytes = vec![0; len];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes.into())
    }
}

/// Bytes read from a source, possibly shared with its cache: holding one keeps them in memory.
#[derive(Debug, Clone)]
pub struct Piece {
    bytes: Arc<[u8]>,
    range: Range<usize>,
}

impl Piece {
    /// The bytes `range` of `bytes`; None where they leave it.
    pub fn of(bytes: Arc<[u8]>, range: Range<usize>) -> Option<Self> {
        bytes.get(range.clone())?;
        Some(Self { bytes, range })
    }
}

impl From<Vec<u8>> for Piece {
    fn from(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), bytes: bytes.into() }
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(self.range.clone()).unwrap_or_default()
    }
}
