//! The journal (jbd2): what it holds is laid over the image, as the kernel's recovery would write it.
//!
//! The journal's own inode, and everything needed to find it, are read from the image as it is, never through the
//! overlay. Nothing is written. Where the kernel would refuse to mount, what could be recovered is shown and told as
//! partial.
//!
//! Facts: the kernel's `Documentation/filesystems/ext4/journal.rst`.

mod apply;
mod fast;
mod log;
mod records;
mod scan;
mod superblock;

pub(super) use fast::{NameOp, Op};

use super::superblock::{compat, incompat};
use super::{Ext4, uuid_text};
use crate::overlay::{Overlay, OverlayBuilder, Scratch};
use crate::{Error, FileKind, Result};
use fast::FastCommits;
use log::Log;
use superblock::JournalSuper;

/// What recovery found.
pub(super) struct Recovered {
    /// The image with what was replayed; None: nothing was.
    pub overlay: Option<Overlay>,
    /// The value of `user.cowslip.replay`.
    pub state: String,
    /// What the fast commits behind the log say, to be applied over that.
    pub ops: Vec<Op>,
    /// Whether the journal carries an error: the kernel then leaves orphans alone.
    pub has_error: bool,
}

impl Recovered {
    fn nothing(state: impl Into<String>) -> Self {
        Self { overlay: None, state: state.into(), ops: Vec::new(), has_error: false }
    }
}

/// Replays the journal of `fs`, which reads the image as it is.
pub(super) fn recover(fs: &Ext4, scratch: &Scratch) -> Result<Recovered> {
    // Without the flag the kernel ignores what the journal holds.
    if !fs.sb.has(incompat::RECOVER) || fs.sb.compat & compat::HAS_JOURNAL == 0 {
        return Ok(Recovered::nothing("clean"));
    }
    match replay(fs, scratch) {
        Ok(recovered) => Ok(recovered),
        Err(e @ Error::Io { .. }) => Err(e),
        Err(e) => Ok(Recovered::nothing(format!(
            "partial: {e}; what was written last before the snapshot may be missing or stale"
        ))),
    }
}

fn replay(fs: &Ext4, scratch: &Scratch) -> Result<Recovered> {
    let log = open(fs)?;
    if log.sb.start == 0 {
        return Ok(Recovered { has_error: log.sb.errno != 0, ..Recovered::nothing("clean") });
    }
    let mut trouble = Vec::new();
    let scanned = scan::scan(&log)?;
    trouble.extend(scanned.trouble.clone());
    let mut builder = OverlayBuilder::new(fs.dev.clone(), scratch);
    trouble.extend(apply::apply(&log, &scanned, &mut builder)?);
    let fast =
        if scanned.trouble.is_none() { fast::scan(&log, scanned.end)? } else { FastCommits::default() };
    trouble.extend(fast.trouble);
    let state = if trouble.is_empty() {
        "replayed".into()
    } else {
        format!("partial: {}; the kernel would refuse to mount this", trouble.join("; "))
    };
    let overlay = (!builder.is_empty()).then(|| builder.build());
    Ok(Recovered { overlay, state, ops: fast.ops, has_error: log.sb.errno != 0 })
}

/// Finds the journal and believes its superblock.
fn open(fs: &Ext4) -> Result<Log<'_>> {
    let refused = |what: String| Error::Unsupported(format!("the journal is not replayed: {what}"));
    if fs.sb.journal_dev != 0 {
        let both = if fs.sb.journal_ino != 0 { ", and inside as well" } else { "" };
        let uuid = uuid_text(&fs.sb.journal_uuid);
        return Err(refused(format!("it is on another device, {uuid}{both}")));
    }
    let inode = fs.inode(fs.sb.journal_ino)?;
    if inode.kind != FileKind::File
        || inode.has(super::inode::flag::ENCRYPT | super::inode::flag::INLINE_DATA)
    {
        return Err(refused(format!("inode {} is not a plain file", inode.ino)));
    }
    let mut raw = [0; 1024];
    if fs.read_mapped(&inode, 0, &mut raw)? < raw.len() {
        return Err(refused(format!("inode {} is too short for it", inode.ino)));
    }
    let sb = JournalSuper::verify(&raw, fs.sb.block_size(), inode.size >> fs.sb.block_bits);
    let sb = sb.map_err(|what| refused(format!("its superblock: {what}")))?;
    Ok(Log::new(fs, inode, sb))
}
