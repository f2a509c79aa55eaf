//! Reading the log back: from disk until the first misfit, then from the ring.
//!
//! Invariant: replay writes nothing. It stops at the first block or record that does not fit and never skips
//! (H14), so doing it again gives the same (durability rule 5).

use super::ring::{Binding, Ring};
use super::writer::{Position, Resume};
use crate::format::log::{FRAME_HEADER, frame_bytes, read_block, read_frame};
use crate::format::record::Record;
use crate::format::superblock::Superblock;
use crate::info::Recovery;
use crate::io::{AlignedBuf, BlockDev};
use crate::mutation::Mutation;
use crate::types::{BLOCK, BLOCK_BYTES, Lsn, mem};
use crate::{Error, Result};

/// Log blocks read by one request.
const CHUNK_BLOCKS: u64 = 256;

/// Feeds every record since the checkpoint on disk to `apply`, with the LSN after it.
pub fn from_disk(
    dev: &dyn BlockDev,
    sb: &Superblock,
    apply: &mut dyn FnMut(Record, Lsn) -> Result<()>,
) -> Result<Resume> {
    let (start, blocks) = sb.layout().log;
    let checkpoint = sb.checkpoint();
    let mut at = Position { index: checkpoint.log_index, chain: checkpoint.log_chain };
    let mut stream = Stream { lsn: checkpoint.lsn, bytes: Vec::new(), generation: 0 };
    let last = checkpoint.log_index + blocks;
    'read: while at.index < last {
        let place = at.index % blocks;
        let n = CHUNK_BLOCKS.min(blocks - place).min(last - at.index);
        let mut chunk = AlignedBuf::reused(mem(n * BLOCK_BYTES));
        dev.read_at((start + place) * BLOCK_BYTES, &mut chunk).map_err(|e| Error::io("read log", e))?;
        for block in chunk.chunks(BLOCK) {
            let Some(b) = read_block(block, at.chain, &sb.pool_id(), at.index) else { break 'read };
            if b.generation > sb.generation() {
                // An owner's generation is durable before its first record: its superblock was there once.
                return Err(Error::damaged("the log was written by a later owner than the superblock knows")
                    .hint("the newer superblock is lost; do not open the pool for writing: copy it first"));
            }
            if !stream.push(b.generation, b.lsn, b.stream) {
                break 'read;
            }
            at = Position { index: at.index + 1, chain: b.chain };
            stream.drain(apply)?;
        }
    }
    Ok(Resume { durable: stream.lsn, head: stream.lsn, next: at, tail: checkpoint.log_index })
}

/// The part of the stream that was read and not yet taken apart.
struct Stream {
    /// LSN of `bytes[0]`.
    lsn: Lsn,
    bytes: Vec<u8>,
    generation: u64,
}

impl Stream {
    /// Appends a block's part; false when it does not continue the stream.
    fn push(&mut self, generation: u64, lsn: Lsn, part: &[u8]) -> bool {
        let end = self.lsn.0 + self.bytes.len() as u64;
        if generation > self.generation && lsn == self.lsn {
            // The owner before it was cut off in the middle of a record.
            self.bytes.clear();
        } else if lsn.0 != end || (generation < self.generation && !Mutation::StaleTail.on()) {
            return false;
        }
        self.generation = generation;
        self.bytes.extend_from_slice(part);
        true
    }

    /// Hands over whole records; keeps the rest.
    fn drain(&mut self, apply: &mut dyn FnMut(Record, Lsn) -> Result<()>) -> Result<()> {
        let mut used = 0;
        while let Some(payload) = read_frame(&self.bytes[used..], self.lsn) {
            used += frame_bytes(payload.len());
            self.lsn.0 += frame_bytes(payload.len()) as u64;
            apply(Record::decode(payload)?, self.lsn)?;
        }
        self.bytes.drain(..used);
        Ok(())
    }
}

