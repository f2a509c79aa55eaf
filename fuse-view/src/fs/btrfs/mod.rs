//! btrfs on one device, read only, with its log replayed in memory.
//!
//! What a mount without options would show is served: the default subvolume, the others below it, and after a power cut
//! what was fsynced. `replay` lays the changes of the log trees over the trees on disk, item by item; nothing is
//! written. Checksums of metadata and data are verified, and where one is wrong, the other copies are tried.
//!
//! Invariants: the caches hold only what was read from the image and passed its checks; the changes of replay are made
//! before the reader exists and never change again; damage is an error of the object it was found in.

#![forbid(unsafe_code)]

mod blocks;
mod checksum;
mod chunk;
mod compress;
mod data;
mod dir;
mod entry;
mod extent;
mod inode;
mod items;
mod key;
mod node;
mod place;
mod replay;
mod shadow;
mod space;
mod subvol;
mod superblock;
mod xattr;

use crate::overlay::Scratch;
use crate::{Attr, BlockRead, DirEntry, Error, Extent, FileKind, FsView, Ino, Result, StatFs};
use blocks::{Blocks, TreeRoot};
use chunk::ChunkMap;
use inode::Inode;
use items::View;
use key::{Key, id, kind};
use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use replay::Replayed;
use shadow::Shadow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use subvol::{Numbers, RootItem, Subvol, find_root, is_subvol};
use superblock::{Superblock, compat_ro};

/// Longest target of a symbolic link that the kernel takes, with the NUL.
const PATH_MAX: u64 = 4096;
/// Subvolumes that are kept open.
const MAX_SUBVOLS: usize = 1024;
/// Bytes of unpacked extents that are kept.
const UNPACKED_BYTES: u64 = 8 << 20;

/// `(bytes on disk, bytes unpacked, method)` of a compressed extent, and what it unpacks to.
type Unpacked = ((u64, u64, u8), Arc<[u8]>);

#[derive(Clone)]
struct ByBytes;

impl Weighter<u64, Unpacked> for ByBytes {
    fn weight(&self, _address: &u64, (_, bytes): &Unpacked) -> u64 {
        bytes.len() as u64 + 64
    }
}

/// One btrfs file system.
pub struct Btrfs {
    sb: Superblock,
    blocks: Blocks,
    root_tree: TreeRoot,
    csum_tree: Option<TreeRoot>,
    numbers: Numbers,
    shadows: HashMap<u64, Arc<Shadow>>,
    replayed_sums: Option<Shadow>,
    replay: String,
    subvols: Mutex<HashMap<u64, Arc<Subvol>>>,
    unpacked: Cache<u64, Unpacked, ByBytes>,
    /// Which directory an empty one, that stands for a missing subvolume, is in.
    empty: Mutex<HashMap<Ino, u64>>,
    space: OnceLock<StatFs>,
}

impl Btrfs {
    /// Opens the file system on `dev` and replays its log, with the memory for that from `scratch`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names features that are not read; [`Error::Corrupt`] where the superblock, the tree of
    /// chunks, the tree of roots or the root directory is damaged. A log that cannot be replayed is no error: then
    /// [`FsView::replay`] says so.
    pub fn open(dev: Arc<dyn BlockRead>, scratch: &Scratch) -> Result<Self> {
        let sb = Superblock::read(&*dev)?;
        let blocks = open_blocks(dev, &sb)?;
        let root_tree = TreeRoot { address: sb.root, level: sb.root_level, generation: sb.generation };
        let roots = View::plain(&blocks, root_tree);
        let root = subvol::default_subvol(&roots)?;
        let csum_tree = find_root(&roots, id::CSUM_TREE)?.map(|item| item.tree);
        let numbers = Numbers::new(&roots, root)?;
        let (replayed, replay) = replay_log(&sb, &blocks, root_tree, scratch);
        let unpacked = Cache::with_weighter(64, UNPACKED_BYTES, ByBytes);
        let fs = Self {
            sb,
            blocks,
            root_tree,
            csum_tree,
            numbers,
            shadows: replayed.shadows,
            replayed_sums: replayed.sums,
            replay,
            subvols: Mutex::default(),
            unpacked,
            empty: Mutex::default(),
            space: OnceLock::new(),
        };
        let dir = fs.subvol(root)?.root_dir;
        fs.directory(fs.number(root, dir)?)?;
        Ok(fs)
    }

    fn roots(&self) -> View<'_> {
        View::plain(&self.blocks, self.root_tree)
    }

    /// Subvolume `id`.
    fn subvol(&self, id: u64) -> Result<Arc<Subvol>> {
        self.find_subvol(id)?.ok_or_else(|| Error::NotFound(format!("btrfs subvolume {id}")))
    }

    /// Subvolume `id`; None: there is none, or it is deleted.
    fn find_subvol(&self, id: u64) -> Result<Option<Arc<Subvol>>> {
        if let Some(open) = self.subvols.lock().get(&id) {
            return Ok(Some(open.clone()));
        }
        if !is_subvol(id) {
            return Ok(None);
        }
        let Some(RootItem { tree, root_dir, refs: 1.. }) = find_root(&self.roots(), id)? else {
            return Ok(None);
        };
        let subvol = Arc::new(Subvol { id, tree, root_dir, shadow: self.shadows.get(&id).cloned() });
        let mut open = self.subvols.lock();
        if open.len() >= MAX_SUBVOLS {
            open.clear();
        }
        open.insert(id, subvol.clone());
        Ok(Some(subvol))
    }

    /// A directory; None: one that stands for a subvolume which is not there.
    fn directory(&self, ino: Ino) -> Result<Option<Inode>> {
        let dir = self.target(ino)?;
        match dir {
            Some(dir) if dir.kind != FileKind::Dir => {
                Err(Error::WrongKind(format!("inode {ino} is not a directory")))
            }
            dir => Ok(dir),
        }
    }

    fn regular(&self, ino: Ino) -> Result<Inode> {
        self.target(ino)?
            .filter(|inode| inode.kind == FileKind::File)
            .ok_or_else(|| Error::WrongKind(format!("inode {ino} is not a regular file")))
    }
}

