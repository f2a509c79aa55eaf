//! Applying the operations of fast commits, with the effect that the kernel's replay has.

use super::super::Ext4;
use super::super::extent::{empty_root, is_root};
use super::super::inode::{Inode, ROOT_INO, flag};
use super::super::journal::{NameOp, Op};
use super::{DirEdit, FastLayer, InodeEdit, Mapped, Ranges};
use crate::fs::bytes::{le16, le32};
use crate::fs::kind;
use crate::walk::is_plain_name;
use crate::{Error, FileKind, Piece, Result};

/// `i_block` within an inode.
const BLOCK_AREA: std::ops::Range<usize> = 40..100;
const MODE: usize = 0;
const SIZE: usize = 4;
const LINKS: usize = 0x1A;
const BLOCKS_LOW: usize = 0x1C;
const BLOCKS_HIGH: usize = 0x74;
const FLAGS: usize = 0x20;

struct Replayer<'a> {
    fs: &'a Ext4,
    layer: FastLayer,
    trouble: Option<String>,
}

/// Applies `ops` to `fs`, which has the journal's overlay; also what could not be applied, in words.
pub(in super::super) fn replay(fs: &Ext4, ops: &[Op]) -> Result<(FastLayer, Option<String>)> {
    let mut replayer = Replayer { fs, layer: FastLayer::default(), trouble: None };
    for op in ops {
        match op {
            Op::Map { ino, blocks, image, unwritten } => {
                let place = if *unwritten { Mapped::Unwritten(*image) } else { Mapped::Data(*image) };
                replayer.map(*ino, blocks.clone(), place)?;
            }
            Op::Unmap { ino, blocks } => replayer.map(*ino, blocks.clone(), Mapped::Hole)?,
            Op::Inode { ino, body } => replayer.inode(*ino, body)?,
            // A name that no directory can hold is damage that its checksum does not show.
            Op::Name { name, .. } if !is_plain_name(name) => {}
            Op::Name { op: NameOp::Create, parent, ino, name } => replayer.create(*parent, *ino, name)?,
            Op::Name { op: NameOp::Link, parent, ino, name } => replayer.link(*parent, *ino, name)?,
            Op::Name { op: NameOp::Unlink, parent, ino, name } => replayer.unlink(*parent, *ino, name)?,
        }
    }
    replayer.recount()?;
    Ok((replayer.layer, replayer.trouble))
}

