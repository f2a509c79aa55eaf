//! The extents of a file: which bytes are where, which are holes.

use super::Btrfs;
use super::compress;
use super::inode::Inode;
use super::items::Walk;
use super::key::{Key, kind};
use super::node::Bytes;
use crate::fs::bytes::{le16, le64, u8_at};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Bytes before the data of an inline extent, and of the item of any other.
pub(super) const INLINE_HEAD: usize = 21;
pub(super) const EXTENT_BYTES: usize = 53;

/// What an extent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExtentKind {
    /// The data is in the item.
    Inline,
    Regular,
    /// Allocated, never written: reads as zeros.
    Prealloc,
}

/// An extent item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte of the file.
    pub start: u64,
    pub kind: ExtentKind,
    pub compression: u8,
    /// Bytes of the whole extent when unpacked.
    pub ram_bytes: u64,
    /// Where the whole extent is, 0: a hole. And the rest of these fields 0 for inline extents.
    pub address: u64,
    pub disk_bytes: u64,
    /// Where in the unpacked extent this part begins, and its length.
    pub offset: u64,
    pub bytes: u64,
}

impl Extent {
    /// Parses the item of key `(inode, EXTENT_DATA, start)`.
    pub fn parse(start: u64, item: &[u8]) -> std::result::Result<Self, &'static str> {
        let kind = match u8_at(item, 20) {
            0 => ExtentKind::Inline,
            1 => ExtentKind::Regular,
            2 => ExtentKind::Prealloc,
            _ => return Err("an extent of unknown type"),
        };
        let least = if kind == ExtentKind::Inline { INLINE_HEAD } else { EXTENT_BYTES };
        if item.len() < least {
            return Err("an extent item that is too short");
        }
        if u8_at(item, 17) != 0 || le16(item, 18) != 0 {
            return Err("an extent with an encryption or encoding that is not known");
        }
        let mut extent = Self {
            start,
            kind,
            compression: u8_at(item, 16),
            ram_bytes: le64(item, 8),
            address: 0,
            disk_bytes: 0,
            offset: 0,
            bytes: le64(item, 8),
        };
        if kind != ExtentKind::Inline {
            extent.address = le64(item, 21);
            extent.disk_bytes = le64(item, 29);
            extent.offset = le64(item, 37);
            extent.bytes = le64(item, 45);
        }
        if start.checked_add(extent.bytes).is_none() || extent.offset.checked_add(extent.bytes).is_none() {
            return Err("an extent that ends beyond all numbers");
        }
        Ok(extent)
    }

    /// End in the file.
    pub fn end(&self) -> u64 {
        self.start + self.bytes
    }

    /// Whether nothing was ever written here.
    pub fn is_hole(&self) -> bool {
        match self.kind {
            ExtentKind::Inline => false,
            ExtentKind::Regular => self.address == 0,
            ExtentKind::Prealloc => true,
        }
    }
}

/// The extents of a file, from the one that covers a given byte, or comes after it.
pub(super) struct Extents<'a> {
    walk: Walk<'a>,
    ino: u64,
}

impl Iterator for Extents<'_> {
    type Item = Result<(Extent, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.walk.next()? {
            Ok((key, item)) if key.is(self.ino, kind::EXTENT_DATA) => Some(
                Extent::parse(key.offset, &item)
                    .map(|extent| (extent, item))
                    .map_err(|what| Error::Corrupt(format!("btrfs inode {}: {what}", self.ino))),
            ),
            Ok(_) => None,
            Err(e) => Some(Err(e)),
        }
    }
}

impl Btrfs {
    pub(super) fn extents<'a>(&'a self, inode: &'a Inode, offset: u64) -> Result<Extents<'a>> {
        let view = inode.subvol.view(&self.blocks);
        let mut from = Key::new(inode.ino, kind::EXTENT_DATA, offset);
        if let Some((key, _)) = view.prev(from)?
            && key.is(inode.ino, kind::EXTENT_DATA)
        {
            from = key;
        }
        Ok(Extents { walk: view.walk(from), ino: inode.ino })
    }

