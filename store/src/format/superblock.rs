//! The superblock: two slots, written in turn. The slot with the higher valid sequence holds.
//!
//! Magic, version and feature bits stand at fixed offsets and are judged before anything else is.

use super::crc;
use crate::types::{BLOCK, BLOCK_BYTES, Lsn, Phys};
use crate::{Error, Result};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// First eight bytes of a pool.
pub const MAGIC: [u8; 8] = *b"COWSLIP\0";
/// Version of the format written by this code.
pub const VERSION: u32 = 1;
/// Incompatible feature bits known to this code: none yet. Bit 0 is set aside for encryption per volume,
/// bit 1 for compression.
pub const KNOWN_INCOMPAT: u64 = 0;
/// Read-only compatible feature bits known to this code: none yet.
pub const KNOWN_RO_COMPAT: u64 = 0;
/// Block numbers of the two slots, half a segment apart.
pub const SLOTS: [Phys; 2] = [Phys(0), Phys(128)];

/// The bytes of a superblock slot.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RawSuperblock {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// 4096.
    pub block_bytes: U32,
    /// Features that code may ignore.
    pub feature_compat: U64,
    /// Features that code must know to write.
    pub feature_ro_compat: U64,
    /// Features that code must know to read.
    pub feature_incompat: U64,
    /// Random id of the pool.
    pub pool_id: [u8; 16],
    /// Counts writes of superblocks; the slot is `sequence mod 2`.
    pub sequence: U64,
    /// Counts opens of the pool.
    pub generation: U64,
    /// Boot id of the host that has it open, or had it open last.
    pub boot_id: [u8; 16],
    /// 0: closed cleanly; 1: open.
    pub state: U32,
    /// 1: the owner keeps un-flushed records in a ring; 0: it acknowledges only what is durable.
    pub has_ring: U32,
    /// Blocks of the pool.
    pub total_blocks: U64,
    /// First block of the log.
    pub log_start: U64,
    /// Blocks of the log.
    pub log_blocks: U64,
    /// First block of the segment table.
    pub segtab_start: U64,
    /// Pages of one slot of the segment table; the second slot follows the first.
    pub segtab_pages: U64,
    /// First block of the checksum table.
    pub crctab_start: U64,
    /// Blocks of the checksum table.
    pub crctab_blocks: U64,
    /// First block that can be allocated; a multiple of 256.
    pub data_start: U64,
    /// LSN up to which the checkpoint holds everything.
    pub checkpoint_lsn: U64,
    /// Index of the log block that begins with that LSN.
    pub checkpoint_log_index: U64,
    /// Checksum of the log block before it.
    pub checkpoint_log_chain: U32,
    /// Checksum of the first checkpoint page.
    pub checkpoint_crc: U32,
    /// First checkpoint page.
    pub checkpoint_page: U64,
    /// Bytes of the checkpoint.
    pub checkpoint_bytes: U64,
    /// Number of the checkpoint.
    pub checkpoint_number: U64,
    /// Zero.
    pub padding: [u8; 3884],
    /// CRC32C of all bytes before it.
    pub crc: U32,
}

const _: () = assert!(size_of::<RawSuperblock>() == BLOCK);

/// A superblock that was verified, or is about to be written.
#[derive(Debug, Clone)]
pub struct Superblock(RawSuperblock);

/// Where the parts of a pool lie, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Blocks of the pool.
    pub total_blocks: u64,
    /// First block and length of the log.
    pub log: (u64, u64),
    /// First block of the segment table and pages a slot.
    pub segtab: (u64, u64),
    /// First block and length of the checksum table.
    pub crctab: (u64, u64),
    /// First block that can be allocated.
    pub data_start: u64,
}

/// Where the current checkpoint is, and where the log goes on from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckpointRef {
    /// Everything before this LSN is in the checkpoint.
    pub lsn: Lsn,
    /// Index of the log block that begins with `lsn`.
    pub log_index: u64,
    /// Checksum of the log block before it.
    pub log_chain: u32,
    /// First page and its checksum.
    pub page: Phys,
    /// Checksum of the first page.
    pub crc: u32,
    /// Bytes in all pages.
    pub bytes: u64,
    /// Number of the checkpoint.
    pub number: u64,
}