impl Replayer<'_> {
    /// The inode as it is now, deleted or not. None: there is no such inode.
    fn raw(&self, ino: u32) -> Result<Option<Piece>> {
        if let Some(edit) = self.layer.inodes.get(&ino) {
            return Ok(Some(edit.raw.clone()));
        }
        if ino != ROOT_INO && ino < self.fs.sb.first_ino {
            return Ok(None);
        }
        match self.fs.slot(ino) {
            Ok(raw) => Ok(Some(raw)),
            Err(e @ Error::Io { .. }) => Err(e),
            Err(_) => Ok(None),
        }
    }

    /// As [`Replayer::raw`], if it is in use.
    fn living(&self, ino: u32) -> Result<Option<Piece>> {
        Ok(self.raw(ino)?.filter(|raw| le16(raw, LINKS) != 0 && kind::entry_of_mode(le16(raw, MODE)) != 0))
    }

    /// The edit of an inode that was `raw` up to now.
    fn edit(&mut self, ino: u32, raw: Piece) -> &mut InodeEdit {
        let new = || InodeEdit { raw, map: Ranges::default(), recount: false };
        self.layer.inodes.entry(ino).or_insert_with(new)
    }

    fn map(&mut self, ino: u32, blocks: std::ops::Range<u64>, place: Mapped) -> Result<()> {
        if let Some(raw) = self.living(ino)? {
            self.edit(ino, raw).map.set(blocks, place);
        }
        Ok(())
    }

    /// All of an inode but its mapping, which the ranges tell.
    fn inode(&mut self, ino: u32, body: &[u8]) -> Result<()> {
        let Some(slot) = self.raw(ino)? else { return Ok(()) };
        let mut raw = slot.to_vec();
        let len = body.len().min(raw.len());
        if len < 128 {
            return Ok(());
        }
        raw[..BLOCK_AREA.start].copy_from_slice(&body[..BLOCK_AREA.start]);
        raw[BLOCK_AREA.end..len].copy_from_slice(&body[BLOCK_AREA.end..len]);
        let flags = le32(&raw, FLAGS);
        if flags & flag::EXTENTS != 0 {
            if !is_root(&raw[BLOCK_AREA]) {
                raw[BLOCK_AREA].copy_from_slice(&empty_root());
            }
        } else if flags & flag::INLINE_DATA != 0 {
            raw[BLOCK_AREA].copy_from_slice(&body[BLOCK_AREA]);
        }
        if let Some(why) = refused(&raw) {
            self.trouble.get_or_insert(format!(
                "a fast commit has inode {ino}, {why}: all of it is shown, and the kernel would refuse to mount this"
            ));
        }
        let edit = self.edit(ino, slot);
        edit.raw = raw.into();
        edit.recount = flags & flag::INLINE_DATA == 0;
        Ok(())
    }

    /// Changes the link count; an inode without links is free, and its blocks are.
    fn set_links(&mut self, ino: u32, raw: Piece, links: u16) {
        let mut bytes = raw.to_vec();
        bytes[LINKS..LINKS + 2].copy_from_slice(&links.to_le_bytes());
        let edit = self.edit(ino, raw);
        edit.raw = bytes.into();
        if links == 0 {
            edit.map.set(0..u64::MAX, Mapped::Hole);
        }
    }

    /// Looks `name` up as it is now. None: `parent` is not a directory in use.
    fn look_up(&self, parent: u32, name: &[u8]) -> Result<Option<Option<u32>>> {
        let Some(raw) = self.living(parent)? else { return Ok(None) };
        let edit = self.layer.dirs.get(&parent);
        if let Some(found) = edit.and_then(|edit| edit.get(name)) {
            return Ok(Some(found));
        }
        if edit.is_some_and(|edit| edit.new_below.is_some()) {
            return Ok(Some(None));
        }
        let dir = match self.fs.parse_inode(parent, raw, false) {
            Ok(dir) if dir.kind == FileKind::Dir => dir,
            _ => return Ok(None),
        };
        match self.fs.find(&dir, name) {
            Ok(ino) => Ok(Some(Some(ino))),
            Err(Error::NotFound(_)) => Ok(Some(None)),
            Err(e @ Error::Io { .. }) => Err(e),
            Err(_) => Ok(None),
        }
    }

    fn set_name(&mut self, parent: u32, name: &[u8], entry: Option<(u32, u8)>) {
        self.layer.dirs.entry(parent).or_default().names.insert(name.to_vec(), entry);
    }

    fn link(&mut self, parent: u32, ino: u32, name: &[u8]) -> Result<()> {
        let Some(raw) = self.living(ino)? else { return Ok(()) };
        // A name that exists stays as it is, whatever it leads to.
        if self.look_up(parent, name)? == Some(None) {
            self.set_name(parent, name, Some((ino, kind::entry_of_mode(le16(&raw, MODE)))));
            self.set_links(ino, raw.clone(), le16(&raw, LINKS).saturating_add(1));
        }
        Ok(())
    }

    fn create(&mut self, parent: u32, ino: u32, name: &[u8]) -> Result<()> {
        let Some(raw) = self.living(ino)? else {
            let name = String::from_utf8_lossy(name);
            self.trouble
                .get_or_insert(format!("inode {ino} of the new file {name} is not in the fast commits"));
            return Ok(());
        };
        if self.look_up(parent, name)?.is_none() {
            return Ok(());
        }
        if kind::entry_of_mode(le16(&raw, MODE)) == 2 {
            let new = DirEdit { new_below: Some(parent), ..DirEdit::default() };
            self.layer.dirs.insert(ino, new);
        }
        self.link(parent, ino, name)?;
        if let Some(raw) = self.living(ino)? {
            self.set_links(ino, raw, 1);
        }
        Ok(())
    }

    fn unlink(&mut self, parent: u32, ino: u32, name: &[u8]) -> Result<()> {
        let Some(raw) = self.living(ino)? else { return Ok(()) };
        let Some(Some(found)) = self.look_up(parent, name)? else { return Ok(()) };
        if found == ino {
            self.set_name(parent, name, None);
        }
        self.set_links(ino, raw.clone(), le16(&raw, LINKS) - 1);
        Ok(())
    }

    /// Counts the blocks of the inodes that were sent, as the kernel does.
    fn recount(&mut self) -> Result<()> {
        let fs = self.fs;
        for (&ino, edit) in self.layer.inodes.iter_mut().filter(|(_, edit)| edit.recount) {
            let Ok(inode) = fs.parse_inode(ino, edit.raw.clone(), false) else { continue };
            if !inode.has(flag::EXTENTS) {
                continue;
            }
            let Some(blocks) = count(fs, &inode, &edit.map)? else { continue };
            let units = if inode.has(flag::HUGE_FILE) { blocks } else { blocks << (fs.sb.block_bits - 9) };
            edit.raw = with_blocks(&edit.raw, units);
        }
        Ok(())
    }
}

