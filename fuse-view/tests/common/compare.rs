//! Every field of every file, as the kernel shows it and as a reader does; the first difference is a panic.

use super::support::Chance;
use super::sys;
use fuse_view::{FileKind, FsView, Ino, Timestamp};
use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

/// What can be compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// The kernel's mount of the same image: everything.
    Mount,
    /// The tree that mke2fs copied in: what it copies.
    Source,
}

/// Compares everything below the roots; the number of files seen.
pub fn compare_trees(fs: &dyn FsView, root: &Path, against: Against) -> usize {
    let mut todo = vec![(root.to_path_buf(), fs.root())];
    let mut seen = 0;
    while let Some((path, ino)) = todo.pop() {
        seen += 1;
        let meta = fs::symlink_metadata(&path).unwrap();
        // The root directory is made by mke2fs itself.
        if against == Against::Mount || ino != fs.root() {
            compare_attr(fs, ino, &path, &meta, against);
        }
        let kind = meta.file_type();
        if kind.is_dir() {
            todo.extend(
                compare_dir(fs, ino, &path, against)
                    .into_iter()
                    .map(|(name, ino)| (path.join(std::ffi::OsString::from_vec(name)), ino)),
            );
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).unwrap().into_os_string().into_vec();
            assert_eq!(fs.readlink(ino).unwrap(), target, "{}", path.display());
        } else if kind.is_file() {
            compare_content(fs, ino, &path, meta.size(), against);
        }
    }
    seen
}

pub fn kind_of(meta: &Metadata) -> FileKind {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => FileKind::Dir,
        () if kind.is_symlink() => FileKind::Symlink,
        () if kind.is_char_device() => FileKind::CharDev,
        () if kind.is_block_device() => FileKind::BlockDev,
        () if kind.is_fifo() => FileKind::Fifo,
        () if kind.is_socket() => FileKind::Socket,
        () => FileKind::File,
    }
}

fn compare_attr(fs: &dyn FsView, ino: Ino, path: &Path, meta: &Metadata, against: Against) {
    let attr = fs.attr(ino).unwrap();
    let at = path.display();
    let time = |seconds, nanoseconds| Timestamp { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap() };
    assert_eq!(attr.kind, kind_of(meta), "{at}");
    let rdev = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    assert_eq!(
        (u32::from(attr.mode), attr.uid, attr.gid),
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        "{at}"
    );
    if meta.file_type().is_char_device() || meta.file_type().is_block_device() {
        assert_eq!(attr.rdev, rdev, "{at}");
    }
    let theirs = sys::xattrs(path).unwrap();
    if against == Against::Source {
        // mke2fs copies the low 32 bits of whole seconds, and turns lists of access into its own form or leaves them out.
        // A directory is filled after its times are set.
        if kind_of(meta) != FileKind::Dir {
            assert_eq!(attr.mtime.seconds & 0xFFFF_FFFF, meta.mtime() & 0xFFFF_FFFF, "{at}");
        }
        for (name, value) in theirs.into_iter().filter(|(name, _)| !name.starts_with(b"system.")) {
            assert!(fs.xattrs(ino).unwrap().contains(&(name, value)), "{at}");
        }
        if kind_of(meta) != FileKind::Dir {
            assert_eq!((attr.size, u64::from(attr.nlink)), (meta.size(), meta.nlink()), "{at}");
        }
        return;
    }
    assert_eq!(fs.xattrs(ino).unwrap(), theirs, "{at}");
    assert_eq!(attr.ino, meta.ino(), "{at}");
    assert_eq!(attr.mtime, time(meta.mtime(), meta.mtime_nsec()), "mtime of {at}");
    assert_eq!(attr.ctime, time(meta.ctime(), meta.ctime_nsec()), "ctime of {at}");
    assert_eq!((attr.size, u64::from(attr.nlink)), (meta.size(), meta.nlink()), "{at}");
    assert_eq!(attr.blocks_512, meta.blocks(), "blocks of {at}");
    if let Ok(born) = meta.created() {
        let since = born.duration_since(std::time::UNIX_EPOCH).unwrap();
        let theirs = time(i64::try_from(since.as_secs()).unwrap(), i64::from(since.subsec_nanos()));
        assert_eq!(attr.btime, Some(theirs), "birth of {at}");
    } else {
        assert_eq!(attr.btime, None, "birth of {at}");
    }
}

