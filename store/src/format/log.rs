//! The log on disk: 4 KiB blocks in a circular region that carry the stream of records.
//!
//! A block's checksum is chained over the block before it, and it names pool, generation and index: replay
//! stops at the first misfit and never skips (H14).

use super::crc;
use crate::mutation::Mutation;
use crate::types::{BLOCK, Lsn};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the record stream in a block.
pub const PAYLOAD: usize = BLOCK - size_of::<LogHeader>();

/// Header of a log block.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LogHeader {
    /// CRC32C of the bytes after it, seeded with the checksum of the block before.
    pub crc: U32,
    /// Bytes of the stream in this block.
    pub len: U16,
    /// Zero.
    pub reserved: U16,
    /// First eight bytes of the pool id.
    pub pool: [u8; 8],
    /// Generation of the owner that wrote it.
    pub generation: U64,
    /// Position: the block lies at `log_start + index mod log_blocks`.
    pub index: U64,
    /// LSN of the first byte of the stream in it.
    pub lsn: U64,
}

const _: () = assert!(size_of::<LogHeader>() == 40);

/// Fills `block` with `stream` (at most [`PAYLOAD`] bytes); returns the block's checksum, the next seed.
pub fn write_block(
    block: &mut [u8],
    chain: u32,
    pool: &[u8; 16],
    generation: u64,
    index: u64,
    lsn: Lsn,
    stream: &[u8],
) -> u32 {
    let mut header = LogHeader {
        crc: 0.into(),
        len: U16::new(u16::try_from(stream.len()).expect("fits a block")),
        reserved: 0.into(),
        pool: pool[..8].try_into().expect("eight bytes"),
        generation: generation.into(),
        index: index.into(),
        lsn: lsn.0.into(),
    };
    let (head, body) = block.split_at_mut(size_of::<LogHeader>());
    body[..stream.len()].copy_from_slice(stream);
    body[stream.len()..].fill(0);
    let sum = block_sum(chain, &header, body);
    header.crc = sum.into();
    head.copy_from_slice(header.as_bytes());
    sum
}

fn block_sum(chain: u32, header: &LogHeader, body: &[u8]) -> u32 {
    let seed = if Mutation::StaleTail.on() { 0 } else { chain };
    crc(crc(seed, &header.as_bytes()[4..]), body)
}

/// A log block that fits: its header, its part of the stream, its checksum.
pub struct LogBlock<'a> {
    /// Generation of the owner that wrote it.
    pub generation: u64,
    /// LSN of the first byte of `stream`.
    pub lsn: Lsn,
    /// Part of the stream.
    pub stream: &'a [u8],
    /// Checksum, the next seed.
    pub chain: u32,
}

/// The block, if it is block `index` of this pool, follows `chain`, and is whole.
pub fn read_block<'a>(block: &'a [u8], chain: u32, pool: &[u8; 16], index: u64) -> Option<LogBlock<'a>> {
    let (header, body) = LogHeader::ref_from_prefix(block).ok()?;
    let len = usize::from(header.len.get());
    let fits = header.pool == pool[..8]
        && header.index.get() == index
        && len <= PAYLOAD
        && block_sum(chain, header, body) == header.crc.get();
    fits.then(|| LogBlock {
        generation: header.generation.get(),
        lsn: Lsn(header.lsn.get()),
        stream: &body[..len],
        chain: header.crc.get(),
    })
}

/// Bytes before a record's payload.
pub const FRAME_HEADER: usize = 16;

/// Appends a frame to `out`: LSN 8, length 4, CRC32C 4 (of LSN, length and payload), payload, zeros up to
/// a multiple of 8.
pub fn write_frame(out: &mut Vec<u8>, lsn: Lsn, payload: &[u8]) {
    let len = u32::try_from(payload.len()).expect("records are small");
    let sum = crc(crc(crc(0, &lsn.0.to_le_bytes()), &len.to_le_bytes()), payload);
    out.extend_from_slice(&lsn.0.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// Bytes that a record with `payload` bytes takes in the stream.
pub const fn frame_bytes(payload: usize) -> usize {
    (FRAME_HEADER + payload).next_multiple_of(8)
}

/// Payload of the frame at the start of `stream`, which is at `lsn`; None when there is no whole one.
pub fn read_frame(stream: &[u8], lsn: Lsn) -> Option<&[u8]> {
    let head = stream.get(..FRAME_HEADER)?;
    let at = u64::from_le_bytes(head[..8].try_into().expect("8 bytes"));
    let len = u32::from_le_bytes(head[8..12].try_into().expect("4 bytes"));
    let sum = u32::from_le_bytes(head[12..].try_into().expect("4 bytes"));
    let len = usize::try_from(len).ok()?;
    stream.get(..frame_bytes(len))?;
    let payload = stream.get(FRAME_HEADER..FRAME_HEADER.checked_add(len)?)?;
    (at == lsn.0 && crc(crc(0, &head[..12]), payload) == sum).then_some(payload)
}
