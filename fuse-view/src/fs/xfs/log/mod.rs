//! The log and its replay, by the rules of the kernel's recovery, into an overlay.
//!
//! Two passes over the records between tail and head: the first learns which buffers are given up later, the second
//! applies transactions as they commit. What the kernel refuses to replay is replayed up to there, and told.

mod buffer;
mod changes;
mod chunk;
mod ends;
mod inode;
mod intent;
mod ring;
mod transaction;

pub(super) use intent::Intent;

use super::superblock::{Superblock, incompat};
use crate::overlay::{Overlay, OverlayBuilder, Scratch};
use crate::{BlockRead, Result};
use changes::Changes;
use ends::Ends;
use ring::{Checksum, Ring, bad};
use std::sync::Arc;
use transaction::{Assembler, Transaction};

/// Features of the log that are known: logged attributes.
const KNOWN_LOG_FEATURES: u32 = 1;

/// What came of the log.
pub(super) struct Outcome {
    /// What it changes; None: nothing.
    pub overlay: Option<Overlay>,
    /// Work left to be done.
    pub left: Vec<Intent>,
    /// `clean`, `replayed`, or `partial: why`.
    pub state: String,
    /// Whether it was not clean.
    pub dirty: bool,
}

impl Outcome {
    fn nothing(state: String, dirty: bool) -> Self {
        Self { overlay: None, left: Vec::new(), state, dirty }
    }
}

/// Replays the log that lies on `dev` itself.
pub(super) fn replay(dev: &Arc<dyn BlockRead>, sb: &Superblock, scratch: &Scratch) -> Outcome {
    if sb.log_start == 0 {
        let why = "partial: the log is on another device; the newest changes may be missing";
        return Outcome::nothing(why.into(), true);
    }
    let found = Ring::new(&**dev, sb).and_then(|ring| Ok((ring.ends()?, ring)));
    let (tail, head, ring) = match found {
        Ok((Ends::Clean, _)) if sb.incompat & incompat::NEEDS_REPAIR == 0 => {
            return Outcome::nothing("clean".into(), false);
        }
        Ok((Ends::Clean, _)) => return Outcome::nothing(needs_repair(), false),
        Ok((Ends::Dirty { tail, head }, ring)) => (tail, head, ring),
        Err(e) => {
            let why = format!("partial: {e}; it is not replayed, the newest changes are missing");
            return Outcome::nothing(why, true);
        }
    };
    let unknown = sb.log_incompat & !KNOWN_LOG_FEATURES;
    if unknown != 0 {
        let why = format!("partial: the log has unknown features 0x{unknown:x} and is not replayed");
        return Outcome::nothing(why, true);
    }
    let mut changes = Changes::new(sb.clone(), OverlayBuilder::new(dev.clone(), scratch));
    let done = both_passes(&ring, tail, head, &mut changes);
    let state = match done {
        Ok(()) if sb.incompat & incompat::NEEDS_REPAIR != 0 => needs_repair(),
        Ok(()) => "replayed".into(),
        Err(e) => format!("partial: {e}; what follows it in the log is missing"),
    };
    let overlay = (!changes.over.is_empty()).then(|| changes.over.build());
    Outcome { overlay, left: changes.pending.left(), state, dirty: true }
}

fn needs_repair() -> String {
    "partial: the file system is marked as damaged until xfs_repair has run".into()
}

fn both_passes(ring: &Ring<'_>, tail: u64, head: u64, changes: &mut Changes) -> Result<()> {
    // A log that breaks off is judged by the second pass: up to there, what the first one saw is right.
    let first = pass(ring, tail, head, &mut |transaction| {
        changes.note_cancelled(&transaction);
        Ok(())
    });
    pass(ring, tail, head, &mut |transaction| changes.apply(&transaction))?;
    first
}

/// Gives `commit` the transactions between `tail` and `head` as they commit.
fn pass(
    ring: &Ring<'_>,
    tail: u64,
    head: u64,
    commit: &mut dyn FnMut(Transaction) -> Result<()>,
) -> Result<()> {
    let mut open = Assembler::default();
    let (mut at, mut left) = (tail, ring.distance(tail, head));
    while left > 0 {
        let record = ring.record(at, Checksum::Must)?;
        let total = record.header.total();
        left = left
            .checked_sub(total)
            .ok_or_else(|| bad(&format!("the record at sector {at} goes beyond the head")))?;
        open.feed(&record, commit)?;
        at = (at + total) % ring.len;
    }
    Ok(())
}
