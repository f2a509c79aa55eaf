//! Whether two files hold the same bytes: by where they lie, and only where that does not tell, by reading them.

use crate::{Extent, FsView, Ino, Result};
use std::ops::Range;

/// Bytes compared at once.
const PIECE_BYTES: usize = 256 * 1024;

/// A file in a file system that starts at byte `start` of its source.
#[derive(Clone, Copy)]
pub struct Content<'a> {
    /// The file system.
    pub view: &'a dyn FsView,
    /// Byte of the source where it starts.
    pub start: u64,
    /// The file.
    pub ino: Ino,
}

impl Content<'_> {
    /// Where the content lies on the source, from `offset` of the file on.
    pub fn extent(&self, offset: u64) -> Result<Option<Extent>> {
        Ok(self.view.extent(self.ino, offset)?.map(|extent| match extent {
            Extent::Data { at, len } => Extent::Data { at: at.saturating_add(self.start), len },
            Extent::Packed { at, packed, skip, len } => {
                Extent::Packed { at: at.saturating_add(self.start), packed, skip, len }
            }
            other => other,
        }))
    }

    /// The ranges of the source that hold content; None: some of it is not known to be anywhere.
    pub fn ranges(&self) -> Result<Option<Vec<Range<u64>>>> {
        let (mut offset, mut ranges) = (0_u64, Vec::new());
        while let Some(extent) = self.extent(offset)? {
            match extent {
                Extent::Data { at, len } => ranges.push(at..at.saturating_add(len)),
                Extent::Packed { at, packed, .. } => ranges.push(at..at.saturating_add(packed)),
                Extent::Hole { .. } => {}
                Extent::Opaque { .. } => return Ok(None),
            }
            offset = offset.saturating_add(extent.bytes().max(1));
        }
        Ok(Some(ranges))
    }
}

/// Whether the first `size` bytes of two regular files are the same. `shared` tells of a range of both sources
/// whether it surely holds the same in both.
pub fn same(old: Content, new: Content, size: u64, shared: &dyn Fn(Range<u64>) -> bool) -> Result<bool> {
    let mut offset = 0;
    while offset < size {
        let (a, b) = (old.extent(offset)?, new.extent(offset)?);
        let left = size - offset;
        let len = [a, b].into_iter().flatten().map(|e| e.bytes()).fold(left, u64::min).max(1);
        let same_place = match (a, b) {
            (Some(Extent::Hole { .. }), Some(Extent::Hole { .. })) => true,
            (Some(Extent::Data { at, .. }), Some(Extent::Data { at: new_at, .. })) => {
                at == new_at && shared(at..at.saturating_add(len))
            }
            (
                Some(Extent::Packed { at, packed, skip, .. }),
                Some(Extent::Packed { at: new_at, packed: new_packed, skip: new_skip, .. }),
            ) => {
                (at, packed, skip) == (new_at, new_packed, new_skip) && shared(at..at.saturating_add(packed))
            }
            _ => false,
        };
        if !same_place && !same_bytes(old, new, offset..offset + len)? {
            return Ok(false);
        }
        offset += len;
    }
    Ok(true)
}

fn same_bytes(old: Content, new: Content, range: Range<u64>) -> Result<bool> {
    let mut at = range.start;
    let piece = usize::try_from(range.end - range.start).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
    let (mut x, mut y) = (vec![0; piece], vec![0; piece]);
    while at < range.end {
        let want = usize::try_from(range.end - at).unwrap_or(piece).min(piece);
        let a = old.view.read_at(old.ino, at, &mut x[..want])?;
        let b = new.view.read_at(new.ino, at, &mut y[..want])?;
        if a != b || x[..a] != y[..b] {
            return Ok(false);
        }
        if a == 0 {
            break;
        }
        at += a as u64;
    }
    Ok(true)
}
