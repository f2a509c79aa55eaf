//! ext2, ext3 and ext4, read only.
//!
//! A journal that holds changes is replayed into an overlay when the file system is opened, and the reader shows what
//! the kernel's mount would; what cannot be replayed is told by [`FsView::replay`]. After that the reader has no state:
//! it may be shared between threads freely, and what it reads twice is the business of the source's cache.
//!
//! With `metadata_csum` every checksum is verified; a wrong one is an error of that object alone.

#![forbid(unsafe_code)]

mod acl;
mod checksum;
mod dir;
mod extent;
mod fast;
mod hash;
mod htree;
mod inline;
mod inode;
mod journal;
mod mapping;
mod names;
mod orphans;
mod place;
mod pointers;
mod superblock;
mod xattr;

use crate::overlay::Scratch;
use crate::{
    Attr, BlockRead, DirEntry, Error, Extent, FileKind, FsView, Ino, InodeTable, Piece, Result, StatFs,
    Wanted,
};
use fast::FastLayer;
use inode::{Inode, ROOT_INO, flag};
use std::ops::Range;
use std::sync::Arc;
use superblock::{Superblock, incompat};

/// Longest target the kernel takes, with the NUL.
const PATH_MAX: u64 = 4096;

/// One ext2, ext3 or ext4 file system.
pub struct Ext4 {
    dev: Arc<dyn BlockRead>,
    sb: Superblock,
    fast: FastLayer,
    replay: String,
}

impl Ext4 {
    /// Opens the file system on `dev`: reads the superblock, replays the journal into an overlay, reads the root inode.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names features that are not read; [`Error::Corrupt`] where the superblock or the root
    /// directory is damaged.
    pub fn open(dev: Arc<dyn BlockRead>, scratch: &Scratch) -> Result<Self> {
        let mut fs = Self::unreplayed(dev)?;
        let recovered = journal::recover(&fs, scratch)?;
        let mut state = recovered.state;
        if let Some(overlay) = recovered.overlay {
            // All is read anew: the superblock may have been in the journal.
            match Self::unreplayed(Arc::new(overlay)) {
                Ok(replayed) => fs = replayed,
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => state = format!("partial: what the journal holds cannot be used ({e})"),
            }
        }
        if !recovered.ops.is_empty() {
            let (layer, trouble) = fast::replay(&fs, &recovered.ops)?;
            fs.fast = layer;
            match trouble {
                Some(why) if state == "replayed" => state = format!("partial: {why}"),
                _ => {}
            }
        }
        if !recovered.has_error {
            fs.cut_orphans()?;
        }
        fs.replay = state;
        fs.dir_inode(ROOT_INO)?;
        Ok(fs)
    }

    /// The file system as it is on `dev`, without its journal.
    fn unreplayed(dev: Arc<dyn BlockRead>) -> Result<Self> {
        let sb = Superblock::read(&*dev)?;
        Ok(Self { dev, sb, fast: FastLayer::default(), replay: "clean".into() })
    }

    /// One block of metadata; that it lies in the file system is checked before.
    fn block(&self, block: u64) -> Result<Piece> {
        self.dev.piece(block << self.sb.block_bits, self.sb.block_size())
    }

    /// An inode that a name may lead to: the root or one that is not reserved.
    fn named_inode(&self, ino: Ino) -> Result<Inode> {
        let ino = self.named(ino)?;
        self.inode(ino)
    }

    fn named(&self, ino: Ino) -> Result<u32> {
        match u32::try_from(ino) {
            Ok(small) if small == ROOT_INO || small >= self.sb.first_ino => Ok(small),
            _ => Err(Error::Corrupt(format!("ext4: a name leads to the reserved inode {ino}"))),
        }
    }

    fn regular(&self, ino: Ino) -> Result<Inode> {
        let inode = self.named_inode(ino)?;
        if inode.kind != FileKind::File {
            return Err(Error::WrongKind(format!("inode {ino} is not a regular file")));
        }
        if inode.has(flag::ENCRYPT) {
            return Err(Error::Unsupported(format!("inode {ino} is encrypted; its key is not here")));
        }
        Ok(inode)
    }

    /// Whether the target of a symbolic link lies in `i_block`.
    fn is_short_link(&self, inode: &Inode) -> bool {
        if inode.size >= inode.block_area().len() as u64 {
            return false;
        }
        // Short targets were once written to blocks, too: what counts is that no block but that of attributes is held.
        let held = if inode.xattr_block == 0 { 0 } else { 1 << (self.sb.cluster_bits - 9) };
        self.sb.has(incompat::EA_INODE) || self.blocks_512(inode) <= held
    }
}

