//! XFS versions 4 and 5, read only.
//!
//! What a mount would show is served: the log is replayed into an overlay that covers the image, which is never
//! written. After that the reader has no state: it may be shared between threads freely, and what it reads twice is the
//! business of the source's cache.
//!
//! Checksums, addresses and owners of version 5 are verified; a wrong one is an error of that object alone. What the
//! log changed has the checksum of before and is judged by its structure only.

#![forbid(unsafe_code)]

mod acl;
mod attributes;
mod block;
mod checksum;
mod complete;
mod counters;
mod dir;
mod entry;
mod extent;
mod image;
mod index;
mod inode;
mod log;
mod place;
mod superblock;
mod symlink;
mod tree;

use crate::overlay::Scratch;
use crate::{Attr, BlockRead, DirEntry, Error, Extent, FileKind, FsView, Ino, Result, StatFs};
use complete::Completed;
use image::Image;
use inode::{Inode, Which};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use superblock::Superblock;

/// One XFS file system.
pub struct Xfs {
    image: Image,
    sb: Superblock,
    completed: Completed,
    replay: String,
    /// Whether the log held changes.
    replayed: bool,
    size: OnceLock<StatFs>,
}

impl Xfs {
    /// Opens the file system on `dev`: reads the superblock, replays the log, reads the root inode.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names features that are not read; [`Error::Corrupt`] where the superblock or the root
    /// directory is damaged.
    pub fn open(dev: Arc<dyn BlockRead>, scratch: &Scratch) -> Result<Self> {
        let mut sb = Superblock::read(&Image::bare(dev.clone()))?;
        let mut outcome = log::replay(&dev, &sb, scratch);
        let image = outcome.overlay.map_or(Image::bare(dev), Image::covered);
        if outcome.dirty {
            // The log may have the superblock of a file system that grew.
            match Superblock::read(&image) {
                Ok(grown) => sb = grown,
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => outcome.state = format!("partial: the superblock in the log cannot be used ({e})"),
            }
        }
        let mut fs = Self {
            image,
            sb,
            completed: Completed::default(),
            replay: outcome.state,
            replayed: outcome.dirty,
            size: OnceLock::new(),
        };
        if let Err(e) = fs.complete(&outcome.left)
            && !fs.replay.starts_with("partial")
        {
            fs.replay = format!("partial: {e}; work that the log promised is not done");
        }
        fs.dir_inode(fs.sb.root_ino)?;
        Ok(fs)
    }

    fn regular(&self, ino: Ino) -> Result<Inode> {
        let inode = self.inode(ino)?;
        if inode.kind != FileKind::File {
            return Err(Error::WrongKind(format!("inode {ino} is not a regular file")));
        }
        if inode.is_realtime() {
            let what = format!("the content of inode {ino} is on the realtime device, which is not read");
            return Err(Error::Unsupported(what));
        }
        Ok(inode)
    }
}

impl FsView for Xfs {
    fn format(&self) -> &'static str {
        "xfs"
    }

    fn label(&self) -> String {
        let label = String::from_utf8_lossy(&self.sb.label);
        format!("{label} {}", uuid_text(&self.sb.uuid)).trim().to_string()
    }

    fn replay(&self) -> String {
        self.replay.clone()
    }

    fn root(&self) -> Ino {
        self.sb.root_ino
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino> {
        let dir = self.dir_inode(dir)?;
        self.find(&dir, name)
    }

    fn readdir(&self, dir: Ino, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        let dir = self.dir_inode(dir)?;
        self.list(&dir, cookie, max)
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        Ok(self.inode(ino)?.attr(self.sb.block_bits))
    }

    fn read_at(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let inode = self.regular(ino)?;
        self.read_mapped(&inode, Which::Data, inode.size, offset, buf)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<Range<u64>>> {
        let inode = self.regular(ino)?;
        if offset >= inode.size {
            return Ok(None);
        }
        self.next_mapped(&inode, offset)
    }

    fn is_unchecked(&self) -> bool {
        true
    }

    fn extent(&self, ino: Ino, offset: u64) -> Result<Option<Extent>> {
        self.content_extent(ino, offset)
    }

    fn inode_at(&self, ino: Ino) -> Result<Option<Range<u64>>> {
        Ok(self.inode_range(ino))
    }

    fn bookkeeping(&self) -> Result<Option<Vec<Range<u64>>>> {
        Ok(self.all_bookkeeping())
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        if inode.kind != FileKind::Symlink {
            return Err(Error::WrongKind(format!("inode {ino} is not a symbolic link")));
        }
        self.target(&inode)
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.all_xattrs(&self.inode(ino)?)
    }

    fn statfs(&self) -> StatFs {
        *self.size.get_or_init(|| self.counters(self.replayed))
    }
}

/// A number from the image as a length of memory, at most `limit`.
fn fit(limit: usize, on_disk: u64) -> usize {
    usize::try_from(on_disk).unwrap_or(usize::MAX).min(limit)
}

/// A UUID in its usual form.
fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex: Vec<String> = uuid.iter().map(|b| format!("{b:02x}")).collect();
    [hex[..4].concat(), hex[4..6].concat(), hex[6..8].concat(), hex[8..10].concat(), hex[10..].concat()]
        .join("-")
}
