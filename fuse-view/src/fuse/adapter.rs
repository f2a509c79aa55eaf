//! FUSE requests answered from a tree.

use super::{
    ahead::ReadAhead,
    ids::Ids,
    owners::Owners,
    plus::{Entry, Known, Listing},
};
use crate::{
    Attr, Error, FileKind, Result as TreeResult, Timestamp, near,
    tree::{Lifetime, Node, OpenFile, Tree, TreeEntry},
    walk::is_plain_name,
};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr,
    Request,
};
use parking_lot::RwLock;
use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io,
    os::unix::ffi::OsStrExt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

/// Largest request for data.
const MAX_READ_BYTES: u32 = 1024 * 1024;
/// Requests of read-ahead that the kernel may have under way.
const MAX_BACKGROUND: u16 = 64;
/// Of no more data a program waits for the answer rather than for the copy.
const SMALL_READ_BYTES: u32 = 16 * 1024;
/// Entries taken from a directory at once while filling a reply.
const BATCH: usize = 64;
/// A name that never changes.
const FOREVER: Duration = Duration::from_secs(365 * 86_400);
/// A name that may be renamed or deleted.
const SHORT: Duration = Duration::from_secs(1);

/// The kernel's side of a mount, where fuser's replies are not enough.
pub struct Kernel {
    pub notifier: Notifier,
    /// What the requests are read from. All threads read from the same one: a request is answered where it was read.
    pub device: File,
}

/// The file system that fuser drives.
pub struct Adapter {
    tree: Arc<dyn Tree>,
    ids: Ids,
    known: Known,
    owners: Owners,
    /// Set before the first request is read.
    kernel: Arc<OnceLock<Kernel>>,
    open: RwLock<HashMap<u64, OpenFile>>,
    next_handle: AtomicU64,
    ahead: ReadAhead,
}