/// Feeds the records of the ring that follow `from` to `apply`; returns the LSN after the last.
pub fn from_ring(ring: &Ring, from: Lsn, apply: &mut dyn FnMut(Record, Lsn) -> Result<()>) -> Result<Lsn> {
    let mut lsn = from;
    let mut frame = Vec::new();
    while lsn.0 - from.0 < ring.capacity() {
        let left = mem(ring.capacity() - (lsn.0 - from.0));
        if left < FRAME_HEADER {
            break;
        }
        let mut head = [0; FRAME_HEADER];
        ring.get(lsn, &mut head);
        let len = u32::from_le_bytes(head[8..12].try_into().expect("4 bytes"));
        let bytes = frame_bytes(usize::try_from(len).expect("64-bit host"));
        if bytes > left {
            break;
        }
        frame.resize(bytes, 0);
        ring.get(lsn, &mut frame);
        let torn =
            || (Mutation::TornAppend.on() && len > 0).then(|| &frame[FRAME_HEADER..][..mem(len.into())]);
        let Some(payload) = read_frame(&frame, lsn).or_else(torn) else { break };
        lsn.0 += bytes as u64;
        apply(Record::decode(payload)?, lsn)?;
    }
    Ok(lsn)
}

/// Whether a ring holds the records of the pool's last owner, who had it open in this boot.
pub fn is_current(sb: &Superblock, ring: &Binding, boot_id: [u8; 16]) -> bool {
    // An open that was itself cut has bound the ring to its generation before the superblock.
    let generations = sb.generation()..=sb.generation() + 1;
    sb.has_ring()
        && ring.pool_id == sb.pool_id()
        && ring.boot_id == boot_id
        && (generations.contains(&ring.generation) || Mutation::AnyRing.on())
}

/// What the superblock and the ring say together about the end of the last owner (H4).
pub fn judge(sb: &Superblock, ring_is_current: bool, boot_id: [u8; 16]) -> Recovery {
    if sb.is_clean() {
        Recovery::Clean
    } else if sb.boot_id() != boot_id {
        Recovery::PowerLoss
    } else if ring_is_current || !sb.has_ring() || Mutation::RingNotMissed.on() {
        // Without a ring everything acknowledged was durable already.
        Recovery::Resumed
    } else {
        Recovery::RingLost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::log::write_frame;
    use crate::log::ring::SharedBytes;

    /// H5: the process dies after any byte of an append: the records before it count, the torn one does not.
    #[test]
    fn h5_a_torn_append_is_not_replayed() {
        let record = |volume| Record::Attach { volume: crate::types::VolumeId(volume), attached: true };
        let shared = SharedBytes::new(4096);
        let ring = Ring::heap(shared.clone());
        // A lap of old frames, so that what follows the torn one looks like records.
        let mut lsn = Lsn(0);
        while lsn.0 < 4096 + 400 {
            let mut frame = Vec::new();
            write_frame(&mut frame, lsn, &record(lsn.0).encode());
            ring.put(lsn, &frame);
            lsn.0 += frame.len() as u64;
        }
        let mut next = Vec::new();
        write_frame(&mut next, lsn, &record(7777).encode());
        let from = Lsn(lsn.0 - 10 * next.len() as u64);
        for written in 0..=next.len() {
            let torn = Ring::heap(shared.duplicate());
            torn.put(lsn, &next[..written]);
            let mut seen = Vec::new();
            let end = from_ring(&torn, from, &mut |r, _| {
                seen.push(r);
                Ok(())
            })
            .expect("records decode");
            // Bytes at its end may happen to be what the old lap left there.
            let whole = seen.last() == Some(&record(7777));
            assert_eq!(seen.len(), if whole { 11 } else { 10 }, "{written} bytes");
            assert_eq!(end.0, lsn.0 + if whole { next.len() as u64 } else { 0 });
            assert!(whole || written < next.len());
            assert!(!whole || written > FRAME_HEADER, "{written} bytes");
        }
    }
}
