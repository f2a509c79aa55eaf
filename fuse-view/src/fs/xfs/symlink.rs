//! Targets of symbolic links: inside the inode, or in blocks of their own.

use super::inode::{Format, Inode, Which};
use super::{Xfs, checksum, fit};
use crate::fs::bytes::{be32, be64, bytes16};
use crate::fs::run::Place;
use crate::{Error, Result};

/// Longest target that XFS keeps.
const MAX_TARGET: u64 = 1024;
/// Header of each piece of a target in version 5.
const HEADER: usize = 56;

impl Xfs {
    /// The target of a link.
    pub(super) fn target(&self, link: &Inode) -> Result<Vec<u8>> {
        if link.size == 0 || link.size > MAX_TARGET {
            return Err(bad(link, "a target of impossible length"));
        }
        let len = fit(usize::MAX, link.size);
        let target = match link.fork(Which::Data).filter(|f| f.format == Format::Local) {
            Some(fork) => {
                let bytes = link.fork_bytes(fork).get(..len);
                bytes.ok_or_else(|| bad(link, "a target that leaves its inode"))?.to_vec()
            }
            None if self.sb.v5() => self.target_pieces(link, len)?,
            None => {
                let mut target = vec![0; len];
                self.read_mapped(link, Which::Data, link.size, 0, &mut target)?;
                target
            }
        };
        if target.contains(&0) {
            return Err(bad(link, "a target with NUL"));
        }
        Ok(target)
    }

    /// Each extent of the link begins with a header.
    fn target_pieces(&self, link: &Inode, len: usize) -> Result<Vec<u8>> {
        let mut target = Vec::with_capacity(len);
        let mut block = 0;
        while target.len() < len {
            let run = self.map(link, Which::Data, block)?;
            let Place::Data(start) = run.place else { return Err(bad(link, "a hole in its target")) };
            let blocks = run.len.min((MAX_TARGET + HEADER as u64).div_ceil(self.sb.block_size() as u64));
            let byte = self.sb.byte_of(start, blocks).unwrap_or(u64::MAX / 2);
            let mut bytes = vec![0; fit(usize::MAX, blocks) << self.sb.block_bits];
            self.image.read_at(byte, &mut bytes)?;
            let part = self.check_piece(link, &bytes, byte, target.len()).map_err(|what| bad(link, what))?;
            let take = part.min(len - target.len());
            target.extend(&bytes[HEADER..HEADER + take]);
            block += blocks;
        }
        Ok(target)
    }

    /// The number of bytes of the target that `bytes` hold.
    fn check_piece(
        &self,
        link: &Inode,
        bytes: &[u8],
        byte: u64,
        done: usize,
    ) -> std::result::Result<usize, &'static str> {
        if be32(bytes, 0) != u32::from_be_bytes(*b"XSLM") {
            return Err("a part of its target has no magic");
        }
        if !self.image.is_patched(byte, bytes.len()) && !checksum::holds(bytes, 12) {
            return Err("the checksum of its target is wrong");
        }
        if be64(bytes, 32) != link.ino
            || be64(bytes, 40) != byte >> 9
            || bytes16(bytes, 16) != self.sb.meta_uuid
            || be32(bytes, 4) as usize != done
        {
            return Err("a part of its target belongs elsewhere");
        }
        let part = be32(bytes, 8) as usize;
        if part == 0 || part > bytes.len() - HEADER {
            return Err("a part of its target is of impossible length");
        }
        Ok(part)
    }
}

fn bad(link: &Inode, what: &str) -> Error {
    Error::Corrupt(format!("xfs link {}: {what}", link.ino))
}
