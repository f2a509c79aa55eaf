//! What a path leads to in one snapshot.

use crate::{
    Attr, BlockRead, Error, FileKind, Ino, Result,
    container::{self, Inside},
    content::{self, Content},
    memo::Memo,
    walk,
};
use std::{ops::Range, sync::Arc};

const PIECE_BYTES: usize = 256 * 1024;

/// See the module.
pub struct Look {
    /// Index of the snapshot.
    pub index: usize,
    memo: Arc<Memo>,
    inside: Option<Inside>,
    /// What is there; None: nothing.
    pub file: Option<File>,
}

/// A file that is there.
pub struct File {
    ino: Ino,
    pub attr: Attr,
    pub target: Option<Vec<u8>>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the content lies; none of what had to be read.
    ranges: Vec<Range<u64>>,
}

impl Look {
    /// Looks `path` up. What cannot be read because it is damaged is an error; what is not there is not.
    pub fn new(index: usize, memo: Arc<Memo>, path: &[u8]) -> Result<Self> {
        let source: Arc<dyn BlockRead> = memo.clone();
        let mut look = Self { index, memo, inside: None, file: None };
        look.inside = match container::locate(&source, path) {
            // The snapshot may be older than its file system.
            Err(Error::NotFound(_) | Error::Unsupported(_)) => return Ok(look),
            inside => Some(inside?),
        };
        look.file = match look.find() {
            Err(Error::NotFound(_) | Error::WrongKind(_)) => None,
            file => Some(file?),
        };
        Ok(look)
    }

    fn find(&self) -> Result<File> {
        let missing = || Error::NotFound("no file system".into());
        let inside = self.inside.as_ref().ok_or_else(missing)?;
        let view = &*inside.view;
        let ino = walk::lookup_path(view, &inside.path, false)?;
        let attr = view.attr(ino)?;
        let target = if attr.kind == FileKind::Symlink { Some(view.readlink(ino)?) } else { None };
        let xattrs = view.xattrs(ino)?;
        let mut file = File { ino, attr, target, xattrs, ranges: Vec::new() };
        if file.attr.kind == FileKind::File {
            match self.content_of(&file).and_then(|content| content.ranges().transpose()) {
                Some(ranges) => file.ranges = ranges?,
                None => self.read(&file)?,
            }
        }
        Ok(file)
    }

    fn content_of(&self, file: &File) -> Option<Content<'_>> {
        let inside = self.inside.as_ref()?;
        Some(Content { view: &*inside.view, start: inside.start, ino: file.ino })
    }

    /// Reads content only so that it is known where it comes from.
    fn read(&self, file: &File) -> Result<()> {
        let Some(content) = self.content_of(file) else { return Ok(()) };
        self.memo.content(true);
        let mut buf = vec![0; PIECE_BYTES];
        let mut offset = 0;
        let outcome = loop {
            match content.view.read_at(file.ino, offset, &mut buf) {
                Ok(0) => break Ok(()),
                Ok(count) => offset += count as u64,
                Err(error) => break Err(error),
            }
        };
        self.memo.content(false);
        outcome
    }

    /// The ranges that hold content.
    pub fn content(&self) -> Vec<Range<u64>> {
        self.file.as_ref().map(|file| file.ranges.clone()).unwrap_or_default()
    }

    /// Inode and attributes, to find the file by another name.
    pub fn identity(&self) -> Option<(Ino, &Attr)> {
        self.file.as_ref().map(|file| (file.ino, &file.attr))
    }

    /// Whether both show the same version. With `unchanged`, what this one's content lies in is the same in both.
    pub fn same(&self, now: &Self, unchanged: bool) -> Result<bool> {
        let (Some(a), Some(b)) = (&self.file, &now.file) else { return Ok(false) };
        let shown = |file: &File| {
            let attr = &file.attr;
            (attr.kind, attr.mode, attr.uid, attr.gid, attr.size, attr.mtime, attr.rdev)
        };
        if shown(a) != shown(b) || a.target != b.target || a.xattrs != b.xattrs {
            return Ok(false);
        }
        if a.attr.kind != FileKind::File {
            return Ok(true);
        }
        let (Some(old), Some(new)) = (self.content_of(a), now.content_of(b)) else { return Ok(false) };
        for memo in [&self.memo, &now.memo] {
            memo.content(true);
        }
        let same = content::same(old, new, a.attr.size, &|_| unchanged);
        for memo in [&self.memo, &now.memo] {
            memo.content(false);
        }
        same
    }
}
