//! A file system made of a few files that are in no image: what stands for a volume whose files cannot be shown.

use crate::{Attr, BlockRead, DirEntry, Error, FileKind, FsView, Ino, Result, StatFs, Timestamp};
use std::{ops::Range, sync::Arc};

/// Inode of the directory.
const ROOT: Ino = 1;
/// Inode of the first file.
const FIRST: Ino = 2;

/// Attributes of a directory that is in no image.
pub fn dir_attr(created_at: i64) -> Attr {
    let time = Timestamp { seconds: created_at, nanoseconds: 0 };
    Attr {
        ino: ROOT,
        kind: FileKind::Dir,
        mode: 0o755,
        uid: 0,
        gid: 0,
        size: 0,
        blocks_512: 0,
        nlink: 2,
        rdev: (0, 0),
        atime: time,
        mtime: time,
        ctime: time,
        btime: None,
    }
}

/// Attributes of a symbolic link that is in no image.
pub fn symlink_attr(created_at: i64, target: &str) -> Attr {
    Attr { kind: FileKind::Symlink, mode: 0o777, nlink: 1, size: target.len() as u64, ..dir_attr(created_at) }
}

enum Content {
    Text(String),
    Blocks(Arc<dyn BlockRead>),
}

/// A directory with `README.cowslip`, which says why there is no file system to see, and the raw bytes.
pub struct RawView {
    created_at: i64,
    replay: String,
    /// Name, permissions and content, by inode from [`FIRST`] on.
    files: Vec<(&'static [u8], u16, Content)>,
}

impl RawView {
    /// The bytes of `source` as the file `name`; with `why`, an explanation beside it.
    pub fn new(
        source: Arc<dyn BlockRead>,
        name: &'static [u8],
        why: Option<&Error>,
        created_at: i64,
    ) -> Self {
        let mut files = Vec::new();
        if let Some(why) = why {
            let raw = String::from_utf8_lossy(name);
            let text = format!(
                "The files in here cannot be shown: {why}.\nThe content as it is on disk: {raw}, {} bytes.\n",
                source.len()
            );
            files.push((&b"README.cowslip"[..], 0o444, Content::Text(text)));
        }
        // Past the permissions of the files in it: for root alone.
        files.push((name, 0o400, Content::Blocks(source)));
        let replay = why.map_or_else(|| "clean".to_owned(), |why| format!("partial: {why}"));
        Self { created_at, replay, files }
    }

    fn content(&self, ino: Ino) -> Result<(u16, &Content)> {
        let index = ino.checked_sub(FIRST).and_then(|index| usize::try_from(index).ok());
        let file = index.and_then(|index| self.files.get(index));
        file.map(|(_, mode, content)| (*mode, content)).ok_or_else(|| Error::NotFound(format!("inode {ino}")))
    }
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Blocks(source) => source.len(),
        }
    }
}

impl FsView for RawView {
    fn format(&self) -> &'static str {
        "raw"
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

    fn lookup(&self, _dir: Ino, name: &[u8]) -> Result<Ino> {
        let mut inos = (FIRST..).zip(&self.files);
        let found = inos.find(|(_, (known, ..))| *known == name).map(|(ino, _)| ino);
        found.ok_or_else(|| Error::NotFound(crate::walk::show(name)))
    }

    fn readdir(&self, _dir: Ino, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        let entry = |(ino, (name, ..)): (Ino, &(&[u8], u16, Content))| DirEntry {
            name: name.to_vec(),
            ino,
            kind: Some(FileKind::File),
            cookie: ino,
        };
        let all = (FIRST..).zip(&self.files).filter(|(ino, _)| *ino > cookie);
        Ok(all.take(max).map(entry).collect())
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        let dir = dir_attr(self.created_at);
        if ino == ROOT {
            return Ok(dir);
        }
        let (mode, content) = self.content(ino)?;
        let size = content.len();
        let blocks_512 = size.div_ceil(512);
        Ok(Attr { ino, kind: FileKind::File, mode, nlink: 1, size, blocks_512, ..dir })
    }

    fn read_at(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (_, content) = self.content(ino)?;
        let left = content.len().saturating_sub(offset);
        let count = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let buf = &mut buf[..count];
        match content {
            _ if count == 0 => {}
            Content::Text(text) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                buf.copy_from_slice(&text.as_bytes()[start..start + count]);
            }
            Content::Blocks(source) => source.read_at(offset, buf)?,
        }
        Ok(count)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<Range<u64>>> {
        let end = self.content(ino)?.1.len();
        Ok((offset < end).then_some(offset..end))
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        Err(Error::WrongKind(format!("inode {ino} is not a symbolic link")))
    }

    fn xattrs(&self, _ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(Vec::new())
    }

    fn statfs(&self) -> StatFs {
        let bytes: u64 = self.files.iter().map(|(_, _, content)| content.len()).sum();
        let inodes = self.files.len() as u64 + 1;
        StatFs { block_bytes: 4096, blocks: bytes.div_ceil(4096), inodes, name_max: 255, ..StatFs::default() }
    }
}