impl RawSuperblock {
    /// Judges a slot. `Ok(None)`: no superblock here (wrong magic or checksum).
    ///
    /// # Errors
    /// `Unsupported` for a valid superblock of a newer version or with unknown feature bits.
    pub fn verify(self, writable: bool) -> Result<Option<Superblock>> {
        if self.magic != MAGIC || crc(0, &self.as_bytes()[..BLOCK - 4]) != self.crc.get() {
            return Ok(None);
        }
        if self.version.get() != VERSION {
            return Err(Error::unsupported(format!(
                "the pool has format version {}, this build serves version {VERSION}",
                self.version
            ))
            .hint("use the cowslip that made the pool, or a newer one"));
        }
        for (name, bits, known) in [
            ("incompatible", self.feature_incompat.get(), KNOWN_INCOMPAT),
            ("read-only compatible", self.feature_ro_compat.get(), KNOWN_RO_COMPAT),
        ] {
            let unknown = bits & !known;
            if unknown != 0 && (writable || name == "incompatible") {
                return Err(Error::unsupported(format!(
                    "the pool uses {name} features {unknown:#x} that this build does not know"
                ))
                .hint("use a newer cowslip"));
            }
        }
        let sb = Superblock(self);
        sb.check_geometry()?;
        Ok(Some(sb))
    }
}

impl Superblock {
    /// The superblock of a new pool, sequence and generation 0.
    pub fn new(pool_id: [u8; 16], layout: Layout) -> Self {
        let mut raw = RawSuperblock::new_zeroed();
        raw.magic = MAGIC;
        raw.version = VERSION.into();
        raw.block_bytes = 4096.into();
        raw.pool_id = pool_id;
        raw.total_blocks = layout.total_blocks.into();
        raw.log_start = layout.log.0.into();
        raw.log_blocks = layout.log.1.into();
        raw.segtab_start = layout.segtab.0.into();
        raw.segtab_pages = layout.segtab.1.into();
        raw.crctab_start = layout.crctab.0.into();
        raw.crctab_blocks = layout.crctab.1.into();
        raw.data_start = layout.data_start.into();
        Self(raw)
    }

    fn check_geometry(&self) -> Result<()> {
        let l = self.layout();
        let end = |(start, len): (u64, u64)| start.checked_add(len);
        let inside = |part, n: u64| end(part).is_some_and(|e| e <= n);
        let ok = self.0.block_bytes.get() == 4096
            && l.total_blocks <= 1 << 38
            && l.data_start.is_multiple_of(256)
            && l.data_start <= l.total_blocks
            && l.log.1 >= MIN_LOG_BYTES / BLOCK_BYTES
            && inside(l.log, l.data_start)
            && l.segtab.1.checked_mul(2).is_some_and(|n| inside((l.segtab.0, n), l.data_start))
            && inside(l.crctab, l.data_start);
        if ok { Ok(()) } else { Err(Error::damaged("superblock: the geometry contradicts itself")) }
    }

