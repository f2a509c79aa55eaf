//! A whole tree as a map from paths to records, of a mount or of a reader: two of them are compared in one go, and all
//! differences are told.

use super::compare::{kernel_ranges, kind_of};
use super::sys;
use fuse_view::{FileKind, FsView, Ino, Timestamp};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Everything about one name that can be compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub ino: u64,
    pub kind: FileKind,
    pub mode: u32,
    pub owner: (u32, u32),
    pub nlink: u64,
    pub rdev: (u32, u32),
    pub size: u64,
    pub blocks_512: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Option<Timestamp>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Ranges with data, of a regular file.
    pub data: Vec<(u64, u64)>,
    /// Hash of the content of a regular file, target of a link.
    pub content: Vec<u8>,
    /// What could not be read.
    pub error: Option<String>,
}

/// By path below the root; the root itself is the empty path.
pub type Tree = BTreeMap<Vec<u8>, Record>;

/// Which fields say nothing in a comparison.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mask {
    pub ino: bool,
    pub mtime: bool,
    pub ctime: bool,
    pub btime: bool,
    pub nlink: bool,
    /// Sizes of directories.
    pub dir_size: bool,
    pub dir_nlink: bool,
    pub blocks: bool,
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn digest(pieces: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut hasher = DefaultHasher::new();
    // Not the pieces themselves are hashed: the two sides may cut differently.
    pieces.for_each(|piece| hasher.write(&piece));
    0u8.hash(&mut hasher);
    hasher.finish().to_le_bytes().to_vec()
}

/// The tree below a mount point, of the file system mounted there alone.
pub fn of_mount(root: &Path) -> Tree {
    let mut tree = Tree::new();
    // A second name of a file: what was read by the first one is in memory, and no longer a hole. Subvolumes of a btrfs
    // have devices of their own, and the same inode numbers.
    let mut known: HashMap<(u64, u64), Record> = HashMap::new();
    let mut todo = vec![Vec::new()];
    while let Some(name) = todo.pop() {
        let path = root.join(std::ffi::OsStr::from_bytes(&name));
        let (device, mut record) = match fs::symlink_metadata(&path) {
            Ok(meta) => (meta.dev(), of_meta(&meta)),
            Err(e) => {
                tree.insert(name, broken(e.to_string()));
                continue;
            }
        };
        if let Some(first) = known.get(&(device, record.ino)) {
            tree.insert(name, first.clone());
            continue;
        }
        match fill_from_mount(&path, &mut record) {
            Ok(names) => todo.extend(names.iter().map(|child| join(&name, child))),
            Err(e) => record.error = Some(e.to_string()),
        }
        if record.kind == FileKind::File && record.nlink > 1 {
            known.insert((device, record.ino), record.clone());
        }
        tree.insert(name, record);
    }
    tree
}

fn of_meta(meta: &fs::Metadata) -> Record {
    let time = |seconds, nanoseconds| Timestamp { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap() };
    let kind = kind_of(meta);
    let special = matches!(kind, FileKind::CharDev | FileKind::BlockDev);
    let btime = meta.created().ok().map(|born| {
        let since = born.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        time(i64::try_from(since.as_secs()).unwrap(), i64::from(since.subsec_nanos()))
    });
    Record {
        ino: meta.ino(),
        kind,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        nlink: meta.nlink(),
        rdev: if special { (libc::major(meta.rdev()), libc::minor(meta.rdev())) } else { (0, 0) },
        size: meta.size(),
        blocks_512: meta.blocks(),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        btime,
        xattrs: Vec::new(),
        data: Vec::new(),
        content: Vec::new(),
        error: None,
    }
}

/// Attributes and content; the names in a directory.
fn fill_from_mount(path: &Path, record: &mut Record) -> std::io::Result<Vec<Vec<u8>>> {
    record.xattrs = sys::xattrs(path)?;
    match record.kind {
        FileKind::Dir => {
            let mut names = Vec::new();
            for entry in fs::read_dir(path)? {
                names.push(entry?.file_name().into_vec());
            }
            return Ok(names);
        }
        FileKind::Symlink => record.content = fs::read_link(path)?.into_os_string().into_vec(),
        FileKind::File => {
            let file = File::open(path)?;
            // Before any read: pages in memory turn what was never written into data.
            record.data = kernel_ranges(&file);
            let mut error = None;
            record.content = digest(pieces(&record.data).map(|(at, len)| {
                let mut buf = vec![0; len];
                if let Err(e) = file.read_exact_at(&mut buf, at) {
                    error = Some(e);
                }
                buf
            }));
            if let Some(e) = error {
                return Err(e);
            }
        }
        _ => {}
    }
    Ok(Vec::new())
}

/// The ranges in pieces of at most 1 MiB.
fn pieces(ranges: &[(u64, u64)]) -> impl Iterator<Item = (u64, usize)> + '_ {
    const PIECE: u64 = 1 << 20;
    ranges.iter().flat_map(|&(start, end)| {
        (start..end).step_by(1 << 20).map(move |at| (at, usize::try_from((end - at).min(PIECE)).unwrap()))
    })
}

