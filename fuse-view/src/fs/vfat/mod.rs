//! FAT12, FAT16 and FAT32 with long names, read only, as the kernel's `vfat` shows them with its default options in
//! UTC: short names in code page 437, everything owned by root, mode 0755.
//!
//! FAT has no inodes: the number of a file is the place of its directory entry, in units of 32 bytes, so that it can
//! be looked up without a memory of what was listed. There is no log either: what was not written back before a
//! snapshot is missing in it, and the flag of a volume that is mounted is told by [`FsView::replay`].
//!
//! Facts: Microsoft's "FAT: General Overview of On-Disk Format" 1.03; how Linux reads what that leaves open is held
//! against its mount by the tests.

#![forbid(unsafe_code)]

mod boot;
mod chain;
mod codepage;
mod entry;
mod names;

use crate::{Attr, BlockRead, DirEntry, Error, Extent, FileKind, FsView, Ino, Result, StatFs, Timestamp};
use boot::Boot;
use chain::{Chain, Chains};
use entry::Entry;
use names::Named;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Number of the root directory, which has no entry. No entry lies there: it is inside of the boot sector.
const ROOT: Ino = 1;
/// Bytes of a directory entry.
const ENTRY_BYTES: u64 = 32;
/// Largest directory, as in the kernel.
const MAX_DIR_BYTES: u64 = 2 << 20;
/// Bytes read at once of a directory.
const DIR_PIECE_BYTES: u64 = 4096;
/// Largest table whose free clusters are counted.
const MAX_COUNTED_BYTES: u64 = 64 << 20;
/// Longest name: 255 units of UTF-16, at the size that the kernel tells.
const NAME_MAX: u32 = 1530;

/// One FAT file system.
pub struct Vfat {
    dev: Arc<dyn BlockRead>,
    boot: Boot,
    chains: Chains,
    free: OnceLock<u64>,
}

impl Vfat {
    /// Opens the file system on `dev`: reads the boot sector.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the boot sector contradicts itself or the root directory cannot be.
    pub fn open(dev: Arc<dyn BlockRead>) -> Result<Self> {
        let boot = Boot::read(&*dev)?;
        let chains = Chains::new(dev.clone(), &boot);
        let fs = Self { dev, boot, chains, free: OnceLock::new() };
        fs.dir_chain(ROOT)?;
        Ok(fs)
    }

    /// The entry that a number stands for.
    fn entry(&self, ino: Ino) -> Result<Entry> {
        let at = ino.checked_mul(ENTRY_BYTES).filter(|at| *at >= self.boot.dirs_start);
        let at = at.ok_or_else(|| Error::NotFound(format!("inode {ino}")))?;
        let mut raw = [0; 32];
        self.dev.read_at(at, &mut raw)?;
        Entry::parse(&raw)
            .filter(Entry::is_file)
            .ok_or_else(|| Error::Corrupt(format!("vfat: there is no directory entry at byte {at}")))
    }

    fn file_entry(&self, ino: Ino) -> Result<Entry> {
        match ino {
            ROOT => Err(Error::WrongKind("the root directory is not a regular file".into())),
            _ => self.entry(ino).and_then(|entry| match entry.is_dir() {
                true => Err(Error::WrongKind(format!("inode {ino} is not a regular file"))),
                false => Ok(entry),
            }),
        }
    }

    /// The clusters of a file; where they end before its size, what there is of it can be read.
    fn file_chain(&self, entry: &Entry) -> Result<Arc<Chain>> {
        if entry.size == 0 {
            return Ok(Arc::new(Chain::default()));
        }
        self.chains.of(entry.first_cluster(self.boot.is_fat32()))
    }

    /// Where a directory lies: ranges of the source.
    fn dir_chain(&self, ino: Ino) -> Result<DirBytes> {
        let first = match ino {
            ROOT if !self.boot.is_fat32() => return Ok(DirBytes::Fixed(self.boot.root.clone())),
            ROOT => self.boot.root_cluster,
            _ => {
                let entry = self.entry(ino)?;
                if !entry.is_dir() {
                    return Err(Error::WrongKind(format!("inode {ino} is not a directory")));
                }
                entry.first_cluster(self.boot.is_fat32())
            }
        };
        let chain = self.chains.of(first)?;
        // To the kernel a chain that leads nowhere is no directory, and as the root's no file system. Of the root's that
        // begins well, as when it was to grow while the power went, there is what was there before: `walk` tells the end.
        if ino != ROOT || chain.clusters() == 0 {
            chain.is_whole()?;
        }
        Ok(DirBytes::Chain(chain))
    }