    /// Where the parts lie.
    pub fn layout(&self) -> Layout {
        let r = &self.0;
        Layout {
            total_blocks: r.total_blocks.get(),
            log: (r.log_start.get(), r.log_blocks.get()),
            segtab: (r.segtab_start.get(), r.segtab_pages.get()),
            crctab: (r.crctab_start.get(), r.crctab_blocks.get()),
            data_start: r.data_start.get(),
        }
    }
    /// The current checkpoint.
    pub fn checkpoint(&self) -> CheckpointRef {
        let r = &self.0;
        CheckpointRef {
            lsn: Lsn(r.checkpoint_lsn.get()),
            log_index: r.checkpoint_log_index.get(),
            log_chain: r.checkpoint_log_chain.get(),
            page: Phys(r.checkpoint_page.get()),
            crc: r.checkpoint_crc.get(),
            bytes: r.checkpoint_bytes.get(),
            number: r.checkpoint_number.get(),
        }
    }
    /// Points to another checkpoint.
    pub fn set_checkpoint(&mut self, c: &CheckpointRef) {
        let r = &mut self.0;
        r.checkpoint_lsn = c.lsn.0.into();
        r.checkpoint_log_index = c.log_index.into();
        r.checkpoint_log_chain = c.log_chain.into();
        r.checkpoint_page = c.page.0.into();
        r.checkpoint_crc = c.crc.into();
        r.checkpoint_bytes = c.bytes.into();
        r.checkpoint_number = c.number.into();
    }
    /// Pool id.
    pub fn pool_id(&self) -> [u8; 16] {
        self.0.pool_id
    }
    /// Owner generation.
    pub fn generation(&self) -> u64 {
        self.0.generation.get()
    }
    /// Boot id of the last owner.
    pub fn boot_id(&self) -> [u8; 16] {
        self.0.boot_id
    }
    /// Whether it was closed cleanly.
    pub fn is_clean(&self) -> bool {
        self.0.state.get() == 0
    }
    /// Sequence of this superblock.
    pub fn sequence(&self) -> u64 {
        self.0.sequence.get()
    }
    /// Whether the last owner had a ring.
    pub fn has_ring(&self) -> bool {
        self.0.has_ring.get() != 0
    }
    /// Takes ownership: the next generation, open, under this boot.
    pub fn take_over(&mut self, boot_id: [u8; 16], has_ring: bool) {
        self.0.has_ring = u32::from(has_ring).into();
        self.0.generation = (self.generation() + 1).into();
        self.0.boot_id = boot_id;
        self.0.state = 1.into();
    }
    /// Marks it as closed cleanly.
    pub fn set_clean(&mut self) {
        self.0.state = 0.into();
    }
    /// Advances the sequence and seals the block: the slot to write, and its bytes.
    pub fn seal(&mut self) -> (Phys, &[u8]) {
        let sequence = self.sequence() + 1;
        self.0.sequence = sequence.into();
        self.0.crc = crc(0, &self.0.as_bytes()[..BLOCK - 4]).into();
        (SLOTS[usize::from(sequence % 2 == 1)], self.0.as_bytes())
    }
    /// The newer of two slots as read from disk.
    ///
    /// # Errors
    /// `Damaged` when neither slot holds one, `Unsupported` as [`RawSuperblock::verify`] says.
    pub fn choose(slots: [RawSuperblock; 2], writable: bool) -> Result<Self> {
        let [a, b] = slots;
        let blank = [&a, &b].iter().all(|s| s.magic != MAGIC);
        match (a.verify(writable)?, b.verify(writable)?) {
            (Some(a), Some(b)) => Ok(if a.sequence() > b.sequence() { a } else { b }),
            (Some(one), None) | (None, Some(one)) => Ok(one),
            (None, None) if blank => {
                Err(Error::not_found("there is no cowslip pool here")
                    .hint("`cowslip pool init PATH` makes one"))
            }
            (None, None) => Err(Error::damaged("both superblocks fail their checksum")),
        }
    }
}

/// Smallest log: a checkpoint's own flush and one more fit into it.
const MIN_LOG_BYTES: u64 = 16 * BLOCK_BYTES;

/// Layout of a pool of `total_bytes` with a log of `log_bytes`.
///
/// # Errors
/// `Invalid` when the pool is too small to hold its own tables.
pub fn plan(total_bytes: u64, log_bytes: u64) -> Result<Layout> {
    if log_bytes < MIN_LOG_BYTES {
        return Err(Error::invalid(format!("a log of {log_bytes} bytes is too small"))
            .hint(format!("give it at least {MIN_LOG_BYTES} bytes")));
    }
    let total_blocks = total_bytes / BLOCK_BYTES;
    let segments = total_blocks / 256;
    let total_blocks = segments * 256;
    let log = (256, log_bytes / BLOCK_BYTES);
    let segtab_pages = segments.div_ceil(super::segment::RECORDS_A_PAGE as u64);
    let segtab = (log.0 + log.1, segtab_pages);
    let crctab = (segtab.0 + 2 * segtab_pages, segments.div_ceil(4));
    let data_start = (crctab.0 + crctab.1).next_multiple_of(256);
    if data_start + 4 * 256 > total_blocks {
        return Err(Error::invalid(format!(
            "a pool of {total_bytes} bytes is too small: {} bytes would be left for data",
            total_blocks.saturating_sub(data_start) * BLOCK_BYTES
        ))
        .hint("give it at least 32 MiB"));
    }
    if total_blocks > 1 << 38 {
        return Err(Error::invalid("a pool is at most 1 PiB"));
    }
    Ok(Layout { total_blocks, log, segtab, crctab, data_start })
}