/// Names and inodes of a directory, listed in steps of several sizes, each also looked up.
fn compare_dir(fs: &dyn FsView, dir: Ino, path: &Path, against: Against) -> BTreeMap<Vec<u8>, Ino> {
    let mut theirs: BTreeMap<Vec<u8>, Ino> = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap().map(|e| e.unwrap()) {
        theirs.insert(entry.file_name().as_bytes().to_vec(), entry.ino());
    }
    let mut ours = BTreeMap::new();
    for step in [1000, 7] {
        ours.clear();
        let mut cookie = 0;
        loop {
            let entries = fs.readdir(dir, cookie, step).unwrap();
            assert!(entries.len() <= step);
            let Some(last) = entries.last() else { break };
            assert_ne!(last.cookie, 0);
            cookie = last.cookie;
            for entry in entries {
                if let Some(kind) = entry.kind {
                    assert_eq!(kind, fs.attr(entry.ino).unwrap().kind);
                }
                assert_eq!(
                    ours.insert(entry.name, entry.ino),
                    None,
                    "a name listed twice in {}",
                    path.display()
                );
            }
        }
        if against == Against::Source {
            ours.remove(&b"lost+found"[..]);
            assert!(ours.keys().eq(theirs.keys()), "{}", path.display());
        } else {
            assert!(ours == theirs, "{}: {} names for {}", path.display(), ours.len(), theirs.len());
        }
    }
    // One file in three, so that some steps pass over more than they give.
    let wanted = |ino: Ino, _| ino.is_multiple_of(3);
    let (mut some, mut cookie) = (BTreeMap::new(), 0);
    while let entries @ [.., last] = &*fs.readdir_wanted(dir, cookie, 2, &wanted).unwrap() {
        assert!(entries.len() <= 2);
        cookie = last.cookie;
        for entry in entries {
            assert_eq!(some.insert(entry.name.clone(), entry.ino), None, "twice in {}", path.display());
        }
    }
    if against == Against::Source {
        some.remove(&b"lost+found"[..]);
    }
    assert!(some.iter().eq(ours.iter().filter(|(_, ino)| wanted(**ino, None))), "{}", path.display());
    for (name, ino) in &ours {
        assert_eq!(fs.lookup(dir, name).unwrap(), *ino, "{}", path.display());
    }
    for absent in [&b"no such name"[..], b"", b"x\0y", &[b'n'; 256]] {
        assert!(matches!(fs.lookup(dir, absent), Err(fuse_view::Error::NotFound(_))), "{absent:?}");
    }
    ours
}

pub fn kernel_ranges(file: &File) -> Vec<(u64, u64)> {
    let (mut at, mut ranges) = (0, Vec::new());
    while let Some(start) = sys::seek(file, at, libc::SEEK_DATA).unwrap() {
        let end = sys::seek(file, start, libc::SEEK_HOLE).unwrap().unwrap();
        ranges.push((start, end));
        at = end;
    }
    ranges
}

fn compare_content(fs: &dyn FsView, ino: Ino, path: &Path, size: u64, against: Against) {
    let file = File::open(path).unwrap();
    let at = path.display();
    // Before any read: pages in memory turn what was never written into data.
    let theirs = kernel_ranges(&file);
    let mut ours = Vec::new();
    let mut from = 0;
    while let Some(range) = fs.next_data(ino, from).unwrap() {
        assert!(range.start >= from && range.end > range.start && range.end <= size, "{at}: {range:?}");
        from = range.end;
        ours.push((range.start, range.end));
    }
    if against == Against::Mount {
        assert_eq!(ours, theirs, "data of {at}");
    }
    let same = |offset: u64, len: usize| {
        let (mut a, mut b) = (vec![1; len], vec![2; len]);
        let got = fs.read_at(ino, offset, &mut a).unwrap();
        let mut want = 0;
        while want < len {
            match file.read_at(&mut b[want..], offset + want as u64).unwrap() {
                0 => break,
                n => want += n,
            }
        }
        assert!(
            got == want && a[..got] == b[..want],
            "content of {at} at {offset}, {len} bytes: {got}, {want}"
        );
    };
    for &(start, end) in &theirs {
        let mut pos = start.saturating_sub(100);
        while pos < end {
            same(pos, 1 << 20);
            pos += 1 << 20;
        }
    }
    let mut chance = Chance(ino);
    for _ in 0..10 {
        same(chance.below(size + 10), usize::try_from(chance.below(20_000)).unwrap());
    }
    same(size, 10);
}
