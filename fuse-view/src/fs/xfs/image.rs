//! The image with what its log adds.

use crate::overlay::Overlay;
use crate::{BlockRead, Piece, Result};
use std::sync::Arc;

/// What the reader reads: the image as the replay of its log leaves it.
pub(super) enum Image {
    Bare(Arc<dyn BlockRead>),
    Covered(Overlay),
}

impl Image {
    /// The image as it is.
    pub fn bare(dev: Arc<dyn BlockRead>) -> Self {
        Self::Bare(dev)
    }

    /// An image with changes over it.
    pub fn covered(overlay: Overlay) -> Self {
        Self::Covered(overlay)
    }

    fn dev(&self) -> &dyn BlockRead {
        match self {
            Self::Bare(dev) => &**dev,
            Self::Covered(overlay) => overlay,
        }
    }

    /// Fills `buf` from byte `at`.
    pub fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.dev().read_at(at, buf)
    }

    /// `len` bytes from byte `at`, shared with the cache of the source where it has one.
    pub fn piece(&self, at: u64, len: usize) -> Result<Piece> {
        self.dev().piece(at, len)
    }

    /// Bytes of the image.
    pub fn len(&self) -> u64 {
        self.dev().len()
    }

    /// Whether any of these bytes come from the log: a checksum over them is that of what was there before.
    pub fn is_patched(&self, at: u64, len: usize) -> bool {
        match self {
            Self::Bare(_) => false,
            Self::Covered(overlay) => overlay.changes(at, len as u64),
        }
    }
}