    fn dir_len(&self, dir: &DirBytes) -> u64 {
        match dir {
            DirBytes::Fixed(range) => range.end - range.start,
            DirBytes::Chain(chain) => chain.clusters() * self.boot.cluster_bytes,
        }
    }

    /// Where byte `offset` of a directory lies, and how many bytes follow it there.
    fn dir_place(&self, dir: &DirBytes, offset: u64) -> Option<(u64, u64)> {
        match dir {
            DirBytes::Fixed(range) => {
                let at = range.start + offset;
                (at < range.end).then(|| (at, range.end - at))
            }
            DirBytes::Chain(chain) => self.place(chain, offset),
        }
    }

    fn place(&self, chain: &Chain, offset: u64) -> Option<(u64, u64)> {
        let size = self.boot.cluster_bytes;
        let (cluster, count) = chain.run(offset / size)?;
        let within = offset % size;
        Some((self.boot.cluster_at(cluster) + within, count * size - within))
    }

    /// Hands the names of directory `ino` from byte `from` on, `.` and `..` among them, to `each` with the byte behind each, until it says that
    /// it has enough.
    fn walk(&self, ino: Ino, from: u64, mut each: impl FnMut(&Named, Ino, u64) -> bool) -> Result<()> {
        let dir = self.dir_chain(ino)?;
        let mut offset = from;
        let mut long = names::LongName::default();
        while offset < MAX_DIR_BYTES {
            let Some((at, left)) = self.dir_place(&dir, offset) else { return dir.is_whole() };
            let count = left.min(DIR_PIECE_BYTES - offset % DIR_PIECE_BYTES);
            let piece = self.dev.piece(at, usize::try_from(count).unwrap_or(0))?;
            for (index, raw) in (0..).zip(piece.chunks_exact(32)) {
                let behind = offset + (index + 1) * ENTRY_BYTES;
                // Nothing was ever written from here on; what is there all the same was there before.
                if raw.first() == Some(&0) {
                    return dir.is_whole();
                }
                let Some(raw) = raw.try_into().ok().and_then(Entry::parse) else {
                    long.forget();
                    continue;
                };
                if let Some(slot) = raw.long_slot() {
                    long.add(&slot);
                    continue;
                }
                let named = long.take(&raw);
                if !raw.is_file() {
                    continue;
                }
                if !named.is_dot && !crate::walk::is_plain_name(&named.name) {
                    tracing::debug!(ino, offset, "vfat: a name that no file can have");
                    continue;
                }
                let number = at / ENTRY_BYTES + index;
                if !each(&named, number, behind) {
                    return Ok(());
                }
            }
            offset += count;
        }
        Err(Error::Corrupt(format!("vfat: directory {ino} is larger than {MAX_DIR_BYTES} bytes")))
    }

    fn attr_of_dir(&self, ino: Ino, times: [Timestamp; 3], btime: Option<Timestamp>) -> Result<Attr> {
        let size = self.dir_len(&self.dir_chain(ino)?);
        // The root directory has no entries for itself and the one above.
        let mut dirs = if ino == ROOT { 2 } else { 0 };
        // A damaged directory still has attributes.
        let _ = self.walk(ino, 0, |named, _, _| {
            dirs += u32::from(named.is_dir);
            true
        });
        if dirs < 2 {
            return Err(Error::Corrupt(format!("vfat: directory {ino} does not begin as one")));
        }
        let [mtime, atime, ctime] = times;
        let (kind, blocks_512) = (FileKind::Dir, size / 512);
        Ok(Attr { ino, kind, size, blocks_512, nlink: dirs, mtime, atime, ctime, btime, ..base_attr() })
    }

    fn free_clusters(&self) -> u64 {
        *self.free.get_or_init(|| {
            let counted = match self.boot.table.end - self.boot.table.start {
                len if len <= MAX_COUNTED_BYTES => self.chains.count_free().ok(),
                _ => None,
            };
            counted.or_else(|| boot::told_free(&*self.dev, &self.boot)).unwrap_or(0)
        })
    }
}

/// Where a directory lies.
enum DirBytes {
    /// The root directory of FAT12 and FAT16.
    Fixed(Range<u64>),
    Chain(Arc<Chain>),
}

impl DirBytes {
    fn is_whole(&self) -> Result<()> {
        match self {
            Self::Fixed(_) => Ok(()),
            Self::Chain(chain) => chain.is_whole(),
        }
    }
}

