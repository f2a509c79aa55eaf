//! The checksums of ext4: crc32c without the final inversion, and crc16 for old group descriptors.

/// crc32c of `bytes` continued from `seed`, raw: nothing inverted before or after.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// crc32c over `bytes` with the `skip` bytes at `hole` taken as zeros: where the checksum itself lies.
pub(super) fn crc32c_without(seed: u32, bytes: &[u8], hole: usize, skip: usize) -> u32 {
    let hole = hole.min(bytes.len());
    let after = (hole + skip).min(bytes.len());
    let crc = crc32c(seed, &bytes[..hole]);
    let crc = crc32c(crc, &[0; 8][..(after - hole).min(8)]);
    crc32c(crc, &bytes[after..])
}

/// crc16 (polynomial 0x8005, reflected) continued from `seed`.
pub(super) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xA001 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // The check values that the catalogues of CRCs give for "123456789".
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
        assert_eq!(crc16(0, b"123456789"), 0xBB3D);
        assert_eq!(crc32c_without(7, b"ab\xff\xffcd", 2, 2), crc32c(7, b"ab\0\0cd"));
    }
}
