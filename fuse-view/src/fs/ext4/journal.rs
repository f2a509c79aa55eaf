//! The state of the journal: whether what is on disk is all there is.

use super::Ext4;
use super::superblock::{compat, incompat};
use crate::fs::bytes::be32;
use crate::{Error, FileKind, Result};

/// Magic of every block of a journal.
const MAGIC: u32 = 0xC03B_3998;

impl Ext4 {
    /// The value of `user.cowslip.replay`.
    pub(super) fn journal_state(&self) -> String {
        // Without the flag the kernel ignores what the journal holds.
        if !self.sb.has(incompat::RECOVER) || self.sb.compat & compat::HAS_JOURNAL == 0 {
            return "clean".into();
        }
        if self.sb.journal_dev != 0 {
            let uuid = super::uuid_text(&self.sb.journal_uuid);
            return format!(
                "partial: the journal is on another device, {uuid}; the newest changes may be missing"
            );
        }
        match self.journal_start() {
            Ok((0, _)) => "clean".into(),
            Ok((_, sequence)) => format!(
                "partial: the journal holds changes from transaction {sequence} on that are not replayed; \
                 what was written last before the snapshot may be missing or stale"
            ),
            Err(e) => format!("partial: the journal cannot be read ({e}); the newest changes may be missing"),
        }
    }

    /// First block of the log (0: it is empty) and the first transaction in it.
    fn journal_start(&self) -> Result<(u32, u32)> {
        let inode = self.inode(self.sb.journal_ino)?;
        if inode.kind != FileKind::File {
            return Err(Error::Corrupt("its inode is not a regular file".into()));
        }
        let mut head = [0; 1024];
        let got = self.read_mapped(&inode, 0, &mut head)?;
        if got < head.len() || be32(&head, 0) != MAGIC || !matches!(be32(&head, 4), 3 | 4) {
            return Err(Error::Corrupt("it has no superblock".into()));
        }
        Ok((be32(&head, 0x1C), be32(&head, 0x18)))
    }
}
