//! A file system in memory, for tests of what stands above the readers.
#![allow(dead_code, unused_imports)] // every test binary uses its own part

pub mod provider;
#[path = "../../../tests/skip.rs"]
mod skip;

pub use skip::skip;

use fuse_view::{Attr, DirEntry, Error, FileKind, FsView, Ino, Result, StatFs, Timestamp};
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// One inode.
#[derive(Clone)]
pub struct Node {
    pub attr: Attr,
    /// Children in order; names are taken as they are, so that hostile ones can be made.
    pub children: Vec<(Vec<u8>, Ino)>,
    /// Data by offset; what is not here is a hole.
    pub data: BTreeMap<u64, Vec<u8>>,
    pub target: Vec<u8>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The file system. Inode 2 is the root.
pub struct FakeView {
    pub nodes: BTreeMap<Ino, Node>,
    pub replay: String,
    /// Reading data of this inode fails from this offset on.
    pub bad_data: Option<(Ino, u64)>,
    /// Calls so far.
    pub calls: Calls,
}

#[derive(Default)]
pub struct Calls {
    pub lookup: AtomicUsize,
    pub readdir: AtomicUsize,
    pub xattrs: AtomicUsize,
}

pub const ROOT: Ino = 2;

impl Default for FakeView {
    fn default() -> Self {
        let (nodes, calls) = (BTreeMap::new(), Calls::default());
        let mut view = Self { nodes, replay: "clean".into(), bad_data: None, calls };
        view.nodes.insert(ROOT, node(ROOT, FileKind::Dir, 0o755));
        view
    }
}

fn node(ino: Ino, kind: FileKind, mode: u16) -> Node {
    let time = Timestamp { seconds: 1_600_000_000, nanoseconds: 123_456_789 };
    Node {
        attr: Attr {
            ino,
            kind,
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            blocks_512: 0,
            nlink: 1,
            rdev: (0, 0),
            atime: time,
            mtime: time,
            ctime: time,
            btime: None,
        },
        children: Vec::new(),
        data: BTreeMap::new(),
        target: Vec::new(),
        xattrs: Vec::new(),
    }
}

impl FakeView {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an inode of `kind` under `dir`; returns its number.
    pub fn add(&mut self, dir: Ino, name: impl AsRef<[u8]>, kind: FileKind, mode: u16) -> Ino {
        let ino = self.nodes.keys().last().unwrap() + 1;
        self.nodes.insert(ino, node(ino, kind, mode));
        self.link(dir, name, ino);
        self.node(ino).attr.nlink = 1;
        ino
    }

    pub fn dir(&mut self, dir: Ino, name: impl AsRef<[u8]>) -> Ino {
        self.add(dir, name, FileKind::Dir, 0o755)
    }

    pub fn file(&mut self, dir: Ino, name: impl AsRef<[u8]>, content: &[u8]) -> Ino {
        let ino = self.add(dir, name, FileKind::File, 0o644);
        self.write(ino, 0, content);
        ino
    }

    pub fn symlink(&mut self, dir: Ino, name: impl AsRef<[u8]>, target: &[u8]) -> Ino {
        let ino = self.add(dir, name, FileKind::Symlink, 0o777);
        self.node(ino).target = target.to_vec();
        self.node(ino).attr.size = target.len() as u64;
        ino
    }

    /// A further name of `ino`.
    pub fn link(&mut self, dir: Ino, name: impl AsRef<[u8]>, ino: Ino) {
        self.node(dir).children.push((name.as_ref().to_vec(), ino));
        self.node(ino).attr.nlink += 1;
    }

    /// Data at `offset`; leaves a hole before it.
    pub fn write(&mut self, ino: Ino, offset: u64, content: &[u8]) {
        let node = self.node(ino);
        if !content.is_empty() {
            node.data.insert(offset, content.to_vec());
        }
        node.attr.size = node.attr.size.max(offset + content.len() as u64);
        node.attr.blocks_512 = node.attr.size.div_ceil(512);
    }

    pub fn node(&mut self, ino: Ino) -> &mut Node {
        self.nodes.get_mut(&ino).unwrap()
    }

    fn get(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino).ok_or_else(|| Error::NotFound(format!("inode {ino}")))
    }
}

impl FsView for FakeView {
    fn format(&self) -> &'static str {
        "fake"
    }
    fn label(&self) -> String {
        String::new()
    }
    fn replay(&self) -> String {
        self.replay.clone()
    }
    fn root(&self) -> Ino {
        ROOT
    }
    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino> {
        self.calls.lookup.fetch_add(1, Ordering::Relaxed);
        let found = self.get(dir)?.children.iter().find(|(child, _)| child == name);
        found.map(|(_, ino)| *ino).ok_or_else(|| Error::NotFound(String::from_utf8_lossy(name).into()))
    }
    fn readdir(&self, dir: Ino, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        self.calls.readdir.fetch_add(1, Ordering::Relaxed);
        let children = self.get(dir)?.children.iter().zip(1..).skip(usize::try_from(cookie).unwrap());
        let entry = |((name, ino), cookie): (&(Vec<u8>, Ino), u64)| DirEntry {
            name: name.clone(),
            ino: *ino,
            kind: self.nodes.get(ino).map(|node| node.attr.kind),
            cookie,
        };
        Ok(children.take(max).map(entry).collect())
    }
    fn attr(&self, ino: Ino) -> Result<Attr> {
        self.get(ino).map(|node| node.attr.clone())
    }
    fn read_at(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let node = self.get(ino)?;
        let count = buf.len().min(usize::try_from(node.attr.size.saturating_sub(offset)).unwrap());
        if let Some((bad, from)) = self.bad_data
            && bad == ino
            && offset + count as u64 > from
        {
            return Err(Error::Corrupt("checksum".into()));
        }
        buf[..count].fill(0);
        for (&start, data) in &node.data {
            for (at, &byte) in (start..).zip(data) {
                if at >= offset && at < offset + count as u64 {
                    buf[usize::try_from(at - offset).unwrap()] = byte;
                }
            }
        }
        Ok(count)
    }
    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<Range<u64>>> {
        let extents = self.get(ino)?.data.iter();
        let mut ranges = extents.map(|(&start, data)| start..start + data.len() as u64);
        Ok(ranges.find(|range| range.end > offset).map(|range| range.start.max(offset)..range.end))
    }
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.get(ino).map(|node| node.target.clone())
    }
    fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.calls.xattrs.fetch_add(1, Ordering::Relaxed);
        self.get(ino).map(|node| node.xattrs.clone())
    }
    fn statfs(&self) -> StatFs {
        StatFs { block_bytes: 4096, blocks: 1000, name_max: 255, ..StatFs::default() }
    }
}