/// What all files have in common: owner and mode as mounted by root with the usual umask.
fn base_attr() -> Attr {
    Attr {
        ino: ROOT,
        kind: FileKind::File,
        mode: 0o755,
        uid: 0,
        gid: 0,
        size: 0,
        blocks_512: 0,
        nlink: 1,
        rdev: (0, 0),
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: None,
    }
}

impl FsView for Vfat {
    fn format(&self) -> &'static str {
        "vfat"
    }

    fn label(&self) -> String {
        let serial = self.boot.serial;
        format!("{} {:04X}-{:04X}", self.boot.label, serial >> 16, serial & 0xFFFF).trim().to_owned()
    }

    fn replay(&self) -> String {
        if self.boot.dirty {
            return "partial: the file system was in use and has no log; what was not written back is missing".into();
        }
        "clean".into()
    }

    fn root(&self) -> Ino {
        ROOT
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino> {
        let (mut exact, mut alike) = (None, None);
        let folded = names::fold(name);
        self.walk(dir, 0, |named, ino, _| {
            if named.is_dot {
                return true;
            }
            if named.name == name {
                exact = Some(ino);
            } else if alike.is_none() && named.is_alike(&folded) {
                alike = Some(ino);
            }
            exact.is_none()
        })?;
        exact.or(alike).ok_or_else(|| Error::NotFound(crate::walk::show(name)))
    }

    fn readdir(&self, dir: Ino, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        if max == 0 {
            return Ok(entries);
        }
        let listed = self.walk(dir, cookie, |named, ino, behind| {
            if named.is_dot {
                return true;
            }
            let kind = Some(if named.is_dir { FileKind::Dir } else { FileKind::File });
            entries.push(DirEntry { name: named.name.clone(), ino, kind, cookie: behind });
            entries.len() < max
        });
        // What can be read is listed; the next call meets the damage.
        if entries.is_empty() { listed.map(|()| entries) } else { Ok(entries) }
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        if ino == ROOT {
            return self.attr_of_dir(ino, [Timestamp::default(); 3], Some(Timestamp::default()));
        }
        let entry = self.entry(ino)?;
        let (mtime, atime, btime) = (entry.modified(), entry.accessed(), entry.created());
        if entry.is_dir() {
            return self.attr_of_dir(ino, [mtime, atime, mtime], btime);
        }
        let size = u64::from(entry.size);
        let mode = if entry.is_read_only() { 0o555 } else { 0o755 };
        let blocks_512 = size.next_multiple_of(self.boot.cluster_bytes) / 512;
        Ok(Attr { ino, mode, size, blocks_512, mtime, atime, ctime: mtime, btime, ..base_attr() })
    }

    fn read_at(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let entry = self.file_entry(ino)?;
        let left = u64::from(entry.size).saturating_sub(offset);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        let chain = self.file_chain(&entry)?;
        let mut done = 0;
        while done < len {
            let short = || Error::Corrupt(format!("vfat inode {ino}: its clusters end before its size"));
            let (at, there) = self.place(&chain, offset + done as u64).ok_or_else(short)?;
            let count = (len - done).min(usize::try_from(there).unwrap_or(usize::MAX));
            self.dev.read_at(at, &mut buf[done..done + count])?;
            done += count;
        }
        Ok(len)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<Range<u64>>> {
        let size = u64::from(self.file_entry(ino)?.size);
        Ok((offset < size).then_some(offset..size))
    }

    fn extent(&self, ino: Ino, offset: u64) -> Result<Option<Extent>> {
        let (place, size) = if ino == ROOT || self.entry(ino)?.is_dir() {
            let dir = self.dir_chain(ino)?;
            (self.dir_place(&dir, offset), self.dir_len(&dir))
        } else {
            let entry = self.file_entry(ino)?;
            let chain = self.file_chain(&entry)?;
            (self.place(&chain, offset), u64::from(entry.size))
        };
        let left = size.saturating_sub(offset);
        Ok((left > 0).then(|| match place {
            Some((at, len)) => Extent::Data { at, len: len.min(left) },
            None => Extent::Opaque { len: left },
        }))
    }

    fn is_unchecked(&self) -> bool {
        true
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        Err(Error::WrongKind(format!("inode {ino} is not a symbolic link")))
    }

    fn xattrs(&self, _ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(Vec::new())
    }

    fn statfs(&self) -> StatFs {
        StatFs {
            block_bytes: u32::try_from(self.boot.cluster_bytes).unwrap_or(u32::MAX),
            blocks: u64::from(self.boot.clusters),
            blocks_free: self.free_clusters(),
            inodes: 0,
            inodes_free: 0,
            name_max: NAME_MAX,
        }
    }
}