thread_local! {
    /// Buffer of the reads of one thread.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Adapter {
    pub fn new(tree: Arc<dyn Tree>, kernel: Arc<OnceLock<Kernel>>, owners: Owners) -> Self {
        let (ids, known) = (Ids::new(tree.root()), Known::default());
        let open = RwLock::new(HashMap::new());
        let next_handle = AtomicU64::new(1);
        let ahead = ReadAhead::new(tree.clone());
        Self { tree, ids, known, owners, kernel, open, next_handle, ahead }
    }

    fn node(&self, id: INodeNo) -> Result<Node, Errno> {
        self.ids.node(id).ok_or(Errno::ESTALE)
    }

    fn ttl(&self, node: Node) -> Duration {
        match self.tree.lifetime(node) {
            Lifetime::Forever => FOREVER,
            Lifetime::Short => SHORT,
            Lifetime::Now => Duration::ZERO,
        }
    }

    /// Looks into `dir` for the caller. Where that changes what was told of the directory, everybody but root
    /// walks the path again (the kernel does, on ESTALE) with the permissions that hold now.
    fn enter(&self, request: &Request, id: INodeNo) -> Result<Node, Errno> {
        let dir = self.node(id)?;
        if self.tree.reveal(dir).map_err(errno)? {
            if let Some(kernel) = self.kernel.get() {
                // A negative offset: attributes only, which waits for nobody.
                let _ = kernel.notifier.inval_inode(id, -1, 0);
            }
            if request.uid() != 0 {
                return Err(Errno::ESTALE);
            }
        }
        Ok(dir)
    }

    fn look_up(&self, request: &Request, parent: INodeNo, name: &OsStr) -> Result<(Node, FileAttr), Errno> {
        let dir = self.enter(request, parent)?;
        let (node, attr) = self.tree.lookup_attr(dir, name.as_bytes()).map_err(errno)?;
        Ok((node, self.shown(&attr, self.ids.remember(node))))
    }

    fn shown(&self, attr: &Attr, id: INodeNo) -> FileAttr {
        let attr = file_attr(attr, id);
        FileAttr { uid: self.owners.users.shown(attr.uid), gid: self.owners.groups.shown(attr.gid), ..attr }
    }

    fn opened(&self, file: OpenFile) -> FileHandle {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(handle, file);
        FileHandle(handle)
    }

    /// The file behind a handle, or behind an inode that was opened without one.
    fn file(&self, id: INodeNo, handle: FileHandle) -> Result<OpenFile, Errno> {
        if let Some(file) = self.open.read().get(&handle.0) {
            return Ok(file.clone());
        }
        self.tree.open(self.node(id)?).map_err(errno)
    }

    /// Gives `.` and `..`, where they are behind `offset`, to `add` until that answers that the reply is full: then
    /// None. Else the cookie after which entries follow. Offset 0 stands before `.`, 1 before `..`, and 2 + c behind
    /// the entry with cookie c.
    fn list_dots(offset: u64, mut add: impl FnMut(u64, &[u8]) -> bool) -> Option<u64> {
        let dots = [&b"."[..], b".."];
        let mut left = (1..).zip(dots).skip(usize::try_from(offset).unwrap_or(2));
        let full = left.any(|(next, name)| add(next, name));
        (!full).then(|| offset.saturating_sub(2))
    }

    fn list(&self, dir: Node, offset: u64, reply: &mut ReplyDirectory) -> Result<(), Errno> {
        let add_dot = |next, name: &[u8]| {
            reply.add(self.ids.show(dir), next, FileType::Directory, OsStr::from_bytes(name))
        };
        let Some(mut cookie) = Self::list_dots(offset, add_dot) else { return Ok(()) };
        loop {
            let entries = self.tree.readdir(dir, cookie, BATCH).map_err(errno)?;
            let Some(last) = entries.last() else { return Ok(()) };
            cookie = last.cookie;
            // A name that no file can have would make the kernel refuse the whole directory.
            for entry in entries.iter().filter(|entry| is_plain_name(&entry.name)) {
                let kind = match entry.kind {
                    Some(kind) => Some(kind),
                    None => self.tree.attr(entry.node).ok().map(|attr| attr.kind),
                };
                let kind = kind.map_or(FileType::RegularFile, file_type);
                let (id, next) = (self.ids.show(entry.node), entry.cookie.saturating_add(2));
                if reply.add(id, next, kind, OsStr::from_bytes(&entry.name)) {
                    return Ok(());
                }
            }
        }
    }

    /// Adds what follows `offset` to `reply`, and to `listing`, which says the same but for what the kernel knows.
    fn list_plus(
        &self,
        id: INodeNo,
        offset: u64,
        reply: &mut ReplyDirectoryPlus,
        listing: &mut Listing,
    ) -> Result<(), Errno> {
        let dir = self.node(id)?;
        // The kernel takes nothing of these two but their names.
        let add_dot = |next, name: &[u8]| {
            let entry = (Duration::ZERO, unknown_attr(Some(FileKind::Dir), id));
            Self::add_plus(next, name, &entry, false, reply, listing)
        };
        let Some(mut cookie) = Self::list_dots(offset, add_dot) else { return Ok(()) };
        loop {
            let mut ahead = self.ahead.take(dir, cookie).map_err(errno)?;
            let Some((entry, _)) = ahead.entries.back() else { return Ok(()) };
            cookie = entry.cookie;
            while let Some((entry, attr)) = ahead.entries.pop_front() {
                if is_plain_name(&entry.name) && self.add_entry(&entry, &attr, reply, listing) {
                    ahead.entries.push_front((entry, attr));
                    self.ahead.keep(ahead);
                    return Ok(());
                }
                ahead.after = entry.cookie;
            }
            if ahead.end {
                // The kernel asks once more, and is told the end then.
                self.ahead.keep(ahead);
                return Ok(());
            }
        }
    }

    /// Adds an entry; true: the reply had no room.
    fn add_entry(
        &self,
        entry: &TreeEntry,
        attr: &TreeResult<Attr>,
        reply: &mut ReplyDirectoryPlus,
        listing: &mut Listing,
    ) -> bool {
        let number = self.ids.remember(entry.node);
        let known = self.known.contains(number);
        let (ttl, attr) = match attr {
            Ok(attr) => (self.ttl(entry.node), self.shown(attr, number)),
            Err(_) => unknown(entry.kind, number),
        };
        let next = entry.cookie.saturating_add(2);
        let full = Self::add_plus(next, &entry.name, &(ttl, attr), known, reply, listing);
        if full {
            self.ids.forget(number, 1);
        } else if !known {
            self.told(ttl, &attr);
        }
        full
    }

    fn add_plus(
        next: u64,
        name: &[u8],
        (ttl, attr): &(Duration, FileAttr),
        known: bool,
        reply: &mut ReplyDirectoryPlus,
        listing: &mut Listing,
    ) -> bool {
        let full = reply.add(attr.ino, next, OsStr::from_bytes(name), ttl, attr, Generation(0));
        if !full {
            listing.push(name, &Entry { next, ttl: *ttl, attr, known });
        }
        full
    }

    /// Notes that the kernel is told of a file by its name, which it need not be told again: it has no other name, and
    /// never changes.
    fn told(&self, ttl: Duration, attr: &FileAttr) {
        if ttl == FOREVER && (attr.nlink == 1 || attr.kind == FileType::Directory) {
            self.known.insert(attr.ino);
        }
    }

    /// The extended attribute, as far as the caller may see it.
    fn visible_xattr(&self, request: &Request, id: INodeNo, name: &OsStr) -> Result<Vec<u8>, Errno> {
        let name = name.as_bytes();
        let value = if may_see_xattr(request, name) {
            let value = self.tree.xattr(self.node(id)?, name).map_err(errno)?;
            value.map(|value| self.owners.shown_acl(name, value))
        } else {
            None
        };
        // ls(1) asks every file for its label, unless a file answers that there are none here.
        let absent = if name == b"security.selinux" { Errno::EOPNOTSUPP } else { Errno::ENODATA };
        value.ok_or(absent)
    }

    fn seek(&self, id: INodeNo, handle: FileHandle, offset: i64, whence: i32) -> Result<i64, Errno> {
        let file = self.file(id, handle)?;
        let size = file.view.attr(file.ino).map_err(errno)?.size;
        let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let next = |at| file.view.next_data(file.ino, at).map_err(errno);
        let found = match whence {
            libc::SEEK_DATA => next(offset)?.map(|range| range.start.max(offset)).ok_or(Errno::ENXIO)?,
            libc::SEEK_HOLE => {
                let mut hole = offset;
                while let Some(range) = next(hole)?.filter(|range| range.start <= hole && range.end > hole) {
                    hole = range.end;
                }
                hole.min(size)
            }
            _ => return Err(Errno::EINVAL),
        };
        i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wish in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // ACLs of the image decide, and the kernel keeps them.
            InitFlags::FUSE_POSIX_ACL,
        ] {
            // A kernel without it serves all the same.
            let _ = config.add_capabilities(wish);
        }
        let _ = config.set_max_write(MAX_READ_BYTES);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        near::asked_by(request.pid());
        match self.look_up(request, parent, name) {
            Ok((node, attr)) => {
                let ttl = self.ttl(node);
                self.told(ttl, &attr);
                reply.entry(&ttl, &attr, Generation(0));
            }
            Err(Errno::ENOENT) if self.node(parent).is_ok_and(|dir| self.ttl(dir) == FOREVER) => {
                // Number 0: there is no such file, and there never will be.
                reply.entry(&FOREVER, &unknown_attr(None, INodeNo(0)), Generation(0));
            }
            Err(error) => reply.error(error),
        }
    }

    fn forget(&self, _request: &Request, id: INodeNo, lookups: u64) {
        self.known.remove(id);
        self.ids.forget(id, lookups);
    }

    fn getattr(&self, request: &Request, id: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        near::asked_by(request.pid());
        let found = self.node(id).and_then(|node| Ok((node, self.tree.attr(node).map_err(errno)?)));
        match found {
            Ok((node, attr)) => reply.attr(&self.ttl(node), &self.shown(&attr, id)),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _request: &Request, id: INodeNo, reply: ReplyData) {
        match self.node(id).and_then(|node| self.tree.readlink(node).map_err(errno)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, request: &Request, id: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        near::asked_by(request.pid());
        if self.tree.is_static() {
            // Nothing to keep open: the kernel need not ask again.
            return reply.error(Errno::ENOSYS);
        }
        match self.node(id).and_then(|node| self.tree.open(node).map_err(errno)) {
            Ok(file) => {
                reply.opened(self.opened(file), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        request: &Request,
        id: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if size > SMALL_READ_BYTES {
            near::anywhere();
        } else {
            near::asked_by(request.pid());
        }
        let file = match self.file(id, handle) {
            Ok(file) => file,
            Err(error) => return reply.error(error),
        };
        BUFFER.with_borrow_mut(|buffer| {
            let size = usize::try_from(size.min(MAX_READ_BYTES)).unwrap_or(0);
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match file.view.read_at(file.ino, offset, &mut buffer[..size]) {
                Ok(count) => reply.data(&buffer[..count.min(size)]),
                Err(error) => {
                    tracing::warn!(ino = file.ino, offset, size, %error, "read failed");
                    reply.error(errno(error));
                }
            }
        });
    }

    fn flush(
        &self,
        _request: &Request,
        _id: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing is ever written; the kernel stops asking.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        _id: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let closed = self.open.write().remove(&handle.0);
        reply.ok();
        drop(closed);
    }

    fn opendir(&self, request: &Request, id: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        near::asked_by(request.pid());
        if self.tree.is_static() {
            // The kernel caches all directories then.
            return reply.error(Errno::ENOSYS);
        }
        let dir = match self.enter(request, id) {
            Ok(dir) => dir,
            Err(error) => return reply.error(error),
        };
        // Lists of volumes and snapshots change, and are in no file system that could be kept open.
        match self.tree.open(dir) {
            Ok(file) => {
                reply.opened(self.opened(file), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(Error::WrongKind(_)) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.node(id).and_then(|dir| self.list(dir, offset, &mut reply));
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(
        &self,
        request: &Request,
        id: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        near::asked_by(request.pid());
        let mut listing = Listing::default();
        if let Err(error) = self.list_plus(id, offset, &mut reply, &mut listing) {
            return reply.error(error);
        }
        match self.kernel.get() {
            Some(kernel) if !listing.known().is_empty() => {
                if listing.send(&kernel.device, request.unique().0).is_err() {
                    return reply.ok();
                }
                listing.known().iter().for_each(|id| self.ids.forget(*id, 1));
                // fuser must answer, too; the kernel knows the request no more.
                reply.error(Errno::ENOENT);
            }
            _ => reply.ok(),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _id: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let closed = self.open.write().remove(&handle.0);
        reply.ok();
        drop(closed);
    }

    fn statfs(&self, _request: &Request, id: INodeNo, reply: ReplyStatfs) {
        match self.node(id).and_then(|node| self.tree.statfs(node).map_err(errno)) {
            Ok(is) => reply.statfs(
                is.blocks,
                is.blocks_free,
                is.blocks_free,
                is.inodes,
                is.inodes_free,
                is.block_bytes,
                is.name_max,
                is.block_bytes,
            ),
            Err(error) => reply.error(error),
        }
    }

    fn getxattr(&self, request: &Request, id: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        near::asked_by(request.pid());
        send_xattr(self.visible_xattr(request, id, name), size, reply);
    }

    fn listxattr(&self, request: &Request, id: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.node(id).and_then(|node| self.tree.xattr_names(node).map_err(errno));
        let list = names.map(|names| {
            let seen = names.into_iter().filter(|name| may_see_xattr(request, name));
            seen.flat_map(|name| name.into_iter().chain([0])).collect()
        });
        send_xattr(list, size, reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        id: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.seek(id, handle, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(error),
        }
    }

    fn ioctl(
        &self,
        _request: &Request,
        _id: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}

/// Whether the caller may know of an extended attribute: those of the system are root's.
fn may_see_xattr(request: &Request, name: &[u8]) -> bool {
    request.uid() == 0 || !(name.starts_with(b"trusted.") || name.starts_with(b"security."))
}

/// Answers with a value, or with its size to who asks for 0 bytes.
fn send_xattr(value: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Err(error) => reply.error(error),
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
    }
}

#[allow(clippy::needless_pass_by_value)] // map_err wants it so
fn errno(error: Error) -> Errno {
    Errno::from_i32(error.errno())
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDev => FileType::CharDevice,
        FileKind::BlockDev => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

fn file_attr(attr: &Attr, ino: INodeNo) -> FileAttr {
    FileAttr {
        ino,
        size: attr.size,
        blocks: attr.blocks_512,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: attr.btime.map_or(SystemTime::UNIX_EPOCH, system_time),
        kind: file_type(attr.kind),
        perm: attr.mode & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device_number(attr.rdev),
        blksize: 4096,
        flags: 0,
    }
}

/// What stands for attributes that could not be read, where the name is there all the same: a size that the kernel refuses, so that it asks again.
fn unknown(kind: Option<FileKind>, ino: INodeNo) -> (Duration, FileAttr) {
    (Duration::ZERO, FileAttr { size: u64::MAX, ..unknown_attr(kind, ino) })
}

fn unknown_attr(kind: Option<FileKind>, ino: INodeNo) -> FileAttr {
    let epoch = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: kind.map_or(FileType::RegularFile, file_type),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The 32-bit device number of the FUSE protocol (the kernel's `new_encode_dev`): 12 bits of major in the
/// middle of 20 bits of minor.
fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)
}

fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    let exact = whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanoseconds.into())));
    exact.unwrap_or(SystemTime::UNIX_EPOCH)
}
