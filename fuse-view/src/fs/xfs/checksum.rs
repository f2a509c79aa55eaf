//! The checksum of version 5 metadata: CRC-32C over the whole object with its own field taken as zeros, stored
//! little-endian where all else is big-endian.

use crate::fs::bytes::le32;

/// Whether the checksum at byte `at` of `object` is right.
pub(super) fn holds(object: &[u8], at: usize) -> bool {
    le32(object, at) == sum(object, at)
}

/// The checksum that belongs at byte `at` of `object`.
pub(super) fn sum(object: &[u8], at: usize) -> u32 {
    let before = &object[..at.min(object.len())];
    let after = object.get(at + 4..).unwrap_or_default();
    let crc = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    crc32c::crc32c_append(crc, after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_itself_counts_as_zeros() {
        let mut object = *b"0123....89";
        object[4..8].fill(0);
        let crc = crc32c::crc32c(&object);
        object[4..8].copy_from_slice(&crc.to_le_bytes());
        assert!(holds(&object, 4));
        object[9] ^= 1;
        assert!(!holds(&object, 4));
        assert!(!holds(&[], 4));
    }
}