/// The tree that a reader shows.
pub fn of_view(view: &dyn FsView) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![(Vec::new(), view.root())];
    while let Some((name, ino)) = todo.pop() {
        let mut record = match view.attr(ino) {
            Ok(attr) => of_attr(&attr),
            Err(e) => {
                tree.insert(name, broken(e.to_string()));
                continue;
            }
        };
        match fill_from_view(view, ino, &mut record) {
            Ok(names) => todo.extend(names.into_iter().map(|(child, ino)| (join(&name, &child), ino))),
            Err(e) => record.error = Some(e.to_string()),
        }
        assert!(tree.len() < 1_000_000, "a tree without end");
        tree.insert(name, record);
    }
    tree
}

fn of_attr(attr: &fuse_view::Attr) -> Record {
    let special = matches!(attr.kind, FileKind::CharDev | FileKind::BlockDev);
    Record {
        ino: attr.ino,
        kind: attr.kind,
        mode: u32::from(attr.mode),
        owner: (attr.uid, attr.gid),
        nlink: u64::from(attr.nlink),
        rdev: if special { attr.rdev } else { (0, 0) },
        size: attr.size,
        blocks_512: attr.blocks_512,
        mtime: attr.mtime,
        ctime: attr.ctime,
        btime: attr.btime,
        xattrs: Vec::new(),
        data: Vec::new(),
        content: Vec::new(),
        error: None,
    }
}

fn fill_from_view(
    view: &dyn FsView,
    ino: Ino,
    record: &mut Record,
) -> fuse_view::Result<Vec<(Vec<u8>, Ino)>> {
    record.xattrs = view.xattrs(ino)?;
    match record.kind {
        FileKind::Dir => {
            let (mut names, mut cookie) = (Vec::new(), 0);
            loop {
                let entries = view.readdir(ino, cookie, 1000)?;
                let Some(last) = entries.last() else { return Ok(names) };
                cookie = last.cookie;
                for entry in entries {
                    let found = view.lookup(ino, &entry.name)?;
                    assert_eq!(found, entry.ino, "listed and found differ: {:?}", entry.name);
                    names.push((entry.name, entry.ino));
                }
            }
        }
        FileKind::Symlink => record.content = view.readlink(ino)?,
        FileKind::File => {
            let mut from = 0;
            while let Some(range) = view.next_data(ino, from)? {
                assert!(range.start >= from && range.end > range.start);
                from = range.end;
                record.data.push((range.start, range.end));
            }
            let mut error = None;
            record.content = digest(pieces(&record.data).map(|(at, len)| {
                let mut buf = vec![0; len];
                if let Err(e) = view.read_at(ino, at, &mut buf) {
                    error = Some(e);
                }
                buf
            }));
            if let Some(e) = error {
                return Err(e);
            }
        }
        _ => {}
    }
    Ok(Vec::new())
}

fn broken(error: String) -> Record {
    Record {
        ino: 0,
        kind: FileKind::File,
        mode: 0,
        owner: (0, 0),
        nlink: 0,
        rdev: (0, 0),
        size: 0,
        blocks_512: 0,
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: None,
        xattrs: Vec::new(),
        data: Vec::new(),
        content: Vec::new(),
        error: Some(error),
    }
}

/// All differences, a line each: `path: field: ours, theirs`.
pub fn differences(ours: &Tree, theirs: &Tree, mask_of: impl Fn(&[u8], &Record) -> Mask) -> Vec<String> {
    let mut found = Vec::new();
    for (path, theirs) in theirs {
        let name = String::from_utf8_lossy(path);
        let Some(ours) = ours.get(path) else {
            found.push(format!("{name}: missing"));
            continue;
        };
        let mask = mask_of(path, theirs);
        let dir = theirs.kind == FileKind::Dir;
        let mut field = |what: &str, same: bool, masked: bool, sides: [&dyn std::fmt::Debug; 2]| {
            if !same && !masked {
                found.push(format!("{name}: {what}: {:?}, not {:?}", sides[0], sides[1]));
            }
        };
        macro_rules! same {
            ($($field:ident: $masked:expr),* $(,)?) => {
                $(field(stringify!($field), ours.$field == theirs.$field, $masked, [&ours.$field, &theirs.$field]);)*
            };
        }
        // An error is compared by being one: the words are each side's own.
        field("error", ours.error.is_some() == theirs.error.is_some(), false, [&ours.error, &theirs.error]);
        if ours.error.is_some() || theirs.error.is_some() {
            continue;
        }
        same!(
            ino: mask.ino, kind: false, mode: false, owner: false,
            nlink: mask.nlink || (dir && mask.dir_nlink), rdev: false,
            size: dir && mask.dir_size, blocks_512: mask.blocks || (dir && mask.dir_size),
            mtime: mask.mtime, ctime: mask.ctime, btime: mask.btime,
            xattrs: false, data: false, content: false,
        );
    }
    let extra = ours.keys().filter(|path| !theirs.contains_key(*path));
    found.extend(extra.map(|path| format!("{}: should not be there", String::from_utf8_lossy(path))));
    found
}
