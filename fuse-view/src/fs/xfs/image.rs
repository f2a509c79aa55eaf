//! The image with what its log adds.

use crate::{BlockRead, Result};
use std::sync::Arc;

/// What the reader reads: the image as the replay of its log leaves it.
pub(super) struct Image {
    dev: Arc<dyn BlockRead>,
}

impl Image {
    /// The image as it is.
    pub fn bare(dev: Arc<dyn BlockRead>) -> Self {
        Self { dev }
    }

    /// Fills `buf` from byte `at`.
    pub fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.dev.read_at(at, buf)
    }

    /// Bytes of the image.
    pub fn len(&self) -> u64 {
        self.dev.len()
    }

    /// Whether any of these bytes come from the log: a checksum over them is that of what was there before.
    pub fn is_patched(&self, _at: u64, _len: usize) -> bool {
        false
    }
}