/// Why the kernel, which reads an inode again after writing it, gives up its recovery at this one.
fn refused(raw: &[u8]) -> Option<&'static str> {
    let size = usize::try_from(le32(raw, SIZE)).unwrap_or(usize::MAX);
    let is_fast_link = kind::of_mode(le16(raw, MODE)) == Some(FileKind::Symlink)
        && (1..BLOCK_AREA.len()).contains(&size)
        && le32(raw, FLAGS) & flag::INLINE_DATA == 0;
    if le16(raw, LINKS) == 0 {
        Some("which had no name any more and was open")
    } else if is_fast_link && raw[BLOCK_AREA].iter().position(|&byte| byte == 0) != Some(size) {
        Some("a symbolic link whose target is not recorded")
    } else {
        None
    }
}

/// The inode `raw` with another `i_blocks`.
pub(in super::super) fn with_blocks(raw: &[u8], units: u64) -> Piece {
    let mut raw = raw.to_vec();
    let [b0, b1, b2, b3, b4, b5, ..] = units.to_le_bytes();
    raw[BLOCKS_LOW..BLOCKS_LOW + 4].copy_from_slice(&[b0, b1, b2, b3]);
    raw[BLOCKS_HIGH..BLOCKS_HIGH + 2].copy_from_slice(&[b4, b5]);
    raw.into()
}

/// Blocks of content and of the tree; None: the shape of the kernel's tree is not known.
fn count(fs: &Ext4, inode: &Inode, map: &Ranges) -> Result<Option<u64>> {
    let mut extents: Vec<(u64, u64, Mapped)> = Vec::new();
    let nodes =
        match fs.each_extent(inode, u64::MAX, &mut |first, len, place| extents.push((first, len, place))) {
            Ok(nodes) => nodes,
            Err(e @ Error::Io { .. }) => return Err(e),
            Err(_) => return Ok(None),
        };
    if map.is_empty() {
        return Ok(Some(nodes + extents.iter().map(|(_, len, _)| len).sum::<u64>()));
    }
    let mut blocks = 0;
    let mut pieces = 0;
    let mut at = 0;
    let end = 1u64 << 32;
    let mut next = 0;
    // The new ranges over the old ones, in the order of the file.
    while at < end {
        let (place, upto) = map.get(at);
        let upto = upto.min(end);
        if let Some(place) = place {
            if place != Mapped::Hole {
                blocks += upto - at;
                pieces += 1;
            }
            at = upto;
            continue;
        }
        while next < extents.len() && extents[next].0 + extents[next].1 <= at {
            next += 1;
        }
        for &(first, len, _) in extents[next..].iter().take_while(|(first, ..)| *first < upto) {
            blocks += (first + len).min(upto) - first.max(at);
            pieces += 1;
        }
        at = upto;
    }
    // More than four pieces may need blocks for the tree, and how many is the allocator's choice.
    Ok((nodes == 0 && pieces <= 4).then_some(blocks))
}