    /// Reads content; short only at the end of the file.
    pub(super) fn read(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let len = usize::try_from(inode.size().saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let buf = &mut buf[..len];
        if len == 0 {
            return Ok(0);
        }
        let end = offset + len as u64;
        let index = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
        let mut at = offset;
        for extent in self.extents(inode, offset)? {
            let (extent, item) = extent?;
            if extent.start >= end || at >= end {
                break;
            }
            let upto = extent.end().min(end);
            if upto <= at {
                continue;
            }
            let from = extent.start.max(at);
            buf[index(at)..index(from)].fill(0);
            self.read_extent(inode, &extent, &item, from, &mut buf[index(from)..index(upto)])?;
            at = upto;
        }
        buf[index(at)..].fill(0);
        Ok(len)
    }

    /// Reads from byte `from` of the file, which lies in `extent`.
    fn read_extent(
        &self,
        inode: &Inode,
        extent: &Extent,
        item: &Bytes,
        from: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        if extent.is_hole() {
            buf.fill(0);
            return Ok(());
        }
        let within = extent.offset + (from - extent.start);
        let bad = |what: &str| Error::Corrupt(format!("btrfs inode {}, byte {from}: {what}", inode.ino));
        if extent.kind == ExtentKind::Inline {
            let stored = item.get(INLINE_HEAD..).unwrap_or_default();
            if extent.compression == 0 {
                copy_out(stored, within, buf);
            } else {
                let len = unpacked_len(extent.ram_bytes).ok_or_else(|| bad("too large an inline extent"))?;
                let unpacked = self.unpack(extent.compression, stored, len).map_err(|e| bad(&e))?;
                copy_out(&unpacked, within, buf);
            }
            return Ok(());
        }
        if extent.compression == 0 {
            let inside = within.checked_add(buf.len() as u64).is_some_and(|end| end <= extent.disk_bytes);
            let at = extent.address.checked_add(within).filter(|_| inside);
            let at = at.ok_or_else(|| bad("an extent reads beyond what it has on disk"))?;
            return self.read_data(at, buf, !inode.without_checksums());
        }
        let unpacked = self.unpacked(inode, extent).map_err(|e| match e {
            Error::Corrupt(what) => bad(&what),
            other => other,
        })?;
        copy_out(&unpacked, within, buf);
        Ok(())
    }

    /// A compressed extent, unpacked; the last ones are kept, as readers ask for pieces.
    fn unpacked(&self, inode: &Inode, extent: &Extent) -> Result<Arc<[u8]>> {
        if let Some(kept) = self.unpacked.get(&extent.address)
            && kept.0 == (extent.disk_bytes, extent.ram_bytes, extent.compression)
        {
            return Ok(kept.1);
        }
        let len = unpacked_len(extent.ram_bytes).filter(|_| extent.disk_bytes <= compress::MAX_PACKED);
        let len = len.ok_or_else(|| Error::Corrupt("too large a compressed extent".into()))?;
        let mut packed = vec![0; usize::try_from(extent.disk_bytes).unwrap_or(usize::MAX)];
        self.read_data(extent.address, &mut packed, !inode.without_checksums())?;
        let bytes: Arc<[u8]> = self.unpack(extent.compression, &packed, len).map_err(Error::Corrupt)?.into();
        let key = (extent.disk_bytes, extent.ram_bytes, extent.compression);
        self.unpacked.insert(extent.address, (key, bytes.clone()));
        Ok(bytes)
    }

    fn unpack(&self, method: u8, packed: &[u8], len: usize) -> std::result::Result<Vec<u8>, String> {
        compress::unpack(method, packed, len, usize::try_from(self.blocks.sector_bytes).unwrap_or(usize::MAX))
    }

    /// The next range with data at or after `offset`, within the size, as SEEK_DATA and SEEK_HOLE tell it.
    pub(super) fn next_range(&self, inode: &Inode, offset: u64) -> Result<Option<Range<u64>>> {
        let size = inode.size();
        if offset >= size {
            return Ok(None);
        }
        let sector = self.blocks.sector_bytes;
        let mut found: Option<Range<u64>> = None;
        for extent in self.extents(inode, offset)? {
            let (extent, _) = extent?;
            let end = extent.end().checked_next_multiple_of(sector).unwrap_or(u64::MAX);
            if end <= offset || extent.bytes == 0 {
                continue;
            }
            match &mut found {
                None if extent.start >= size => break,
                None if extent.is_hole() => {}
                None => {
                    let start = extent.start.max(offset);
                    // A file that has as many bytes as its size and never had any preallocated has no hole: so the
                    // kernel says without looking, also where it is not so.
                    if !inode.preallocated() && inode.nbytes() == size {
                        return Ok(Some(start..size));
                    }
                    found = Some(start..end);
                }
                Some(range) if extent.is_hole() || extent.start > range.end || range.end >= size => break,
                Some(range) => range.end = range.end.max(end),
            }
        }
        Ok(found.map(|range| range.start..range.end.min(size)))
    }
}

/// Copies from byte `within` of `bytes`; what lies beyond them is zeros.
fn copy_out(bytes: &[u8], within: u64, buf: &mut [u8]) {
    let from = usize::try_from(within).ok().and_then(|within| bytes.get(within..)).unwrap_or_default();
    let len = from.len().min(buf.len());
    buf[..len].copy_from_slice(&from[..len]);
    buf[len..].fill(0);
}

fn unpacked_len(ram_bytes: u64) -> Option<usize> {
    usize::try_from(ram_bytes).ok().filter(|_| ram_bytes <= compress::MAX_UNPACKED)
}
