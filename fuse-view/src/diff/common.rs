//! The older of two snapshots, read from the newer one where both are the same: so one cache holds it for both.

use super::Ranges;
use crate::{BlockRead, Piece, Result};
use std::sync::Arc;

pub(super) struct Common {
    pub old: Arc<dyn BlockRead>,
    pub new: Arc<dyn BlockRead>,
    pub changed: Ranges,
}

impl Common {
    /// Who has these bytes: both, or the older one alone.
    fn of(&self, offset: u64, len: usize) -> &Arc<dyn BlockRead> {
        let end = offset.saturating_add(len as u64);
        let shared = end <= self.old.len().min(self.new.len()) && !self.changed.meet(&(offset..end));
        if shared { &self.new } else { &self.old }
    }
}

impl BlockRead for Common {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.of(offset, buf.len()).read_at(offset, buf)
    }

    fn len(&self) -> u64 {
        self.old.len()
    }

    fn piece(&self, offset: u64, len: usize) -> Result<Piece> {
        self.of(offset, len).piece(offset, len)
    }
}
