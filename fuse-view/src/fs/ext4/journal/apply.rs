//! Laying the logged blocks over the image.

use super::log::Log;
use super::scan::{Scanned, is_at_or_after};
use super::superblock::MAGIC;
use crate::Result;
use crate::overlay::OverlayBuilder;
use std::collections::HashMap;

/// Lays what `scanned` found over the image; what could not be, in words.
pub(super) fn apply(
    log: &Log<'_>,
    scanned: &Scanned,
    builder: &mut OverlayBuilder,
) -> Result<Option<String>> {
    // A revoke counts for its own transaction and those before it, so all of them are collected before any block is
    // replayed.
    let mut revoked: HashMap<u64, u32> = HashMap::new();
    for transaction in &scanned.transactions {
        // In the order of ids: the last one is the highest.
        revoked.extend(transaction.revokes.iter().map(|&block| (block, transaction.id)));
    }
    let (bits, size) = (log.fs.sb.block_bits, log.sb.block_size as u64);
    let (mut bad, mut outside, mut first_bad) = (0u64, 0u64, None);
    for transaction in &scanned.transactions {
        for logged in &transaction.blocks {
            if revoked.get(&logged.block).is_some_and(|&id| is_at_or_after(id, transaction.id)) {
                continue;
            }
            if logged.bad {
                bad += 1;
                first_bad.get_or_insert((logged.block, transaction.id));
                continue;
            }
            if logged.block >= log.fs.sb.blocks {
                outside += 1;
                continue;
            }
            let at = logged.block << bits;
            builder.redirect(at, size, log.offset(logged.log)?)?;
            if logged.escaped {
                builder.write(at, &MAGIC.to_be_bytes())?;
            }
        }
    }
    let mut trouble = Vec::new();
    if let Some((block, id)) = first_bad {
        trouble.push(format!(
            "{bad} logged blocks have wrong checksums and were left out, the first one block {block} of transaction {id}"
        ));
    }
    if outside > 0 {
        trouble.push(format!("{outside} logged blocks belong outside of the file system"));
    }
    Ok((!trouble.is_empty()).then(|| trouble.join("; ")))
}