impl FsView for Ext4 {
    fn format(&self) -> &'static str {
        self.sb.format()
    }

    fn label(&self) -> String {
        let label = String::from_utf8_lossy(&self.sb.label);
        format!("{label} {}", uuid_text(&self.sb.uuid)).trim().to_string()
    }

    fn replay(&self) -> String {
        self.replay.clone()
    }

    fn root(&self) -> Ino {
        Ino::from(ROOT_INO)
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino> {
        let dir = self.dir_inode(self.named(dir)?)?;
        Ok(Ino::from(self.find(&dir, name)?))
    }

    fn readdir(&self, dir: Ino, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        let dir = self.dir_inode(self.named(dir)?)?;
        self.list(&dir, cookie, max, None)
    }

    fn readdir_wanted(&self, dir: Ino, cookie: u64, max: usize, wanted: Wanted<'_>) -> Result<Vec<DirEntry>> {
        let dir = self.dir_inode(self.named(dir)?)?;
        self.list(&dir, cookie, max, Some(wanted))
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        Ok(self.attr_of(&self.named_inode(ino)?))
    }

    fn read_at(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let inode = self.regular(ino)?;
        if inode.has(flag::INLINE_DATA) {
            return self.read_inline(&inode, offset, buf);
        }
        self.read_mapped(&inode, offset, buf)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<Range<u64>>> {
        let inode = self.regular(ino)?;
        if offset >= inode.size {
            return Ok(None);
        }
        if inode.has(flag::INLINE_DATA) {
            return self.next_inline(&inode, offset);
        }
        self.next_mapped(&inode, offset)
    }

    fn extent(&self, ino: Ino, offset: u64) -> Result<Option<Extent>> {
        self.content_extent(ino, offset)
    }

    fn inode_at(&self, ino: Ino) -> Result<Option<Range<u64>>> {
        self.inode_range(ino)
    }

    fn inode_tables(&self) -> Result<Option<Vec<InodeTable>>> {
        self.all_inode_tables()
    }

    fn bookkeeping(&self) -> Result<Option<Vec<Range<u64>>>> {
        self.all_bookkeeping()
    }

    fn is_unchecked(&self) -> bool {
        true
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.named_inode(ino)?;
        if inode.kind != FileKind::Symlink {
            return Err(Error::WrongKind(format!("inode {ino} is not a symbolic link")));
        }
        if inode.has(flag::ENCRYPT) {
            return Err(Error::Unsupported(format!("link {ino} is encrypted; its key is not here")));
        }
        if inode.size == 0 || inode.size >= PATH_MAX.min(self.sb.block_size() as u64 + 1) {
            return Err(Error::Corrupt(format!("ext4 link {ino}: a target of {} bytes", inode.size)));
        }
        let mut target = vec![0; inode::fit(usize::MAX, inode.size)];
        if inode.has(flag::INLINE_DATA) {
            self.read_inline(&inode, 0, &mut target)?;
        } else if self.is_short_link(&inode) {
            let len = target.len();
            target.copy_from_slice(&inode.block_area()[..len]);
        } else {
            self.read_mapped(&inode, 0, &mut target)?;
        }
        // A target ends at its first NUL, as in the kernel.
        target.truncate(target.iter().position(|&b| b == 0).unwrap_or(target.len()));
        if target.is_empty() {
            return Err(Error::Corrupt(format!("ext4 link {ino}: an empty target")));
        }
        Ok(target)
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.all_xattrs(&self.named_inode(ino)?)
    }

    fn statfs(&self) -> StatFs {
        let sb = &self.sb;
        let overhead = if sb.overhead < sb.blocks { sb.overhead } else { 0 };
        // Counting takes a read for every group: not of the largest file systems.
        const MOST_GROUPS: u64 = 1 << 16;
        let counted = (self.replay != "clean" && sb.groups() <= MOST_GROUPS).then(|| self.free_counts().ok());
        let (blocks_free, inodes_free) = counted.flatten().unwrap_or((sb.blocks_free, sb.inodes_free.into()));
        StatFs {
            block_bytes: 1 << sb.block_bits,
            blocks: sb.blocks - overhead,
            blocks_free: blocks_free.min(sb.blocks),
            inodes: u64::from(sb.inodes),
            inodes_free: inodes_free.min(sb.inodes.into()),
            name_max: 255,
        }
    }
}

/// A UUID in its usual form.
fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex: Vec<String> = uuid.iter().map(|b| format!("{b:02x}")).collect();
    [hex[..4].concat(), hex[4..6].concat(), hex[6..8].concat(), hex[8..10].concat(), hex[10..].concat()]
        .join("-")
}
