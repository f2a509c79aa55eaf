//! Features that make a file system unreadable for a reader that does not know them.

use crate::{Error, Result};

/// Refuses incompatible features outside `known`, each by its name in `refused` or else by its bit.
pub(crate) fn refuse_unknown<B: Into<u64> + Copy>(
    format: &str,
    incompat: B,
    known: B,
    refused: &[(B, &str)],
) -> Result<()> {
    let unknown = incompat.into() & !known.into();
    if unknown == 0 {
        return Ok(());
    }
    let names: Vec<String> = (0..u64::BITS)
        .map(|bit| 1u64 << bit)
        .filter(|bit| unknown & bit != 0)
        .map(|bit| match refused.iter().find(|(named, _)| (*named).into() == bit) {
            Some((_, name)) => (*name).to_string(),
            None => format!("unknown incompatible feature 0x{bit:x}"),
        })
        .collect();
    Err(Error::Unsupported(format!("{format} feature not read: {}", names.join(", "))))
}