/// Reads the tree of chunks, without which no other address means anything.
fn open_blocks(dev: Arc<dyn BlockRead>, sb: &Superblock) -> Result<Blocks> {
    let mut chunks = ChunkMap::of_superblock(&sb.sys_chunks, sb.device)?;
    let system = Blocks::new(dev.clone(), sb, chunks.clone());
    let tree =
        TreeRoot { address: sb.chunk_root, level: sb.chunk_root_level, generation: sb.chunk_root_generation };
    for item in View::plain(&system, tree).walk(Key::new(id::FIRST_CHUNK_TREE, kind::CHUNK, 0)) {
        let (key, item) = item?;
        if !key.is(id::FIRST_CHUNK_TREE, kind::CHUNK) {
            break;
        }
        chunks.add(key.offset, &item)?;
    }
    Ok(Blocks::new(dev, sb, chunks))
}

/// Replays what log there is; what cannot be replayed is told, and the last commit served.
fn replay_log(sb: &Superblock, blocks: &Blocks, roots: TreeRoot, scratch: &Scratch) -> (Replayed, String) {
    let nothing = Replayed::default();
    if sb.copy != 0 {
        let why = "partial: the first superblock is damaged, and only it knows of a log; what was fsynced after the \
                   last commit may be missing";
        return (nothing, why.into());
    }
    if sb.log_root == 0 {
        return (nothing, "clean".into());
    }
    let unknown = sb.compat_ro & !compat_ro::KNOWN;
    if unknown != 0 {
        let why = format!(
            "partial: the log is not replayed because of unknown features 0x{unknown:x}; what was fsynced after the \
             last commit is missing"
        );
        return (nothing, why);
    }
    match replay::replay(sb, blocks, roots, scratch) {
        Ok(replayed) => (replayed, "replayed".into()),
        Err(e) => {
            let why = format!(
                "partial: the log cannot be replayed ({e}); what was fsynced after the last commit is missing"
            );
            (nothing, why)
        }
    }
}

impl FsView for Btrfs {
    fn format(&self) -> &'static str {
        "btrfs"
    }

    fn label(&self) -> String {
        let label = String::from_utf8_lossy(&self.sb.label);
        format!("{label} {}", uuid_text(&self.sb.fsid)).trim().to_string()
    }

    fn replay(&self) -> String {
        self.replay.clone()
    }

    fn root(&self) -> Ino {
        let root = self.numbers.root;
        let dir = self.find_subvol(root).ok().flatten().map_or(id::FIRST_FREE, |subvol| subvol.root_dir);
        self.number(root, dir).unwrap_or(id::FIRST_FREE)
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino> {
        match self.directory(dir)? {
            Some(dir) => self.find(&dir, name),
            None => Err(Error::NotFound(String::from_utf8_lossy(name).into_owned())),
        }
    }

    fn readdir(&self, dir: Ino, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        self.directory(dir)?.map_or_else(|| Ok(Vec::new()), |dir| self.list(&dir, cookie, max))
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        match self.target(ino)? {
            Some(inode) => Ok(inode.attr(ino, self.blocks.sector_bytes)),
            None => self.attr_of_empty(ino),
        }
    }

    fn read_at(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read(&self.regular(ino)?, offset, buf)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<Range<u64>>> {
        self.next_range(&self.regular(ino)?, offset)
    }

    fn extent(&self, ino: Ino, offset: u64) -> Result<Option<Extent>> {
        self.content_extent(ino, offset)
    }

    fn inode_at(&self, ino: Ino) -> Result<Option<Range<u64>>> {
        self.inode_leaf(ino)
    }

    fn bookkeeping(&self) -> Result<Option<Vec<Range<u64>>>> {
        self.all_bookkeeping()
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let link = self.target(ino)?.filter(|inode| inode.kind == FileKind::Symlink);
        let link = link.ok_or_else(|| Error::WrongKind(format!("inode {ino} is not a symbolic link")))?;
        let bad = |what: String| {
            Error::Corrupt(format!("btrfs link {} of subvolume {}: {what}", link.ino, link.subvol.id))
        };
        if link.size() == 0 || link.size() >= PATH_MAX {
            return Err(bad(format!("a target of {} bytes", link.size())));
        }
        let mut target = vec![0; usize::try_from(link.size()).unwrap_or(0)];
        self.read(&link, 0, &mut target)?;
        // A target ends at its first NUL, as in the kernel.
        target.truncate(target.iter().position(|&b| b == 0).unwrap_or(target.len()));
        if target.is_empty() { Err(bad("an empty target".into())) } else { Ok(target) }
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.target(ino)?.map_or_else(|| Ok(Vec::new()), |inode| self.all_xattrs(&inode))
    }

    fn statfs(&self) -> StatFs {
        *self.space.get_or_init(|| self.count_space())
    }
}

/// A UUID in its usual form.
fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex: Vec<String> = uuid.iter().map(|b| format!("{b:02x}")).collect();
    [hex[..4].concat(), hex[4..6].concat(), hex[6..8].concat(), hex[8..10].concat(), hex[10..].concat()]
        .join("-")
}
