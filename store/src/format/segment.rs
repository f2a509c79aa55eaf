//! The segment table: for each 1 MiB segment which blocks are in use by the checkpoint, which have a valid
//! checksum, and whether the host really holds the space. Pages come in two slots; the checkpoint says
//! which slot of each page is current, so a page of an aborted checkpoint is never picked up (H17).

use crate::types::BLOCK;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Records in a page; the page ends with 16 bytes.
pub const RECORDS_A_PAGE: usize = 51;

/// A segment's state in the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SegmentRecord {
    /// Bit b of word w: block 64·w + b is in use.
    pub used: [U64; 4],
    /// Same order: the block's entry in the checksum table is valid.
    pub crc_valid: [U64; 4],
    /// Number of used blocks.
    pub used_count: U16,
    /// Bit 0: backed (the host has allocated the space).
    pub flags: U16,
    /// Zero.
    pub reserved: [u8; 12],
}

/// Bit in [`SegmentRecord::flags`].
pub const FLAG_BACKED: u16 = 1;

/// One page of the table.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SegmentPage {
    /// Records of 51 consecutive segments.
    pub records: [SegmentRecord; RECORDS_A_PAGE],
    /// Index of the page.
    pub index: U64,
    /// Low 32 bits of the number of the checkpoint that wrote it.
    pub checkpoint: U32,
    /// CRC32C of all bytes before it.
    pub crc: U32,
}

const _: () = assert!(size_of::<SegmentRecord>() == 80);
const _: () = assert!(size_of::<SegmentPage>() == BLOCK);

impl SegmentPage {
    /// Sets index, checkpoint and checksum.
    pub fn seal(&mut self, index: u64, checkpoint: u64) {
        self.index = index.into();
        self.checkpoint = U32::new(u32::try_from(checkpoint & 0xffff_ffff).expect("masked"));
        self.crc = super::crc(0, &self.as_bytes()[..BLOCK - 4]).into();
    }
    /// Whether it is page `index`, whole.
    pub fn is_valid(&self, index: u64) -> bool {
        self.index.get() == index && self.crc.get() == super::crc(0, &self.as_bytes()[..BLOCK - 4])
    }
}
