//! A GPT of 128 entries in sectors 2 to 33: one checksum of its header, one of its entries, which stands in the header.

use super::super::image::{Edited, Structure};

const HEADER: Structure = Structure { at: 512, len: 92 };
const ENTRIES: Structure = Structure { at: 1024, len: 128 * 128 };

pub fn settle(edited: &mut Edited) {
    let entries = crc32(&edited.get(ENTRIES));
    let mut header = edited.get(HEADER);
    header[88..92].copy_from_slice(&entries.to_le_bytes());
    header[16..20].fill(0);
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    edited.put(HEADER, &header);
}

/// The CRC-32 of Ethernet and zlib.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 },
        )
    })
}
